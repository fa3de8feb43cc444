"""The id of a record, and when it was last changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

__all__ = ["EPOCH", "MICROSECOND", "OVERLAP", "id_names", "id_of", "microseconds", "updated_of"]

OVERLAP: Final = 300 * 1_000_000
"""Microseconds by which a sync begins before the high-water mark, for clocks that differ and slow answers."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def id_names(resource: str) -> tuple[str, str]:
    """Return the names that the id of a record may have, in the order in which they are looked for."""
    singular = f"{resource[:-3]}y" if resource.endswith("ies") else resource.removesuffix("s")
    return f"{singular}Id", "id"


def id_of(record: Any, resource: str) -> str | None:
    """Return the id of a record, or None where it has none."""
    for name in id_names(resource):
        value = record.get(name) if isinstance(record, dict) else None
        if isinstance(value, str | int | Decimal) and not isinstance(value, bool) and value != "":
            return str(value).encode("utf-8", "backslashreplace").decode()
    return None


def updated_of(record: Any) -> int | None:
    """Return when a record was last changed, in microseconds since the epoch, or None where it does not say."""
    updated = microseconds(record.get("updatedDate")) if isinstance(record, dict) else None
    # Some systems send 0001-01-01 for a missing date.
    return None if updated is None or updated < OVERLAP else updated


def microseconds(text: object) -> int | None:
    """Return a moment in ISO 8601 (UTC if it has no zone) in microseconds since the epoch, or None."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    if moment is None:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
