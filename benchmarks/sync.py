"""A night's sync of 300,000 records of 1 KB, 300 accounts × 2 lists × 5 pages: lamella, and forty lines by hand.

    python benchmarks/sync.py               some minutes
    python benchmarks/sync.py --accounts 30 a tenth of it

The server is another process. Each contender runs in a process of its own; the table has its CPU time and peak memory.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.processes import GRACE, child, receive

LISTS, PAGES, SIZE = ("bills", "invoices"), 5, 100
FIELDS = ",".join(f'"field{number}":"value {number}","amount{number}":{number * 37}.10' for number in range(24))
"""What makes a record a kilobyte."""
LONGEST = 1800.0  # seconds for one contender


def serve(*given: Any) -> None:
    """Serve the lists, and send the URL: of *given*, perhaps seconds after which it answers, and the pipe."""
    *latency, pipe = given
    from aiohttp import web

    async def handle(request: web.Request) -> web.Response:
        if latency:
            await asyncio.sleep(latency[0])
        number, since = int(request.query["page"]), request.query.get("since")
        total = 0 if since and since > "2025" else PAGES * SIZE
        first = (number - 1) * SIZE
        prefix = f"{request.headers['X-Account']}-{request.path[1:]}"
        records = ",".join(
            f'{{"id":"{prefix}-{each}","number":{each},{FIELDS},"at":"2026-01-01T00:00:00Z"}}'
            for each in range(first, first + SIZE if total else first)
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


async def lamella(url: str, accounts: int, folder: Path) -> None:
    """Sync with `lamella.sync`."""
    from contextlib import contextmanager
    from contextvars import ContextVar

    import aiohttp

    from lamella import HeaderAuth, Source, stack
    from lamella import sync as syncing
    from lamella.batch import Journal

    account: ContextVar[str] = ContextVar("account")

    @contextmanager
    def within(name: str) -> Any:
        token = account.set(name)
        yield
        account.reset(token)

    lists = {
        name: Source(name, total="total", changed="at", since="since", within=within, pages=syncing.Numbered())
        for name in LISTS
    }
    auth = HeaderAuth({"X-Account": lambda _: account.get()}, origin=url)
    names = {f"account-{number}": f"account-{number}" for number in range(accounts)}
    layers = stack(auth=auth, account=lambda _: account.get())
    async with (
        aiohttp.ClientSession(url, middlewares=layers, connector=aiohttp.TCPConnector(limit=100)) as session,
        Journal.open(folder / "journal", batch="benchmark") as journal,
    ):
        report = await syncing.run(session, lists, names, journal=journal, output=folder / "records.jsonl", at_once=100)
    assert report.done, report.failed


async def by_hand(url: str, accounts: int, folder: Path) -> None:
    """Forty lines of aiohttp: every page of every list, decoded and written."""
    import aiohttp

    limit = asyncio.Semaphore(100)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        async with aiohttp.ClientSession(url) as session:

            async def page(account: str, name: str, number: int) -> tuple[int, list[Any]]:
                headers, query = {"X-Account": account}, {"page": str(number), "limit": str(SIZE)}
                for attempt in range(5):
                    try:
                        async with limit, session.get(name, params=query, headers=headers) as response:
                            response.raise_for_status()
                            body = await response.json()
                            return body["total"], body["data"]
                    except aiohttp.ClientError:
                        await asyncio.sleep(2**attempt)
                raise RuntimeError("too many failures")

            async def every_page(account: str, name: str) -> None:
                number, seen = 1, 0
                while True:
                    total, records = await page(account, name, number)
                    for record in records:
                        line = {"account": account, "resource": name, "id": record["id"], "record": record}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    number, seen = number + 1, seen + len(records)
                    if seen >= total or not records:
                        return

            lists = [(f"account-{number}", name) for number in range(accounts) for name in LISTS]
            await asyncio.gather(*(every_page(*each) for each in lists))


CONTENDERS: dict[str, Callable[[str, int, Path], Coroutine[Any, Any, None]]] = {"lamella": lamella, "by hand": by_hand}


def measure(name: str, url: str, accounts: int, folder: Path, pipe: Connection) -> None:
    """Run one contender, and send its CPU seconds, its seconds and its peak memory in MB."""
    began = time.perf_counter()
    asyncio.run(CONTENDERS[name](url, accounts, folder))
    used = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024))


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def sync(*, accounts: Annotated[int, typer.Option(min=1, help="How many accounts there are.")] = 300) -> None:
    """Measure all contenders, and show the table."""
    records = accounts * len(LISTS) * PAGES * SIZE
    typer.echo(f"| {records:,} records | CPU s | s | peak MB | journal / records |\n|---|---|---|---|---|")
    with child(serve) as (server, said), tempfile.TemporaryDirectory() as name:
        url = receive(server, said, GRACE)
        for contender, nights in (("by hand", 1), ("lamella", 2)):
            folder = Path(name, contender)
            folder.mkdir()
            for night in range(nights):
                with child(measure, contender, url, accounts, folder) as (process, pipe):
                    cpu, took, peak = receive(process, pipe, LONGEST)
                ratio, journal = "", folder / "journal"
                if journal.exists():
                    ratio = f"{journal.stat().st_size / kept_bytes(folder / 'records.jsonl'):.2f}"
                what = f"{contender}, nothing has changed" if night else contender
                typer.echo(f"| {what} | {cpu:.1f} | {took:.1f} | {peak:.0f} | {ratio} |")


def kept_bytes(path: Path) -> int:
    """Return how many bytes the records of an output have."""
    with path.open("rb") as lines:
        return sum(len(line.partition(b'"record":')[2]) - len("}\n") for line in lines)


if __name__ == "__main__":
    app()
