"""All records that the API counts are read, or there is an error: by a sync, and by ``maesn.records``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.maesn.lists import START, ListServer, Record, numbered, record
from tests.servers import Serve

from lamella import Breaker, NotFound, maesn, sync
from lamella.batch import Journal
from lamella.sync import Part

Body = dict[str, Any]

RULES = maesn.RULES.scaled(0.0001)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty page is read again at once."""
    monkeypatch.setattr(sys.modules["lamella.sync.page"], "_PAUSES", (0.0, 0.0), raising=False)


async def synced(path: Path, url: str, *, at_once: int = 4, **options: Any) -> tuple[Part, dict[str, Any]]:
    """Sync the bills of one account; returns the part, and the records that are stored by their id."""
    async with (
        maesn.session("api-key", None, url, rules=RULES, breaker=Breaker()) as session,
        Journal.open(path / "journal", batch="nightly") as journal,
    ):
        report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, at_once=at_once, **options)
        rows = await journal.read(lambda db: db.execute("SELECT id, record FROM sync_records").fetchall())
    [part] = report.parts
    assert report.done is part.done is (part.error is None or part.done)
    return part, {name: json.loads(text) for name, text in rows}


async def read(url: str, **options: Any) -> list[Record]:
    async with maesn.session("api-key", "key", url, rules=RULES) as session:
        return [each async for each in maesn.records(session, "bills", **options)]


async def mark_of(path: Path) -> Any:
    async with Journal.open(path / "journal", batch="nightly") as journal:
        [(mark,)] = await journal.read(lambda db: db.execute("SELECT mark FROM sync_parts").fetchall())
        return mark


def by_id(records: list[Record]) -> dict[str, Record]:
    return {each["billId"]: each for each in records}


def once(number: int, body: Callable[[Body], Body | int]) -> Callable[[ListServer, int, Body], Body | int | None]:
    """The first answer for this page is another one."""

    def instead(server: ListServer, page: int, given: Body) -> Body | int | None:
        return body(given) if page == number and server.pages.count(page) == 1 else None

    return instead


def always(number: int, body: Callable[[Body], Body | int]) -> Callable[[ListServer, int, Body], Body | int | None]:
    return lambda server, page, given: body(given) if page == number else None


def counted(total: int | None, total_pages: int | None, **more: Any) -> Callable[[int, int], Any]:
    """The same count, whatever there is."""
    found = {"total": total, "totalPages": total_pages} | more
    return lambda total, limit: {"pagination": {name: value for name, value in found.items() if value is not None}}


def empty(given: Body) -> Body:
    return given | {"data": []}


def beyond_the_end(status: int) -> Callable[[ListServer, int, Body], Body | int | None]:
    return lambda server, page, given: None if given["data"] else status


