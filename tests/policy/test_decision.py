"""``decide``: the order of its questions, the safety of a repeat, and the arithmetic of the deadline."""

from __future__ import annotations

from math import inf, nan, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import Backoff, Decision, Failure, Outcome, Rule, RuleBook, StopReason, WaitSource, decide
from lamella.rules import IDEMPOTENT_METHODS

WAIT = Backoff(10, factor=2, maximum=100, jitter=0.5)
RULES = RuleBook(
    Rule(400, "never"),
    Rule(429, "limited", retry=WAIT),
    Rule(500, "failed", retry=WAIT),
    *(Rule(failure, failure.value, retry=WAIT) for failure in Failure),
)
# Each question of the design in its order, answered with no. The wait before retry 1 is 10 s, without randomness.
REFUSALS: list[tuple[dict[str, Any], StopReason]] = [
    ({"outcome": 400}, StopReason.NOT_RETRYABLE),
    ({"method": "POST"}, StopReason.UNSAFE_METHOD),
    ({"replayable": False}, StopReason.BODY_NOT_REPLAYABLE),
    ({"number": 5}, StopReason.ATTEMPTS_USED_UP),
    ({"retry_after": 101.0}, StopReason.WAIT_TOO_LONG),
    ({"elapsed": 95.0, "deadline": 100.0}, StopReason.DEADLINE),
]
TOO_LATE = {StopReason.DEADLINE, StopReason.WAIT_TOO_LONG}


def ask(outcome: Outcome = 500, *, rules: RuleBook = RULES, random: float = 0.0, **changes: Any) -> Decision:
    usual: dict[str, Any] = {
        "number": 1,
        "attempts": 5,
        "method": "GET",
        "replayable": True,
        "elapsed": 0.0,
        "deadline": None,
    }
    return decide(rules.rule_for(outcome), outcome, random=lambda: random, **(usual | changes))


def test_a_retry_without_objection_waits_as_the_rule_says() -> None:
    assert ask() == Decision(RULES.rule_for(500), 10, WaitSource.RULE)
    assert ask(number=4, random=0.5) == Decision(RULES.rule_for(500), 100, WaitSource.RULE)


@pytest.mark.parametrize(("change", "reason"), REFUSALS)
def test_each_objection_stops_by_itself(change: dict[str, Any], reason: StopReason) -> None:
    decision = ask(**change)

    assert (decision.rule, decision.stop) == (RULES.rule_for(change.get("outcome", 500)), reason)
    # A decision has a wait only where that is what is too long.
    assert (decision.wait is None) is (decision.source is None) is (reason not in TOO_LATE)


@pytest.mark.parametrize("first", range(len(REFUSALS)))
def test_of_several_objections_the_first_is_the_reason(first: int) -> None:
    changes: dict[str, Any] = {}
    for change, _ in REFUSALS[first:]:
        changes |= change

    assert ask(**changes).stop is REFUSALS[first][1]


def test_all_designed_stop_reasons_exist_and_decide_uses_its_own() -> None:
    layers = {"retry_budget_empty", "circuit_open", "token_unavailable", "too_many_errors", "cancelled"}

    assert {reason.value for _, reason in REFUSALS} == {reason.value for reason in StopReason} - layers
    assert {reason.phrase for reason in StopReason} == {
        "not retryable",
        "attempts used up",
        "deadline",
        "wait too long",
        "unsafe method",
        "body not replayable",
        "retry budget empty",
        "circuit open",
        "token unavailable",
        "too many errors",
        "cancelled",
    }


def test_the_sources_of_a_wait_have_the_documented_names() -> None:
    assert [source.value for source in WaitSource] == ["rule", "retry_after", "immediate", "refresh"]


