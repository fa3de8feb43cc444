"""Loaded by each worker: freezes it or waits before a commit, or writes down its spans, as its environment says."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from lamella.dataset import Commit, Dataset, TakenOver
from lamella.sync import Report

__all__ = ["BLOCKING", "read_blocking"]

FREEZE = "LAMELLA_TEST_FREEZE"
"""A path: the first worker that is about to commit a shard creates the file, and stops itself like one that hangs."""
HOLD = "LAMELLA_TEST_HOLD"
"""A path: no worker commits the files of a shard before it exists."""
SPANS = "LAMELLA_TEST_SPANS"
"""The file to which the spans are appended."""
BLOCKING = f"{__name__}:read_blocking"


async def read_blocking(process: Any, work: Any, *_: Any, **__: Any) -> Report:
    """Block the event loop, as decoding a huge page would, until there is a file "go" in the given folder."""
    folder = Path(work.options["folder"])
    (folder / f"blocked-{work.shard}").touch()
    _wait_for(folder / "go")
    return Report(1, False, (), 0.0)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def _hold_each_commit(until: Path) -> None:
    commit = Dataset.commit

    def held(self: Dataset, what: Commit) -> Commit:
        if what.working is None:
            _wait_for(until)
        return commit(self, what)

    setattr(Dataset, "commit", held)  # noqa: B010 - as below


def _freeze_before_the_commit(notes: Path) -> None:
    commit = Dataset.commit

    def frozen(self: Dataset, what: Commit) -> Commit:
        try:
            if what.working is not None:
                return commit(self, what)
            notes.touch(exist_ok=False)
        except FileExistsError:
            return commit(self, what)
        # os.kill stops the process through its main thread: this one could commit before.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        try:
            done = commit(self, what)
        except TakenOver as exc:
            notes.write_text(str(exc))
            raise
        notes.write_text("committed")
        return done

    setattr(Dataset, "commit", frozen)  # noqa: B010 - an assignment has another type


if HOLD in os.environ:
    _hold_each_commit(Path(os.environ[HOLD]))
if FREEZE in os.environ:
    _freeze_before_the_commit(Path(os.environ[FREEZE]))
if SPANS in os.environ:
    provider = TracerProvider()
    to = Path(os.environ[SPANS]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as the process
    provider.add_span_processor(
        SimpleSpanProcessor(ConsoleSpanExporter(out=to, formatter=lambda span: f"{span.to_json(indent=None)}\n"))
    )
    trace.set_tracer_provider(provider)
