"""The arithmetic of stated limits: how many have passed, when the next one may."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from lamella import Limit, StatedLimit
from lamella.throttle.estimate import Permit, Wait
from lamella.throttle.usage import InFlight, Usage, earliest, record, take, uses, wait_for

NONE = InFlight(0, 0.0)


def in_flight(number: int) -> InFlight:
    return InFlight(number, float(number))


def used(per: float, *log: list[float]) -> Usage:
    return Usage({str(float(per)): list(log)})


@pytest.mark.parametrize(("requests", "per"), [(0, 1), (-1, 1), (1.5, 1), (True, 1), ("1", 1), (None, 1)])
def test_a_limit_must_be_a_whole_number_of_requests(requests: int, per: float) -> None:
    with pytest.raises(ValueError, match=f"requests must be .* got {requests!r}"):
        Limit(requests, per)


@pytest.mark.parametrize("per", [0, -1, math.inf, math.nan, None])
def test_a_limit_must_have_a_positive_period(per: float) -> None:
    with pytest.raises(ValueError, match=f"per must be .* got {per!r}"):
        Limit(1, per)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "1"])
def test_concurrent_must_be_a_whole_number(number: Any) -> None:
    with pytest.raises(ValueError, match=f"concurrent must be .* got {number!r}"):
        Limit(concurrent=number)


@pytest.mark.parametrize(
    "limit",
    [
        {},
        {"requests": 1, "per": 1, "concurrent": 1},
        {"per": 1, "concurrent": 1},
        {"concurrent": 1, "cost": lambda _: 1.0},
    ],
)
def test_a_limit_must_be_stated_in_one_way(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="requests and per, or concurrent, got "):
        Limit(**limit)


def test_the_repr_of_a_limit_shows_its_values() -> None:
    assert repr(Limit(60, per=60, scope=lambda _: "", key=lambda _: "")) == "Limit(60, per=60, key=..., scope=...)"
    assert repr(Limit(concurrent=5)) == "Limit(concurrent=5)"


@pytest.mark.parametrize(("passed", "number", "seconds"), [(5, 0, 59.0), (9, 0, 59.0), (2, 3, 59.0), (0, 9, None)])
def test_no_attempt_is_sent_while_the_limit_is_exceeded(passed: int, number: int, seconds: float | None) -> None:
    """By another process, which did not know of it."""
    usage = used(60, [1000.0, 1009.0, passed]) if passed else Usage()
    assert wait_for(usage, 1010.0, in_flight(number), (Limit(5, 60.0),), 1.0) == Wait(seconds, blocked=False)
    assert take(usage, 1010.0, in_flight(number), (Limit(5, 60.0),), 1.0) == Wait(seconds, blocked=False)


def test_a_wait_is_never_zero() -> None:
    """A rounding error must not make it ask again at the same moment for ever."""
    moment, per, now = 468.8281224541568, 60.1, 528.9281224541568
    assert moment > now - per
    assert moment + per - now <= 0
    answer = wait_for(used(per, [moment, moment, 5]), now, NONE, (Limit(5, per),), 1.0)
    assert answer is not None
    assert answer.seconds is not None
    assert 0 < answer.seconds < 1e-3


def test_the_longest_wait_of_several_limits_applies() -> None:
    limits = Limit(2, per=1), Limit(5, per=60), Limit(concurrent=3)
    usage = Usage()
    for _ in range(5):
        record(usage, 100.0, limits, 1.0)
    assert wait_for(usage, 100.5, NONE, limits, 1.0) == Wait(59.5, blocked=False)
    assert wait_for(usage, 160.5, in_flight(1), limits, 1.0) is None
    assert take(usage, 160.5, in_flight(1), limits, 1.0) == Permit(0, 160.5, 2, 1.0)
    assert wait_for(usage, 160.5, in_flight(2), limits, 1.0) == Wait(None, blocked=False)


def test_a_wait_of_hours_is_too_long() -> None:
    limits = Limit(1, per=1), Limit(5, per=86_400), Limit(concurrent=1)
    usage = Usage()
    record(usage, 100.0, limits, 5.0)
    assert wait_for(usage, 200.0, in_flight(1), limits, 1.0) == Wait(86_300.0, blocked=True, too_long=True)
    assert wait_for(usage, 86_000.0, NONE, limits, 1.0) == Wait(500.0, blocked=False)


@pytest.mark.parametrize(
    ("cost", "points", "seconds"),
    [
        (3.0, 0.0, 0.0),
        (4.0, 0.0, 40.0),  # 4 of 10 end in 40 s, and 3 in 50 s
        (7.5, 0.0, 50.0),
        (3.0, 1.0, 40.0),
        (100.0, 0.0, 50.0),  # more than the whole limit: when nothing of it is used
        (100.0, 0.5, None),
        (0.0, 3.0, 0.0),
    ],
)
def test_a_request_waits_until_its_points_are_free(cost: float, points: float, seconds: float | None) -> None:
    usage = used(60, [0.0, 0.0, 4.0], [10.0, 10.0, 3.0])
    wait = wait_for(usage, 20.0, InFlight(1, points), (Limit(10, 60),), cost)
    assert wait == (None if seconds == 0 else Wait(seconds, blocked=False))


def test_uses_returns_the_rest_of_each_limit() -> None:
    limits = Limit(10, per=60), Limit(concurrent=3)
    assert uses(used(60, [0.0, 0.0, 4.0], [10.0, 10.0, 3.0]), 20.0, InFlight(2, 1.5), limits) == [
        StatedLimit(1.5, 10, 50.0, name="Limit(10, per=60)"),
        StatedLimit(1, 3, name="Limit(concurrent=3)"),
    ]
    assert uses(Usage(), 20.0, NONE, limits[:1]) == [StatedLimit(10, 10, name="Limit(10, per=60)")]


def test_the_usage_state_is_json_and_drops_expired_entries() -> None:
    limits = Limit(64, per=64), Limit(1000, per=640)
    usage = Usage()
    for moment in range(1000):
        record(usage, float(moment), limits, 1.0)
        assert sum(len(log) for log in usage.logs.values()) <= 132
    assert Usage(**json.loads(json.dumps(asdict(usage)))) == usage
    assert [wait_for(usage, 999.0, NONE, (Limit(number, 64.0),), 1.0) for number in (64, 65)] == [
        Wait(1.0, blocked=False),
        None,
    ]


@examples(200)
@given(
    requests=st.integers(1, 12),
    passed=st.lists(st.floats(0.0, 100.0), max_size=30),
    number=st.integers(0, 12),
    ahead=st.integers(0, 40),
)
def test_the_earliest_time_assumes_an_immediate_answer(
    requests: int, passed: list[float], number: int, ahead: int
) -> None:
    """No call is told that its permit comes too late when it might not."""
    now = 100.0
    # So long as they may be: another server's window, or others that share the account, can have let more pass.
    usage = used(60, *([moment, moment, 1] for moment in sorted(passed)))
    told = now + earliest(usage, now, in_flight(number), (Limit(requests, 60.0),), ahead)
    frees = [moment + 60.0 for moment in sorted(passed) if moment > now - 60.0]
    # All in flight are answered just now, and each that goes is answered at once.
    frees = sorted(frees + [now + 60.0] * number)
    sent_at = now
    for place in range(ahead + 1):
        sent_at = max(now, frees[-requests]) if len(frees) >= requests else now
        if place < ahead:
            frees.append(max(sent_at, now) + 60.0)
            frees.sort()
    assert told <= sent_at + 1e-6
    if len(passed) <= requests and not number:
        assert told >= sent_at - 60.0 - 1e-6


@pytest.mark.parametrize(
    ("ahead", "number", "seconds"),
    [
        (0, 0, 40.0),  # of the five in the last minute three end in 40 s, and two in 50 s
        (2, 0, 40.0),
        (3, 0, 50.0),
        (4, 0, 50.0),
        (5, 0, 100.0),
        (0, 2, 40.0),
        (1, 2, 50.0),
        (3, 2, 60.0),  # after those in flight, which may end just now
        (8, 2, 120.0),
    ],
)
def test_the_earliest_time_depends_on_passed_attempts(ahead: int, number: int, seconds: float) -> None:
    usage = used(60, [-45.0, -41.0, 9], [-1.0, 0.0, 3], [10.0, 10.0, 2])
    assert earliest(usage, 20.0, in_flight(number), (Limit(5, 60.0), Limit(concurrent=1)), ahead) == seconds


@pytest.mark.parametrize(
    ("ahead", "seconds"), [(0, 0.0), (1, 0.0), (2, 40.0), (4, 40.0), (5, 60.0), (7, 100.0), (11, 120.0)]
)
def test_the_earliest_time_allows_several_at_once(ahead: int, seconds: float) -> None:
    assert earliest(used(60, [-1.0, 0.0, 3]), 20.0, NONE, (Limit(5, 60.0),), ahead) == seconds
