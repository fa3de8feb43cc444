"""What a failure means and whether it is worth another try: a table of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

from lamella.rules.backoff import Backoff

__all__ = ["Failure", "Outcome", "Rule", "RuleBook", "is_rate_limit"]


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


Outcome = int | Failure
"""What came of one attempt that failed: the status of the answer, or why there was none."""


def is_rate_limit(outcome: Outcome, retry_after: float | None) -> bool:
    """Return whether a failed attempt says that the account sends too much: 429, or 503 with ``Retry-After``.

    *retry_after* is what the server asks for, in seconds. None means that it asks for nothing that can be understood.
    """
    return outcome == 429 or (outcome == 503 and retry_after is not None)


_LOWEST, _SERVER, _HIGHEST = 400, 500, 599
_CLASSES = ("4xx", "5xx")


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a :class:`RuleBook`.

    Args:
        status: What the rule is for: an error status (400 to 599); a class of them, ``"4xx"`` or ``"5xx"``; a
            :class:`Failure`; or None, for every status that no other rule names.
        title: A short name, as in "Too Many Requests".
        description: What happened, in a sentence.
        hint: What to do about it, in a sentence.
        retry: The waits between the tries. None means that it is never tried again.

    Raises:
        ValueError: No error can have this status, or the title is empty.
    """

    status: int | Literal["4xx", "5xx"] | Failure | None
    title: str
    description: str = ""
    hint: str = ""
    retry: Backoff | None = None

    def __post_init__(self) -> None:
        status = self.status
        error = isinstance(status, int) and _LOWEST <= status <= _HIGHEST
        if not (error or isinstance(status, Failure) or status is None or status in _CLASSES):
            raise ValueError(
                f'status must be from {_LOWEST} to {_HIGHEST}, "4xx", "5xx", a Failure or None, not {status!r}'
            )
        if not self.title.strip():
            raise ValueError(f"title must not be empty, and is {self.title!r} in the rule for {status!r}")

    @property
    def retryable(self) -> bool:
        """Whether it is ever tried again."""
        return self.retry is not None


_CONNECTION = Backoff(initial=(0.5, 1.0), maximum=60)
_BUILT_IN: Final[dict[str, Rule]] = {
    rule.status: rule
    for rule in (
        Rule(
            "4xx",
            "Client Error",
            "The server refused the request.",
            "Check the request; the same one fails again.",
        ),
        Rule("5xx", "Server Error", "The server failed.", "Look at the server's status, or ask its operator."),
        Rule(
            Failure.CONNECT_FAILED,
            "Connection Failed",
            "No connection to the server came about, so nothing was sent.",
            "Check the address and the network; if it was waiting for the pool, raise the connector's limit.",
            _CONNECTION,
        ),
        Rule(
            Failure.CERTIFICATE_INVALID,
            "Certificate Invalid",
            "The server's certificate is not trusted, or no TLS version or cipher suits both sides: nothing was sent.",
            "Check the address, the server's certificate, the clock, and which authorities are trusted here.",
        ),
        Rule(
            Failure.PROXY_REFUSED,
            "Proxy Refused",
            "The proxy refuses to connect to the server, so nothing was sent.",
            "Check the proxy's address, its user and password, and whether it may connect to this server.",
        ),
        Rule(
            Failure.CONNECTION_LOST,
            "Connection Lost",
            "The connection broke before the whole answer was there.",
            "It may have been carried out: look before you send a write again.",
            _CONNECTION,
        ),
        Rule(
            Failure.ANSWER_INVALID,
            "Answer Invalid",
            "The answer came, and aiohttp cannot read it.",
            "Raise max_line_size, max_field_size or max_headers of the session if it is about a limit; otherwise "
            "report it to the server's operator. The request may have been carried out.",
        ),
        Rule(
            Failure.ATTEMPT_TIMEOUT,
            "Timeout",
            "The answer did not come in time.",
            "Allow the attempt more time, or find out why the server is slow.",
            _CONNECTION,
        ),
        Rule(
            Failure.CIRCUIT_OPEN,
            "Circuit Open",
            "Too many requests to this server have failed lately, so this one was not sent.",
            "Nothing was carried out: try again when the circuit closes, and look at what the server says.",
        ),
        Rule(
            Failure.RATE_LIMITED,
            "Rate Limited",
            "The rate limit would have kept this request waiting for too long, so it was not sent.",
            "Nothing was carried out: try again later, allow it more time, or send fewer at a time.",
        ),
    )
    if isinstance(rule.status, str)
}


class RuleBook:
    """An immutable set of rules: looked up by status, then by class of status, then the default.

    A status of 600 or more, which no server should send, counts as a server error (RFC 9110, section 15). What no
    rule names has a built-in one: a status is never tried again, and a failure of the connection is, soon.

    Raises:
        ValueError: Two rules are for the same status.
    """

    __slots__ = ("_by_status", "rules")

    def __init__(self, *rules: Rule) -> None:
        self.rules: Final = rules
        self._by_status: dict[int | str | None, Rule] = {}
        for rule in rules:
            if first := self._by_status.get(rule.status):
                raise ValueError(f"two rules for status {rule.status!r}: {first.title!r} and {rule.title!r}")
            self._by_status[rule.status] = rule

    def rule_for(self, outcome: Outcome) -> Rule:
        """The rule for a status, or for a failure without one."""
        book = self._by_status
        if rule := book.get(outcome):
            return rule
        if isinstance(outcome, Failure):
            return _BUILT_IN[outcome]
        kind = "4xx" if _LOWEST <= outcome < _SERVER else "5xx"
        return book.get(kind) or book.get(None) or _BUILT_IN[kind]

    def replace(self, *rules: Rule) -> RuleBook:
        """The same book with *rules* in place of those for the same statuses, or added."""
        return RuleBook(*{rule.status: rule for rule in (*self.rules, *rules)}.values())

    def scaled(self, factor: float) -> RuleBook:
        """The same book with every delay times *factor*, for demos and tests."""
        own = {rule.status for rule in self.rules}
        # The built-in waits after a failed connection are delays too.
        others = [rule for rule in _BUILT_IN.values() if rule.retry and rule.status not in own]
        return RuleBook(
            *(replace(rule, retry=rule.retry and rule.retry.scaled(factor)) for rule in (*self.rules, *others))
        )

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __eq__(self, other: object) -> bool:
        return self._by_status == other._by_status if isinstance(other, RuleBook) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self.rules))

    def __reduce__(self) -> tuple[type[RuleBook], tuple[Rule, ...]]:
        return RuleBook, self.rules

    def __repr__(self) -> str:
        return f"RuleBook({', '.join(f'{rule.status} {rule.title}' for rule in self.rules)})"
