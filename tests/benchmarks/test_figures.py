"""The counting, on logs that are short enough to count by hand."""

from __future__ import annotations

import pytest
from benchmarks.crowd import Ended
from benchmarks.figures import figures, of_account, of_outage, peak, timeline
from benchmarks.scenarios import Crowd, Outage, Scenario
from benchmarks.server import Arrival

from lamella.testing import FixedWindow


@pytest.mark.parametrize(
    ("moments", "most"),
    [([], 0), ([5.0], 1), ([0.0, 0.5, 0.999], 3), ([0.0, 0.5, 1.0], 2), ([0.0, 2.0, 2.1, 2.2, 5.0], 3)],
)
def test_the_peak_is_counted_over_any_half_open_second(moments: list[float], most: int) -> None:
    assert peak(moments) == most


TWO = Scenario("two", "Two", "", (Crowd(2, FixedWindow(1, 1.0)), Crowd(1, FixedWindow(1, 1.0))), latency=0.1)
ARRIVALS = [
    Arrival(10.0, 0, 200),
    Arrival(10.2, 0, 429),
    Arrival(10.5, 1, 200),
    Arrival(11.4, 0, 200),
]
ENDED = [Ended(0, 9.9, 10.1, ""), Ended(1, 10.4, 10.6, ""), Ended(0, 10.1, 11.5, "")]


def test_figures_sum_all_accounts() -> None:
    assert figures(TWO, ARRIVALS, ENDED) == {
        "calls": 3,
        "seconds": pytest.approx(1.6),  # from 9.9, when the first call began
        "ideal": pytest.approx(1.1),
        "sends": 4,
        "answered": 3,
        "lost": 0,
        "limited": 1,
        "failed": 0,
        "peak": 3,
    }


def test_an_account_has_its_own_first_call_and_its_own_ideal() -> None:
    one = of_account(TWO, 1, ARRIVALS, ENDED)
    assert (one["calls"], one["sends"], one["limited"], one["lost"], one["peak"]) == (1, 1, 0, 0, 1)
    assert one["seconds"] == pytest.approx(0.2)
    assert one["ideal"] == pytest.approx(0.1)


def test_a_call_that_never_ended_is_lost_like_one_that_failed() -> None:
    assert figures(TWO, ARRIVALS, ENDED[:1])["lost"] == 2
    assert figures(TWO, ARRIVALS, [*ENDED[:2], Ended(0, 10.1, 10.3, "429")])["lost"] == 1


def test_figures_of_a_run_without_requests_are_empty() -> None:
    whole = figures(TWO, [], [])
    assert (whole["seconds"], whole["sends"], whole["lost"], whole["peak"]) == (0.0, 0, 3, 0)
    assert timeline([], 0.1) == {"sends": [], "answered": []}


def test_errors_by_chance_lengthen_the_ideal_time_and_an_outage_does_not() -> None:
    crowds = (Crowd(2, FixedWindow(2, 1.0)),)
    arrivals = [Arrival(0.0, 0, 500), Arrival(0.1, 0, 200), Arrival(1.0, 0, 200)]
    by_chance = Scenario("one", "One", "", crowds, errors=0.05, latency=0.0)
    assert figures(by_chance, arrivals, [])["ideal"] == pytest.approx(1.0)
    assert figures(by_chance, arrivals, [])["failed"] == 1
    down = Scenario("one", "One", "", crowds, outage=Outage(5.0, 6.0), latency=0.0)
    assert figures(down, arrivals, [])["ideal"] == pytest.approx(0.0)


def test_an_outage_counts_from_the_first_request() -> None:
    down = Scenario("down", "Down", "", (Crowd(5),), outage=Outage(1.0, 2.0), deadline=3.0, latency=0.1)
    arrivals = [
        Arrival(100.0, 0, 200),
        Arrival(101.0, 0, 500),
        Arrival(101.9, 0, 500),
        Arrival(102.3, 0, 200),
        Arrival(102.4, 0, 500),
    ]
    ended = [
        Ended(0, 100.0, 100.1, ""),
        Ended(0, 100.99, 101.1, "500"),  # begun before the outage, lost in it
        Ended(0, 101.5, 102.05, "500"),  # the answer of the outage, read after it
        Ended(0, 101.6, 102.6, "500"),  # lost after it, though there was time
        Ended(0, 99.0, 102.6, "TimeoutError"),  # lost after it, at its deadline
    ]
    assert of_outage(down, arrivals, ended) == {
        "calls": 2,
        "sends": 2,
        "lost_during": 2,
        "lost_after": 1,
        "first_success": pytest.approx(0.4),
    }
    assert of_outage(TWO, ARRIVALS, ENDED) is None


def test_the_timeline_counts_by_tenths_of_a_second() -> None:
    arrivals = [Arrival(10.0, 0, 200), Arrival(10.05, 0, 429), Arrival(10.25, 0, 200), Arrival(10.51, 0, 429)]
    assert timeline(arrivals, 0.02) == {"sends": [2, 0, 1, 0, 0, 1], "answered": [1, 0, 1, 0, 0, 0]}
