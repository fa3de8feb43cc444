"""A run: the shards of all accounts, on an engine that does the work somewhere."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, Self, TypeAlias
from uuid import uuid4

import anyio
from opentelemetry import propagate
from opentelemetry.trace import TracerProvider

from lamella.checks import check_seconds
from lamella.dataset.commits import Dataset
from lamella.dataset.contents import clean
from lamella.dataset.work import NO_OPTIONS, Count, OnCount, Outcome, Result, Work
from lamella.redaction import redact_text
from lamella.sync import Table
from lamella.sync.stored import Departed
from lamella.sync.tables import NO_TABLES
from lamella.telemetry.names import RUN, SYNC_SPAN
from lamella.telemetry.tracing import Tracing

_AHEAD: Final = 2
"""So many shards are submitted for each slot: a worker that ends one has the next one at hand."""
_TRIES: Final = 4
"""How often a shard is submitted again whose workers are lost, without a commit meanwhile."""
_GRACE: Final = 20.0
"""Seconds that shards have to end in order when the run is cancelled."""
_RUNS: Final = "runs"


_Task: TypeAlias = "asyncio.Task[Outcome | str]"
"""A shard: how it has ended, or why there is no outcome."""


class WorkLost(Exception):
    """The worker of a shard is gone, and the engine does not try again by itself."""


class Engine(Protocol):
    """Where shards are synced: an async context manager around a run."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def slots(self) -> int:
        """Return how many shards it can do at a time now."""
        ...

    async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
        """Have a shard done, by :func:`lamella.dataset.run_shard` in a process that it chooses, and return the outcome.

        Raises:
            WorkLost: The worker is gone: it should be submitted again.
            Exception: What the work raises.
        """
        ...

    async def stop(self) -> None:
        """Have the shards that are under way end in order: their outcome is ``"interrupted"``."""
        ...


@dataclass(frozen=True, slots=True)
class DatasetProgress:
    """How far a run has come."""

    run: int
    shards: int
    ended: int
    """Shards."""
    counts: Mapping[int, Count]
    """Of the shards that are under way, by their number."""
    result: Result
    """Of the shards that have ended."""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """The result of a run."""

    run: int
    """Its number in the dataset, from 1."""
    resumed: bool
    shards: int
    """How many had accounts."""
    skipped: int
    """How many of them were done before, where the run was resumed."""
    result: Result
    """The sum of those that were not."""
    errors: tuple[tuple[int, str], ...]
    """The shards that have ended in an error, or that another run has taken over, and why."""
    took: float
    """Seconds."""

    @property
    def done(self) -> bool:
        """Whether every part of every shard is done."""
        return not self.errors and self.result.done == self.result.parts


@dataclass(slots=True)
class _Run:
    """A run that is under way."""

    number: int
    shards: int
    on_progress: Callable[[DatasetProgress], object] | None
    result: Result = field(default_factory=Result)
    errors: list[tuple[int, str]] = field(default_factory=list)
    counts: dict[int, Count] = field(default_factory=dict)
    ended: int = 0

    def count(self, count: Count) -> None:
        """Take how far a shard has come."""
        self.counts[count.shard] = count
        self.report()

    def end(self, shard: int, outcome: Outcome | None, error: str | None = None) -> None:
        """Take the end of a shard."""
        self.counts.pop(shard, None)
        self.ended += 1
        if outcome is not None:
            self.result = self.result.plus(outcome.result)
            error = error or {"taken over": "another run has taken it over", "interrupted": "interrupted"}.get(
                outcome.status
            )
        if error is not None:
            self.errors.append((shard, error))
        self.report()

    def report(self) -> None:
        """Tell the caller."""
        if self.on_progress is not None:
            self.on_progress(DatasetProgress(self.number, self.shards, self.ended, dict(self.counts), self.result))


