"""The ideal times, against the closed formulas of each limit."""

from __future__ import annotations

import math

import pytest
from benchmarks.ideal import answers
from benchmarks.scenarios import Crowd, Outage, Scenario, scenarios
from benchmarks.server import Changing

from lamella.testing import FixedWindow, Limit, SlidingWindow, TokenBucket

LATENCY = 0.02


def ideal(limit: Limit | None, calls: int, failures: int = 0) -> float:
    crowd = Crowd(calls, limit)
    return answers(Scenario("one", "One", "", (crowd,), latency=LATENCY), crowd, failures)[-1]


@pytest.mark.parametrize("kind", [FixedWindow, SlidingWindow])
@pytest.mark.parametrize(("calls", "requests", "per"), [(1, 1, 1.0), (10, 3, 0.5), (2000, 100, 1.0), (2001, 100, 1.0)])
def test_the_ideal_time_of_a_window_excludes_the_last_window(
    kind: type[FixedWindow] | type[SlidingWindow], calls: int, requests: int, per: float
) -> None:
    assert ideal(kind(requests, per), calls) == pytest.approx((math.ceil(calls / requests) - 1) * per + LATENCY)


@pytest.mark.parametrize(
    ("calls", "rate", "burst"), [(1, 10.0, 1), (5, 10.0, 20), (2000, 100.0, 100), (2000, 100.0, 20)]
)
def test_the_ideal_time_of_a_bucket_excludes_its_burst(calls: int, rate: float, burst: int) -> None:
    assert ideal(TokenBucket(rate, burst), calls) == pytest.approx(max(calls - burst, 0) / rate + LATENCY)


def test_a_limit_that_changes_is_counted_in_two_parts() -> None:
    halved = Changing(FixedWindow(100, 1.0), FixedWindow(50, 1.0), after=8.0)
    # 8 windows of 100 before the change, 1,200 calls in 24 windows of 50 from it on.
    assert ideal(halved, 2000) == pytest.approx(8.0 + 23 + LATENCY)
    # In the middle of a window: it ends early, since a new count begins.
    assert ideal(Changing(FixedWindow(100, 1.0), FixedWindow(50, 1.0), after=1.5), 300) == pytest.approx(2.5 + LATENCY)


def test_points_are_counted_in_their_order() -> None:
    crowd = Crowd(calls=20, limit=FixedWindow(9, 1.0))
    scenario = Scenario("points", "Points", "", (crowd,), points=True, latency=LATENCY)
    moments, costs, used, window = answers(scenario, crowd), scenario.costs(), 0, 0
    for moment in moments:
        used += next(costs)
        if used > 9 * (window + 1):
            window = -(-used // 9) - 1
        assert moment == pytest.approx(window + LATENCY)


def test_errors_by_chance_have_to_be_sent_again() -> None:
    assert ideal(FixedWindow(100, 1.0), 200, failures=0) == pytest.approx(1 + LATENCY)
    assert ideal(FixedWindow(100, 1.0), 200, failures=1) == pytest.approx(2 + LATENCY)


def test_without_a_limit_everything_ends_at_once() -> None:
    assert ideal(None, 1000) == pytest.approx(LATENCY)


def test_calls_that_arrive_one_by_one_wait_for_the_end_of_an_outage() -> None:
    crowd = Crowd(calls=10, rate=1.0)
    scenario = Scenario("down", "Down", "", (crowd,), outage=Outage(2.0, 5.0), latency=LATENCY)
    assert answers(scenario, crowd) == pytest.approx([moment + LATENCY for moment in (0, 1, 5, 5, 5, 5, 6, 7, 8, 9)])


@pytest.mark.parametrize("quick", [True, False])
def test_every_scenario_has_an_ideal_time(quick: bool) -> None:
    for scenario in scenarios(quick=quick):
        assert 0 < max(answers(scenario, crowd)[-1] for crowd in scenario.crowds) < 60


def test_each_of_fifty_accounts_has_calls_for_over_ten_windows() -> None:
    [scenario] = [scenario for scenario in scenarios() if scenario.name == "accounts"]
    assert len(scenario.crowds) == 50
    assert {type(crowd.limit) for crowd in scenario.crowds} == {FixedWindow, SlidingWindow, TokenBucket}
    for crowd in scenario.crowds:
        window = sum(moment < 0.05 for moment in answers(scenario, crowd))  # what is admitted at once
        assert crowd.calls >= 10 * window > 0
