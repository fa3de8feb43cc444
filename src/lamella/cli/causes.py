"""Group failures by cause, for the screen, the page and the JSON report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from lamella import sync
from lamella.cli.secrets import NO_SECRETS, Secrets
from lamella.errors import ApiError, LamellaError, MethodNotAllowed, NotFound, TransportError, Unauthorized
from lamella.redaction import redact_text
from lamella.sync import Part

_LOG_IN_AGAIN: Final = (
    "The end user has to authenticate again, at the URL that GET /auth/{targetSystem} returns; then replace "
    "the old account key with the new one"
)
_STATE_IT: Final = (
    "or, if the account's system does not have the list, name it in the column 'without' of the accounts file"
)
_OF_LISTS: Final[dict[type[Exception], tuple[str, str]]] = {
    sync.UnsteadyList: (
        "Unsteady list",
        "Sync again when fewer records are being deleted. If it persists, the API counts records that no page contains",
    ),
    sync.RepeatedPage: (
        "Repeated page",
        "Ask the API's vendor why its pages repeat; the list was not read to its end",
    ),
    sync.BadRecord: ("Bad record", "Ask the API's vendor about this record; the other records of its page are stored"),
    sync.EmptyPage: ("Empty page", "Sync again. If it persists, ask the API's vendor why the page is empty"),
    sync.AnswerFailed: ("Errors in a response", "The message is the API's; the status of the response is a success"),
}
"""Title and hint of errors that end a list."""
_FIRST_WORDS: Final = re.compile(r"[^,;:.(]+")


class Reason(NamedTuple):
    """Why a part failed. Each field is one line without credentials; empty means unknown."""

    what: str  # 401 Unauthorized; for an error that is not lamella's, the name of its class
    stopped: str  # why there was no further attempt
    said: str  # the message of the server or the network
    hint: str

    @property
    def short(self) -> str:
        """The title and the first words of the hint: ``"401: The end user has to authenticate again"``."""
        first = _FIRST_WORDS.match(self.hint)
        status = self.what.partition(" ")[0]
        return f"{status if status.isdigit() else self.what}: {first[0].strip()}" if first else self.what

    @property
    def full(self) -> str:
        """The title and the detail: ``"Connection Failed (no route to host)"``."""
        return f"{self.what} ({self.said})" if self.said else self.what


@dataclass(frozen=True, slots=True)
class Cause:
    """Parts that failed for the same reason, and their accounts."""

    parts: int
    accounts: tuple[str, ...]
    what: str
    stopped: str
    said: str
    hint: str


def reason_of(error: Exception, secrets: Iterable[str] = (), *, of_account: bool = False) -> Reason:
    """Return the reason for *error*, without any of *secrets*.
    *of_account*: the reader manages the account keys and can replace one.
    """
    if type(error) in _OF_LISTS:
        what, hint = _OF_LISTS[type(error)]
        return Reason(what, "", redact_text(str(error), secrets), hint)
    if not isinstance(error, LamellaError):
        return Reason(type(error).__name__, "", redact_text(str(error), secrets), "")
    what, said = error.rule.title, ""
    if isinstance(error, ApiError):
        what = f"{error.status} {what}"
        said = "; ".join(error.validation_errors or error.downstream_errors or error.details)
    elif isinstance(error, TransportError):
        said = error.reason
    hint = error.rule.hint
    if of_account and isinstance(error, Unauthorized):
        hint = _LOG_IN_AGAIN
    elif of_account and isinstance(error, NotFound | MethodNotAllowed):
        hint = f"{hint}, {_STATE_IT}"
    return Reason(what, error.stopped.phrase if error.stopped else "", redact_text(said), hint)


def causes_of(parts: Sequence[Part], secrets: Secrets = NO_SECRETS) -> tuple[Cause, ...]:
    """Return the causes of failed parts, most frequent first, without any of *secrets*."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for part in parts:
        if part.error is not None and state_of(part) == "failed":
            reason = reason_of(part.error, secrets.of(part.account), of_account=True)
            groups.setdefault((reason.what, reason.stopped, reason.hint), []).append((part.account, reason.said))
    return tuple(
        Cause(
            len(found),
            tuple(dict.fromkeys(account for account, _ in found)),
            what,
            stopped,
            # Parts end in any order, so picking the first would vary between runs.
            min((said for _, said in found if said), default=""),
            hint,
        )
        for (what, stopped, hint), found in sorted(groups.items(), key=lambda item: (-len(item[1]), *item[0][:2]))
    )


def state_of(part: Part) -> str:
    """Return ``done``, ``skipped`` (done before the run was resumed), ``failed`` or ``open``.

    An error does not count if reading the list again succeeded.
    """
    if part.done:
        return "skipped" if part.skipped else "done"
    return "open" if part.error is None else "failed"
