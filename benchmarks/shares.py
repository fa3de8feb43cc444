"""Where the CPU of a call goes: the share of each package, and of each part of lamella.

    python benchmarks/shares.py                  three kinds of calls over loopback, half a minute
    python benchmarks/shares.py --seconds 3      sooner, and less exact

A timer interrupts the client every millisecond of its CPU. What runs then counts for the innermost package that is
named below; what the standard library does counts for its caller.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.costs.contenders import CONTENDERS
from benchmarks.costs.loopback import Job, do
from benchmarks.costs.server import serve
from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive

__all__ = ["owner_of", "table"]

KINDS = {
    "succeeds, no SDK": ("lamella", 0),
    "succeeds, recorded": ("lamella, recorded", 0),
    "two retries, no SDK": ("lamella", 2),
}
_REST = "aiohttp, asyncio, sockets"
_PACKAGES = {
    "lamella": "lamella",
    "stamina": "stamina and tenacity",
    "tenacity": "stamina and tenacity",
    "opentelemetry": "OpenTelemetry",
}
_EVERY = 0.001

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def owner_of(frame: FrameType | None) -> str:
    """Return whose work *frame* is: a package, or a part of lamella such as ``lamella: throttle``."""
    while frame is not None:
        package, _, rest = str(frame.f_globals.get("__name__", "")).partition(".")
        if package in {"aiohttp", "asyncio"}:
            return _REST
        if (owner := _PACKAGES.get(package)) is not None:
            return f"lamella: {rest.partition('.')[0]}" if package == "lamella" else owner
        frame = frame.f_back
    return _REST


@contextmanager
def _sampled(samples: Counter[str]) -> Iterator[None]:
    def count(_: int, frame: FrameType | None) -> None:
        samples[owner_of(frame)] += 1

    before = signal.signal(signal.SIGPROF, count)
    signal.setitimer(signal.ITIMER_PROF, _EVERY, _EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def work(kind: str, url: str, seconds: float, pipe: Connection) -> None:
    """Make calls for so many *seconds*; send the samples by owner."""
    logging.basicConfig(level=logging.CRITICAL)  # writing a line for each retry would cost more than the retry
    pipe.send(asyncio.run(_work(kind, url, seconds)))


async def _work(kind: str, url: str, seconds: float) -> Counter[str]:
    name, failures = KINDS[kind]
    contender, samples = CONTENDERS[name], Counter[str]()
    job = Job(200, 50, failures)
    async with contender.connect(url, contender.telemetry) as call:
        await do(job, call)
        gc.collect()
        gc.freeze()
        ends = time.monotonic() + seconds
        with _sampled(samples):
            while time.monotonic() < ends:
                await do(job, call)
    return samples


def table(samples: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a column for each kind of call, all of lamella and then its parts."""
    shares = {
        kind: {owner: count / (sum(counts.values()) or 1) for owner, count in counts.items()}
        for kind, counts in samples.items()
    }
    for each in shares.values():
        each["lamella"] = sum(share for owner, share in each.items() if owner.startswith("lamella: "))
    parts = {owner for each in shares.values() for owner in each if owner.startswith("lamella: ")}
    ordered = sorted(parts, key=lambda owner: -max(each.get(owner, 0.0) for each in shares.values()))
    shown = [owner for owner in ordered if max(each.get(owner, 0.0) for each in shares.values()) >= 0.01]
    yield f"| | {' | '.join(shares)} |"
    yield f"|---|{'--:|' * len(shares)}"
    for owner in (_REST, "OpenTelemetry", "stamina and tenacity", "lamella", *shown):
        row = (f"{each[owner]:.0%}" if each.get(owner, 0.0) >= 0.005 else "" for each in shares.values())
        yield f"| {owner} | {' | '.join(row)} |"


@app.command()
def shares(
    *, seconds: Annotated[float, typer.Option(min=0.1, help="How long each kind of call is made.")] = 8.0
) -> None:
    """Print the share of each package in the CPU of a call."""
    samples: dict[str, Counter[str]] = {}
    with child(serve) as (server, to_server):
        url = receive(server, to_server, GRACE)
        for kind in KINDS:
            with child(work, kind, url, seconds) as (client, to_client):
                samples[kind] = receive(client, to_client, GRACE + 2 * seconds)
    typer.echo("\n".join(table(samples)))
    typer.echo(f"\n{', '.join(where().values())}")


if __name__ == "__main__":
    app()