COMPLETE: dict[str, Callable[[], ListServer]] = {
    "pages are capped below the limit": lambda: ListServer(numbered(250), 50, counted(250, 3, perPage=50)),
    "pages are capped, and the pages are counted so": lambda: ListServer(numbered(250), 50, counted(250, 5)),
    "pages are capped to one record": lambda: ListServer(numbered(30), 1, counted(30, 1, perPage=100)),
    "pages are capped, and the last one is not full": lambda: ListServer(numbered(223), 50, counted(223, 3)),
    "pages are capped, and beyond the end is a 404": lambda: ListServer(
        numbered(250), 50, counted(250, 3), beyond_the_end(404)
    ),
    "one page by its count": lambda: ListServer(numbered(250), count=counted(250, 1)),
    "no pages by its count": lambda: ListServer(numbered(250), count=counted(250, 0)),
    "the records are counted alone": lambda: ListServer(numbered(250), count=counted(250, None)),
    "the pages are counted alone": lambda: ListServer(numbered(250), count=counted(None, 3)),
    "nothing is counted": lambda: ListServer(numbered(250), count=counted(None, None)),
    "nothing is counted, and the last page is full": lambda: ListServer(numbered(200), count=counted(None, None)),
    "the pagination is null": lambda: ListServer(numbered(250), count=lambda *_: {"pagination": None}),
    "the meta is null": lambda: ListServer(numbered(250), count=lambda *_: None),
    "fewer records are counted than there are": lambda: ListServer(numbered(250), count=counted(100, 3)),
    "a page more is counted, and is empty": lambda: ListServer(numbered(200), count=counted(200, 3)),
    "a page more is counted, and is the last one again": lambda: ListServer(
        numbered(200), count=counted(200, 3), instead=always(3, lambda given: given | {"data": numbered(200)[100:]})
    ),
    "a page in the middle is empty once": lambda: ListServer(numbered(250), instead=once(2, empty)),
    "a page is empty once, and the pages are counted alone": lambda: ListServer(
        numbered(250), count=counted(None, 3), instead=once(2, empty)
    ),
    "a page is empty once, without a count": lambda: ListServer(
        numbered(250), instead=once(2, lambda given: {"data": []})
    ),
    "a page is empty once, and counts nothing": lambda: ListServer(
        numbered(250), instead=once(2, lambda given: {"meta": counted(0, 0)(0, 0), "data": []})
    ),
    "the first page is empty once": lambda: ListServer(numbered(250), instead=once(1, empty)),
    "the last page is empty once": lambda: ListServer(numbered(250), instead=once(3, empty)),
    "the last page is empty once, and the records are counted alone": lambda: ListServer(
        numbered(250), count=counted(250, None), instead=once(3, empty)
    ),
    "pages are capped, and the first one counts nothing": lambda: ListServer(
        numbered(250), 50, counted(250, 3), always(1, lambda given: given | {"meta": None})
    ),
    "one page by its count, and the first one counts nothing": lambda: ListServer(
        numbered(250), count=counted(250, 1), instead=always(1, lambda given: given | {"meta": None})
    ),
    "one id is twice on a page": lambda: ListServer([*numbered(249), record(248)]),
}


