"""The report of a sync for machines: ``lamella sync --json``. docs/sync-report.md tells what each field means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from lamella.cli.causes import Cause, reason_of
from lamella.cli.check import Check
from lamella.cli.sync import Synced
from lamella.errors import LamellaError
from lamella.maesn import Part
from lamella.redaction import redact_text

__all__ = ["VERSION", "plan_as_json", "state_of", "synced_as_json"]

VERSION: Final = 1
"""Of the form. A field that comes is no new version; one that goes, or means something else, is."""

_Json = dict[str, Any]


def synced_as_json(
    synced: Synced,
    causes: Sequence[Cause],
    *,
    output: Path | None,
    exit_code: int,
    secrets: Sequence[str] = (),
    checks: Sequence[Check] = (),
) -> _Json:
    """What has come of a sync. None of *secrets* is in it."""
    found: _Json = {
        "version": VERSION,
        "run": synced.run,
        "resumed": synced.resumed,
        "took": round(synced.took, 3),
        "interrupted": synced.interrupted,
        "fault": None if synced.fault is None else redact_text(synced.fault, secrets),
        "complete": all(part.done and not part.gap for part in synced.parts),
        "gaps": [_gap(part) for part in synced.parts if part.gap],
        "dropped": _dropped(synced.parts),
        "totals": _totals(synced.parts),
        "parts": [_part(part, secrets) for part in synced.parts],
        "causes": [_cause(cause) for cause in causes],
        "output": None if output is None else str(output),
        "exit_code": exit_code,
    }
    if checks:
        found["checks"] = [{"what": check.what, "fault": check.fault} for check in checks]
    return found


def plan_as_json(parts: Sequence[Part]) -> _Json:
    """What a sync would begin with (``--dry-run``)."""
    return {
        "version": VERSION,
        "dry_run": True,
        "totals": _totals(parts),
        "parts": [_part(part, ()) for part in parts],
        "dropped": _dropped(parts),
        "exit_code": 0,
    }


def state_of(part: Part) -> str:
    """``done``, ``skipped`` (done already in the run that was resumed), ``failed``, or ``open``."""
    if part.done:
        return "skipped" if part.skipped else "done"
    return "open" if part.error is None else "failed"


def _totals(parts: Sequence[Part]) -> _Json:
    states = [state_of(part) for part in parts]
    return {
        "accounts": len({part.account for part in parts}),
        "parts": len(parts),
        **{state: states.count(state) for state in ("done", "skipped", "failed", "open")},
        "pages": sum(part.pages for part in parts),
        "records": sum(part.records for part in parts),
    }


def _gap(part: Part) -> _Json:
    return {"account": part.account, "resource": part.resource, "since": part.since}


def _dropped(parts: Sequence[Part]) -> list[str]:
    return list(dict.fromkeys(part.account for part in parts if part.dropped))


def _part(part: Part, secrets: Iterable[str]) -> _Json:
    return {
        "account": part.account,
        "resource": part.resource,
        "since": part.since,
        "pages": part.pages,
        "total_pages": part.total_pages,
        "records": part.records,
        "state": state_of(part),
        "error": None if part.done or part.error is None else _error(part.error, secrets),
    }


def _error(error: Exception, secrets: Iterable[str]) -> _Json:
    reason = reason_of(error, secrets, of_account=True)
    return {
        "type": type(error).__name__,
        "status": getattr(error, "status", None),
        # Our own errors hold no secret, and may be longer than a line of somebody else's.
        "message": str(error) if isinstance(error, LamellaError) else redact_text(str(error), secrets),
        "hint": reason.hint or None,
        "stopped": error.stopped.value if isinstance(error, LamellaError) and error.stopped else None,
    }


def _cause(cause: Cause) -> _Json:
    return {
        "parts": cause.many,
        "accounts": list(cause.who),
        "what": cause.what,
        "stopped": cause.stopped or None,
        "said": cause.said or None,
        "hint": cause.hint or None,
    }
