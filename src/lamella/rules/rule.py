"""What an answer or a failure means, and whether it is worth another attempt: one row of a rule book."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from inspect import iscoroutinefunction
from typing import Any, Final, Literal, TypeAlias

from lamella.checks import check_whole
from lamella.rules.answer import Answer
from lamella.rules.backoff import Backoff


class Failure(StrEnum):
    """Why there is no (whole) answer."""

    CONNECT_FAILED = "connect_failed"
    """Nothing was sent: DNS, connection refused, an interrupted TLS handshake, no connection in time."""
    CERTIFICATE_INVALID = "certificate_invalid"
    """Nothing was sent: the server's certificate is not trusted, or no TLS version or cipher suits both sides."""
    PROXY_REFUSED = "proxy_refused"
    """Nothing was sent: the proxy refuses to connect to the server, and would do so again."""
    CONNECTION_LOST = "connection_lost"
    """It broke after something was sent: the request may have been carried out."""
    ANSWER_INVALID = "answer_invalid"
    """aiohttp rejects the answer: its headers exceed a limit of the session, or its body cannot be decompressed."""
    ATTEMPT_TIMEOUT = "attempt_timeout"
    """No answer in time: the request may have been carried out."""
    CIRCUIT_OPEN = "circuit_open"
    """It was not sent: the service is known to be down."""
    RATE_LIMITED = "rate_limited"
    """It was not sent: its turn under the rate limit would come after its deadline, or the server asks for a wait that
    is too long."""
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - a name
    """It was not sent: the fetch of its token failed."""
    TOO_MANY_ERRORS = "too_many_errors"
    """It was not sent: calls like it have failed so often that one more could block the account."""


Outcome: TypeAlias = int | Failure
"""What an attempt that failed ended in: the status of the answer, or why there was none."""
Status: TypeAlias = int | Literal["4xx", "5xx"] | Failure
"""What a rule is for."""

