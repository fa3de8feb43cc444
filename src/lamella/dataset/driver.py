"""A run: sync the shards of all accounts on an engine."""

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
from lamella.dataset.commits import RUNS, Dataset
from lamella.dataset.contents import clean
from lamella.dataset.work import NO_OPTIONS, Count, OnCount, Outcome, Result, Work
from lamella.redaction import redact_text
from lamella.sync import Table
from lamella.sync.stored import Departed, check_forgotten
from lamella.sync.tables import NO_TABLES
from lamella.telemetry.names import RUN, SYNC_SPAN
from lamella.telemetry.tracing import Tracing

_AHEAD: Final = 2
"""Shards submitted for each slot, so that a worker that ends one can start the next one at once."""
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the number of slots: a worker that has joined gets shards within this time."""
_TRIES: Final = 4
"""How many times a shard is submitted again if its workers are lost without a commit."""
_GRACE: Final = 20.0
"""Seconds in which the shards must end after the run is cancelled."""


_Task: TypeAlias = "asyncio.Task[Outcome | str]"
"""The task of a shard. Its result is the outcome, or the reason why there is no outcome."""


class WorkLost(Exception):
    """The worker of a shard is lost, and the engine does not retry the shard itself."""


class Engine(Protocol):
    """Runs shards. It is an async context manager that is open during a run."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def slots(self) -> int:
        """Return how many shards the engine can run at the same time now."""
        ...

    async def run(self, work: Work, on_count: OnCount | None) -> Outcome:
        """Call :func:`lamella.dataset.run_shard` in a process of the engine and return the outcome.

        Raises:
            WorkLost: The worker is lost. The caller submits the shard again.
            Exception: The shard has failed with this exception.
        """
        ...

    async def stop(self) -> None:
        """Interrupt the running shards. They commit their journals and return the status ``"interrupted"``."""
        ...


@dataclass(frozen=True, slots=True)
class DatasetProgress:
    """The progress of a run."""

    run: int
    shards: int
    ended: int
    """How many shards have ended."""
    counts: Mapping[int, Count]
    """The counts of the running shards, by shard number."""
    result: Result
    """The sum of the results of the shards that have ended."""


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """The result of a run."""

    run: int
    """The number of the run in the dataset, from 1."""
    resumed: bool
    shards: int
    """How many shards have accounts."""
    skipped: int
    """How many of them a resumed run skipped because they were already done."""
    result: Result
    """The sum of the results of the other shards."""
    errors: tuple[tuple[int, str], ...]
    """The number and the error of each shard that has failed or that another run has taken over."""
    took: float
    """Seconds."""

    @property
    def done(self) -> bool:
        """Whether every part of every shard is done."""
        return not self.errors and self.result.done == self.result.parts


@dataclass(slots=True)
class _Run:
    """The state of the current run."""

    number: int
    shards: int
    on_progress: Callable[[DatasetProgress], object] | None
    result: Result = field(default_factory=Result)
    errors: list[tuple[int, str]] = field(default_factory=list)
    counts: dict[int, Count] = field(default_factory=dict)
    ended: int = 0

    def count(self, count: Count) -> None:
        """Record the progress of a shard."""
        self.counts[count.shard] = count
        self.report()

    def end(self, shard: int, outcome: Outcome | None, error: str | None = None) -> None:
        """Record the end of a shard."""
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
        """Call *on_progress* with the current progress."""
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
    """Bring the shards of all *accounts* up to date on an engine and return a report.

    The next run continues after a run that was killed or cancelled. It keeps all committed records. For each unfinished
    shard it reads the rest, and then the changes since.

    Args:
        engine: The engine that runs the shards.
        dataset: The dataset that stores the records.
        accounts: The names of the accounts, each once.
        call: The function that reads a shard, a :class:`lamella.dataset.Read`, as ``package.module:function``. The
            workers import it, and it reads the credentials itself.
        options: Further arguments of that function: values that can be pickled, without credentials.
        tables: The typed columns of the data files. They need a dataset of Parquet files.
        resume: Whether to continue the last run, if there is one, and to read only its unfinished parts.
        departed: Whether to keep, mark or forget the records of accounts of the dataset that *accounts* leaves out.
        checkpoint: Seconds between two copies of the journal of a shard to the dataset.
        watch: Seconds between two checks of a worker that it still has its shard.
        on_progress: Called about once a second for each shard that has changed.
        tracer_provider: Receives the span of the run, the parent of the shard spans. None means the global one.

    Raises:
        ValueError: An argument is out of its range; before anything is done.
        lamella.sync.TooManyDeparted: More accounts would be forgotten than stay; before anything is done.
        DatasetError: The dataset cannot be read or written, or commits are missing.
    """
    check_seconds("checkpoint", checkpoint)
    check_seconds("watch", watch)
    if not accounts or not all(accounts):
        raise ValueError("accounts must not be empty, and no name in it may be empty")
    if tables and dataset.suffix != ".parquet":
        raise ValueError(
            f"typed tables need a dataset of .parquet files, and {dataset.place} is one of {dataset.suffix}"
        )
    began = time.monotonic()
    # Without them, all records would be read again, and those of departed accounts would be lost.
    await asyncio.to_thread(dataset.check_commits)
    if departed == "forget":
        await asyncio.to_thread(_check_departed, dataset, set(accounts))
    number, resumed = await asyncio.to_thread(_number, dataset, resume=resume)
    by_shard: dict[int, list[str]] = {}
    for name in accounts:
        by_shard.setdefault(dataset.shard_of(name), []).append(name)
    skipped = 0
    if resumed or departed != "keep":
        skipped = await asyncio.to_thread(_settle, dataset, by_shard, number, resumed=resumed, departed=departed)
    with Tracing(tracer_provider).around(SYNC_SPAN, {RUN: number}):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        # Start with the largest shards, so that the last one to end is small.
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
    await asyncio.to_thread(dataset.storage.put_new, f"{RUNS}/{number:08d}.ended.json", json.dumps(ended).encode())
    await asyncio.to_thread(clean, dataset.place)
    took = time.monotonic() - began
    return DatasetReport(number, resumed, len(order) + skipped, skipped, run.result, tuple(run.errors), took)