async def sync_shards(
    engine: Engine,
    dataset: Dataset,
    accounts: Collection[str],
    call: str,
    options: Mapping[str, Any] = NO_OPTIONS,
    *,
    tables: Mapping[str, Table] = NO_TABLES,
    resume: bool = False,
    departed: Departed = "keep",
    checkpoint: float = 60.0,
    watch: float = 5.0,
    on_progress: Callable[[DatasetProgress], object] | None = None,
    tracer_provider: TracerProvider | None = None,
) -> DatasetReport:
    """Bring the shards of all *accounts* up to date on an engine, and report what has come of it.

    A run that was killed or cancelled leaves a dataset that the next one continues: what is stored stays, and of a
    shard that was under way the rest is read, and then what has changed meanwhile.

    Args:
        engine: Where the work is done.
        dataset: Where the records are kept.
        accounts: Their names, which differ.
        call: The function that reads a shard, a :class:`lamella.dataset.Read`, as ``package.module:function``. It is
            imported by the workers, and gets the credentials by itself.
        options: What that function needs to know beside the shard: values that can be pickled, without credentials.
        tables: The typed columns of the data files, of a dataset of Parquet.
        resume: Whether to go on with the last run, if there is one: only what it has not done is read.
        departed: What becomes of the records of accounts that the dataset knows, and that are not given.
        checkpoint: After so many seconds a worker copies the journal of its shard to the dataset, again and again.
        watch: After so many seconds a worker looks whether another one has taken its shard over, again and again.
        on_progress: Called whenever a shard has changed, about once a second for each.
        tracer_provider: Where the span of the run goes, whose children are those of the shards. None: the global one.

    Raises:
        ValueError: An argument is out of its range; before anything is done.
        DatasetError: The dataset cannot be read or written.
    """
    check_seconds("checkpoint", checkpoint)
    check_seconds("watch", watch)
    if not accounts or not all(accounts):
        raise ValueError("accounts must not be empty, and have names that are not")
    if tables and dataset.suffix != ".parquet":
        raise ValueError(
            f"typed tables need a dataset of .parquet files, and {dataset.place} is one of {dataset.suffix}"
        )
    began = time.monotonic()
    number, resumed = await asyncio.to_thread(_number, dataset, resume=resume)
    by_shard: dict[int, list[str]] = {}
    for name in accounts:
        by_shard.setdefault(dataset.shard_of(name), []).append(name)
    skipped = 0
    if resumed or departed != "keep":
        skipped = await asyncio.to_thread(_settle, dataset, by_shard, number, resumed=resumed, departed=departed)
    with Tracing(tracer_provider).tracer.start_as_current_span(SYNC_SPAN, attributes={RUN: number}):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        # The largest first: the last one to end should be a small one.
        order = sorted(by_shard, key=lambda shard: -len(by_shard[shard]))
        works = (
            Work(
                dataset.place,
                shard,
                number,
                tuple(by_shard.pop(shard)),
                call,
                dict(options),
                dict(tables),  # a mapping that can be pickled
                resume=resumed,
                departed=departed,
                checkpoint=checkpoint,
                watch=watch,
                trace=headers,
            )
            for shard in order
        )
        run = _Run(number, len(order), on_progress)
        run.report()
        async with engine:
            await _drive(engine, dataset, works, run)
    ended = {"run": number, **asdict(run.result), "errors": run.errors}
    await asyncio.to_thread(dataset.storage.put_new, f"{_RUNS}/{number:08d}.ended.json", json.dumps(ended).encode())
    await asyncio.to_thread(clean, dataset.place)
    took = time.monotonic() - began
    return DatasetReport(number, resumed, len(order) + skipped, skipped, run.result, tuple(run.errors), took)


def last_run(place: str | os.PathLike[str]) -> tuple[int, bool]:
    """Return the number of the last run of a dataset, and whether it has ended. The number is 0 if there was none."""
    names = [name.rpartition("/")[2] for name in Dataset.open(place).storage.sizes(_RUNS)]
    numbers = [int(name[:8]) for name in names if name[:8].isdigit()]
    last = max(numbers, default=0)
    return last, not last or f"{last:08d}.ended.json" in names


def _number(dataset: Dataset, *, resume: bool) -> tuple[int, bool]:
    """Return the number of the run, and whether it is one that was begun before."""
    while True:
        last, _ = last_run(dataset.place)
        if resume and last:
            return last, True
        about = json.dumps({"run": last + 1, "began": time.time(), "id": uuid4().hex}).encode()
        if dataset.storage.put_new(f"{_RUNS}/{last + 1:08d}.json", about):
            return last + 1, False


def _settle(dataset: Dataset, by_shard: dict[int, list[str]], run: int, *, resumed: bool, departed: Departed) -> int:
    """Add the shards whose accounts have all departed; remove those that are done, and return how many."""
    skipped = 0
    for commit in dataset.all_last():
        if commit.shard not in by_shard and departed != "keep" and commit.files:
            by_shard[commit.shard] = []
        result = Result.of_json(commit.result)
        is_done = commit.run == run and commit.working is None and result.done == result.parts
        if resumed and is_done and by_shard.pop(commit.shard, None) is not None:
            skipped += 1
    return skipped


async def _drive(engine: Engine, dataset: Dataset, works: Iterable[Work], run: _Run) -> None:
    """Submit the shards, as many at a time as the engine can do and as many ahead."""
    rest = iter(works)
    running: dict[_Task, int] = {}
    try:
        while True:
            limit = max(1, _AHEAD * await engine.slots())
            while len(running) < limit and (work := next(rest, None)) is not None:
                running[asyncio.create_task(_one(engine, dataset, work, run))] = work.shard
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            _take(done, running, run)
    finally:
        if running:
            with anyio.CancelScope(shield=True):
                await engine.stop()
                await asyncio.wait(running, timeout=_GRACE)
                for task in running:
                    task.cancel()
                await asyncio.wait(running)


def _take(
    done: Iterable[asyncio.Task[Outcome | str]], running: dict[asyncio.Task[Outcome | str], int], run: _Run
) -> None:
    for task in done:
        shard, found = running.pop(task), task.result()
        if isinstance(found, str):
            run.end(shard, None, found)
        else:
            run.end(shard, found)


async def _one(engine: Engine, dataset: Dataset, work: Work, run: _Run) -> Outcome | str:
    """Return the outcome of a shard, or why there is none. It is submitted again if its worker is lost."""
    commits, tries = -1, 0
    while True:
        try:
            return await engine.run(work, run.count)
        except WorkLost as exc:
            last = await asyncio.to_thread(dataset.last_number, work.shard)
            # Each try makes one commit, by which it takes the shard; more than that is progress.
            tries, commits = (0 if last > commits + 1 and commits >= 0 else tries + 1), last
            if tries >= _TRIES:
                return f"its workers are lost again and again: {exc}"
        except Exception as exc:  # noqa: BLE001 - it ends this shard, and no other
            return redact_text(f"{type(exc).__name__}: {exc}")
