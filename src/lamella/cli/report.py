"""Report the result of a sync: numbers, failures by cause, and where the records are, as tables or JSON.

docs/reference/sync-report.md describes the JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamella.cli.causes import Cause, reason_of, state_of
from lamella.cli.colours import FAILED, PASSED
from lamella.cli.remarks import are_all_there, dropped_of
from lamella.cli.secrets import NO_SECRETS, Secrets
from lamella.cli.terminal import count, duration, some
from lamella.errors import LamellaError, TransportError
from lamella.redaction import redact_text
from lamella.sync import Part
from lamella.sync.tables import Misfits

if TYPE_CHECKING:
    from lamella.cli.traces import Collector

_VERSION: Final = 1  # of the JSON; increases when a field is removed or redefined, not when one is added
_MOST_PARTS: Final = 40
_MOST_NAMES: Final = 5
_FIELDS: Final = ("account", "resource", "since", "pages", "total_pages", "records", "total")

_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Synced:
    """The result of a sync."""

    run: int  # its number in the journal, from 1
    resumed: bool
    parts: tuple[Part, ...]
    took: float  # seconds
    interrupted: bool = False
    fault: str | None = None  # why the journal or the output could not be written; None: both were written
    misfits: Misfits = field(default_factory=Misfits)  # values that do not fit their columns
    departed: tuple[str, ...] = ()  # accounts with records in the journal that are no longer synced
    not_read: tuple[str, ...] = ()  # resources with records in the journal that this run did not read

    @property
    def exit_code(self) -> int:
        """0: everything is done. 1: something failed. 130: interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.fault or self.misfits.count or not all(part.done for part in self.parts) else 0


class Check(NamedTuple):
    """A condition that must hold after a sync with the sandbox. ``fault`` says how it is violated; None: it holds."""

    what: str
    fault: str | None


class Total(NamedTuple):
    """A number with its name. ``nested``: part of the previous number."""

    name: str
    value: str
    note: str = ""
    nested: bool = False


def totals(synced: Synced, collected: Collector | None = None) -> Iterator[Total]:
    """Yield the numbers of a sync, including attempts and retries if spans were collected."""
    parts = synced.parts
    order = ("failed", "open", "done", "skipped")
    worst: dict[str, str] = {}  # by account
    for part in parts:
        state = state_of(part)
        worst[part.account] = min(worst.get(part.account, state), state, key=order.index)
    yield Total("run", str(synced.run), "resumed" if synced.resumed else "")
    yield Total("accounts", f"{len(worst):,}", _in_words(worst.values()))
    yield Total("parts", f"{len(parts):,}", _in_words(map(state_of, parts)))
    yield Total("pages", f"{sum(part.pages for part in parts):,}", "stored")
    yield Total("records", f"{sum(part.records for part in parts):,}", "new or changed")
    if collected is not None:
        yield Total("attempts", f"{collected.attempts:,}", f"for {count(collected.calls, 'call')}")
        yield Total("retries", f"{collected.after.total():,}")
        for cause, many in sorted(collected.after.items(), key=lambda item: (-item[1], item[0])):
            yield Total(f"after {cause}", f"{many:,}", nested=True)
        if collected.waited:
            yield Total("waits", duration(collected.waited), "between attempts, total")
    yield Total("time", duration(synced.took))


def _in_words(states: Iterable[str]) -> str:
    many = Counter(states)
    names = {"done": "done", "skipped": "done before", "failed": "failed", "open": "not ended"}
    return ", ".join(f"{many[state]:,} {name}" for state, name in names.items() if many[state])


def no_answer(parts: Sequence[Part]) -> str:
    """Return the most frequent cause of parts that failed without a response. Empty if there are none."""
    found = Counter(
        reason_of(part.error).full for part in parts if not part.done and isinstance(part.error, TransportError)
    )
    return found.most_common(1)[0][0] if found else ""


def titled(title: str, *parts: RenderableType) -> RenderableType:
    """Return a section of the screen."""
    return Group(Text(title, "bold underline"), *parts, Text())


def _table(*columns: dict[str, Any], gap: int = 1) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        table.add_column(**column)
    return table


