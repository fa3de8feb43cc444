"""The client of the soak: syncs in one session, with samples of the process between them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, TypedDict

import aiohttp
from benchmarks.soaking.server import ACCOUNTS, API_KEY, SILENCE
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from lamella import Breaker, RetryBudget, maesn
from lamella.batch import Journal

__all__ = ["Held", "Sample", "soak"]

RESOURCES: Final = ("contacts", "invoices", "customers")
RULES: Final = maesn.RULES.scaled(0.001)
CONNECTIONS: Final = 20
BEFORE_ALL: Final = "2000-01-01T00:00:00Z"
"""Each sync reads all lists, so that all do the same work."""
_IDLE: Final = 0.5
"""Seconds after which an idle connection is closed."""
_LONGEST: Final = 30.0
"""How many seconds longer a sample may take on a slow machine, until a page has been read."""
_CANCELLED: Final = 0.2
"""The share of the syncs that are cancelled in the middle."""


class Held(TypedDict):
    """What the process holds at a moment."""

    tasks: int
    """Tasks of the loop, except the one that counts them."""
    descriptors: int
    """Open files, including connections."""
    connections: int
    """Open connections, including idle ones."""


class Sample(TypedDict):
    """What there was when everything was at rest: no sync under way, and idle connections had had time to end."""

    at: float
    """Seconds since the beginning."""
    rss: int
    """Bytes of memory, as the system counts them, when what is free was given back to it."""
    blocks: int
    """Pieces of memory that Python's own allocator has handed out, after a collection of garbage."""
    objects: int
    """Objects that the collector knows of, after it has run."""
    garbage: int
    """Objects that it has found in cycles: what would have been held until it runs by itself."""
    threads: int
    journal: int
    """Bytes of the journal's file."""
    rest: Held
    work: Held
    """The most of each since the last sample."""
    syncs: int
    """How many there have been since the last sample, with those that were cancelled."""
    cancelled: int
    pages: int
    """How many pages they have stored."""
    sends: int
    """How many requests were sent for that."""
    parts: int
    """How many parts of a sync have failed."""


def soak(url: str, seconds: float, every: float, seed: int, pipe: Connection) -> None:
    """Sync for so many seconds, and send a `Sample` *every* so many; None at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_soak(url, seconds, every, random.Random(seed), pipe.send))
    with suppress(BrokenPipeError):  # our parent is gone
        pipe.send(None)


async def _soak(
    url: str, seconds: float, every: float, chance: random.Random, tell: Callable[[Sample], object]
) -> None:
    tracing = TracerProvider(shutdown_on_exit=False)
    spans = _Spans()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    metering = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=_IDLE)
    with tempfile.TemporaryDirectory() as folder:
        async with maesn.session(
            API_KEY,
            None,
            url,
            rules=RULES,
            breaker=Breaker(open_for=0.3),
            # With the default so many faults queue the syncs for most of the time.
            retry_budget=RetryBudget(ratio=1.0),
            attempt_timeout=SILENCE,
            tracer_provider=tracing,
            meter_provider=metering,
            connector=connector,
        ) as session:
            syncs = _Syncs(session, connector, Path(folder), chance)
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                until = time.monotonic() + every
                while (now := time.monotonic()) < until or (not syncs.pages and now < until + _LONGEST):
                    await syncs.one()
                await _come_to_rest(connector)
                garbage = gc.collect()
                tell(
                    {
                        "at": time.monotonic() - began,
                        "rss": _rss(),
                        "garbage": garbage,
                        "blocks": sys.getallocatedblocks(),
                        "objects": len(gc.get_objects()),
                        "threads": threading.active_count(),
                        "journal": syncs.journal.stat().st_size,
                        "rest": _held(connector),
                        "sends": spans.taken(),
                        **syncs.taken(),
                    }
                )


class _Syncs:
    """One sync after the other, and what they have come to."""

    def __init__(
        self, session: aiohttp.ClientSession, connector: aiohttp.TCPConnector, folder: Path, chance: random.Random
    ) -> None:
        self.journal = folder / "soak.journal"
        self._output = folder / "records.jsonl"
        self._session = session
        self._connector = connector
        self._chance = chance
        self._resume = False
        self._begin()

    def _begin(self) -> None:
        self._work: Held = {"tasks": 0, "descriptors": 0, "connections": 0}
        self._syncs = self._cancelled = self.pages = self._parts = 0

    def taken(self) -> _Done:
        """What they have come to since this was asked last."""
        done: _Done = {
            "work": self._work,
            "syncs": self._syncs,
            "cancelled": self._cancelled,
            "pages": self.pages,
            "parts": self._parts,
        }
        self._begin()
        return done

    async def one(self) -> None:
        """Sync; one in five is cancelled in the middle, and the next one continues from there."""
        self._syncs += 1
        limit = self._chance.uniform(0.05, 0.8) if self._chance.random() < _CANCELLED else None
        resume, self._resume = self._resume, False
        try:
            async with asyncio.timeout(limit), Journal.open(self.journal, batch="the soak") as journal:
                report = await maesn.sync(
                    self._session,
                    ACCOUNTS,
                    RESOURCES,
                    journal=journal,
                    output=self._output,
                    since=None if resume else BEFORE_ALL,
                    resume=resume,
                    limit=20,
                    at_once=CONNECTIONS,
                    patience=10,
                    on_progress=self._look,
                )
        except TimeoutError:
            self._cancelled += 1
            self._resume = True
            return
        self.pages += report.pages
        self._parts += len(report.failed)

    def _look(self, _: object) -> None:
        held = _held(self._connector)
        for name in ("tasks", "descriptors", "connections"):
            self._work[name] = max(self._work[name], held[name])


class _Done(TypedDict):
    work: Held
    syncs: int
    cancelled: int
    pages: int
    parts: int


async def _come_to_rest(connector: aiohttp.TCPConnector) -> None:
    """Wait until idle connections have ended; one that is held will not."""
    for _ in range(100):
        await asyncio.sleep(_IDLE / 10)
        if not _connections(connector):
            break
    await asyncio.sleep(_IDLE / 10)  # what is closed is gone some turns of the loop later


def _held(connector: aiohttp.TCPConnector) -> Held:
    return {
        "tasks": len(asyncio.all_tasks()) - 1,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # the one that lists them
        "connections": _connections(connector),
    }


def _connections(connector: aiohttp.TCPConnector) -> int:
    # It does not expose its connections.
    return sum(map(len, connector._conns.values())) + len(connector._acquired)


def _rss() -> int:
    # Else it goes up and down by some MB with what the C library keeps for later.
    with suppress(OSError, AttributeError):  # a C library of another make
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Spans(SpanExporter):
    """An exporter that counts spans and drops them."""

    def __init__(self) -> None:
        self._sends = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._sends += sum(span.kind is SpanKind.CLIENT for span in spans)
        return SpanExportResult.SUCCESS

    def taken(self) -> int:
        """How many sends there were since this was asked last."""
        sends, self._sends = self._sends, 0
        return sends