def test_only_the_methods_of_rfc_9110_are_idempotent() -> None:
    assert {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"} == IDEMPOTENT_METHODS


@pytest.mark.parametrize("outcome", [429, 500, *Failure])
@pytest.mark.parametrize(
    "method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "POST", "PATCH", "CONNECT", "X"]
)
def test_a_possibly_executed_request_is_repeated_only_if_that_is_safe(method: str, outcome: Outcome) -> None:
    unsent = {Failure.CONNECT_FAILED, Failure.CERTIFICATE_INVALID, Failure.PROXY_REFUSED}
    harmless = method in IDEMPOTENT_METHODS or outcome == 429 or outcome in unsent

    assert ask(outcome, method=method).stop is (None if harmless else StopReason.UNSAFE_METHOD)
    assert ask(outcome, method=method, idempotent=True).stop is None


@pytest.mark.parametrize("change", [change for change, _ in REFUSALS])
def test_a_rejected_token_is_replaced_at_once_if_body_and_time_allow(change: dict[str, Any]) -> None:
    rule = RULES.rule_for(change.get("outcome", 500))
    again, used_up = (Decision(rule, 0.0, WaitSource.REFRESH), Decision(rule, stop=StopReason.BODY_NOT_REPLAYABLE))

    assert ask(refused=True, **change) == (again if change.get("replayable", True) else used_up)
    late = ask(refused=True, **(change | {"elapsed": 100.0, "deadline": 100.0}))
    assert late == Decision(rule, stop=StopReason.DEADLINE)


@pytest.mark.parametrize(("number", "attempts", "stops"), [(1, 1, True), (4, 5, False), (5, 5, True), (6, 5, True)])
def test_there_is_no_retry_after_the_last_attempt(number: int, attempts: int, stops: bool) -> None:
    assert (ask(number=number, attempts=attempts).stop is StopReason.ATTEMPTS_USED_UP) is stops


def test_attempts_none_means_no_limit() -> None:
    assert ask(number=10**6, attempts=None) == Decision(RULES.rule_for(500), 100, WaitSource.RULE)


@pytest.mark.parametrize(
    ("elapsed", "deadline", "more", "stops"),
    [
        (0.0, None, {}, False),
        (1e9, None, {}, False),
        (0.0, 10.5, {}, False),
        (0.0, nextafter(10, inf), {}, False),
        (0.0, 10.0, {}, True),  # no time would be left for the send
        (0.0, nextafter(10, 0), {}, True),
        (2.0, 12.5, {}, False),
        (2.5, 12.5, {}, True),
        (3.0, 12.5, {}, True),
        (20.0, 12.5, {}, True),
        (0.0, 15.0, {"random": 0.9}, False),
        (0.0, 15.0, {"random": nextafter(1, 0), "number": 2}, True),
        (0.0, 25.0, {"number": 2}, False),
        (0.0, 19.0, {"number": 2}, True),
        (0.0, 31.0, {"retry_after": 30.0}, False),
        (0.0, 30.0, {"retry_after": 30.0}, True),
        (0.0, 29.0, {"retry_after": 30.0}, True),
        (9.9, 10.0, {"stale": True}, False),
        (10.0, 10.0, {"stale": True}, True),
    ],
)
def test_a_wait_that_leaves_no_time_for_an_attempt_stops_at_once(
    elapsed: float, deadline: float | None, more: dict[str, Any], stops: bool
) -> None:
    decision = ask(elapsed=elapsed, deadline=deadline, **more)

    assert decision.stop is (StopReason.DEADLINE if stops else None)


@pytest.mark.parametrize(
    ("retry_after", "wait", "source"),
    [
        (None, 10, WaitSource.RULE),
        (0.0, 10, WaitSource.RULE),
        (9.9, 10, WaitSource.RULE),
        (10.0, 10, WaitSource.RULE),
        (10.1, 10.1, WaitSource.RETRY_AFTER),
        (100.0, 100, WaitSource.RETRY_AFTER),
        (-5.0, 10, WaitSource.RULE),
        (nan, 10, WaitSource.RULE),
    ],
)
def test_the_wait_is_the_longer_of_retry_after_and_the_rule(
    retry_after: float | None, wait: float, source: WaitSource
) -> None:
    assert ask(retry_after=retry_after) == Decision(RULES.rule_for(500), wait, source)


@pytest.mark.parametrize("retry_after", [nextafter(100, inf), 101.0, 1e300, inf])
def test_a_retry_after_above_the_maximum_stops_the_call(retry_after: float) -> None:
    for deadline in (None, 1.0, 1e9):
        assert ask(retry_after=retry_after, deadline=deadline).stop is StopReason.WAIT_TOO_LONG


def test_after_a_stale_connection_the_next_attempt_is_immediate() -> None:
    rule = RULES.rule_for(Failure.CONNECTION_LOST)
    assert ask(Failure.CONNECTION_LOST, stale=True, random=0.9) == Decision(rule, 0.0, WaitSource.IMMEDIATE)


@pytest.mark.parametrize(("change", "reason"), REFUSALS[1:4])
def test_a_stale_connection_lifts_no_other_objection(change: dict[str, Any], reason: StopReason) -> None:
    assert ask(Failure.CONNECTION_LOST, stale=True, **change).stop is reason


@pytest.mark.parametrize(
    ("rules", "elapsed", "deadline", "reason"),
    [
        (RULES, 5.0, 5.0, StopReason.DEADLINE),
        (RULES, 5.1, 5.0, StopReason.DEADLINE),
        (RULES, 5.0, None, None),
        (RULES, 5.0, 50.0, None),
        (RuleBook(Rule(Failure.ATTEMPT_TIMEOUT, "never")), 5.0, 5.0, StopReason.DEADLINE),
        (RuleBook(Rule(Failure.ATTEMPT_TIMEOUT, "never")), 5.1, 5.0, StopReason.DEADLINE),
        (RuleBook(Rule(Failure.ATTEMPT_TIMEOUT, "never")), 4.0, 5.0, StopReason.NOT_RETRYABLE),
    ],
)
def test_an_attempt_that_the_deadline_cut_short_stopped_because_of_the_deadline(
    rules: RuleBook, elapsed: float, deadline: float | None, reason: StopReason | None
) -> None:
    assert ask(Failure.ATTEMPT_TIMEOUT, rules=rules, elapsed=elapsed, deadline=deadline).stop is reason


@pytest.mark.parametrize(
    "more", [{"number": 5}, {"replayable": False}, {"rules": RuleBook(Rule(Failure.CONNECT_FAILED, "never"))}]
)
def test_a_connect_attempt_cut_short_stopped_because_of_the_deadline(more: dict[str, Any]) -> None:
    assert ask(Failure.CONNECT_FAILED, elapsed=5.0, deadline=5.0, **more).stop is StopReason.DEADLINE
    assert ask(Failure.CONNECT_FAILED, elapsed=4.9, deadline=5.0, **more).stop is not StopReason.DEADLINE


def test_a_final_response_keeps_its_stop_reason_after_the_deadline() -> None:
    assert ask(400, elapsed=9.0, deadline=5.0).stop is StopReason.NOT_RETRYABLE


@given(
    st.sampled_from([400, 429, 500, 600, *Failure]),
    st.fixed_dictionaries(
        {
            "number": st.integers(1, 3000),
            "attempts": st.none() | st.integers(1, 3000),
            "method": st.sampled_from(["GET", "POST"]),
            "replayable": st.booleans(),
            "elapsed": st.floats(0, 1e6),
            "deadline": st.none() | st.floats(1e-3, 1e6),
            "retry_after": st.none() | st.floats(0, 1e6),
            "idempotent": st.booleans(),
            "stale": st.booleans(),
        }
    ),
    st.floats(0, nextafter(1, 0)),
)
def test_every_decision_has_a_valid_wait_or_a_stop_reason(
    outcome: Outcome, facts: dict[str, Any], random: float
) -> None:
    decision = ask(outcome, random=random, **facts)

    assert decision.rule is RULES.rule_for(outcome)
    assert (decision.wait is None) is (decision.source is None)
    assert decision.stop is not None or decision.wait is not None
    if decision.stop is None and decision.wait is not None:
        assert decision.wait <= WAIT.maximum
        assert facts["deadline"] is None or facts["elapsed"] + decision.wait < facts["deadline"]
        assert facts["attempts"] is None or facts["number"] < facts["attempts"]
        if facts["stale"]:
            assert decision.wait == 0
        else:
            assert decision.wait >= max(WAIT.floor(facts["number"]), facts["retry_after"] or 0)
