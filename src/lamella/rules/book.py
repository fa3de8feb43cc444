"""A table of rules, and the built-in rules of every table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from lamella.checks import check_seconds
from lamella.rules.answer import Answer, BodyNeeded
from lamella.rules.backoff import Backoff
from lamella.rules.rule import ERROR, Failure, Outcome, Rule, Status, status_class

_CONNECTION = Backoff(initial=(0.5, 1.0), maximum=60)
_BUILT_IN: Final[dict[Status | None, Rule]] = {
    status: rule
    for rule in (
        Rule(
            "4xx",
            "",
            "The server refused the request.",
            "Check the request; the same request fails again.",
        ),
        Rule("5xx", "", "The server failed.", "Check the server's status, or ask its operator."),
        Rule(
            Failure.CONNECT_FAILED,
            "Connection Failed",
            "The connection to the server failed, so nothing was sent.",
            "Check the address and the network; if the call was waiting for the pool, raise the connector's limit.",
            _CONNECTION,
        ),
        Rule(
            Failure.CERTIFICATE_INVALID,
            "Certificate Invalid",
            "The server's certificate is not trusted, or the sides share no TLS version or cipher. Nothing was sent.",
            "Check the address, the server's certificate, the clock, and the trusted authorities.",
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
            "The connection broke before the response was complete.",
            "The request may have been carried out: check before you repeat a write.",
            _CONNECTION,
        ),
        Rule(
            Failure.ANSWER_INVALID,
            "Answer Invalid",
            "aiohttp cannot read the response.",
            "If a limit is exceeded, raise max_line_size, max_field_size or max_headers of the session; otherwise "
            "report it to the server's operator. The request may have been carried out.",
        ),
        Rule(
            Failure.ATTEMPT_TIMEOUT,
            "Timeout",
            "The response did not arrive in time.",
            "Allow more time per attempt, or find out why the server is slow.",
            _CONNECTION,
        ),
        Rule(
            Failure.CIRCUIT_OPEN,
            "Circuit Open",
            "Too many recent requests to this server have failed, so this one was not sent.",
            "Nothing was carried out: try again when the circuit closes, and check the server's errors.",
        ),
        Rule(
            Failure.RATE_LIMITED,
            "Rate Limited",
            "The rate limit would have delayed this request for too long, so it was not sent.",
            "Nothing was carried out: try again later, allow more time, or send fewer requests at a time.",
        ),
        Rule(
            Failure.TOKEN_UNAVAILABLE,
            "Token Unavailable",
            "The token for this request could not be fetched, so it was not sent.",
            "Nothing was carried out: check the cause, the client's credentials and the token endpoint.",
        ),
        Rule(
            Failure.TOO_MANY_ERRORS,
            "Too Many Errors",
            "Not sent: calls of this account to this path have failed so often that one more error could block it.",
            "Nothing was carried out: find out why the other calls failed before you send more.",
        ),
    )
    for status in rule.statuses
}
_BUILT_IN_IDS: Final = frozenset(map(id, _BUILT_IN.values()))


class RuleBook:
    """An immutable set of rules. The first match applies: rules with ``when`` in order, then status, class, default.

    A status of 600 or more, which no server should send, counts as a server error (RFC 9110, section 15). Failures
    without a rule have a built-in one: a status is final, and a transport failure is retried after a short wait.

    Args:
        rules: The rules. A status may have one rule without ``when`` and any number of rules with it.
        retry_after: Returns the wait in seconds that an :class:`Answer` asks for, for APIs whose headers lamella does
            not know. A number above 10⁹ is a time in seconds or milliseconds since the epoch. If it returns None or
            raises (logged once), the headers are used.
        idempotency_key: The request header by which the API recognizes a repeated write. A POST with this header is
            retried. None means that the API supports no such header.

    Raises:
        ValueError: Two rules without ``when`` have the same status, or an argument is not a rule.
    """

    __slots__ = ("_by_status", "_failed", "_when", "below_400", "idempotency_key", "retry_after", "rules")

    def __init__(
        self,
        *rules: Rule,
        retry_after: Callable[[Answer], float | None] | None = None,
        idempotency_key: str | None = "Idempotency-Key",
    ) -> None:
        self.rules: Final = rules
        self.retry_after: Final = retry_after
        self.idempotency_key: Final = idempotency_key
        self._by_status: dict[int | str | None, Rule] = {}
        for rule in rules:
            if not isinstance(rule, Rule):
                raise ValueError(f"a rule must be a Rule, got {rule!r}: write RuleBook(Rule(…), Rule(…))")  # noqa: TRY004
            for status in dict.fromkeys(rule.statuses) if rule.when is None else ():
                if first := self._by_status.get(status):
                    raise ValueError(f"two rules for status {status!r}: {first.title!r} and {rule.title!r}")
                self._by_status[status] = rule
        if retry_after is not None and not callable(retry_after):
            raise ValueError(f"retry_after must be a function of an Answer or None, got {retry_after!r}")
        if idempotency_key is not None and not f"{idempotency_key}".strip():
            raise ValueError(f"idempotency_key must be the name of a header or None, got {idempotency_key!r}")
        self._failed: set[int] = set()
        """Ids of rules whose failure has already been reported; 0 for *retry_after*."""
        self._when = tuple(rule for rule in rules if rule.when is not None)
        named = {status for rule in self._when for status in rule.statuses}
        self.below_400: Final = frozenset(status for status in named if isinstance(status, int) and status < ERROR)
        """The statuses below 400 that a rule may call an error."""

    def rule_for(self, outcome: Outcome) -> Rule:
        """Return the rule for a status or a transport failure, ignoring rules with ``when``."""
        book = self._by_status
        if rule := book.get(outcome):
            return rule
        if isinstance(outcome, Failure):
            return _BUILT_IN[outcome]
        kind = status_class(outcome)
        return book.get(kind) or book.get(None) or _BUILT_IN[kind]

    def looks_at(self, status: int) -> bool:
        """Return whether a response with *status* has to be judged."""
        return self.retry_after is not None or any(rule.covers(status) for rule in self._when)

    def judge(self, answer: Answer, failed: Callable[[Rule | None, Exception], None]) -> Rule | None:
        """Return the rule for *answer*; None if it is not an error.

        A rule whose ``when`` raises does not apply. Its first exception is passed to *failed*.

        Raises:
            BodyNeeded: A rule needs the body, which is not read yet.
        """
        for rule in self._when:
            if rule.covers(answer.status) and rule.when is not None:
                try:
                    applies = bool(rule.when(answer))
                except Exception as exc:  # noqa: BLE001 - a rule must not break a call
                    applies = False
                    self._report(rule, exc, answer, failed)
                if answer.body_needed:
                    raise BodyNeeded
                if applies:
                    return rule
        return None if answer.status < ERROR else self.rule_for(answer.status)

    def wait_of(self, answer: Answer, failed: Callable[[Rule | None, Exception], None]) -> float | None:
        """Return the result of *retry_after* for *answer*: seconds or a time; None if it asks for no wait.

        Raises:
            BodyNeeded: The function needs the body, which is not read yet.
        """
        seconds: float | None = None
        try:
            if self.retry_after is not None and (seconds := self.retry_after(answer)) is not None:
                check_seconds("the result of retry_after", seconds, zero=True)
        except Exception as exc:  # noqa: BLE001 - as above
            seconds = None
            self._report(None, exc, answer, failed)
        if answer.body_needed:
            raise BodyNeeded
        return seconds

    def _report(
        self, rule: Rule | None, exc: Exception, answer: Answer, failed: Callable[[Rule | None, Exception], None]
    ) -> None:
        number = 0 if rule is None else id(rule)
        # The function may have replaced BodyNeeded by its own exception, so call it again.
        if number not in self._failed and not answer.body_needed:
            self._failed.add(number)
            failed(rule, exc)

    def unless_built_in(self, rule: Rule, outcome: Outcome) -> Rule:
        """Return *rule* of an error from another layer, or this book's rule for *outcome* if *rule* is built in."""
        return self.rule_for(outcome) if id(rule) in _BUILT_IN_IDS else rule

    def replace(self, *rules: Rule) -> RuleBook:
        """Return a copy of the book with *rules* added or replacing those for the same statuses.

        A rule with ``when`` replaces no rule; it goes before the existing ones.
        """
        new: dict[Status | None, Rule] = {
            status: rule for rule in rules if rule.when is None for status in rule.statuses
        }
        kept: list[Rule] = [rule for rule in rules if rule.when is not None]
        for rule in self.rules:
            left = rule if rule.when is not None else rule.without(new)
            kept.append(new[rule.statuses[0]] if left is None else left)
        return self._with(*dict.fromkeys((*kept, *new.values())))

    def scaled(self, factor: float) -> RuleBook:
        """Return a copy of the book with every backoff multiplied by *factor*, for demos and tests."""
        # The built-in waits after a transport failure are scaled as well.
        others = [rule for status, rule in _BUILT_IN.items() if rule.retry and status not in self._by_status]
        scaled = [replace(rule, retry=rule.retry and rule.retry.scaled(factor)) for rule in (*self.rules, *others)]
        return self._with(*scaled)

    def _with(self, *rules: Rule) -> RuleBook:
        return RuleBook(*rules, retry_after=self.retry_after, idempotency_key=self.idempotency_key)

    def _key(self) -> tuple[object, ...]:
        return frozenset(self._by_status.items()), self._when, self.retry_after, self.idempotency_key

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RuleBook) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[object, ...]:
        make = partial(RuleBook, retry_after=self.retry_after, idempotency_key=self.idempotency_key)
        return make, self.rules

    def __repr__(self) -> str:
        return f"RuleBook({', '.join(f'{rule.status} {rule.title}' for rule in self.rules)})"


def check_rules(rules: object, call: str) -> None:
    """Raise ValueError unless *rules* is a rule book; *call* is the code before it for the message: ``stack(``."""
    if isinstance(rules, RuleBook):
        return
    items = rules if isinstance(rules, list | tuple) and rules else [rules]
    kind = type(rules).__name__ if items is not rules else f"{type(rules).__name__} of {type(items[0]).__name__}"
    hint = f": write {call}RuleBook(rule, ...))" if any(isinstance(item, Rule) for item in items) else ""
    if isinstance(rules, type):
        kind, hint = f"the class {rules.__name__}", f": write {rules.__name__}(...)"
    raise ValueError(f"rules must be a RuleBook, got {kind}{hint}")