def last_run(place: str | os.PathLike[str]) -> tuple[int, bool]:
    """Return the number of the last run of a dataset, or 0 if there was none, and whether it has ended."""
    names = [name.rpartition("/")[2] for name in Dataset.open(place).storage.sizes(RUNS)]
    numbers = [int(name[:8]) for name in names if name[:8].isdigit()]
    last = max(numbers, default=0)
    return last, not last or f"{last:08d}.ended.json" in names


def _number(dataset: Dataset, *, resume: bool) -> tuple[int, bool]:
    """Return the number of the run and whether it resumes an earlier one."""
    while True:
        last, _ = last_run(dataset.place)
        if resume and last:
            return last, True
        about = json.dumps({"run": last + 1, "began": time.time(), "id": uuid4().hex}).encode()
        if dataset.storage.put_new(f"{RUNS}/{last + 1:08d}.json", about):
            return last + 1, False


def _check_departed(dataset: Dataset, accounts: Collection[str]) -> None:
    known: list[str] = []
    marked: set[str] = set()
    for commit in dataset.all_last():
        known += commit.marks
        marked.update(commit.departed)
    check_forgotten(known, marked, accounts)


def _settle(dataset: Dataset, by_shard: dict[int, list[str]], run: int, *, resumed: bool, departed: Departed) -> int:
    """Add the shards whose accounts have all departed. Remove the finished shards and return their number."""
    skipped = 0
    for commit in dataset.all_last():
        if commit.shard not in by_shard and departed != "keep" and commit.files:
            by_shard[commit.shard] = []
        result = Result.of_json(commit.result)
        is_done = commit.run == run and commit.working is None and result.done == result.parts
        if resumed and is_done and commit.shard in by_shard and dataset.has(commit.files):
            del by_shard[commit.shard]
            skipped += 1
    return skipped


async def _drive(engine: Engine, dataset: Dataset, works: Iterable[Work], run: _Run) -> None:
    """Submit the shards, up to _AHEAD at a time for each slot of the engine."""
    rest = iter(works)
    running: dict[_Task, int] = {}
    try:
        while True:
            limit = max(1, _AHEAD * await engine.slots())
            while len(running) < limit and (work := next(rest, None)) is not None:
                running[asyncio.create_task(_one(engine, dataset, work, run))] = work.shard
            if not running:
                return
            done, _ = await asyncio.wait(running, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED)
            _take(done, running, run)
    finally:
        if running:
            with anyio.CancelScope(shield=True):
                stopping = asyncio.create_task(engine.stop())
                ending: list[asyncio.Task[Any]] = [stopping, *running]
                await asyncio.wait(ending, timeout=_GRACE)  # a frozen worker does not answer
                for task in ending:
                    task.cancel()
                await asyncio.wait(ending)


def _take(done: Iterable[_Task], running: dict[_Task, int], run: _Run) -> None:
    for task in done:
        shard, found = running.pop(task), task.result()
        if isinstance(found, str):
            run.end(shard, None, found)
        else:
            run.end(shard, found)


async def _one(engine: Engine, dataset: Dataset, work: Work, run: _Run) -> Outcome | str:
    """Return the outcome of a shard, or an error message. Submit the shard again if its worker is lost."""
    commits, tries = -1, 0
    while True:
        try:
            return await engine.run(work, run.count)
        except WorkLost as exc:
            last = await asyncio.to_thread(dataset.last_number, work.shard)
            # Each try makes one commit when it claims the shard. Further commits mean progress.
            tries, commits = (0 if last > commits + 1 and commits >= 0 else tries + 1), last
            if tries >= _TRIES:
                return f"its workers were lost repeatedly: {exc}"
        except Exception as exc:  # noqa: BLE001 - an error ends only this shard
            return redact_text(f"{type(exc).__name__}: {exc}")
