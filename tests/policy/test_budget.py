"""What retries may add to the load, by pure arithmetic."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import RetryBudget
from lamella.retry.budget import Spent, take


@pytest.mark.parametrize("ratio", [-0.1, -1, math.inf, math.nan])
def test_the_ratio_must_be_finite_and_not_negative(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio must be a finite number, 0 or more, got {ratio!r}"):
        RetryBudget(ratio=ratio)


@pytest.mark.parametrize("capacity", [0, 0.99, -1, math.inf, math.nan])
def test_the_capacity_must_be_at_least_one_retry(capacity: float) -> None:
    with pytest.raises(ValueError, match=f"capacity must be a finite number, 1 or more, got {capacity!r}"):
        RetryBudget(capacity=capacity)


def test_the_default_budget_has_the_documented_values() -> None:
    assert RetryBudget() == RetryBudget(ratio=0.2, capacity=50.0)


def test_a_session_begins_with_full_capacity() -> None:
    spent = Spent()
    assert [take(spent, 0.0, RetryBudget(0.0, 3), 1) for _ in range(5)] == [True, True, True, False, False]


def test_five_calls_earn_one_retry() -> None:
    spent, budget = Spent(missing=3.0), RetryBudget(0.2, 3)
    for _ in range(10):
        assert [take(spent, 0.0, budget, 1) for _ in range(5)] == [False, False, False, False, True]


def test_the_budget_never_exceeds_its_capacity() -> None:
    spent, budget = Spent(), RetryBudget(1.0, 2)
    assert take(spent, 0.0, budget, 1_000_000)
    assert [take(spent, 0.0, budget, 0) for _ in range(3)] == [True, False, False]


@given(
    ratio=st.floats(0, 2),
    capacity=st.floats(1, 100),
    calls=st.lists(st.integers(0, 5), max_size=300),
)
def test_retries_never_exceed_ratio_and_capacity(ratio: float, capacity: float, calls: list[int]) -> None:
    spent, budget = Spent(), RetryBudget(ratio, capacity)
    taken = made = 0
    for number in calls:
        made += number
        taken += take(spent, 0.0, budget, number)
        assert taken <= ratio * made + capacity + 1e-6
        assert spent == Spent(**json.loads(json.dumps(asdict(spent))))


@given(ratio=st.sampled_from([0.1, 0.2, 0.3, 1 / 3]), calls=st.integers(1, 3000))
def test_rounding_errors_cost_no_retry(ratio: float, calls: int) -> None:
    spent, budget = Spent(missing=1.0), RetryBudget(ratio, 1)
    taken = sum(take(spent, 0.0, budget, 1) for _ in range(calls))
    assert taken == math.floor(calls / math.ceil(1 / ratio - 1e-9) + 1e-9)
