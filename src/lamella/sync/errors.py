"""Errors of lists: records are missing, or an answer says that it failed.

They are ValueErrors, like the error of an answer that contains no list: the answer is wrong.
"""

from __future__ import annotations

__all__ = [
    "AnswerFailed",
    "BadRecord",
    "EmptyPage",
    "IncompleteList",
    "RepeatedPage",
    "SchemaMismatch",
    "TooManyDeparted",
    "UnsteadyList",
]


class IncompleteList(ValueError):
    """Records of a list are missing, or may be."""


class UnsteadyList(IncompleteList):
    """A list changed while it was read, or contains fewer records than the API counts.

    Args:
        name: The name of the list.
        seen: The number of distinct records that were read.
        total: The number of records by the API's count. None means unknown.
        readings: How often the list was read.
        how: The observed change of its size or order. None means that no change was observed.
    """

    def __init__(
        self, name: str, seen: int = 0, total: int | None = None, *, readings: int = 1, how: str | None = None
    ) -> None:
        what = "were incomplete" if how is None else "shrank or were re-sorted"
        times = "while they were read" if readings == 1 else f"each of the {readings} times they were read"
        numbers = "" if total is None else f": {seen} different records were read, and the API counts {total}"
        why = "" if how is None else f" ({how})"
        super().__init__(f"{name} {what} {times}{numbers}{why}. Records may be missing")


class RepeatedPage(IncompleteList):
    """A page brought no new record, or the API ignores which page is requested, so the list might never end.

    Args:
        name: The name of the list.
        number: The number of the page.
        far: The number of a page far after the end that has records as well. None: no such page was read.
    """

    def __init__(self, name: str, number: int, far: int | None = None) -> None:
        if far is not None:
            super().__init__(
                f"{name} might never end: page {number} has records, and so has page {far:,}. "
                "The API may ignore the page or offset of the request"
            )
            return
        super().__init__(
            f"page {number} of {name} brought no new record: all of its records were on pages before. "
            "The API may ignore the page, offset or cursor of the request"
        )


class EmptyPage(IncompleteList):
    """A page stays empty when it is read again, although the list continues by the API's own numbers or pages."""

    def __init__(
        self, name: str, number: int, total_pages: int | None, total: int | None, *, in_middle: bool = False
    ) -> None:
        numbers = [f"{many} {of}" for many, of in ((total, "records"), (total_pages, "pages")) if many is not None]
        said = f"the API counts {' on '.join(numbers)}" if numbers else "leads to yet another page, as those before it"
        said = "the page after it has records" if in_middle else said
        super().__init__(f"page {number} of {name} is empty, and {said}")


class BadRecord(IncompleteList):
    """A record cannot be stored: it is not an object, has no id or the id of another one, or is not UTF-8.

    The other records of its page are stored. The message has the page and the position.
    """


class SchemaMismatch(ValueError):
    """Values do not fit the columns of a schema, so they are null there. The output contains all records unchanged."""

    def __init__(self, count: int, first: tuple[str, ...]) -> None:
        more = f" and {count - len(first):,} more" if count > len(first) else ""
        super().__init__(f"{count:,} {'value does' if count == 1 else 'values do'} not fit: {'; '.join(first)}{more}")


class TooManyDeparted(ValueError):
    """More accounts would be forgotten than stay, so the given accounts may be incomplete. Nothing has changed.

    Args:
        forgotten: The number of accounts that would be forgotten and are not marked as departed.
        stay: The number of accounts with records that are still given.
    """

    def __init__(self, forgotten: int, stay: int) -> None:
        self.forgotten: int = forgotten
        self.stay: int = stay
        accounts = "1 account" if forgotten == 1 else f"{forgotten:,} accounts"
        super().__init__(
            f"departed='forget' would remove the records of {accounts}, more than the {stay:,} that stay. "
            "If the accounts are complete, run once with departed='mark' first"
        )


class AnswerFailed(ValueError):
    """An answer with a successful status contains errors. The message contains no credential."""

    def __init__(self, what: str, status: int, messages: tuple[str, ...]) -> None:
        said = "; ".join(messages)
        super().__init__(f"{what} failed: the answer has status {status}, and errors{f': {said}' if said else ''}")
