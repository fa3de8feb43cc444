"""A sync on Dask workers beside the plain one, and the driver's memory with 100,000 accounts.

    .venv-dask/bin/python benchmarks/on_dask.py speed      a minute or two
    .venv-dask/bin/python benchmarks/on_dask.py driver     the driver alone; its workers do nothing

The server is another process, which answers after a while: what is measured is how well the workers fill the time. An
account has a rate limit of its own at the API, so its pages come one after another.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.processes import GRACE, child, receive
from benchmarks.syncing.server import LISTS, PAGES, SIZE, serve_late

from lamella import HeaderAuth, Source, stack
from lamella import sync as syncing
from lamella.batch import Journal
from lamella.dataset import Dataset, DatasetProgress, Process, Work, sync_shards
from lamella.sync import Report

_ROOT: Final = Path(__file__).resolve().parents[1]
_SHARDS: Final = 8
_account: ContextVar[str] = ContextVar("account")


@contextmanager
def _within(name: str) -> Iterator[None]:
    token = _account.set(name)
    yield
    _account.reset(token)


SOURCES: Final[Mapping[str, Source]] = {
    name: Source(name, total="total", changed="at", since="since", within=_within, pages=syncing.Numbered())
    for name in LISTS
}


def session(url: str) -> aiohttp.ClientSession:
    auth = HeaderAuth({"X-Account": lambda _: _account.get()}, origin=url)
    layers = stack(auth=auth, account=lambda _: _account.get())
    return aiohttp.ClientSession(url, middlewares=layers, connector=aiohttp.TCPConnector(limit=100))


async def read_shard(process: Process, work: Work, journal: Journal, *, resume: bool, on_progress: Any) -> Report:
    """Sync the accounts of a shard; a :class:`lamella.dataset.Read`."""
    url = work.options["url"]
    made = await process.shared("session", lambda: session(url))
    names = {name: name for name in work.accounts}
    return await syncing.run(
        made, SOURCES, names, journal=journal, resume=resume, at_once=work.options["at_once"], on_progress=on_progress
    )


async def read_nothing(*_: object, **__: object) -> Report:
    """Do nothing: what is measured is the driver."""
    return Report(1, False, (), 0.0)


READ: Final = "benchmarks.on_dask:read_shard"
NOTHING: Final = "benchmarks.on_dask:read_nothing"


async def plain(url: str, names: list[str], folder: Path, at_once: int) -> float:
    """Return the seconds of the plain sync."""
    async with session(url) as made, Journal.open(folder / "journal", batch="benchmark") as journal:
        began = time.perf_counter()
        accounts = {name: name for name in names}
        report = await syncing.run(
            made, SOURCES, accounts, journal=journal, output=folder / "records.jsonl", at_once=at_once
        )
        took = time.perf_counter() - began
    assert report.done, report.failed
    return took


async def on_workers(url: str, names: list[str], folder: Path, at_once: int, workers: int) -> float:
    """Return the seconds of the sync on so many workers, which are there."""
    from distributed import Client, LocalCluster

    from lamella.dataset.on_dask import OnDask

    async with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(workers)
        await client.run(_warm)
        made = Dataset.create(folder / f"on-{workers}", batch="benchmark", shards=_SHARDS)
        report = await sync_shards(OnDask(client), made, names, READ, {"url": url, "at_once": at_once})
    assert report.done, report
    assert report.result.records == len(names) * len(LISTS) * PAGES * SIZE
    return report.took


def _warm() -> None:
    """Import what the work needs, which is no part of it."""
    import lamella.dataset.on_dask  # noqa: F401


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def measure() -> None:
    """Measure the sync on Dask."""
    os.environ["PYTHONPATH"] = str(_ROOT)  # for the workers


@app.command()
def speed(
    *,
    accounts: Annotated[int, typer.Option(min=1, help="How many accounts there are.")] = 60,
    latency: Annotated[float, typer.Option(min=0, help="Seconds after which the server answers.")] = 0.1,
    at_once: Annotated[int, typer.Option(min=1, help="Pages of a process at a time.")] = 4,
) -> None:
    """Measure the plain sync, and one and two workers."""
    names = [f"account-{number}" for number in range(accounts)]
    typer.echo(f"{accounts * len(LISTS) * PAGES:,} pages of {SIZE} records, {at_once} at a time in a process\n")
    with child(serve_late, latency) as (server, said), tempfile.TemporaryDirectory() as name:
        url = receive(server, said, GRACE)
        folder = Path(name)
        alone = asyncio.run(plain(url, names, folder, at_once))
        one = asyncio.run(on_workers(url, names, folder, at_once, 1))
        two = asyncio.run(on_workers(url, names, folder, at_once, 2))
    typer.echo("| | s | × |\n|---|---|---|")
    typer.echo(f"| plain | {alone:.1f} | |")
    typer.echo(f"| one worker | {one:.1f} | {alone / one:.2f} of the plain one's speed (0.85 or more) |")
    typer.echo(f"| two workers | {two:.1f} | {one / two:.2f} times the speed of one (1.6 or more) |")


@app.command()
def driver(*, accounts: Annotated[int, typer.Option(min=1)] = 100_000) -> None:
    """Measure the memory of the driver while the shards of so many accounts are done."""
    with tempfile.TemporaryDirectory() as name:
        before, peaks, took = asyncio.run(_drive(accounts, Path(name)))
    typer.echo(f"{accounts:,} accounts in {len(peaks) - 1} shards, {took:.0f} s")
    marks = ", ".join(f"{peak:.0f}" for peak in peaks[:: max(1, len(peaks) // 8)])
    typer.echo(f"MB at the beginning {before:.0f}, then {marks}; at the end {peaks[-1]:.0f} (300 or less)")


async def _drive(accounts: int, folder: Path) -> tuple[float, list[float], float]:
    """Return the MB before, those after each shard, and the seconds."""
    from distributed import Client, LocalCluster

    from lamella.dataset.on_dask import OnDask

    peaks: list[float] = []
    seen = -1

    def on_progress(progress: DatasetProgress) -> None:
        nonlocal seen
        if progress.ended > seen:
            seen = progress.ended
            peaks.append(_peak())

    began = time.perf_counter()
    async with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        before = _peak()
        names = [f"account number {number}" for number in range(accounts)]
        made = Dataset.create(folder / "out", batch="benchmark", shards=64)
        report = await sync_shards(OnDask(client), made, names, NOTHING, on_progress=on_progress)
        assert report.done, report
    return before, peaks, time.perf_counter() - began


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    app()
