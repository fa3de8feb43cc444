"""The storm's scenarios in virtual time: no noise of a machine, and many seeds.

The rules are those of `benchmarks/scenarios.py`: 2,000 calls, 500 at a time, a rule that waits a second, answers after
20 ms. One path of four is alone here, since the paths have nothing in common but the machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import mean

import pytest
from tests.policy.test_estimator import ENDLESS, Outcome, Traffic

from lamella.testing import FixedWindow, TokenBucket

CALLS = 2000
HUNDRED = FixedWindow(100, 1.0, retry_after=False)
POINTS = FixedWindow(500, 1.0, retry_after=False)


def points(seed: int) -> Callable[[int], float]:
    random_ = random.Random(seed)
    costs = [float(random_.randint(1, 9)) for _ in range(CALLS)]
    return costs.__getitem__


def runs(seeds: int, traffic: Callable[[int], Traffic]) -> Iterator[tuple[Traffic, Outcome]]:
    for seed in range(seeds):
        one = traffic(seed)
        outcome = one.run()
        assert outcome.lost == []
        assert outcome.sends <= 1.10 * one.calls
        yield one, outcome


JITTERS = pytest.mark.parametrize("jitter", [0.0, 0.1, 0.5, 1.0])
SEEDS = pytest.mark.parametrize("seeds", [2, pytest.param(20, marks=pytest.mark.slow)])


@pytest.mark.sampled(1)
@SEEDS
@JITTERS
def test_each_of_four_paths_has_its_own_limit(jitter: float, seeds: int) -> None:
    for traffic, outcome in runs(
        seeds, lambda seed: Traffic(HUNDRED, CALLS, 1.0, 0.02, jitter, at_once=125, seed=seed)
    ):
        assert outcome.took <= 1.15 * traffic.ideal()


@pytest.mark.slow
@SEEDS
@JITTERS
def test_points_with_a_cost_function(jitter: float, seeds: int) -> None:
    def traffic(seed: int) -> Traffic:
        return Traffic(
            POINTS, CALLS, 1.0, 0.02, jitter, at_once=500, points=points(seed), states_points=True, seed=seed
        )

    assert mean(outcome.took / one.ideal() for one, outcome in runs(seeds, traffic)) <= 1.15


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seeds", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("there", [0.1, 0.5])
def test_a_bucket_that_looks_like_a_maximum_in_flight(there: float, seeds: int) -> None:
    """Two in flight are nearly its rate. Tests of a higher maximum, each with a dozen refusals, have to become rare."""
    bucket = TokenBucket(100, 100, retry_after=False)

    def traffic(seed: int) -> Traffic:
        return Traffic(bucket, CALLS, 1.0, 0.02, jitter=0.3, at_once=500, there=there, seed=seed)

    for one, outcome in runs(seeds, traffic):
        assert outcome.took <= 1.10 * one.ideal()


@pytest.mark.slow
@JITTERS
def test_points_without_a_cost_function(jitter: float) -> None:
    def traffic(seed: int) -> Traffic:
        return Traffic(POINTS, CALLS, 1.0, 0.02, jitter, at_once=500, points=points(seed), seed=seed)

    assert mean(outcome.took / one.ideal() for one, outcome in runs(12, traffic)) <= 1.20


@pytest.mark.sampled(1)
@pytest.mark.parametrize("seeds", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("jitter", [0.0, 0.05])
@pytest.mark.parametrize("latency", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("most", [5, 10, 30])
def test_so_many_in_flight(most: int, latency: float, jitter: float, seeds: int) -> None:
    """At least 200 rounds and 10 s, so that the last refused call, which waits a second, is a small part of it."""
    rounds = max(round(10 / latency), 200)

    def traffic(seed: int) -> Traffic:
        nothing = FixedWindow(ENDLESS, 1.0)
        return Traffic(nothing, rounds * most, 1.0, latency, jitter, at_once=500, most=most, there=0.02, seed=seed)

    for _, outcome in runs(seeds, traffic):
        assert outcome.took <= 1.20 * rounds * latency * (1 + jitter / 2)
