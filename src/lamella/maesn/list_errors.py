"""Errors of lists: records are missing, or an answer says that it failed.

They are ValueErrors, like the error of an answer that holds no list: the answer is wrong.
"""

from __future__ import annotations

__all__ = ["AnswerFailed", "EmptyPage", "IncompleteList", "RepeatedPage", "UnsteadyList"]


class IncompleteList(ValueError):
    """Records of a list are missing, or may be."""


class UnsteadyList(IncompleteList):
    """A list changed while it was read, or holds fewer records than the API counts.

    Args:
        resource: Which list.
        seen: How many different records were read.
        total: How many there are by ``meta.pagination.total``. None means that the API did not say.
        readings: How often the list was read.
        moved: Whether it was observed to shrink, or to change its order.
    """

    def __init__(
        self, resource: str, seen: int = 0, total: int | None = None, *, readings: int = 1, moved: bool = True
    ) -> None:
        what = "shrank or were sorted anew" if moved else "were incomplete"
        times = "while they were read" if readings == 1 else f"each of the {readings} times they were read"
        numbers = "" if total is None else f": {seen} different records were read, and the API counts {total}"
        super().__init__(f"{resource} {what} {times}{numbers}. Records may be missing")


class RepeatedPage(IncompleteList):
    """A page brought no new record, so the list might never end."""

    def __init__(self, resource: str, number: int) -> None:
        super().__init__(
            f"page {number} of {resource} brought no new record: all of its records were on pages before. "
            "The API may ignore the parameter page"
        )


class EmptyPage(IncompleteList):
    """A page is empty, also when read again, though by the API's own numbers the list goes on."""

    def __init__(self, resource: str, number: int, total_pages: int | None, total: int | None) -> None:
        numbers = [f"{many} {of}" for many, of in ((total, "records"), (total_pages, "pages")) if many is not None]
        super().__init__(f"page {number} of {resource} is empty, and the API counts {' on '.join(numbers)}")


class AnswerFailed(ValueError):
    """An answer with a good status whose ``errors`` say that it failed. No credential is in the message."""

    def __init__(self, what: str, status: int, messages: tuple[str, ...]) -> None:
        said = "; ".join(messages)
        super().__init__(f"{what} failed: the answer has status {status}, and errors{f': {said}' if said else ''}")
