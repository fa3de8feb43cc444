"""Lists whose pages, counts and links mislead: everything is stored, or the part is not done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

import lamella
from lamella import HTTP_RULES, Source, stack, sync
from lamella.batch import Journal
from lamella.sync import Cursor, LinkHeader, NextUrl, Numbered, Offset, Part
from lamella.sync import page as page_module

MANY = 25
RECORDS = [{"id": number} for number in range(MANY)]
RULES = HTTP_RULES.scaled(0.0001)
Answer = Callable[[dict[str, str]], Any]

UNCOUNTED = {"numbers": Source("items", Numbered(page_size=10)), "offsets": Source("items", Offset(page_size=10))}
COUNTED = Source("items", Numbered(page_size=10), total="total", total_pages="pages")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_PAUSES", (0.0, 0.0))


async def both(
    serve: Serve, path: Path, source: Source, answer: Answer, *, most: int = 100
) -> tuple[Part, set[int], set[int] | Exception]:
    """Return the part of a sync, the ids that it has stored, and the ids that `records` yields or its error."""
    asked = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.query)
        found = answer(dict(request.query)) if len(asked) <= most else web.Response(status=410)
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    async with aiohttp.ClientSession(await serve(handle), middlewares=stack(RULES)) as session:
        async with Journal.open(path / "journal", batch="api") as journal:
            report = await sync.run(session, {"items": source}, journal=journal)
            rows = await journal.read(lambda db: db.execute("SELECT id FROM sync_records").fetchall())
        assert len(asked) < most
        asked.clear()
        read: set[int] | Exception
        try:
            read = {each["id"] async for each in lamella.records(session, source) if isinstance(each, dict)}
        except (ValueError, lamella.LamellaError) as exc:
            read = exc
    return report.parts[0], {int(name) for (name,) in rows}, read


def start_of(query: dict[str, str]) -> int:
    return int(query["offset"]) if "offset" in query else (int(query["page"]) - 1) * 10


@pytest.mark.parametrize("pages", [None, 3])
@pytest.mark.parametrize("total", [None, MANY])
@pytest.mark.parametrize("first", [5, 10])
async def test_pages_at_offsets_may_have_any_length(
    serve: Serve, tmp_path: Path, first: int, total: int | None, pages: int | None
) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        return {"data": RECORDS[start : start + (first if start == 0 else 7)], "total": total, "pages": pages}

    source = Source("items", Offset(page_size=10), total="total", total_pages="pages")
    part, stored, read = await both(serve, tmp_path, source, answer)
    assert part.done
    assert stored == read == set(range(MANY))


@pytest.mark.parametrize(("page", "size"), [(1, 10), (2, 10), (3, 10), (1, 7), (3, 7)])
@pytest.mark.parametrize("way", [*UNCOUNTED, "cursors"])
async def test_a_page_that_is_empty_once_does_not_end_a_list_without_counts(
    serve: Serve, tmp_path: Path, way: str, page: int, size: int
) -> None:
    source = UNCOUNTED.get(way, Source("items", Cursor(cursor="offset", page_size=10)))
    seen = set()

    def answer(query: dict[str, str]) -> Any:
        start = int(query.get("offset", 0)) if "page" not in query else (int(query["page"]) - 1) * size
        is_first = start == (page - 1) * size and start not in seen
        seen.add(start)
        follows = start + size if start + size < MANY else None
        return {"data": [] if is_first else RECORDS[start : start + size], "next_cursor": follows}

    part, stored, _ = await both(serve, tmp_path, source, answer)
    assert part.done
    assert stored == set(range(MANY))
    seen.clear()
    _, _, read = await both(serve, tmp_path, source, answer)
    assert read == set(range(MANY))


@pytest.mark.parametrize("way", UNCOUNTED)
async def test_an_empty_page_in_the_middle_fails_a_list_without_counts(serve: Serve, tmp_path: Path, way: str) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        return {"data": [] if start == 10 else RECORDS[start : start + 10]}

    part, stored, read = await both(serve, tmp_path, UNCOUNTED[way], answer)
    assert (part.done, type(part.error), type(read)) == (False, sync.EmptyPage, sync.EmptyPage)
    assert "page 2 of items is empty, and the page after it has records" in str(part.error)
    assert stored == set(range(10))


COUNTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "the total is that of the page": lambda page, many: {"total": many},
    "the total is that of the pages so far": lambda page, many: {"total": page * 10},
    "the total is one page": lambda page, many: {"total": 10},
    "one page is counted": lambda page, many: {"pages": 1},
    "no page is counted": lambda page, many: {"pages": 0},
    "the total is text with a point": lambda page, many: {"total": "25.0", "pages": 1},
}


@pytest.mark.parametrize("counts", COUNTS)
async def test_a_count_of_one_full_page_does_not_end_a_list(serve: Serve, tmp_path: Path, counts: str) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        data = RECORDS[start : start + 10]
        return {"data": data, **COUNTS[counts](start // 10 + 1, len(data))}

    _, stored, read = await both(serve, tmp_path, COUNTED, answer)
    assert stored == set(range(MANY))
    assert read == stored or isinstance(read, sync.UnsteadyList)


@pytest.mark.parametrize("status", [404, 400])
async def test_no_page_may_follow_a_full_one(serve: Serve, tmp_path: Path, status: int) -> None:
    def answer(query: dict[str, str]) -> Any:
        return {"data": RECORDS[:10], "total": 10} if query["page"] == "1" else web.Response(status=status)

    part, stored, read = await both(serve, tmp_path, COUNTED, answer)
    assert part.done
    assert stored == read == set(range(10))


@pytest.mark.parametrize(
    "link", ['<{}>; REL="NEXT"', "<{}>; Rel=next", '<{}>; title="a, b"; rel="next"', "{}; rel=next", "<{}; rel='next'"]
)
async def test_a_link_in_another_spelling_is_followed_or_fails_the_list(
    serve: Serve, tmp_path: Path, link: str
) -> None:
    def answer(query: dict[str, str]) -> web.Response:
        start = int(query.get("start", 0))
        headers = {"Link": link.format(f"/items?start={start + 10}")} if start < 20 else {}
        return web.json_response(RECORDS[start : start + 10], headers=headers)

    part, stored, read = await both(serve, tmp_path, Source("items", LinkHeader(), records=""), answer)
    if "<{}>" in link:
        assert part.done
        assert stored == read == set(range(MANY))
    else:
        assert not part.done
        assert "Link has a relation 'next' that cannot be read" in str(part.error)
        assert isinstance(read, ValueError)


@pytest.mark.parametrize("status", [202, 300])
async def test_a_status_that_promises_no_records_is_a_failure(serve: Serve, tmp_path: Path, status: int) -> None:
    part, _, read = await both(
        serve, tmp_path, COUNTED, lambda _: web.json_response({"data": [], "total": 0}, status=status)
    )
    assert (part.done, type(part.error), type(read)) == (False, sync.AnswerFailed, sync.AnswerFailed)


@pytest.mark.parametrize("data", [[None], [{"id": 1}, None], [[]]])
async def test_pages_of_bad_records_end(serve: Serve, tmp_path: Path, data: list[Any]) -> None:
    part, _, _ = await both(serve, tmp_path, UNCOUNTED["numbers"], lambda _: {"data": data}, most=30)
    assert not part.done
    assert isinstance(part.error, sync.BadRecord)


@pytest.mark.parametrize("pages", [Numbered(page_size=10), Offset(page_size=10)])
async def test_a_new_record_without_a_date_does_not_replace_one_that_it_moves(
    serve: Serve, tmp_path: Path, pages: Numbered | Offset
) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        now = RECORDS[:20] if start == 0 else [*RECORDS[:15], {"id": 100}, *RECORDS[15:20]]
        return {"data": now[start : start + 10], "total": len(now)}

    part, stored, read = await both(serve, tmp_path, Source("items", pages, total="total"), answer)
    assert part.done
    assert stored == read == {*range(20), 100}


@pytest.mark.parametrize("total", [None, 1, 100])
async def test_a_list_that_ignores_the_page_and_has_a_record_twice_ends(
    serve: Serve, tmp_path: Path, total: int | None
) -> None:
    answer = {"data": [*RECORDS[:9], RECORDS[0]], "total": total}
    part, stored, _ = await both(serve, tmp_path, COUNTED, lambda _: answer)
    assert part.done == (total == 1)
    assert stored == set(range(9))


@pytest.mark.parametrize("way", ["a cursor", "a URL", "a header"])
async def test_an_empty_page_that_leads_to_itself_ends_a_chain(serve: Serve, tmp_path: Path, way: str) -> None:
    """Some cursors never end: the last one is for a later run."""
    ways = {"a cursor": Cursor(cursor="start", page_size=10), "a URL": NextUrl(), "a header": LinkHeader()}

    def answer(query: dict[str, str]) -> web.Response:
        after = min(int(query.get("start", 0)) + 10, MANY)
        url = f"/items?start={after}"
        body = {"data": RECORDS[int(query.get("start", 0)) : after], "next_cursor": after, "next": url}
        return web.json_response(body, headers={"Link": f'<{url}>; rel="next"'})

    part, stored, read = await both(serve, tmp_path, Source("items", ways[way]), answer)
    assert part.done
    assert stored == read == set(range(MANY))


@pytest.mark.parametrize("way", UNCOUNTED)
@pytest.mark.parametrize("many", [0, MANY])
async def test_an_answer_without_content_has_no_records(serve: Serve, tmp_path: Path, way: str, many: int) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        return {"data": RECORDS[start : start + 10]} if start < many else web.Response(status=204)

    part, stored, read = await both(serve, tmp_path, UNCOUNTED[way], answer)
    assert part.done
    assert stored == read == set(range(many))


async def test_an_answer_without_content_does_not_end_a_chain(serve: Serve, tmp_path: Path) -> None:
    def answer(query: dict[str, str]) -> Any:
        return web.Response(status=204) if "cursor" in query else {"data": RECORDS[:10], "next_cursor": "more"}

    part, stored, read = await both(serve, tmp_path, Source("items", Cursor(page_size=10)), answer)
    assert not part.done
    assert stored == set(range(10))
    assert isinstance(read, ValueError)


async def test_an_id_may_be_a_whole_number_with_a_point(serve: Serve, tmp_path: Path) -> None:
    def answer(query: dict[str, str]) -> Any:
        start = start_of(query)
        return {"data": [{"id": float(each["id"])} if start == 10 else each for each in RECORDS[start : start + 10]]}

    part, stored, read = await both(serve, tmp_path, UNCOUNTED["numbers"], answer)
    assert part.done
    assert stored == read == set(range(MANY))


async def test_an_id_of_another_type_is_named(serve: Serve, tmp_path: Path) -> None:
    part, _, _ = await both(serve, tmp_path, UNCOUNTED["numbers"], lambda _: {"data": [{"id": 1.5}]})
    told = "record 1 on page 1 of items has no usable 'id': it must be text or a whole number, got float"
    assert str(part.error) == told


@pytest.mark.parametrize("after", ["nothing", "404", "the last page", "the first page"])
@pytest.mark.parametrize(("many", "cap"), [(20, 10), (25, 10), (30, 10), (25, 5), (28, 7)])
async def test_a_page_count_that_is_too_low_does_not_end_a_list_of_full_pages(
    serve: Serve, tmp_path: Path, many: int, cap: int, after: str
) -> None:
    """Some APIs round the count down, or return smaller pages than those they count. Nothing else shows that."""
    records = [{"id": number} for number in range(many)]

    def answer(query: dict[str, str]) -> Any:
        start = (int(query["page"]) - 1) * cap
        if start >= many and after == "404":
            return web.Response(status=404)
        if start >= many and after != "nothing":
            start = 0 if after == "the first page" else (many - 1) // cap * cap
        return {"data": records[start : start + cap], "pages": 2}

    part, stored, read = await both(serve, tmp_path, COUNTED, answer)
    assert part.done
    assert stored == read == set(range(many))
