"""``Rule`` and ``RuleBook``: which rule an outcome gets."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import Backoff, Failure, Outcome, Rule, RuleBook
from lamella.rules import is_rate_limit

WAIT = Backoff(1, maximum=8)
RETRIED = Rule(429, "exact", retry=WAIT)
CLIENT, SERVER, DEFAULT = Rule("4xx", "client"), Rule("5xx", "server", retry=WAIT), Rule(None, "default")
LOST = Rule(Failure.CONNECTION_LOST, "lost")
FULL = RuleBook(RETRIED, CLIENT, SERVER, DEFAULT, LOST)
BUILT_IN = {"4xx": "Client Error", "5xx": "Server Error"}

OUTCOMES: list[Outcome] = [400, 404, 429, 499, 500, 503, 599, 600, 999, *Failure]
STATUSES = [400, 404, 429, 500, 503, 599, "4xx", "5xx", None, *Failure]


@st.composite
def books(draw: st.DrawFn) -> RuleBook:
    statuses: list[Any] = draw(st.lists(st.sampled_from(STATUSES), unique=True))
    waits = st.none() | st.floats(0, 10).map(lambda seconds: Backoff(seconds, maximum=100))
    return RuleBook(*(Rule(status, f"rule {status}", "text", "hint", draw(waits)) for status in statuses))


@pytest.mark.parametrize(
    ("book", "outcome", "title"),
    [
        (FULL, 429, "exact"),
        (FULL, HTTPStatus.TOO_MANY_REQUESTS, "exact"),
        (FULL, 400, "client"),
        (FULL, 499, "client"),
        (FULL, 500, "server"),
        (FULL, 599, "server"),
        (FULL, 600, "server"),
        (FULL, 999, "server"),
        (FULL, Failure.CONNECTION_LOST, "lost"),
        (FULL, Failure.CONNECT_FAILED, "Connection Failed"),
        (RuleBook(RETRIED, DEFAULT), 429, "exact"),
        (RuleBook(RETRIED, DEFAULT), 400, "default"),
        (RuleBook(RETRIED, DEFAULT), 500, "default"),
        (RuleBook(RETRIED, DEFAULT), 600, "default"),
        (RuleBook(RETRIED, DEFAULT), Failure.ATTEMPT_TIMEOUT, "Timeout"),
        (RuleBook(DEFAULT, CLIENT), 404, "client"),
        (RuleBook(SERVER), 404, BUILT_IN["4xx"]),
        (RuleBook(CLIENT), 500, BUILT_IN["5xx"]),
        (RuleBook(CLIENT), 600, BUILT_IN["5xx"]),
        (RuleBook(), 429, BUILT_IN["4xx"]),
        (RuleBook(), 503, BUILT_IN["5xx"]),
        (RuleBook(), Failure.CONNECT_FAILED, "Connection Failed"),
        (RuleBook(), Failure.CONNECTION_LOST, "Connection Lost"),
        (RuleBook(), Failure.ATTEMPT_TIMEOUT, "Timeout"),
        (RuleBook(), Failure.CIRCUIT_OPEN, "Circuit Open"),
        (RuleBook(), Failure.RATE_LIMITED, "Rate Limited"),
        (RuleBook(), Failure.TOKEN_UNAVAILABLE, "Token Unavailable"),
    ],
)
def test_the_status_is_looked_up_first_then_its_class_then_the_default(
    book: RuleBook, outcome: Outcome, title: str
) -> None:
    assert book.rule_for(outcome).title == title


def test_without_rules_only_failed_connections_are_retried() -> None:
    assert [status for status in range(400, 1000) if RuleBook().rule_for(status).retryable] == []
    for failure in Failure:
        retry = RuleBook().rule_for(failure).retry
        if failure in {Failure.CIRCUIT_OPEN, Failure.RATE_LIMITED, Failure.TOKEN_UNAVAILABLE, Failure.TOO_MANY_ERRORS}:
            assert retry is None  # lamella's own refusals
        elif failure in {Failure.CERTIFICATE_INVALID, Failure.PROXY_REFUSED, Failure.ANSWER_INVALID}:
            assert retry is None  # it would fail the same way again
        else:
            assert retry is not None
            assert [retry.floor(number) for number in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 32, 60]
            assert [retry.ceiling(number) for number in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_failures_have_the_documented_names() -> None:
    names = [
        "connect_failed",
        "certificate_invalid",
        "proxy_refused",
        "connection_lost",
        "answer_invalid",
        "attempt_timeout",
        "circuit_open",
        "rate_limited",
        "token_unavailable",
        "too_many_errors",
    ]
    assert [failure.value for failure in Failure] == names


def test_built_in_rules_have_a_description_and_a_hint() -> None:
    for outcome in OUTCOMES:
        rule = RuleBook().rule_for(outcome)
        assert len({rule.title, rule.description, rule.hint}) == 3
        assert not rule.title.endswith(".")
        assert rule.description.endswith(".")
        assert rule.hint.endswith(".")


@pytest.mark.parametrize(
    "status",
    [0, -1, 1, 200, 304, 399, 600, 999, True, 429.5, "429", "3xx", "6xx", "4XX", "", "connect_failed", b"4xx", ()],
)
def test_a_status_that_no_error_has_is_a_value_error_that_shows_it(status: Any) -> None:
    with pytest.raises(ValueError, match="status") as caught:
        Rule(status, "title")
    assert repr(status) in str(caught.value)


def test_a_blank_title_is_a_value_error_that_names_the_rule() -> None:
    with pytest.raises(ValueError, match="503"):
        Rule(503, " \n")


def test_a_rule_is_retryable_if_it_has_waits() -> None:
    assert RETRIED.retryable
    assert Rule(429, "x", retry=Backoff(0)).retryable
    assert not CLIENT.retryable


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (RETRIED, Rule(429, "other")),
        (RETRIED, replace(RETRIED)),
        (RETRIED, RETRIED),
        (RETRIED, Rule(HTTPStatus.TOO_MANY_REQUESTS, "other")),
        (CLIENT, Rule("4xx", "other")),
        (DEFAULT, Rule(None, "other")),
        (LOST, Rule(Failure.CONNECTION_LOST, "other")),
    ],
    ids=["other", "equal", "same", "enum", "class", "default", "failure"],
)
def test_two_rules_for_one_status_are_a_value_error_that_shows_it(first: Rule, second: Rule) -> None:
    with pytest.raises(ValueError, match="two rules") as caught:
        RuleBook(CLIENT if first is not CLIENT else RETRIED, first, second)
    assert repr(first.status) in str(caught.value)


def test_replace_keeps_the_position_and_appends_new_rules() -> None:
    other, new = Rule("4xx", "other"), Rule(503, "new")
    changed = FULL.replace(new, other)

    assert list(changed) == [RETRIED, other, SERVER, DEFAULT, LOST, new]
    assert list(FULL) == [RETRIED, CLIENT, SERVER, DEFAULT, LOST]
    assert changed.rule_for(404) is other
    assert FULL.replace() == FULL


@given(books(), st.floats(0, 1e3), st.sampled_from(OUTCOMES))
def test_scaling_changes_the_waits_and_nothing_else(book: RuleBook, factor: float, outcome: Outcome) -> None:
    rule = book.rule_for(outcome)
    expected = replace(rule, retry=rule.retry.scaled(factor) if rule.retry else None)

    assert book.scaled(factor).rule_for(outcome) == expected


@given(books())
def test_a_scaled_book_lists_the_rules_in_the_same_order(book: RuleBook) -> None:
    own = {rule.status for rule in book}
    assert [rule for rule in book.scaled(1) if rule.status in own] == list(book)


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf")])
def test_a_bad_scale_is_a_value_error_that_shows_it(factor: float) -> None:
    with pytest.raises(ValueError, match=str(factor)):
        FULL.scaled(factor)


def test_books_with_the_same_rules_are_equal_in_any_order() -> None:
    same = RuleBook(*reversed(list(FULL)))

    assert same == FULL
    assert hash(same) == hash(FULL)
    assert FULL.replace(Rule(429, "exact")) != FULL
    assert RuleBook(RETRIED) != RuleBook(RETRIED, CLIENT)
    assert RuleBook() != ()


def test_a_book_iterates_over_its_rules_and_shows_them() -> None:
    assert list(FULL) == list(FULL.rules) == [RETRIED, CLIENT, SERVER, DEFAULT, LOST]
    assert list(RuleBook()) == []
    assert "429 exact" in repr(FULL)
    assert "4xx client" in repr(FULL)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [FULL, RETRIED, LOST], ids=["book", "rule", "failure"])
def test_a_book_survives_pickling(value: RuleBook | Rule, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301

    assert again == value
    assert hash(again) == hash(value)


def test_a_book_survives_copying() -> None:
    for again in (copy.copy(FULL), copy.deepcopy(FULL)):
        assert again == FULL
        assert [again.rule_for(outcome) for outcome in OUTCOMES] == [FULL.rule_for(outcome) for outcome in OUTCOMES]


@pytest.mark.parametrize(
    ("outcome", "retry_after", "limit"),
    [
        (429, None, True),
        (429, 1.0, True),
        (503, 1.0, True),
        (503, 0.0, True),
        (503, 1e9, True),
        (503, None, False),
        *((status, after, False) for status in (400, 403, 500, 502, 504, 529) for after in (None, 1.0)),
        *((failure, after, False) for failure in Failure for after in (None, 1.0)),
    ],
)
def test_429_is_a_rate_limit_and_503_with_retry_after_too(
    outcome: Outcome, retry_after: float | None, limit: bool
) -> None:
    assert is_rate_limit(outcome, retry_after) is limit


def test_a_book_names_the_idempotency_header() -> None:
    assert RuleBook().idempotency_key == "Idempotency-Key"
    none = RuleBook(Rule(429), idempotency_key=None)
    assert none != RuleBook(Rule(429))
    for book in (none, none.replace(Rule(500)), none.scaled(0.1), pickle.loads(pickle.dumps(none))):  # noqa: S301
        assert book.idempotency_key is None
    with pytest.raises(ValueError, match="idempotency_key must be the name of a header or None, got ''"):
        RuleBook(idempotency_key="")
