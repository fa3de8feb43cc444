"""The work on a shard and its result. Both can be pickled and sent to another process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, TypeAlias

from lamella.batch import Journal
from lamella.dataset.process import Process
from lamella.redaction import redact_text
from lamella.sync import Part, Progress, Report, Table
from lamella.sync.stored import Departed

_MOST_TOLD: Final = 10

Status: TypeAlias = Literal["done", "interrupted", "taken over"]


@dataclass(frozen=True, slots=True)
class Work:
    """A shard to sync. It has no credentials: the process that syncs it reads them itself."""

    dataset: str
    """The folder or URL."""
    shard: int
    run: int
    accounts: tuple[str, ...]
    """The names of the accounts. Empty: all of them have departed."""
    call: str
    """The function that reads the shard, a :class:`Read`, as ``package.module:function``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of that function: values that can be pickled, without credentials."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """The typed columns of the data files."""
    resume: bool = False
    """Whether to continue a run that began earlier and to try its unfinished parts again."""
    departed: Departed = "keep"
    """Whether to keep, mark or forget the records of accounts that are no longer listed."""
    checkpoint: float = 60.0
    """Seconds between two copies of the journal to the dataset."""
    watch: float = 5.0
    """Seconds between two checks whether another worker has taken over the shard."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The trace context of the run, as headers."""


class Read(Protocol):
    """Syncs the accounts of a shard with its journal."""

    def __call__(
        self,
        process: Process,
        work: Work,
        journal: Journal,
        *,
        resume: bool,
        on_progress: Callable[[Progress], object],
    ) -> Awaitable[Report]:
        """Return the report of the sync.

        Args:
            process: The resources that the shards of this process share, such as a session.
            work: The shard.
            journal: Its journal.
            resume: Whether to continue the last run in the journal.
            on_progress: The argument of the same name for :func:`lamella.sync.run`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of the sync of a shard. It is small, whatever the number of accounts."""

    parts: int = 0
    done: int = 0
    pages: int = 0
    records: int = 0
    """How many records were new or changed."""
    deleted: int = 0
    misfits: int = 0
    failures: tuple[tuple[str, str, str], ...] = ()
    """Account, resource and error of the first ten parts that are not done."""

    @classmethod
    def of(cls, report: Report) -> Result:
        """Return the result of a sync."""
        return cls(
            len(report.parts),
            sum(part.done for part in report.parts),
            report.pages,
            report.records,
            sum(part.deleted for part in report.parts),
            report.misfits.count,
            tuple(map(_failure, report.failed[:_MOST_TOLD])),
        )

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Result:
        """Return the result that a commit or a journal contains."""
        failures = tuple((str(one), str(two), str(three)) for one, two, three in found.get("failures", ()))
        return cls(**{**found, "failures": failures})

    def then(self, later: Result) -> Result:
        """Return the result of this sync followed by a *later* one of the same accounts."""
        return replace(
            later,
            pages=self.pages + later.pages,
            records=self.records + later.records,
            deleted=self.deleted + later.deleted,
        )

    def plus(self, other: Result) -> Result:
        """Return the sum of the results of two shards."""
        return Result(
            self.parts + other.parts,
            self.done + other.done,
            self.pages + other.pages,
            self.records + other.records,
            self.deleted + other.deleted,
            self.misfits + other.misfits,
            (*self.failures, *other.failures)[:_MOST_TOLD],
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end result of the work on a shard."""

    shard: int
    status: Status
    """``"taken over"`` means that another worker or another run has the shard."""
    result: Result = field(default_factory=Result)


@dataclass(frozen=True, slots=True)
class Count:
    """The progress of the work on a shard."""

    shard: int
    parts: int
    done: int
    failed: int
    pages: int
    records: int


OnCount: TypeAlias = Callable[[Count], object]
NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


def named(name: str) -> Any:
    """Return the object at ``package.module:function``, or raise ValueError."""
    module, colon, attribute = name.partition(":")
    try:
        if not (module and colon and attribute):
            raise ValueError
        return getattr(import_module(module), attribute)
    except (ValueError, ImportError, AttributeError):
        raise ValueError(f"{name!r} names no function: it must be like 'package.module:function'") from None


def _failure(part: Part) -> tuple[str, str, str]:
    error = "it has not ended" if part.error is None else f"{type(part.error).__name__}: {part.error}"
    return part.account, part.resource, redact_text(error)
