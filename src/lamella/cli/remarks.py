"""Remarks about the records besides the failures, one sentence each, for the screen and the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lamella.cli.terminal import count, some
from lamella.redaction import redact_text
from lamella.sync import Part
from lamella.sync.stored import Departed

_MOST_NAMES: Final = 5


def remarks(parts: Sequence[Part], secrets: Sequence[str] = ()) -> Iterator[str]:
    """Yield remarks about missing, unproved and dropped records."""
    open_ = sum(not part.done for part in parts)
    if open_:
        yield f"Records are missing: {open_:,} of {count(len(parts), 'part')} {'is' if open_ == 1 else 'are'} not done."
    gaps = [part for part in parts if part.gap]
    if gaps:
        since = some(sorted({str(part.since) for part in gaps}), 1)
        yield (
            f"In {count(len(gaps), 'part')}, records last changed before {redact_text(since)} were not read: "
            "a sync without --since reads them."
        )
    if unproved := sum(_is_unproved(part) for part in parts):
        yield (
            f"The API gives no total for {count(unproved, 'part')}: they were read to the end, but it cannot be "
            "proved that no record is missing."
        )
    if bad := [f"{part.account}: {text}" for part in parts for text in part.bad]:
        yield f"Invalid records were not stored, but the rest was: {redact_text(_first(bad), secrets)}."
    if nameless := sum(part.nameless for part in parts):
        lists = list(dict.fromkeys(part.resource for part in parts if part.nameless))
        yield (
            f"{count(nameless, 'record')} of {redact_text(some(lists, _MOST_NAMES))} "
            f"{'has' if nameless == 1 else 'have'} no id: stored by content, as often as the API returns "
            f"{'it' if nameless == 1 else 'them'}. These lists are read from the beginning each time."
        )
    if warnings := list(dict.fromkeys(text for part in parts for text in part.warnings)):
        yield f"The API warns: {redact_text(_first(warnings), secrets)}."
    if dropped := [redact_text(name) for name in dropped_of(parts)]:
        names = some(dropped, _MOST_NAMES)
        yield f"Stored records of {names} were dropped because company_id, environment_name or a parameter has changed."
    yield from _compared(parts, secrets)


def _first(texts: Sequence[str]) -> str:
    """Return the first of *texts*. A part has only its first ten, so how many more there are is unknown."""
    return ", ".join(texts[:_MOST_NAMES]) + (" and more" if len(texts) > _MOST_NAMES else "")


def _compared(parts: Sequence[Part], secrets: Sequence[str]) -> Iterator[str]:
    """Yield the results of reading whole lists."""

    def named(field: str, total: int) -> str:
        # A part has only its first ten ids.
        names = [f"{part.account} {part.resource} {name}" for part in parts for name in getattr(part, field)]
        return redact_text(some(names, _MOST_NAMES, total), secrets) if names else "see the previous run"

    if missing := sum(part.missing for part in parts):
        yield (
            f"{count(missing, 'record')} had been missing: an earlier run should have read changes this "
            f"old. Stored now: {named('missing_ids', missing)}."
        )
    if deleted := sum(part.deleted for part in parts):
        are = "is marked as deleted: the API no longer has it" if deleted == 1 else "are marked as deleted"
        yield f"{count(deleted, 'record')} {are}: {named('deleted_ids', deleted)}."
    if unmet := sum(part.unmet for part in parts):
        yield (
            f"{count(unmet, 'stored record')} did not appear in the whole list, but nothing proves that "
            f"{'it is' if unmet == 1 else 'they are'} deleted: not marked."
        )


def remarks_of_run(
    parts: Sequence[Part], departed: Sequence[str], how: Departed, absent: Sequence[tuple[str, str]], *, verify: bool
) -> Iterator[str]:
    """Yield remarks about the accounts and lists of a run.

    Args:
        parts: The parts of the sync.
        departed: Accounts that are no longer synced.
        how: What happened to their records.
        absent: Lists declared absent in the accounts file.
        verify: Whether all lists were compared.
    """
    if verify:
        compared = sum(part.compared for part in parts)
        yield f"Compared with the API record by record: {compared:,} of {count(len(parts), 'list')}."
    if departed:
        done = {
            "keep": "are kept: --departed mark or forget changes that",
            "mark": "are marked as deleted",
            "forget": "are forgotten",
        }[how]
        names = redact_text(some(departed, _MOST_NAMES))
        yield f"The records of accounts that are no longer synced, {names}, {done}."
    if absent:
        names = redact_text(some([f"{resource} of {name}" for name, resource in absent], _MOST_NAMES))
        yield f"Not read, because the accounts file declares them absent: {names}."


def _is_unproved(part: Part) -> bool:
    return part.done and part.total is None


def are_all_there(parts: Iterable[Part]) -> bool:
    """Return whether all records of the API are proved to be stored."""
    return all(part.done and not part.gap and not _is_unproved(part) for part in parts)


def dropped_of(parts: Iterable[Part]) -> list[str]:
    """Return the accounts whose stored records were dropped."""
    return list(dict.fromkeys(part.account for part in parts if part.dropped))
