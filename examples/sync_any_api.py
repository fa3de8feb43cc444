"""Sync an unusual API on two nights: a cursor in the body, a Link header, and no totals.

    python examples/sync_any_api.py

It starts a small shop on this machine that wants a token, and fails now and then.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

import lamella
from lamella import HTTP_RULES, HeaderAuth, Source, stack, sync
from lamella.batch import Journal

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RULES = HTTP_RULES.scaled(0.001)  # a thousandth of every delay, for this example
REQUESTS = itertools.count(1)
TOKEN = "example-token"  # noqa: S105 - made up
ORDERS = [{"id": n, "total": f"{n}.10", "changed_at": f"2026-01-{1 + n % 28:02}T00:00:00Z"} for n in range(250)]
CUSTOMERS = [{"key": f"c{n}", "name": f"Customer {n}"} for n in range(120)]

# The complete description of the API.
SOURCES = {
    "orders": Source(
        "v1/orders",
        sync.Cursor(next="paging.next", cursor="after"),
        records="orders",
        changed="changed_at",
        since="changed_since",
    ),
    "customers": Source("v1/customers", sync.LinkHeader(page_size=50, size="per_page"), records="", id="key"),
}


async def orders(request: web.Request) -> web.Response:
    since, at = request.query.get("changed_since", ""), int(request.query.get("after", 0))
    found = [order for order in ORDERS if str(order["changed_at"]) >= since]
    more = str(at + 100) if at + 100 < len(found) else None
    return web.json_response({"orders": found[at : at + 100], "paging": {"next": more}})


async def customers(request: web.Request) -> web.Response:
    at, many = int(request.query.get("at", 0)), int(request.query["per_page"])
    links = {"Link": f'<?per_page={many}&at={at + many}>; rel="next"'} if at + many < len(CUSTOMERS) else {}
    return web.json_response(CUSTOMERS[at : at + many], headers=links)


@web.middleware
async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Fail every third response."""
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise web.HTTPUnauthorized
    if next(REQUESTS) % 3 == 0:
        raise web.HTTPServiceUnavailable
    return await handler(request)


async def night(session: aiohttp.ClientSession, folder: Path) -> None:
    async with Journal.open(folder / "shop.journal", batch="the shop") as journal:
        report = await sync.run(session, SOURCES, journal=journal, output=folder / "records.jsonl")
    print(f"run {report.run}: {report.records} records that were new or had changed, done: {report.done}")


def lists_in(path: Path) -> dict[str, int]:
    return dict(Counter(json.loads(line)["resource"] for line in path.read_text().splitlines()))


async def main() -> None:
    app = web.Application(middlewares=[check])
    app.router.add_get("/v1/orders", orders)
    app.router.add_get("/v1/customers", customers)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    auth = HeaderAuth({"Authorization": f"Bearer {TOKEN}"}, origin=url)
    with tempfile.TemporaryDirectory() as name:
        async with aiohttp.ClientSession(url, middlewares=stack(RULES, auth=auth)) as session:
            await night(session, Path(name))
            ORDERS[7] |= {"total": "8.00", "changed_at": "2026-02-01T00:00:00Z"}
            await night(session, Path(name))
            print("in the file:", lists_in(Path(name, "records.jsonl")))
            # The same pages without a sync.
            names = [each["name"] async for each in lamella.records(session, SOURCES["customers"])]
            print("by records():", len(names))
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