ERROR: Final = 400
"""The lowest status that is an error by itself."""
_SERVER: Final = 500
_CLASSES: Final = {"4xx": "Client Error", "5xx": "Server Error", None: "Error"}
# 429: the server refused before it did anything. The others: nothing was sent.
# 503 is not among them, even as a rate limit: a server may break down while it carries something out.
_NOT_CARRIED_OUT: Final[frozenset[Outcome]] = frozenset(
    {429, Failure.CONNECT_FAILED, Failure.CERTIFICATE_INVALID, Failure.PROXY_REFUSED}
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a :class:`RuleBook`.

    Args:
        status: What the rule is for: an error status (400 to 599; with *when* any from 100 on), a class of them
            (``"4xx"`` or ``"5xx"``), a :class:`Failure`, a list of these, or None for every error status (without
            *when*: that no other rule names).
        title: A short name. Default: the registered one, such as "Too Many Requests".
        description: What happened, in a sentence.
        hint: What to do about it, in a sentence.
        retry: The waits between the attempts. None means that there is no further attempt.
        when: A condition: a function of the :class:`Answer` that returns whether the rule applies. Such a rule comes
            before all rules without a condition, and is the only kind for a status below 400. If it raises, that is
            logged once and the rule does not apply.
        rate_limit: Whether such an answer says that the account sends too much: then ``Throttle`` queues its calls, the
            retry costs no budget, and ``Breaker`` counts no failure. None means 429, and 503 with ``Retry-After``.
        carried_out: Whether the server may have carried the request out. If not, a write is sent again as well. None
            means: not with 429, nor where nothing was sent.
        attempts: How many attempts of a call may end in this rule, 1 or more. None means as many as the call has.

    Raises:
        ValueError: An argument is not what it should be; the message says what is allowed.
    """

    status: Status | Collection[Status | None] | None
    """One status, or a tuple of several."""
    title: str = ""
    description: str = ""
    hint: str = ""
    retry: Backoff | None = None
    when: Callable[[Answer], object] | None = field(default=None, kw_only=True)
    rate_limit: bool | None = field(default=None, kw_only=True)
    carried_out: bool | None = field(default=None, kw_only=True)
    attempts: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.status, list | tuple | set | frozenset | range):
            object.__setattr__(self, "status", tuple(self.status))
        self._check()
        if not self.title:
            object.__setattr__(self, "title", self._registered_title)

    def _check(self) -> None:
        lowest = ERROR if self.when is None else 100
        for status in self.statuses or ((),):
            is_status = isinstance(status, int) and not isinstance(status, bool) and lowest <= status <= 599
            is_other = status in _CLASSES if isinstance(status, str | None) else False
            if not (is_status or is_other or (isinstance(status, Failure) and self.when is None)):
                allowed = f'from {lowest} to 599, "4xx", "5xx", a Failure, None, or a list of these'
                raise ValueError(f"status must be {allowed}, got {status!r}{self._why_not(status)}")
        texts: dict[str, object] = {"title": self.title, "description": self.description, "hint": self.hint}
        for name, text in texts.items():
            if not isinstance(text, str) or text.isspace():
                raise ValueError(f"{name} must be a text, got {text!r} in the rule for {self.status!r}")
        if self.retry is not None and not isinstance(self.retry, Backoff):
            raise ValueError(f"retry must be a Backoff or None, got {self.retry!r}: write retry=Backoff(initial=1)")
        when: object = self.when
        if when is not None and (not callable(when) or _is_async(when)):
            raise ValueError(f"when must be a function of an Answer, and not async, got {when!r}")
        for name, flag in (("rate_limit", self.rate_limit), ("carried_out", self.carried_out)):
            if flag is not None and not isinstance(flag, bool):
                raise ValueError(f"{name} must be True, False or None, got {flag!r}")
        if self.attempts is not None:
            check_whole("attempts", self.attempts)
            if self.retry is None:
                raise ValueError(f"attempts={self.attempts} has no effect without retry: there is only one")

    def _why_not(self, status: object) -> str:
        if isinstance(status, Failure):
            return ": there is no answer that when could look at"
        return ": below 400 a rule needs when" if isinstance(status, int) and 100 <= status < ERROR else ""

    @property
    def statuses(self) -> tuple[Status | None, ...]:
        """What the rule is for, one by one."""
        status: Any = self.status  # a collection is a tuple by now
        return status if isinstance(status, tuple) else (status,)

    @property
    def _registered_title(self) -> str:
        return ", ".join(dict.fromkeys(map(_title, self.statuses)))

    @property
    def retryable(self) -> bool:
        """Whether it is ever tried again."""
        return self.retry is not None

    def without_condition(self) -> Rule:
        """Return the rule without *when*, which may not be picklable: for an error that goes to another process."""
        rule = copy(self)
        object.__setattr__(rule, "when", None)
        return rule

    def title_of(self, status: int) -> str:
        """Return the title for *status*: its registered one, unless the rule was given a title."""
        if self.status == status:
            return self.title
        return _title(status) if self.title == self._registered_title else self.title

    def without(self, statuses: Collection[Status | None]) -> Rule | None:
        """Return the rule for its other statuses than *statuses*. None: there are none left."""
        left = tuple(status for status in self.statuses if status not in statuses)
        if not left or left == self.statuses:
            return self if left else None
        return replace(self, status=left, title="" if self.title == self._registered_title else self.title)

    def covers(self, status: int) -> bool:
        """Return whether the rule is for answers with *status*, leaving *when* aside."""
        own = self.statuses
        return status in own or (status >= ERROR and (None in own or status_class(status) in own))

    def is_rate_limit(self, outcome: Outcome, retry_after: float | None) -> bool:
        """Return whether an attempt that ended in this rule says that the account sends too much.

        *retry_after* is the wait that the server asks for, in seconds. None means that it asks for none.
        """
        return is_rate_limit(outcome, retry_after) if self.rate_limit is None else self.rate_limit

    def may_be_carried_out(self, outcome: Outcome) -> bool:
        """Return whether a request whose attempt ended in this rule may have been carried out."""
        return outcome not in _NOT_CARRIED_OUT if self.carried_out is None else self.carried_out


def is_rate_limit(outcome: Outcome, retry_after: float | None) -> bool:
    """Return the same where no rule says otherwise: 429 is a rate limit, and 503 with ``Retry-After``."""
    return outcome == 429 or (outcome == 503 and retry_after is not None)


def status_class(status: int) -> Literal["4xx", "5xx"]:
    """Return the class of an error *status*. 600 and above, which no server should send, count as 5xx (RFC 9110)."""
    return "4xx" if ERROR <= status < _SERVER else "5xx"


def _title(status: Status | None) -> str:
    if isinstance(status, Failure):
        return status.replace("_", " ").title()
    if isinstance(status, str | None):
        return _CLASSES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return _CLASSES[None if status < ERROR else status_class(status)]


def _is_async(when: object) -> bool:
    return iscoroutinefunction(when) or iscoroutinefunction(getattr(when, "__call__", None))  # noqa: B004
