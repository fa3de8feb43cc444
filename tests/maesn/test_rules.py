"""Every row of the guide's tables, and of what the design adds to them."""

from __future__ import annotations

from math import nextafter

import pytest

from lamella import Failure, Outcome, StopReason, decide
from lamella.maesn import RULES

ALMOST_ONE = nextafter(1, 0)
RETRIED = {429, 500, 502, 503, 504}


@pytest.mark.sampled
@pytest.mark.parametrize("random", [0.0, 0.25, 0.5, ALMOST_ONE])
@pytest.mark.parametrize(
    ("status", "number", "shortest", "longest"),
    [
        (429, 1, 60, 66),
        (429, 2, 120, 132),
        (429, 3, 240, 264),
        (429, 4, 480, 528),
        (429, 5, 960, 1056),
        (429, 6, 1920, 2112),
        *(
            (status, number, 15 * 2 ** (number - 1), 30 * 2 ** (number - 1))
            for status in (500, 502, 503, 504)
            for number in range(1, 7)
        ),
    ],
)
def test_the_wait_before_each_retry(status: int, number: int, shortest: float, longest: float, random: float) -> None:
    retry = RULES.rule_for(status).retry
    assert retry is not None

    wait = retry.wait(number, lambda: random)

    assert shortest <= wait <= longest
    assert wait == pytest.approx(shortest + (longest - shortest) * random)


@pytest.mark.parametrize("status", [status for status in range(400, 600) if status not in RETRIED])
def test_every_other_status_is_never_retried(status: int) -> None:
    assert not RULES.rule_for(status).retryable


@pytest.mark.parametrize("status", [600, 777, 999])
def test_a_status_that_no_server_should_send_is_never_retried(status: int) -> None:
    assert RULES.rule_for(status) == RULES.rule_for(599)


@pytest.mark.parametrize("failure", [Failure.CONNECT_FAILED, Failure.CONNECTION_LOST, Failure.ATTEMPT_TIMEOUT])
def test_a_connection_that_failed_is_retried_soon(failure: Failure) -> None:
    retry = RULES.rule_for(failure).retry
    assert retry is not None
    assert 0 < retry.floor(1) <= retry.ceiling(1) <= 1


@pytest.mark.parametrize(
    ("status", "title", "advice"),
    [
        (400, "Bad Request", "endpoint"),
        (401, "Unauthorized", "authenticate again"),
        (403, "Forbidden", "API key"),
        (404, "Not Found", "path"),
        (405, "Method Not Allowed", "docs"),
        (429, "Too Many Requests", "wait"),
        (500, "Internal Server Error", "support"),
    ],
)
def test_each_status_of_the_guide_has_a_rule_with_a_hint(status: int, title: str, advice: str) -> None:
    rule = RULES.rule_for(status)

    assert (rule.status, rule.title) == (status, title)
    assert rule.description
    assert advice in rule.hint


@pytest.mark.parametrize(
    ("outcome", "method", "waits"),
    [
        (429, "GET", [60, 120, 240, 480]),
        (429, "POST", [60, 120, 240, 480]),  # refused before anything was done
        (500, "GET", [15, 30, 60, 120]),
        (503, "PUT", [15, 30, 60, 120]),
        (500, "POST", []),
        (500, "PATCH", []),
        (400, "GET", []),
        (405, "DELETE", []),
        (501, "GET", []),
        (Failure.CONNECT_FAILED, "POST", [0.5, 1, 2, 4]),
        (Failure.CONNECTION_LOST, "POST", []),
    ],
)
def test_five_attempts_wait_at_least_the_documented_time(outcome: Outcome, method: str, waits: list[float]) -> None:
    decisions = [
        decide(
            RULES.rule_for(outcome),
            outcome,
            number=number,
            attempts=5,
            method=method,
            replayable=True,
            elapsed=0,
            deadline=None,
            random=lambda: 0.0,
        )
        for number in range(1, 6)
    ]

    assert [decision.wait for decision in decisions if decision.wait is not None] == waits
    assert decisions[-1].stop is not None
    if waits:
        assert decisions[-1].stop is StopReason.ATTEMPTS_USED_UP


@pytest.mark.parametrize(("asked", "wait"), [(5.0, 60), (61.0, 61), (3600.0, 3600), (3601.0, None)])
def test_retry_after_only_lengthens_a_wait_up_to_an_hour(asked: float, wait: float | None) -> None:
    decision = decide(
        RULES.rule_for(429),
        429,
        number=1,
        attempts=5,
        method="GET",
        replayable=True,
        elapsed=0,
        deadline=None,
        random=lambda: 0.0,
        retry_after=asked,
    )

    assert decision.stop is (StopReason.WAIT_TOO_LONG if wait is None else None)
    assert decision.wait == (asked if wait is None else wait)
