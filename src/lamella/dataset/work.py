"""What is to be done for a shard, in a form that can be sent to another process, and what has come of it."""

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
    """A shard that is to be synced. It has no credentials: the process that does it reads them by itself."""

    dataset: str
    """The folder or URL."""
    shard: int
    run: int
    accounts: tuple[str, ...]
    """The names of its accounts. Empty: all of them have departed."""
    call: str
    """The function that reads it, a :class:`Read`, as ``package.module:function``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What that function needs to know: values that can be pickled, without credentials."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """The typed columns of the data files."""
    resume: bool = False
    """Whether this run was begun before, and what it has not done is to be tried again."""
    departed: Departed = "keep"
    """What becomes of the records of accounts that are no longer given."""
    checkpoint: float = 60.0
    """After so many seconds the journal is copied to the dataset, again and again."""
    watch: float = 5.0
    """After so many seconds it is looked whether another worker has taken the shard over, again and again."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The context of the run's trace, as headers."""


class Read(Protocol):
    """Syncs the accounts of a shard, with its journal."""

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
            process: What the shards of this process share, such as a session.
            work: The shard.
            journal: Its journal.
            resume: Whether to go on with the last run in the journal.
            on_progress: For :func:`lamella.sync.run`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What has become of the accounts of a shard. It is small, however many there are."""

    parts: int = 0
    done: int = 0
    pages: int = 0
    records: int = 0
    """How many were new or changed."""
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
        """Return a result that a commit or a journal has."""
        failures = tuple((str(one), str(two), str(three)) for one, two, three in found.get("failures", ()))
        return cls(**{**found, "failures": failures})

    def then(self, later: Result) -> Result:
        """Return the result of two syncs of the same accounts, one after the other."""
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
    """How the work on a shard has ended."""

    shard: int
    status: Status
    """``"taken over"``: another worker, or another run, has the shard."""
    result: Result = field(default_factory=Result)


@dataclass(frozen=True, slots=True)
class Count:
    """How far the work on a shard has come."""

    shard: int
    parts: int
    done: int
    failed: int
    pages: int
    records: int


OnCount: TypeAlias = Callable[[Count], object]
NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


def named(name: str) -> Any:
    """Return what is at ``package.module:function``.

    Raises:
        ValueError: There is no such function.
    """
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