def outcome(shown: Iterable[Total]) -> RenderableType:
    """Return the numbers as a table."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for row in shown:
        table.add_row(f"  {row.name}" if row.nested else row.name, row.value, row.note)
    return titled("Outcome", table)


def failures(causes: Sequence[Cause]) -> RenderableType:
    """Return the failures by cause: how many, why there was no further attempt, and what to do."""
    if not causes:
        return titled("Failures", Text("None."))
    table = _table({"justify": "right", "no_wrap": True}, {})
    for cause in causes:
        head = Text.assemble((cause.what, f"bold {FAILED}"), f", stopped: {cause.stopped}" if cause.stopped else "")
        table.add_row(f"{cause.parts} ×", head)
        said = f"it said: {cause.said}" if cause.said else ""
        for words, style in ((some(cause.accounts, _MOST_NAMES), "bold"), (said, ""), (cause.hint, "")):
            if words:
                table.add_row("", Text(words, style))
    return titled("Failures", table)


def verdict(checks: Iterable[Check]) -> RenderableType:
    """Return the checks and whether they hold."""
    table = _table()
    for check in checks:
        table.add_row(Text("FAILED", f"bold {FAILED}") if check.fault else Text("ok", PASSED), Text(check.what))
        if check.fault:
            table.add_row("", Text(redact_text(check.fault)))
    return titled("Checked", table)


def where_it_is(
    output: Path | None, journal: Path | None, synced: Synced, notes: Iterable[str], *, ended: bool
) -> RenderableType:
    """Return where the records are and what is missing.

    Args:
        output: None means no output.
        journal: None means a temporary journal.
        synced: The result of the sync.
        notes: Further remarks about the records.
        ended: Whether the sync finished, so that the output was written.
    """
    has_all = ended and are_all_there(synced.parts)
    records = "all records of the lists in this run" if synced.not_read else "all records"
    lines = []
    if output is not None:
        what = f"has {records}" if has_all else "has the records read so far" if ended else "was not written"
        lines.append(f"{redact_text(str(output))} {what}.")
    if journal is not None:
        what = f"{records}; the next sync reads only what is new" if has_all else "the records read so far"
        lines.append(f"The journal {redact_text(str(journal))} has {what}.")
    return titled("Output", *map(Text, (*lines, *notes)))


def plan_as_table(parts: Sequence[Part]) -> RenderableType:
    """Return a table of what a sync would read."""
    table = _table(gap=2)
    for part in parts[:_MOST_PARTS]:
        what = f"since {part.since}" if part.since else "everything"
        if part.skipped:
            what = "nothing: already done"
        elif part.dropped:
            what += "; stored records will be dropped because company_id, environment_name or a parameter has changed"
        elif part.pages:
            what += f", except {count(part.pages, 'page')} already stored"
        table.add_row(Text(redact_text(part.account)), Text(part.resource), Text(what))
    more = len(parts) - _MOST_PARTS
    rest = [Text(f"… and {more:,} more")] if more > 0 else []
    return titled(f"{count(len(parts), 'part')}; nothing was sent", table, *rest)


def as_json(
    synced: Synced,
    causes: Iterable[Cause],
    *,
    output: Path | None,
    exit_code: int,
    secrets: Secrets = NO_SECRETS,
    checks: Sequence[Check] = (),
) -> _Json:
    """Return the result of a sync, without any of *secrets*. Long lists are iterators: see `json_text`."""
    parts = synced.parts
    return {
        "version": _VERSION,
        "run": synced.run,
        "resumed": synced.resumed,
        "took": round(synced.took, 3),
        "interrupted": synced.interrupted,
        "fault": None if synced.fault is None else redact_text(synced.fault, secrets.all),
        "complete": are_all_there(parts),
        "gaps": (
            {"account": part.account, "resource": part.resource, "since": part.since} for part in parts if part.gap
        ),
        **_of_parts(parts, secrets),
        "causes": [
            {name: value or None for name, value in asdict(cause).items()} | {"accounts": list(cause.accounts)}
            for cause in causes
        ],
        "comparisons": (
            {
                "account": part.account,
                "resource": part.resource,
                "proved": part.compared,
                "missing": part.missing,
                "missing_ids": [redact_text(text, secrets.of(part.account)) for text in part.missing_ids],
                "deleted": part.deleted,
                "deleted_ids": [redact_text(text, secrets.of(part.account)) for text in part.deleted_ids],
                "unmet": part.unmet,
            }
            for part in parts
            if part.compared or part.missing or part.deleted or part.unmet
        ),
        "misfits": synced.misfits.count,
        "empty_columns": list(synced.misfits.empty),
        "stale_files": list(synced.misfits.stale),
        "misfit_texts": [redact_text(text, secrets.all) for text in synced.misfits.first],
        "departed": list(synced.departed),
        "not_read": list(synced.not_read),
        "output": None if output is None else str(output),
        "exit_code": exit_code,
        **({"checks": [check._asdict() for check in checks]} if checks else {}),
    }


def plan_as_json(parts: Sequence[Part]) -> _Json:
    """Return the plan of a sync (``--dry-run``). Long lists are iterators: see `json_text`."""
    return {"version": _VERSION, "dry_run": True, **_of_parts(parts, NO_SECRETS), "exit_code": 0}


def _of_parts(parts: Sequence[Part], secrets: Secrets) -> _Json:
    states = Counter(map(state_of, parts))
    return {
        "totals": {
            "accounts": len({part.account for part in parts}),
            "parts": len(parts),
            **{state: states[state] for state in ("done", "skipped", "failed", "open")},
            "pages": sum(part.pages for part in parts),
            "records": sum(part.records for part in parts),
        },
        "parts": (_of_part(part, secrets.of(part.account)) for part in parts),
        "dropped": dropped_of(parts),
    }


def _of_part(part: Part, secrets: Sequence[str]) -> _Json:
    state = state_of(part)
    return {
        **{name: getattr(part, name) for name in _FIELDS},
        "state": state,
        "warnings": [redact_text(text, secrets) for text in part.warnings],
        **({"nameless": part.nameless} if part.nameless else {}),
        "bad_records": [redact_text(text, secrets) for text in part.bad],
        "error": _error(part.error, secrets) if part.error is not None and state == "failed" else None,
    }


def _error(error: Exception, secrets: Sequence[str]) -> _Json:
    is_ours = isinstance(error, LamellaError)
    return {
        "type": type(error).__name__,
        "status": getattr(error, "status", None),
        # lamella's own errors contain no secrets and may be longer than one line.
        "message": str(error) if is_ours else redact_text(str(error), secrets),
        "hint": reason_of(error, secrets, of_account=True).hint or None,
        "stopped": error.stopped.value if isinstance(error, LamellaError) and error.stopped else None,
    }
