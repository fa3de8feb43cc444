"""Lists whose records have no id, or not all of them: stored by content, as often as the list has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import HTTP_RULES, Source, stack, sync
from lamella.batch import Journal
from lamella.sync import Cursor, Numbered, Pagination, Part, RepeatedPage

RULES = HTTP_RULES.scaled(0.0001)
FAR = "1000000"
ATTEMPTS = 5
MOST = 500
"""A list that is asked for more pages never ends."""


class Server:
    """Serves *records*, with or without totals, and perhaps all of them on each page."""

    def __init__(self, records: list[Any], *, total: bool = True, ignores_page: bool = False) -> None:
        self.records = records
        self.total = total
        self.ignores_page = ignores_page
        self.asked = 0
        self.states: int | None = None
        """The total that it states. None: the number of records."""
        self.after_first: Callable[[Server], object] | None = None
        """Called once, when a page 1 has been answered."""

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked += 1
        page, limit = int(request.query["page"]), int(request.query["limit"])
        start = 0 if self.ignores_page else (page - 1) * limit
        body: dict[str, Any] = {"data": self.records[start : start + limit]}
        if self.total:
            body["total"] = len(self.records) if self.states is None else self.states
        if self.after_first is not None:
            self.after_first(self)
            self.after_first = None
        return web.json_response(body)


async def run(server: Server | Rows, serve: Serve, path: Path, **source: Any) -> tuple[Part, list[tuple[str, Any]]]:
    options: dict[str, Any] = {"id": ("id", None), "total": "total", "changed": "at", "since": "since"}
    of = Source("rows", **({"pages": Numbered(page_size=4)} | options | source))
    output = path / "rows.jsonl"
    async with (
        aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session,
        Journal.open(path / "journal", batch="rows") as journal,
    ):
        report = await sync.run(session, {"rows": of}, journal=journal, output=output)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return report.parts[0], [(line["id"], line["record"]) for line in lines]


def rows(*values: Any) -> list[dict[str, Any]]:
    return [{"value": value} for value in values]


def values(found: list[tuple[str, Any]]) -> Counter[Any]:
    return Counter(record["value"] for _, record in found)


@pytest.mark.parametrize("total", [True, False])
async def test_each_record_without_id_is_stored_as_often_as_it_occurs(
    serve: Serve, tmp_path: Path, total: bool
) -> None:
    server = Server(rows(1, 2, 2, 2, 3, 4, 2, 1, 5), total=total)
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.nameless) == (True, 9)
    assert values(found) == Counter({1: 2, 2: 4, 3: 1, 4: 1, 5: 1})
    part, again = await run(server, serve, tmp_path)
    assert (part.done, part.records, again) == (True, 0, found)


@pytest.mark.parametrize("total", [True, False])
async def test_a_changed_record_without_id_replaces_the_old_one(serve: Serve, tmp_path: Path, total: bool) -> None:
    server = Server(rows(1, 2, 2, 3, 4), total=total)
    await run(server, serve, tmp_path)
    server.records = rows(1, 2, 30, 4, 4, 5)  # one 2 is gone, 3 has become 30, 4 is there twice
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.records) == (True, 3)
    assert values(found) == Counter({1: 1, 2: 1, 30: 1, 4: 2, 5: 1})


async def test_records_with_and_without_id_can_be_mixed(serve: Serve, tmp_path: Path) -> None:
    dated = [{"id": f"r{n}", "value": n, "at": "2026-01-01T00:00:00Z"} for n in range(5)]
    server = Server([*dated, *rows(7, 7), {"id": None, "value": 8, "at": "2026-01-02T00:00:00Z"}])
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.nameless, len(found)) == (True, 3, 8)
    assert {name for name, _ in found if not name.startswith("content:")} == {f"r{n}" for n in range(5)}
    server.records = dated  # all have an id now: the next run reads all once more, and the one after it what is new
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.since, len(found)) == (True, None, 5)
    part, _ = await run(server, serve, tmp_path)
    assert part.since is not None


async def test_a_list_may_have_only_records_without_id(serve: Serve, tmp_path: Path) -> None:
    part, found = await run(Server(rows(1, 1)), serve, tmp_path, id=None)
    assert part.done
    assert [name.rpartition(":")[2] for name, _ in found] == ["1", "2"]


async def test_an_api_that_ignores_the_page_parameter_is_noticed(serve: Serve, tmp_path: Path) -> None:
    server = Server(rows(1, 2, 3, 4), total=False, ignores_page=True)
    part, _ = await run(server, serve, tmp_path)
    assert isinstance(part.error, RepeatedPage)
    assert server.asked < 20


async def test_by_default_a_record_without_id_is_a_bad_record(serve: Serve, tmp_path: Path) -> None:
    part, found = await run(Server(rows(1)), serve, tmp_path, id="id")
    assert not part.done
    assert not found
    assert "has no 'id'" in part.bad[0]


@pytest.mark.parametrize("total", [True, False])
async def test_an_empty_answer_does_not_drop_all_records_without_id(serve: Serve, tmp_path: Path, total: bool) -> None:
    """One answer may be a mistake. Records with an id are not marked by it, either."""
    server = Server(rows(1, 2, 2), total=total)
    _, before = await run(server, serve, tmp_path)
    server.records = []
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.unmet, part.deleted, found) == (True, 3, 0, before)
    part, found = await run(server, serve, tmp_path)
    assert (part.unmet, part.deleted, found) == ((0, 3, before) if total else (3, 0, before))
    lines = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert ["deleted" in line for line in lines] == [total] * 3
    server.records = rows(2, 9)
    part, found = await run(server, serve, tmp_path)
    assert (part.done, values(found)) == (True, Counter({2: 1, 9: 1}))
    assert '"deleted"' not in (tmp_path / "rows.jsonl").read_text()


def replace_first(server: Server) -> None:
    server.records = [*server.records[1:], {"value": "new"}]


MOVES: dict[str, Callable[[Server], None]] = {
    "the first record is deleted": lambda server: server.records.pop(0),
    "a record replaces the first one": replace_first,
    "the list is turned around": lambda server: server.records.reverse(),
}


@pytest.mark.parametrize("total", [True, False])
@pytest.mark.parametrize("move", MOVES)
async def test_a_record_that_shifts_to_an_already_read_page_is_not_dropped(
    serve: Serve, tmp_path: Path, move: str, total: bool
) -> None:
    server = Server(rows(*range(11)), total=total)
    await run(server, serve, tmp_path)
    server.after_first = MOVES[move]
    part, found = await run(server, serve, tmp_path)
    assert (part.done, part.unmet) == (True, 0)
    assert values(found) == Counter(record["value"] for record in server.records)


@pytest.mark.parametrize("total", [True, False])
async def test_a_record_on_two_pages_of_the_first_run_may_have_moved(serve: Serve, tmp_path: Path, total: bool) -> None:
    server = Server(rows(*range(11)), total=total)
    server.after_first = MOVES["the list is turned around"]
    part, found = await run(server, serve, tmp_path)
    assert part.done
    assert values(found) == Counter(range(11))


async def test_a_total_that_is_that_of_full_pages_drops_no_record(serve: Serve, tmp_path: Path) -> None:
    server = Server(rows(*range(11)))
    await run(server, serve, tmp_path)
    server.states = 8
    part, found = await run(server, serve, tmp_path)
    assert part.done
    assert values(found) == Counter(range(11))


async def test_one_short_page_drops_no_record(serve: Serve, tmp_path: Path) -> None:
    """Without a total, one answer proves nothing, even if it is a single page."""
    server = Server(rows(1, 2, 3), total=False)
    await run(server, serve, tmp_path)
    server.records = rows(1)
    server.after_first = lambda server: server.records.extend(rows(2, 3))
    part, found = await run(server, serve, tmp_path)
    assert (part.done, values(found)) == (True, Counter({1: 1, 2: 1, 3: 1}))


class Rows:
    """Serves pages of records without an id, by number or by cursor."""

    def __init__(
        self, records: list[Any] | None, *, total: int | None = None, loops: bool = False, has_ids: bool = False
    ) -> None:
        self.records = records  # None: each answer has new ones, whichever page is requested
        self.total = total
        self.loops = loops  # whether each answer has the same cursor
        self.has_ids = has_ids
        self.asked = 0
        self.broken = 0
        """The number of further requests of a far page that it answers with 500."""

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.asked > MOST:
            return web.Response(status=410)
        if self.broken and request.query.get("page") == FAR:
            self.broken -= 1
            return web.json_response({"message": "out of memory"}, status=500)
        page = int(request.query.get("page") or request.query.get("cursor") or 1)
        new: list[Any] = rows(*(f"{self.asked}-{number}" for number in range(4)))
        if self.has_ids:
            new = [{"id": row["value"]} for row in new]
        data = new if self.records is None else self.records[(page - 1) * 4 : page * 4]
        body: dict[str, Any] = {"data": data} | ({} if self.total is None else {"total": self.total})
        if "page" not in request.query and len(data) == 4:
            body["next_cursor"] = "1" if self.loops else str(page + 1)
        return web.json_response(body)


EQUAL = [*rows(7) * 14, *rows(8)]
PAGES: dict[str, Pagination] = {"numbers": Numbered(page_size=4), "cursors": Cursor(page_size=4)}


@pytest.mark.parametrize("total", [None, len(EQUAL)])
@pytest.mark.parametrize("by", PAGES)
async def test_pages_that_are_really_equal_are_stored(serve: Serve, tmp_path: Path, by: str, total: int | None) -> None:
    server = Rows(EQUAL, total=total)
    for _ in range(2):
        part, found = await run(server, serve, tmp_path, pages=PAGES[by])
        assert (part.done, part.error, values(found)) == (True, None, Counter({7: 14, 8: 1}))
    source = Source("rows", PAGES[by], id=None, total="total")
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        assert [record async for record in sync.records(session, source)] == EQUAL


@pytest.mark.parametrize("total", [None, 8])
async def test_an_api_that_ignores_the_page_is_noticed_although_the_count_fits(
    serve: Serve, tmp_path: Path, total: int | None
) -> None:
    server = Server(rows(1, 1, 1, 1), total=total is not None, ignores_page=True)
    server.states = total
    part, _ = await run(server, serve, tmp_path)
    assert isinstance(part.error, RepeatedPage)
    assert "so has page 1,000,000" in str(part.error)
    assert server.asked < 20


async def test_a_full_page_may_be_the_whole_list_of_an_api_that_ignores_the_page(serve: Serve, tmp_path: Path) -> None:
    server = Server(rows(1, 2, 3, 4), ignores_page=True)
    part, found = await run(server, serve, tmp_path)
    assert (part.done, len(found)) == (True, 4)
    source = Source("rows", Numbered(page_size=4), id=None, total="total")
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        assert [record async for record in sync.records(session, source)] == server.records


async def test_a_cursor_that_repeats_is_noticed(serve: Serve, tmp_path: Path) -> None:
    server = Rows(rows(1, 2, 3, 4), loops=True)
    part, _ = await run(server, serve, tmp_path, pages=PAGES["cursors"])
    assert isinstance(part.error, RepeatedPage)
    assert server.asked < 20
    source = Source("rows", PAGES["cursors"], id=None)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        with pytest.raises(RepeatedPage):
            _ = [record async for record in sync.records(session, source)]


@pytest.mark.parametrize("total", [None, 4])
@pytest.mark.parametrize("has_ids", [False, True])
async def test_an_api_that_ignores_the_page_and_always_has_new_records_ends(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ids: bool, total: int | None
) -> None:
    monkeypatch.setattr("lamella.sync.page._LONG", 20)  # for records with an id, it is 1,000
    server = Rows(None, has_ids=has_ids, total=total)
    part, _ = await run(server, serve, tmp_path)
    assert isinstance(part.error, RepeatedPage)
    assert server.asked < 100
    source = Source("rows", Numbered(page_size=4), id=None, total="total")
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        with pytest.raises(RepeatedPage, match="rows might never end: page 20 has records, and so has page 1,000,000"):
            _ = [record async for record in sync.records(session, source)]


async def test_a_long_list_without_counts_is_read_to_its_end(serve: Serve, tmp_path: Path) -> None:
    server = Rows(rows(*range(101)))
    part, found = await run(server, serve, tmp_path)
    assert (part.done, len(found)) == (True, 101)
    assert server.asked == 26 + 1 + 1, "the empty page after the end, and one far after it"


async def test_a_failure_far_after_the_end_proves_nothing(serve: Serve, tmp_path: Path) -> None:
    server = Rows(None)
    server.broken = ATTEMPTS
    part, _ = await run(server, serve, tmp_path)
    assert isinstance(part.error, RepeatedPage)
    assert not server.broken
    server.asked, server.broken = 0, ATTEMPTS
    source = Source("rows", Numbered(page_size=4), id=None)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        with pytest.raises(RepeatedPage, match="page 40 has records, and so has page 1,000,000"):
            _ = [record async for record in sync.records(session, source)]


@pytest.mark.parametrize("records", [rows(*range(4 * 50)), rows(7) * (4 * 50)], ids=["different", "equal"])
async def test_an_api_that_fails_far_after_the_end_is_read(
    serve: Serve, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    server = Rows(records)
    server.broken = 1000
    part, found = await run(server, serve, tmp_path)
    assert (part.done, values(found)) == (True, Counter(row["value"] for row in records))
    assert 1000 - server.broken <= 5 * ATTEMPTS, "after pages 2, 4, 8, 16 and 32"
    source = Source("rows", Numbered(page_size=4), id=None)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        assert [record async for record in sync.records(session, source)] == records
