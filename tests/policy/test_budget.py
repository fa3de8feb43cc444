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


@pytest.mark.parametrize("share", [-0.1, -1, math.inf, math.nan])
def test_the_share_is_a_finite_number_from_0(share: float) -> None:
    with pytest.raises(ValueError, match=f"share must be a finite number from 0, not {share!r}"):
        RetryBudget(share=share)


@pytest.mark.parametrize("reserve", [0, 0.99, -1, math.inf, math.nan])
def test_the_reserve_is_for_a_retry_at_least(reserve: float) -> None:
    with pytest.raises(ValueError, match=f"reserve must be a finite number from 1, not {reserve!r}"):
        RetryBudget(reserve=reserve)


def test_what_it_is_without_arguments() -> None:
    assert RetryBudget() == RetryBudget(share=0.2, reserve=50.0)


def test_a_session_begins_with_a_full_reserve() -> None:
    spent = Spent()
    assert [take(spent, 0.0, RetryBudget(0.0, 3), 1) for _ in range(5)] == [True, True, True, False, False]


def test_five_calls_bring_in_a_retry() -> None:
    spent, budget = Spent(missing=3.0), RetryBudget(0.2, 3)
    for _ in range(10):
        assert [take(spent, 0.0, budget, 1) for _ in range(5)] == [False, False, False, False, True]


def test_more_than_the_reserve_is_not_saved() -> None:
    spent, budget = Spent(), RetryBudget(1.0, 2)
    assert take(spent, 0.0, budget, 1_000_000)
    assert [take(spent, 0.0, budget, 0) for _ in range(3)] == [True, False, False]


@given(
    share=st.floats(0, 2),
    reserve=st.floats(1, 100),
    calls=st.lists(st.integers(0, 5), max_size=300),
)
def test_no_more_than_the_share_and_the_reserve(share: float, reserve: float, calls: list[int]) -> None:
    spent, budget = Spent(), RetryBudget(share, reserve)
    taken = made = 0
    for number in calls:
        made += number
        taken += take(spent, 0.0, budget, number)
        assert taken <= share * made + reserve + 1e-6
        assert spent == Spent(**json.loads(json.dumps(asdict(spent))))


@given(share=st.sampled_from([0.1, 0.2, 0.3, 1 / 3]), calls=st.integers(1, 3000))
def test_no_less_either_whatever_the_rounding(share: float, calls: int) -> None:
    spent, budget = Spent(missing=1.0), RetryBudget(share, 1)
    taken = sum(take(spent, 0.0, budget, 1) for _ in range(calls))
    assert taken == math.floor(calls / math.ceil(1 / share - 1e-9) + 1e-9)
