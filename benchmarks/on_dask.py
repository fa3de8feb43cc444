"""A sync on Dask workers beside the plain one, and the driver's memory with 100,000 accounts.

make bench-dask                              everything, five minutes; writes results/dask.md
make bench-dask ARGS='--accounts 16'         less of it, shown and not written

The plain sync, one worker and two workers run in turn, several times: the speed of a machine changes from minute to
minute. A cluster is started before its time begins. All store their records and their journal on the same disk.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import aiohttp
import typer
from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive
from benchmarks.syncing.server import LISTS, PAGES, SIZE, serve_late

from lamella import HeaderAuth, Source, stack
from lamella import sync as syncing
from lamella.batch import Journal
from lamella.dataset import Dataset, DatasetProgress, Process, Work, sync_shards
from lamella.dataset.on_dask import OnDask
from lamella.maesn.accounts_file import accounts_in
from lamella.sync import Part, Report

_ROOT: Final = Path(__file__).resolve().parents[1]
_SHARDS: Final = 8
_ACCOUNTS: Final = 40
_ROUNDS: Final = 3
_LATENCY: Final = 0.25
_AT_ONCE: Final = 4
_MANY: Final = 100_000
_RESULTS: Final = _ROOT / "benchmarks" / "results" / "dask.md"
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


async def read_at_once(process: Process, work: Work, journal: Journal, **_: Any) -> Report:
    """Note a mark for each list, as if the API had answered at once: what is measured is the driver."""
    parts = tuple(Part(account, "bills", None, 1, 1, 100, done=True) for account in work.accounts)

    def note(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS sync_parts (account, resource, run, mark)")
        marks = [(part.account, part.resource, work.run, 1_700_000_000_000_000) for part in parts]
        db.executemany("INSERT INTO sync_parts VALUES (?, ?, ?, ?)", marks)

    await journal.commit(note)
    return Report(1, False, parts, 0.0)


READ: Final = "benchmarks.on_dask:read_shard"
AT_ONCE: Final = "benchmarks.on_dask:read_at_once"


class Measured(NamedTuple):
    """What a sync has taken, in seconds."""

    time: float
    cpu: float
    """Of its processes: driver and workers, without the server."""


Round: TypeAlias = tuple[Measured, Measured, Measured]
"""The plain sync, one worker and two workers."""


async def plain(url: str, names: Sequence[str], folder: Path) -> Measured:
    """Measure the plain sync."""
    async with session(url) as made, Journal.open(folder / "journal", batch="benchmark") as journal:
        began, cpu = time.perf_counter(), time.process_time()
        accounts = {name: name for name in names}
        output = folder / "records.jsonl"
        report = await syncing.run(made, SOURCES, accounts, journal=journal, output=output, at_once=_AT_ONCE)
        found = Measured(time.perf_counter() - began, time.process_time() - cpu)
    assert report.done, report.failed
    return found


async def on_workers(url: str, names: Sequence[str], folder: Path, workers: int) -> Measured:
    """Measure the sync on so many workers, which are there."""
    async with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.wait_for_workers(workers)
        await client.run(_warm)
        made = Dataset.create(folder / f"on-{workers}", batch="benchmark", shards=_SHARDS)
        cpu = time.process_time() + sum((await client.run(time.process_time)).values())
        report = await sync_shards(OnDask(client), made, names, READ, {"url": url, "at_once": _AT_ONCE})
        cpu = time.process_time() + sum((await client.run(time.process_time)).values()) - cpu
    assert report.done, report
    assert report.result.records == len(names) * len(LISTS) * PAGES * SIZE
    return Measured(report.took, cpu)


def _warm() -> None:
    """Import what the work needs, as --preload does."""
    import benchmarks.on_dask  # noqa: F401 - on a worker


def compare(accounts: int, latency: float, rounds: int) -> list[Round]:
    """Measure the plain sync, one worker and two workers, in so many rounds."""
    names = [f"account-{number}" for number in range(accounts)]
    found = []
    with child(serve_late, latency) as (server, said):
        url = receive(server, said, GRACE)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                alone = asyncio.run(plain(url, names, folder))
                one, two = (asyncio.run(on_workers(url, names, folder, workers)) for workers in (1, 2))
            found.append((alone, one, two))
    return found


async def memory_of_driver(accounts: int, folder: Path) -> list[float]:
    """Return the MB of the driver, with its scheduler: before the run, and after the end of each shard."""
    found: list[float] = []
    file = folder / "accounts.csv"
    file.write_text("name,key\n" + "".join(f"account number {number},key {number}\n" for number in range(accounts)))

    def on_progress(progress: DatasetProgress) -> None:
        if progress.ended >= len(found):
            found.append(_memory())

    async with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None, asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        names = [account.name for account in accounts_in(file)]
        made = Dataset.create(folder / "out", batch="benchmark", shards=64)
        report = await sync_shards(OnDask(client), made, names, AT_ONCE, on_progress=on_progress)
    assert report.done, report
    found.append(_memory())  # the old files have been looked for
    return found


def _memory() -> float:
    """Return the MB of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    accounts: Annotated[int, typer.Option(min=1, help="How many accounts are read.")] = _ACCOUNTS,
    many: Annotated[int, typer.Option(min=1, help="How many accounts the measured driver has.")] = _MANY,
    rounds: Annotated[int, typer.Option(min=1, help="How often each sync is measured.")] = _ROUNDS,
) -> None:
    """Measure the sync on Dask. Exit with 1 if a goal is missed."""
    os.environ["PYTHONPATH"] = str(_ROOT)  # for the workers
    began = time.monotonic()
    late, quick = compare(accounts, _LATENCY, rounds), compare(accounts, 0.0, rounds)
    with tempfile.TemporaryDirectory() as name:
        memory = asyncio.run(memory_of_driver(many, Path(name)))
    one, two = _speed(late, 1), _speed(late, 2)
    shard = median(found[1].time for found in late) / _SHARDS
    marks = memory[1 : -1 : max(1, len(memory) // 8)]
    page = f"""\
# The sync on Dask

`make bench-dask` wrote this page. The server is a process of its own on the same machine. A client reads {accounts}
accounts with {len(LISTS)} lists each, {PAGES} pages of {SIZE} records (100 KB), in all
{accounts * len(LISTS) * PAGES:,} pages. Each process reads {_AT_ONCE} pages at a time. The dataset has {_SHARDS}
shards; a worker has one thread. The start of the cluster is not measured. All three store their records and their
journal on the same disk. They run in turn, {rounds} times: times are medians, and a speed is the median of those of the
rounds. *CPU* is the time of driver, scheduler and workers.

## Bounded by the API: each answer takes {_LATENCY:g} s

{_table(late)}

The goals: one worker has {one:.2f} of the plain sync's speed (0.85 or more), and two workers {two:.2f} times that of
one worker (1.6 or more).

A shard takes {shard:.1f} s here, and should take minutes in use. What one worker lacks is lost in each shard: at its
start, until its journal is open, and at its end, when fewer than {_AT_ONCE} pages are left to read. The worker reads
the next shard while it commits the last one.

## Bounded by the processor: each answer comes at once

The server and the driver need a part of the cores, so two workers cannot be twice as fast here.

{_table(quick)}

## The driver with {many:,} accounts

The workers answer at once, with a mark for each account. The scheduler is in the driver's process.

| | MB |
|---|--:|
| as the run begins | {memory[0]:.0f} |
| during the run | {", ".join(f"{each:.0f}" for each in marks)} |
| most, at the end of a shard | {max(memory):.0f} (goal: 300 or less) |
| after the end | {memory[-1]:.0f} |

## Where and when

{chr(10).join(f"- {key}: {value}" for key, value in where().items())}
- took: {(time.monotonic() - began) / 60:.0f} minutes
"""
    typer.echo(page)
    if (accounts, many, rounds) == (_ACCOUNTS, _MANY, _ROUNDS):
        _RESULTS.write_text(page, encoding="utf-8")
    if one < 0.85 or two < 1.6 or max(memory) > 300:
        raise typer.Exit(1)


def _speed(rounds: Sequence[Round], number: int) -> float:
    """Return the speed of a sync as a multiple of the one before it in its round."""
    return median(found[number - 1].time / found[number].time for found in rounds)


def _table(rounds: Sequence[Round]) -> str:
    speeds = ["", f"{_speed(rounds, 1):.2f} of the plain sync's", f"{_speed(rounds, 2):.2f} times that of one worker"]
    lines = ["| | time s | CPU s | speed |", "|---|--:|--:|---|"]
    for number, name in enumerate(("plain sync", "one worker", "two workers")):
        took, cpu = (median(values) for values in zip(*(found[number] for found in rounds), strict=True))
        lines.append(f"| {name} | {took:.1f} | {cpu:.1f} | {speeds[number]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app()