@pytest.mark.usefixtures("virtual_time")  # a list is read again after a pause
class TestAllRecordsAreRead:
    @pytest.mark.sampled(8)
    @pytest.mark.parametrize(
        ("at_once", "last_first"),
        [
            pytest.param(1, False, id="one at a time"),
            pytest.param(4, False, id="four at once"),
            pytest.param(4, True, id="four at once, last first"),
            pytest.param(1, True, id="one at a time, last first", marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.parametrize("case", COMPLETE)
    async def test_a_sync_reads_all_records_of_a_changing_list(
        self, serve: Serve, tmp_path: Path, case: str, at_once: int, last_first: bool
    ) -> None:
        server = COMPLETE[case]()
        server.last_first = last_first
        part, kept = await synced(tmp_path, await serve(server), at_once=at_once)
        assert part.error is None
        assert part.done
        assert kept == by_id(server.records)
        assert await mark_of(tmp_path) is not None
        assert len(server.pages) <= 3 * len(server.records) / server.cap

    @pytest.mark.parametrize("case", COMPLETE)
    async def test_records_yields_all_records_of_a_changing_list(self, serve: Serve, case: str) -> None:
        server = COMPLETE[case]()
        assert await read(await serve(server)) == server.records
        assert len(server.pages) <= len(server.records) / min(server.cap, 100) + 3

    @pytest.mark.parametrize("case", [case for case in COMPLETE if "capped" in case or "counted" in case])
    async def test_pages_can_begin_in_the_middle(self, serve: Serve, case: str) -> None:
        server = COMPLETE[case]()
        async with maesn.session("api-key", "key", await serve(server), rules=RULES) as session:
            found = [each async for page in maesn.pages(session, "bills", first=2) for each in page.records]
        assert found == server.records[min(server.cap, 100) :]

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("counts", [("250", "3"), (250.0, 3.0), ("250", 1), ("0250", None)])
    async def test_a_count_may_be_text_or_have_a_point(
        self, serve: Serve, tmp_path: Path, counts: tuple[Any, Any]
    ) -> None:
        server = ListServer(numbered(250), 50, counted(*counts))
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert (part.error, part.total, kept) == (None, 250, by_id(server.records))
        assert await read(url) == server.records
        server.records.pop()
        part, _ = await synced(tmp_path, url, full_every=0)
        assert isinstance(part.error, sync.UnsteadyList)
        assert "249 different records were read, and the API counts 250" in str(part.error)

    @pytest.mark.parametrize("total", [-1, None, True, "", "many", "-1", "1e2", 10.5, 1e300, "9" * 5000, [250], {}])
    async def test_what_is_not_a_count_proves_nothing(self, serve: Serve, tmp_path: Path, total: Any) -> None:
        server = ListServer(numbered(150), count=counted(total, total))
        part, kept = await synced(tmp_path, await serve(server))
        assert (part.done, part.total, kept) == (True, None, by_id(server.records))

    async def test_a_page_that_is_short_once_is_read_with_the_next_reading(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(numbered(250), instead=once(2, lambda given: given | {"data": given["data"][:60]}))
        part, kept = await synced(tmp_path, await serve(server))
        assert (part.done, kept) == (True, by_id(server.records))

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("changes", [True, False], ids=["with a new date", "as it was"])
    @pytest.mark.parametrize("many", [250, 201, 150])
    @pytest.mark.parametrize("at_once", [1, 4])
    async def test_a_record_that_moves_to_the_end_is_not_lost(
        self, serve: Serve, tmp_path: Path, changes: bool, many: int, at_once: int
    ) -> None:
        """Each record after it moves up, one of them to a page that was read before."""

        def move(server: ListServer, page: int, given: Body) -> None:
            if server.pages == [1]:
                first = server.records.pop(0)
                server.records.append(first | {"updatedDate": START.isoformat(), "number": -1} if changes else first)

        server = ListServer(numbered(many), instead=move)
        part, kept = await synced(tmp_path, await serve(server), at_once=at_once)
        assert (part.done, kept) == (True, by_id(server.records))
        assert server.pages.count(1) == 2

    async def test_without_a_count_a_shift_by_one_is_no_endless_list(self, serve: Serve, tmp_path: Path) -> None:
        """The last record of the second page moves to a third one, which brings nothing new."""

        def insert(server: ListServer, page: int, given: Body) -> None:
            if server.pages == [1, 2]:
                server.records.insert(0, record(-1))

        server = ListServer(numbered(200), count=counted(None, None), instead=insert)
        part, kept = await synced(tmp_path, await serve(server))
        assert (part.done, kept) == (True, by_id(server.records))

    async def test_records_added_during_a_read_need_no_second_reading(self, serve: Serve, tmp_path: Path) -> None:
        """Of a list with the newest record first, which is read for minutes and gets a new one each second."""

        def insert(server: ListServer, page: int, given: Body) -> None:
            server.records.insert(0, record(1000 + len(server.pages), START))

        server = ListServer(numbered(250), instead=insert)
        part, kept = await synced(tmp_path, await serve(server), at_once=1)
        assert part.done
        assert server.pages == [1, 2, 3]
        assert by_id(numbered(250)).items() <= kept.items()
        server.instead = lambda server, page, given: None
        part, kept = await synced(tmp_path, await serve(server))
        assert kept == by_id(server.records)

    async def test_a_new_record_does_not_replace_one_that_is_missing(self, serve: Serve, tmp_path: Path) -> None:
        """As many are read as there were at the beginning, but one of them is new, and an old one is missing."""

        def move(server: ListServer, page: int, given: Body) -> None:
            if server.pages == [1]:
                server.records += [record(1000, START), server.records.pop(0)]

        server = ListServer(numbered(250), instead=move)
        part, kept = await synced(tmp_path, await serve(server), at_once=1)
        assert (part.done, kept) == (True, by_id(server.records))

    async def test_pages_of_an_interrupted_reading_are_counted(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(numbered(250), instead=always(3, lambda given: 404))
        url = await serve(server)
        part, _ = await synced(tmp_path, url)
        assert isinstance(part.error, NotFound)
        server.records.append(server.records.pop(0))
        server.instead = lambda server, page, given: None
        part, kept = await synced(tmp_path, url, resume=True)
        assert (part.done, kept) == (True, by_id(server.records))
        assert server.pages[-4:] == [3, 1, 2, 3] or set(server.pages[-3:]) == {1, 2, 3}


def moving(server: ListServer, page: int, given: Body) -> None:
    """With each request for page 1 the first record goes to the end."""
    if page == 1:
        server.records.append(server.records.pop(0))


@dataclass(frozen=True)
class Missing:
    """A list from which records are missing, and what is said of it."""

    make: Callable[[], ListServer]
    error: str
    numbers: tuple[str, ...]
    of_records: str | None = None
    """The error of ``maesn.records``. None means the same one."""


MISSING = {
    "a record moves each time": Missing(
        lambda: ListServer(numbered(250), instead=moving), "UnsteadyList", ("249", "250")
    ),
    "more are counted than there are": Missing(
        lambda: ListServer(numbered(250), count=counted(251, 3)), "UnsteadyList", ("250", "251")
    ),
    "more are counted than there are, and beyond the end is a 404": Missing(
        lambda: ListServer(numbered(250), count=counted(251, 3), instead=beyond_the_end(404)),
        "UnsteadyList",
        ("250", "251"),
    ),
    "more are counted than there are, and no pages": Missing(
        lambda: ListServer(numbered(250), count=counted(251, None)), "UnsteadyList", ("250", "251")
    ),
    "far more are counted than there are": Missing(
        lambda: ListServer(numbered(250), count=counted(2**53 - 1, 3)), "UnsteadyList", ("250", "9007199254740991")
    ),
    "a page in the middle is always empty": Missing(
        lambda: ListServer(numbered(250), instead=always(2, empty)), "EmptyPage", ("page 2", "250 records on 3 pages")
    ),
    "a page is always empty, and the pages are counted alone": Missing(
        lambda: ListServer(numbered(250), count=counted(None, 3), instead=always(2, empty)),
        "EmptyPage",
        ("page 2", "3 pages"),
    ),
    "a page is always empty, and says nothing": Missing(
        lambda: ListServer(numbered(250), instead=always(2, lambda given: {"data": []})),
        "UnsteadyList",
        ("250",),
        "EmptyPage",
    ),
    "a page is always short": Missing(
        lambda: ListServer(numbered(250), instead=always(2, lambda given: given | {"data": given["data"][:60]})),
        "UnsteadyList",
        ("210", "250"),
    ),
    "the last page is always empty": Missing(
        lambda: ListServer(numbered(250), instead=always(3, empty)), "EmptyPage", ("page 3", "250 records on 3 pages")
    ),
    "the first page is always empty": Missing(
        lambda: ListServer(numbered(250), instead=always(1, empty)), "EmptyPage", ("page 1", "250 records on 3 pages")
    ),
    "the only page is always empty, and no pages are counted": Missing(
        lambda: ListServer(numbered(90), count=counted(90, None), instead=always(1, empty)),
        "UnsteadyList",
        ("0 different", "90"),
    ),
}


@pytest.mark.usefixtures("virtual_time")  # a list is read again after a pause
class TestRecordsThatAreMissing:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("case", MISSING)
    async def test_a_sync_reports_missing_records_and_keeps_the_mark(
        self, serve: Serve, tmp_path: Path, case: str
    ) -> None:
        missing = MISSING[case]
        server = missing.make()
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert not part.done
        assert type(part.error).__name__ == missing.error
        assert [number for number in missing.numbers if number not in str(part.error)] == []
        assert "bills" in str(part.error)
        assert await mark_of(tmp_path) is None
        assert len(server.pages) <= 36, "that is bounded"
        # It is read from its beginning by the next run, and by one that is resumed if it had been read to its end.
        server.pages.clear()
        server.queries.clear()
        server.instead, server.count = lambda *_: None, ListServer([]).count
        part, kept = await synced(tmp_path, url, resume=missing.error == "UnsteadyList")
        assert (part.done, part.since, kept) == (True, None, by_id(server.records))
        assert sorted(server.pages) == [*range(1, -(-len(server.records) // 100) + 1)]

    @pytest.mark.parametrize("case", MISSING)
    async def test_records_raise_an_error_at_the_end(self, serve: Serve, case: str) -> None:
        missing = MISSING[case]
        server = missing.make()
        with pytest.raises(ValueError, match="bills") as caught:
            await read(await serve(server))
        assert type(caught.value).__name__ == (missing.of_records or missing.error)
        assert isinstance(caught.value, sync.IncompleteList)
        assert [number for number in missing.numbers if number not in str(caught.value)] == []
        assert len(server.pages) <= 9

    @pytest.mark.slow
    async def test_missing_records_keep_the_previous_mark(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(numbered(250))
        url = await serve(server)
        await synced(tmp_path, url)
        before = await mark_of(tmp_path)
        server.records += [record(1000 + number, START) for number in range(250)]
        server.instead = moving
        part, _ = await synced(tmp_path, url, limit=20)
        assert (type(part.error).__name__, part.since is None) == ("UnsteadyList", False)
        assert await mark_of(tmp_path) == before

    async def test_a_404_before_the_end_does_not_end_the_list(self, serve: Serve, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            server = ListServer(numbered(250), instead=always(number, lambda given: 404))
            url = await serve(server)
            folder = tmp_path / str(number)
            folder.mkdir()
            part, _ = await synced(folder, url)
            assert isinstance(part.error, NotFound)
            with pytest.raises(NotFound):
                await read(url)

    async def test_a_list_that_shrinks_is_an_error_of_records(self, serve: Serve) -> None:
        def delete(server: ListServer, page: int, given: Body) -> None:
            if server.pages == [1]:
                del server.records[0]

        server = ListServer(numbered(250), instead=delete)
        with pytest.raises(sync.UnsteadyList, match="249 different records were read, and the API counts 250"):
            await read(await serve(server))

    async def test_a_growing_list_is_not_an_unsteady_list(self, serve: Serve) -> None:
        def insert(server: ListServer, page: int, given: Body) -> None:
            if page == 1:
                server.records.insert(0, record(-1, START))

        server = ListServer(numbered(250), instead=insert)
        found = await read(await serve(server))
        assert by_id(found) == by_id(numbered(250))


def ignoring_page(records: list[Record], count: Callable[[int, int], Any]) -> ListServer:
    """Each page is the first one."""
    return ListServer(records, count=count, instead=lambda server, page, given: given | {"data": records[:100]})


def turns(*parts: list[Record]) -> Callable[[ListServer, int, Body], Body]:
    return lambda server, page, given: given | {"data": parts[(page - 1) % len(parts)]}


NOTHING = counted(None, None)
ENDLESS: dict[str, Callable[[], ListServer]] = {
    "page is ignored": lambda: ignoring_page(numbered(100), NOTHING),
    "page is ignored, and there are fewer than the limit": lambda: ignoring_page(numbered(3), NOTHING),
    "page is ignored, and the meta is null": lambda: ignoring_page(numbered(100), lambda *_: None),
    "page is ignored, and 20 pages are counted": lambda: ignoring_page(numbered(100), counted(None, 20)),
    "page is ignored, and a million pages are counted": lambda: ignoring_page(numbered(100), counted(None, 1_000_000)),
    "page is ignored, and 250 records are counted": lambda: ignoring_page(numbered(100), counted(250, 3)),
    "page is ignored, and 10**15 records are counted": lambda: ignoring_page(numbered(100), counted(10**15, None)),
    "two pages in turns": lambda: ListServer(
        [], count=NOTHING, instead=turns(numbered(200)[:100], numbered(200)[100:])
    ),
    "three pages in turns, the first one short": lambda: ListServer(
        [], count=NOTHING, instead=turns(numbered(7), numbered(207)[7:107], numbered(207)[107:])
    ),
    "the last page again and again": lambda: ListServer(
        numbered(250),
        count=NOTHING,
        instead=lambda server, page, given: given | {"data": numbered(250)[200:]} if page > 3 else None,
    ),
    "the records in another order each time": lambda: ListServer(
        [],
        count=NOTHING,
        instead=lambda server, page, given: given | {"data": numbered(100)[page % 7 :] + numbered(page % 7)},
    ),
    "the same records, but for a number in them": lambda: ListServer(
        [],
        count=NOTHING,
        instead=lambda server, page, given: (
            given | {"data": [each | {"readAt": len(server.pages)} for each in numbered(100)]}
        ),
    ),
}


def growing(server: ListServer, page: int, given: Body) -> Body:
    return {"meta": counted(None, page + 1)(0, 0), "data": numbered(100)}


ENDLESS["one page more is counted each time"] = lambda: ListServer([], instead=growing)
ENDLESS["one page and a hundred records more are counted each time"] = lambda: ListServer(
    [],
    instead=lambda server, page, given: {"meta": counted(100 * page + 100, page + 1)(0, 0), "data": numbered(100)},
)


@pytest.mark.usefixtures("virtual_time")  # a list is read again after a pause
class TestAListWithoutEnd:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize("case", ENDLESS)
    @pytest.mark.parametrize("at_once", [1, 4])
    async def test_an_endless_list_ends_its_part_with_an_error(
        self, serve: Serve, tmp_path: Path, case: str, at_once: int
    ) -> None:
        server = ENDLESS[case]()
        part, kept = await synced(tmp_path, await serve(server), at_once=at_once)
        assert not part.done
        assert isinstance(part.error, sync.RepeatedPage)
        assert "of bills brought no new record" in str(part.error)
        assert await mark_of(tmp_path) is None
        assert len(server.pages) <= 24, "each of three readings ends with the first repeat"
        assert kept.keys() >= {"b0", "b1", "b2"}

    @pytest.mark.parametrize("case", ENDLESS)
    async def test_an_endless_list_ends_records_with_an_error(self, serve: Serve, case: str) -> None:
        server = ENDLESS[case]()
        with pytest.raises(sync.RepeatedPage, match=r"page \d of bills brought no new record"):
            await read(await serve(server))
        assert len(server.pages) <= 5

    @pytest.mark.parametrize("case", ["page is ignored", "two pages in turns", "the last page again and again"])
    async def test_an_endless_list_without_ids_ends_with_an_error(self, serve: Serve, case: str) -> None:
        server = ENDLESS[case]()
        served = server.instead

        def without_ids(server: ListServer, page: int, given: Body) -> Body:
            body = served(server, page, given)
            assert not isinstance(body, int)
            body = given if body is None else body
            return body | {"data": [{"number": each["number"]} for each in body["data"]]}

        server.instead = without_ids
        with pytest.raises(sync.RepeatedPage):
            await read(await serve(server))
        assert len(server.pages) <= 5

    async def test_records_without_ids_may_be_equal(self, serve: Serve) -> None:
        """Only a page that is the same as a whole is a repeat, and each record counts."""
        alike: list[Record] = [{"account": "1000", "updatedDate": START.isoformat()}] * 250
        alike[0] = alike[100] = {"account": "1", "updatedDate": START.isoformat()}
        alike[101] = {"account": "2", "updatedDate": START.isoformat()}
        server = ListServer(alike)
        assert await read(await serve(server)) == alike

    async def test_a_late_failure_of_an_earlier_reading_is_not_its_error(self, serve: Serve, tmp_path: Path) -> None:
        server = ignoring_page(numbered(100), counted(None, 3))
        third_reading = asyncio.Event()

        async def handle(request: Any) -> Any:
            answer = await server(request)
            if server.pages.count(1) == 3:
                third_reading.set()
            if request.query["page"] == "3" and server.pages.count(3) == 1:
                await third_reading.wait()
                return web.json_response({}, status=404)
            return answer

        part, _ = await synced(tmp_path, await serve(handle))
        assert isinstance(part.error, sync.RepeatedPage)

    async def test_an_endless_list_does_not_stop_other_lists(self, serve: Serve, tmp_path: Path) -> None:
        endless, sound = ignoring_page(numbered(100), NOTHING), ListServer(numbered(250))

        async def both(request: Any) -> Any:
            return await (endless if request.path.endswith("bills") else sound)(request)

        sound.records = [{"id": each["number"], **each} for each in sound.records]
        async with (
            maesn.session("api-key", None, await serve(both), rules=RULES) as session,
            Journal.open(tmp_path / "journal", batch="nightly") as journal,
        ):
            report = await maesn.sync(session, {"north": "key"}, ["bills", "items"], journal=journal)
        bills, items = report.parts
        assert isinstance(bills.error, sync.RepeatedPage)
        assert (items.done, items.records) == (True, 250)


ERRORS = [
    {"message": "the target system did not answer"},
    {"validationErrors": [{"field": "limit", "message": "the target system did not answer"}]},
    {"downstreamErrors": "the target system did not answer"},
    [{"code": 17, "message": "the target system did not answer"}],
    ["the target system did not answer"],
    "the target system did not answer",
]


class TestErrorsInAGoodAnswer:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("data", [[], None, numbered(5)], ids=["no records", "null", "records"])
    @pytest.mark.parametrize("errors", ERRORS, ids=repr)
    async def test_errors_in_a_successful_response_fail_with_their_message(
        self, serve: Serve, tmp_path: Path, errors: object, data: object
    ) -> None:
        server = ListServer([], instead=lambda server, page, given: {"data": data, "errors": errors})
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert not part.done
        assert isinstance(part.error, sync.AnswerFailed)
        assert "page 1 of bills failed" in str(part.error)
        assert "the target system did not answer" in str(part.error)
        assert kept == {}
        with pytest.raises(sync.AnswerFailed, match="the target system did not answer"):
            await read(url)

    @pytest.mark.parametrize("errors", [True, 5, {"a": {"b": {"c": {"d": {"e": {"f": {"g": {}}}}}}}}, [{}], [None]])
    async def test_errors_without_text_are_a_failure(self, serve: Serve, tmp_path: Path, errors: object) -> None:
        server = ListServer(numbered(5), instead=lambda server, page, given: given | {"errors": errors})
        part, _ = await synced(tmp_path, await serve(server))
        assert isinstance(part.error, sync.AnswerFailed)

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        "errors", [None, {}, [], "", " ", False, {"validationErrors": [], "downstreamErrors": None}, {"a": {"b": ""}}]
    )
    async def test_empty_errors_are_not_a_failure(self, serve: Serve, tmp_path: Path, errors: object) -> None:
        server = ListServer(numbered(5), instead=lambda server, page, given: given | {"errors": errors})
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert (part.done, kept) == (True, by_id(server.records))
        assert await read(url) == server.records

    @pytest.mark.parametrize("errors", ERRORS[:1] + ERRORS[3:], ids=repr)
    @pytest.mark.parametrize("place", ["error", "meta.errors", "meta.error"])
    async def test_errors_may_be_at_other_places(
        self, serve: Serve, tmp_path: Path, place: str, errors: object
    ) -> None:
        name, _, inner = place.partition(".")
        more = {name: {inner: errors} if inner else errors}
        server = ListServer([], instead=lambda server, page, given: {"data": [], "errors": None} | more)
        url = await serve(server)
        part, _ = await synced(tmp_path, url)
        assert isinstance(part.error, sync.AnswerFailed)
        assert "the target system did not answer" in str(part.error)
        with pytest.raises(sync.AnswerFailed, match="the target system did not answer"):
            await read(url)

    @pytest.mark.parametrize(
        "stated",
        [
            {"success": False},
            {"status": "error"},
            {"meta": {"partial": True}},
            {"errorCode": 17},
            {"has_more": True},
            {"pagination": {"hasNextPage": True}},
            {"isLast": False},
            {"pagination": {"done": "false"}},
            {"Errors": ["down"]},
        ],
        ids=repr,
    )
    async def test_a_statement_of_failure_fails_the_list(
        self, serve: Serve, tmp_path: Path, stated: dict[str, Any]
    ) -> None:
        total_pages = {"meta": {**stated.get("meta", {}), "pagination": {"totalPages": 1}}}
        said = {"data": [], "message": "the target system did not answer"}
        url = await serve(ListServer([], instead=lambda *_: said | stated | total_pages))
        part, _ = await synced(tmp_path, url)
        assert (part.done, type(part.error)) == (False, sync.AnswerFailed)
        with pytest.raises(sync.AnswerFailed):
            await read(url)

    async def test_a_statement_of_failure_is_reported_with_the_message_beside_it(self, serve: Serve) -> None:
        said = {"data": [], "success": False, "message": "no books of 'key'"}
        url = await serve(ListServer([], instead=lambda *_: said))
        with pytest.raises(sync.AnswerFailed, match=r"errors: success is false; no books of "):
            await read(url)

    async def test_a_message_without_records_is_reported(self, serve: Serve) -> None:
        url = await serve(ListServer([], instead=lambda *_: {"message": "the target system did not answer"}))
        with pytest.raises(ValueError, match="holds no list of records, but NoneType: the target system did not"):
            await read(url)

    async def test_other_fields_do_not_state_a_failure(self, serve: Serve, tmp_path: Path) -> None:
        more = {"success": True, "status": "ok", "code": 0, "message": "3 records", "errorCode": 0, "error": "false"}
        more |= {"hasErrors": False, "failed": 0, "partial": None, "truncated": False, "errorMessage": "", "errors": 0}
        more |= {"isLast": True, "done": None, "Errors": []}
        server = ListServer(numbered(5), instead=lambda server, page, given: more | given)
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert (part.done, kept) == (True, by_id(server.records))
        assert await read(url) == server.records

    async def test_errors_in_one_page_do_not_affect_other_pages(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(numbered(250), instead=always(2, lambda given: given | {"errors": ["down"]}))
        url = await serve(server)
        part, kept = await synced(tmp_path, url)
        assert (type(part.error), part.pages, len(kept)) == (sync.AnswerFailed, 2, 150)
        assert await mark_of(tmp_path) is None
        server.instead = lambda *_: None
        part, kept = await synced(tmp_path, url, resume=True)
        assert (part.done, kept) == (True, by_id(server.records))
        assert server.pages[3:] == [2]

    @pytest.mark.parametrize("spelled", ["secret-account-key", "secret\\u002daccount-key", "secret%2Daccount-key"])
    async def test_no_credential_is_in_the_message(self, serve: Serve, spelled: str) -> None:
        async def handle(request: Any) -> Any:
            text = '{"data": [], "errors": [{"message": "no such key: ' + spelled + ' of secret-api-key"}]}'
            return web.Response(text=text, content_type="application/json")

        url = await serve(handle)
        async with maesn.session("secret-api-key", None, url, rules=RULES) as session:
            with pytest.raises(sync.AnswerFailed, match="no such key: REDACTED of REDACTED") as caught:
                [each async for each in maesn.records(session, "bills", account="secret-account-key")]
        assert "secret" not in f"{caught.value!r}{vars(caught.value)}"

    async def test_a_long_text_is_truncated(self, serve: Serve) -> None:
        server = ListServer([], instead=lambda server, page, given: {"errors": ["x" * 100_000] * 50})
        with pytest.raises(sync.AnswerFailed) as caught:
            await read(await serve(server))
        assert len(str(caught.value)) < 2000
