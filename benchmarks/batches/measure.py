"""Measure one contender in a fresh process."""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypedDict

from benchmarks.batches.contenders import CONTENDERS
from benchmarks.processes import GRACE, child, receive

__all__ = ["Sample", "measure", "spent"]

PATIENCE = 1e-3  # seconds an item may take


class Sample(TypedDict):
    """The resources that a contender used for a number of items."""

    contender: str
    items: int
    seconds: float
    cpu: float
    """CPU seconds of all threads."""
    peak: int
    """Peak memory of the process in bytes."""


def measure(contender: str, items: int) -> Sample:
    """Run a contender with a number of items. Raises RuntimeError if it hangs, crashes or skips items."""
    with child(_spend, contender, items) as (process, pipe):
        sample: Sample = receive(process, pipe, PATIENCE * items + GRACE)
    return sample


def _spend(contender: str, items: int, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sample = asyncio.run(spent(contender, items))
    with suppress(BrokenPipeError):  # the parent has ended
        pipe.send(sample)


async def spent(contender: str, items: int) -> Sample:
    """Return the resources of a contender in this process. Raises RuntimeError if it skips items."""
    began, used = time.perf_counter(), time.process_time()
    if await CONTENDERS[contender].run(items) != items * (items - 1) // 2:
        raise RuntimeError(f"{contender} has not done each of {items:,} items once")
    return {
        "contender": contender,
        "items": items,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - used,
        "peak": _peak(),
    }


def _peak() -> int:
    # Not by getrusage where that can be helped: on Linux it counts what the parent had before it became this process.
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
