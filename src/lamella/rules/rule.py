"""One row of a rule book: the meaning of a response or failure, and whether to retry it."""

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
    """Why there is no complete response."""

    CONNECT_FAILED = "connect_failed"
    """Nothing was sent: DNS, connection refused, an interrupted TLS handshake, no connection in time."""
    CERTIFICATE_INVALID = "certificate_invalid"
    """Nothing was sent: the server's certificate is not trusted, or the sides share no TLS version or cipher."""
    PROXY_REFUSED = "proxy_refused"
    """Nothing was sent: the proxy refuses to connect to the server, and a retry would not help."""
    CONNECTION_LOST = "connection_lost"
    """The connection broke after something was sent, so the request may have been carried out."""
    ANSWER_INVALID = "answer_invalid"
    """aiohttp rejected the response: its headers exceed a limit of the session, or its body cannot be decompressed."""
    ATTEMPT_TIMEOUT = "attempt_timeout"
    """No response in time; the request may have been carried out."""
    CIRCUIT_OPEN = "circuit_open"
    """Not sent: the circuit of the service is open."""
    RATE_LIMITED = "rate_limited"
    """Not sent: the call would be queued beyond its deadline, or the server asks for too long a wait."""
    TOKEN_UNAVAILABLE = "token_unavailable"  # noqa: S105 - a name
    """Not sent: the fetch of the token failed."""
    TOO_MANY_ERRORS = "too_many_errors"
    """Not sent: similar calls have failed so often that one more error could block the account."""


Outcome: TypeAlias = int | Failure
"""The outcome of a failed attempt: the status of the response, or why there was none."""
Status: TypeAlias = int | Literal["4xx", "5xx"] | Failure
"""The statuses and failures of a rule."""

ERROR: Final = 400
"""The lowest status that is an error without a condition."""
_SERVER: Final = 500
_CLASSES: Final = {"4xx": "Client Error", "5xx": "Server Error", None: "Error"}
# 429: the server rejected the request before doing anything. The others: nothing was sent.
# Not 503, even as a rate limit: a server may fail while it carries out a request.
_NOT_CARRIED_OUT: Final[frozenset[Outcome]] = frozenset(
    {429, Failure.CONNECT_FAILED, Failure.CERTIFICATE_INVALID, Failure.PROXY_REFUSED}
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a :class:`RuleBook`.

    Args:
        status: An error status (400 to 599; with *when* any from 100), a class (``"4xx"`` or ``"5xx"``), a
            :class:`Failure`, a list of these, or None for every error status (without *when*: every one without a
            rule).
        title: A short name. Default: the registered one, such as "Too Many Requests".
        description: What happened, as one sentence.
        hint: What to do about it, as one sentence.
        retry: The waits between attempts. None means no retry.
        when: A condition: a function of the :class:`Answer` that returns whether the rule applies. Rules with a
            condition are checked before all others, and only they can match a status below 400. If the function raises,
            this is logged once and the rule does not apply.
        rate_limit: Whether the response means that the account exceeds its rate limit. Then ``Throttle`` queues the
            account's calls, the retry costs no budget, and ``Breaker`` counts no failure. None means True for 429, and
            for 503 with ``Retry-After``.
        carried_out: Whether the server may have carried out the request. If False, writes are retried as well. None
            means False for 429 and if nothing was sent, otherwise True.
        attempts: How many attempts of a call may end in this rule, 1 or more. None means the limit of the call.

    Raises:
        ValueError: An argument is invalid; the message says what is allowed.
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
                raise ValueError(f"{name} must be a string, got {text!r} in the rule for {self.status!r}")
        if self.retry is not None and not isinstance(self.retry, Backoff):
            raise ValueError(f"retry must be a Backoff or None, got {self.retry!r}: write retry=Backoff(initial=1)")
        when: object = self.when
        if when is not None and (not callable(when) or _is_async(when)):
            raise ValueError(f"when must be a plain (not async) function of an Answer, got {when!r}")
        for name, flag in (("rate_limit", self.rate_limit), ("carried_out", self.carried_out)):
            if flag is not None and not isinstance(flag, bool):
                raise ValueError(f"{name} must be True, False or None, got {flag!r}")
        if self.attempts is not None:
            check_whole("attempts", self.attempts)
            if self.retry is None:
                raise ValueError(
                    f"attempts={self.attempts} has no effect without retry, because there is only one attempt"
                )

    def _why_not(self, status: object) -> str:
        if isinstance(status, Failure):
            return ": without a response, when has no Answer"
        return ": a status below 400 requires when" if isinstance(status, int) and 100 <= status < ERROR else ""

    @property
    def statuses(self) -> tuple[Status | None, ...]:
        """The statuses and failures of the rule, one by one."""
        status: Any = self.status  # __post_init__ has turned a collection into a tuple
        return status if isinstance(status, tuple) else (status,)

    @property
    def _registered_title(self) -> str:
        return ", ".join(dict.fromkeys(map(_title, self.statuses)))

    @property
    def retryable(self) -> bool:
        """Whether the rule allows retries."""
        return self.retry is not None

    def without_condition(self) -> Rule:
        """Return the rule without *when*, which may not be picklable, for an error sent to another process."""
        rule = copy(self)
        object.__setattr__(rule, "when", None)
        return rule

    def title_of(self, status: int) -> str:
        """Return the title for *status*: the rule's own, or the registered one."""
        if self.status == status:
            return self.title
        return _title(status) if self.title == self._registered_title else self.title

    def without(self, statuses: Collection[Status | None]) -> Rule | None:
        """Return the rule without *statuses*; None if no status is left."""
        left = tuple(status for status in self.statuses if status not in statuses)
        if not left or left == self.statuses:
            return self if left else None
        return replace(self, status=left, title="" if self.title == self._registered_title else self.title)

    def covers(self, status: int) -> bool:
        """Return whether the rule is for responses with *status*, ignoring *when*."""
        own = self.statuses
        return status in own or (status >= ERROR and (None in own or status_class(status) in own))

    def is_rate_limit(self, outcome: Outcome, retry_after: float | None) -> bool:
        """Return whether an attempt that ended in this rule hit a rate limit.

        *retry_after* is the wait in seconds that the server asks for. None means not stated.
        """
        return is_rate_limit(outcome, retry_after) if self.rate_limit is None else self.rate_limit

    def may_be_carried_out(self, outcome: Outcome) -> bool:
        """Return whether a request whose attempt ended in this rule may have been carried out."""
        return outcome not in _NOT_CARRIED_OUT if self.carried_out is None else self.carried_out


def is_rate_limit(outcome: Outcome, retry_after: float | None) -> bool:
    """Return the default: 429 is a rate limit, and 503 with ``Retry-After``."""
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
