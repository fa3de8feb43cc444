"""A server of 300 accounts with two lists each, in a process of its own."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

__all__ = ["LISTS", "PAGES", "SIZE", "serve", "serve_late"]

LISTS, PAGES, SIZE = ("bills", "invoices"), 5, 100
_FIELDS = ",".join(f'"field{number}":"value {number}","amount{number}":{number * 37}.10' for number in range(24))
"""What makes a record a kilobyte."""


def serve(pipe: Connection) -> None:
    """Serve the lists and send the URL."""
    serve_late(0.0, pipe)


def serve_late(latency: float, pipe: Connection) -> None:
    """Serve the lists, each response after *latency* seconds, and send the URL."""
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        if latency:
            await asyncio.sleep(latency)
        number, since = int(request.query["page"]), request.query.get("since")
        total = 0 if since and since > "2025" else PAGES * SIZE
        first = (number - 1) * SIZE
        prefix = f"{request.headers['X-Account']}-{request.path[1:]}"
        records = ",".join(
            f'{{"id":"{prefix}-{each}","number":{each},{_FIELDS},"at":"2026-01-01T00:00:00Z"}}'
            for each in range(first, first + SIZE if first < total else first)
        )
        text = f'{{"total":{total},"data":[{records}]}}'
        return web.Response(text=text, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        for name in LISTS:
            app.router.add_get(f"/{name}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        pipe.send(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()

    asyncio.run(main())
