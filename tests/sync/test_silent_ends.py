"""Chains that end before the page count of the API, or with a full first page that does not mention a next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

import lamella
from lamella import Source, stack, sync
from lamella.batch import Journal
from lamella.sync import Cursor, LinkHeader, NextUrl, Pagination, Part, UnsteadyList

RECORDS = [{"id": number} for number in range(25)]
CHAINS = [Cursor("nextCursor", page_size=10), NextUrl("meta.next", page_size=10), LinkHeader(page_size=10)]
every_chain = pytest.mark.parametrize("pages", CHAINS, ids=["cursor", "url", "link"])


def answering(records: list[Any], headers: dict[str, str] | None = None, **more: Any) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"data": records, **more}, headers=headers)

    return answer


async def run(url: str, folder: Path, source: Source) -> Part:
    async with (
        aiohttp.ClientSession(url, middlewares=stack()) as session,
        Journal.open(folder / "journal", batch="b") as journal,
    ):
        report = await sync.run(session, {"rows": source}, journal=journal)
    return report.parts[0]


@every_chain
async def test_a_chain_with_fewer_pages_than_the_api_counts_fails(
    serve: Serve, tmp_path: Path, pages: Pagination
) -> None:
    source = Source("rows", pages, total_pages="pages")
    url = await serve(answering(RECORDS[:10], pages=3))
    part = await run(url, tmp_path, source)
    told = "(page 1 leads to no other page, but the API counts 3 pages). Records may be missing"
    assert isinstance(part.error, UnsteadyList)
    assert str(part.error).endswith(told)
    async with aiohttp.ClientSession(url, middlewares=stack()) as session:
        records = lamella.records(session, source)
        assert [await anext(records) for _ in range(10)] == RECORDS[:10]
        with pytest.raises(UnsteadyList, match="the API counts 3 pages"):
            await anext(records)


@every_chain
async def test_a_full_first_page_that_mentions_no_next_page_is_reported(
    serve: Serve, tmp_path: Path, pages: Pagination
) -> None:
    part = await run(await serve(answering(RECORDS[:10])), tmp_path, Source("rows", pages))
    assert part.done
    told = (
        "page 1 of rows is full, but its answer has no cursor, next URL or Link header: "
        "check the pagination if there are more"
    )
    assert part.warnings == (told,)


@pytest.mark.parametrize(
    ("pages", "answer"),
    [
        (CHAINS[0], answering(RECORDS[:10], nextCursor=None)),
        (CHAINS[1], answering(RECORDS[:10], meta={"next": None})),
        (CHAINS[2], answering(RECORDS[:10], {"Link": '</rows>; rel="first"'})),
        (CHAINS[0], answering(RECORDS[:9])),
        (CHAINS[0], answering(RECORDS[:10], total=10)),
        (Cursor("nextCursor", size=None), answering([{"id": number} for number in range(100)])),
        (Pagination(size=None), answering([{"id": number} for number in range(100)])),
    ],
    ids=["null cursor", "null url", "other link", "not full", "total", "no page size", "one page"],
)
async def test_no_other_last_page_is_reported(serve: Serve, tmp_path: Path, pages: Pagination, answer: Any) -> None:
    part = await run(await serve(answer), tmp_path, Source("rows", pages, total="total"))
    assert (part.done, part.warnings) == (True, ())
