"""What failed, grouped by cause: for the screens, the pages and the JSON report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lamella import maesn
from lamella.errors import ApiError, LamellaError, TransportError, Unauthorized
from lamella.redaction import redact_text

__all__ = ["Cause", "Reason", "grouped", "reason_of"]

_LOG_IN_AGAIN: Final = (
    "The end user has to authenticate again, at the URL that GET /auth/{targetSystem} returns; then put the new "
    "account key in the place of the old one"
)

_OF_LISTS: Final[dict[type[Exception], tuple[str, str]]] = {
    maesn.UnsteadyList: (
        "Unsteady list",
        "Sync again when less is being deleted. If it stays so, the API counts records that its pages do not hold",
    ),
    maesn.RepeatedPage: (
        "Repeated page",
        "Ask the API's vendor why its pages repeat; the list was not read to its end",
    ),
    maesn.EmptyPage: ("Empty page", "Sync again. If it stays so, ask the API's vendor why the page is empty"),
    maesn.AnswerFailed: ("Errors in an answer", "The message is the API's own: the answer looks like a success"),
}
"""What it is called and what to do about it, of an error that a list has ended in."""
_FIRST_WORDS: Final = re.compile(r"[^,;:.(]+")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one thing failed. Each of them is a line, and without a credential."""

    what: str
    """``"401 Unauthorized"``; of what is no error of lamella's the name of its class."""
    stopped: str
    """Why there was no further try, in words. Empty: nobody says."""
    said: str
    """What the server or the network said. Empty: nothing."""
    hint: str
    """What to do about it. Empty: nobody knows."""

    @property
    def short(self) -> str:
        """What happened, and the first words of the hint: ``"401: The end user has to authenticate again"``."""
        first = _FIRST_WORDS.match(self.hint)
        status = self.what.partition(" ")[0]
        return f"{status if status.isdigit() else self.what}: {first[0].strip()}" if first else self.what

    @property
    def full(self) -> str:
        """What happened, and what the server or the network said: ``"Connection Failed (no route to host)"``."""
        return f"{self.what} ({self.said})" if self.said else self.what


@dataclass(frozen=True, slots=True)
class Cause:
    """What failed in the same way."""

    many: int
    what: str
    stopped: str
    said: str
    hint: str
    who: tuple[str, ...] = ()
    """Whose it was, each once."""


def reason_of(error: Exception, secrets: Iterable[str] = (), *, of_account: bool = False) -> Reason:
    """Why *error* came.

    Args:
        error: What something has ended in.
        secrets: What is shown nowhere. lamella's own errors hold none.
        of_account: Whether the reader keeps the account keys, and can put a new one in the place of an old one.
    """
    if type(error) in _OF_LISTS:
        what, hint = _OF_LISTS[type(error)]
        return Reason(what, "", redact_text(str(error), secrets), hint)
    if not isinstance(error, LamellaError):
        return Reason(type(error).__name__, "", redact_text(str(error), secrets), "")
    what = f"{error.status} {error.rule.title}" if isinstance(error, ApiError) else error.rule.title
    hint = _LOG_IN_AGAIN if of_account and isinstance(error, Unauthorized) else error.rule.hint
    return Reason(what, error.stopped.phrase if error.stopped else "", _said(error), hint)


def grouped(failed: Iterable[tuple[str, Reason]]) -> tuple[Cause, ...]:
    """The causes, the most frequent first. Each failure has the name of whose it is; an empty one is told nowhere."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for who, reason in failed:
        groups.setdefault((reason.what, reason.stopped, reason.hint), []).append((who, reason.said))
    return tuple(
        Cause(
            len(found),
            what,
            stopped,
            # They end in any order, so what the first of them says would be another thing each time.
            min((said for _, said in found if said), default=""),
            hint,
            tuple(dict.fromkeys(who for who, _ in found if who)),
        )
        for (what, stopped, hint), found in sorted(groups.items(), key=lambda item: (-len(item[1]), *item[0][:2]))
    )


def _said(error: LamellaError) -> str:
    """What the server or the network said, in a line."""
    if isinstance(error, TransportError):
        return redact_text(error.reason)
    said = (error.validation_errors or error.downstream_errors or error.details) if isinstance(error, ApiError) else ()
    return redact_text("; ".join(said))
