"""``Backoff``: the length of each wait, and what randomness may do to it."""

from __future__ import annotations

import pickle
from math import isfinite, nextafter
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lamella import Backoff

NUMBERS = st.integers(1, 3000)
UNIFORM = st.floats(0, nextafter(1, 0))


@st.composite
def backoffs(draw: st.DrawFn, largest: float = 1e300) -> Backoff:
    low, high, maximum = sorted(draw(st.tuples(*[st.floats(0, largest)] * 3)))
    initial = draw(st.sampled_from([low, (low, high)]))
    factor = draw(st.floats(1, 10))
    return Backoff(initial, factor, maximum, draw(st.none() | st.floats(0, 10)))


@given(backoffs(), NUMBERS, UNIFORM)
@example(Backoff(60), 2000, 0.0)
@example(Backoff(60, jitter=1e308), 1, 0.0)
@example(Backoff(5e-324, maximum=1e308, factor=1e308), 3, 0.0)
def test_a_wait_is_finite_and_between_its_floor_its_ceiling_and_the_maximum(
    backoff: Backoff, number: int, uniform: float
) -> None:
    wait = backoff.wait(number, lambda: uniform)

    assert isfinite(wait)
    assert 0 <= backoff.floor(number) <= wait <= backoff.ceiling(number) <= backoff.maximum


@given(backoffs(), NUMBERS, UNIFORM)
def test_a_wait_is_never_shorter_than_the_one_before_it(backoff: Backoff, number: int, uniform: float) -> None:
    assert backoff.wait(number, lambda: uniform) <= backoff.wait(number + 1, lambda: uniform)


@given(backoffs(largest=1e9), st.floats(1e-3, 1e3), NUMBERS, UNIFORM)
def test_scaling_a_schedule_scales_each_of_its_waits(
    backoff: Backoff, factor: float, number: int, uniform: float
) -> None:
    scaled = backoff.scaled(factor)

    assert scaled.wait(number, lambda: uniform) == pytest.approx(factor * backoff.wait(number, lambda: uniform))
    assert scaled.maximum == pytest.approx(factor * backoff.maximum)
    assert (scaled.factor, scaled.jitter) == (backoff.factor, backoff.jitter)


@given(backoffs(), NUMBERS, UNIFORM)
def test_scaled_by_one_is_the_same_and_scaled_by_zero_never_waits(
    backoff: Backoff, number: int, uniform: float
) -> None:
    assert backoff.scaled(1) == backoff
    assert backoff.scaled(0).wait(number, lambda: uniform) == 0


@given(backoffs(), NUMBERS, UNIFORM, UNIFORM)
def test_a_larger_random_number_means_a_longer_wait(backoff: Backoff, number: int, less: float, more: float) -> None:
    assume(less <= more)
    assert backoff.wait(number, lambda: less) <= backoff.wait(number, lambda: more)


@pytest.mark.parametrize(
    ("backoff", "uniform", "waits"),
    [
        (Backoff(60), 0.0, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (Backoff(60), 0.5, [63, 126, 252, 504]),
        (Backoff(60, jitter=0), 0.5, [60, 120, 240, 480]),
        (Backoff(60, jitter=0.5), 0.5, [75, 150, 300]),
        (Backoff((15, 30)), 0.0, [15, 30, 60, 120]),
        (Backoff((15, 30)), 0.5, [22.5, 45, 90, 180]),
        (Backoff((15, 30), jitter=0.2), 0.5, [24.75, 49.5]),
        (Backoff((15, 15)), 0.5, [15, 30]),
        (Backoff(1, factor=3), 0.0, [1, 3, 9, 27]),
        (Backoff(1, factor=1, jitter=0), 0.9, [1, 1, 1]),
        (Backoff(1, maximum=1), 0.9, [1, 1]),
        (Backoff((0.0, 1.0)), 0.0, [0, 0]),
        (Backoff(0), 0.9, [0, 0]),
    ],
)
def test_a_backoff_gives_the_documented_schedule(backoff: Backoff, uniform: float, waits: list[float]) -> None:
    assert [backoff.wait(number, lambda: uniform) for number in range(1, len(waits) + 1)] == pytest.approx(waits)


@pytest.mark.parametrize(
    ("backoff", "number", "floor", "ceiling"),
    [
        (Backoff(60), 1, 60, 66),
        (Backoff(60), 4, 480, 528),
        (Backoff(60), 7, 3600, 3600),
        (Backoff((15, 30)), 3, 60, 120),
        (Backoff((15, 30), jitter=1), 1, 15, 60),
        (Backoff((0, 8)), 2, 0, 16),
        (Backoff(0), 9999, 0, 0),
    ],
)
def test_the_bounds_of_a_wait_are_exact(backoff: Backoff, number: int, floor: float, ceiling: float) -> None:
    assert (backoff.floor(number), backoff.ceiling(number)) == pytest.approx((floor, ceiling))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"initial": -1}, "-1"),
        ({"initial": float("nan")}, "nan"),
        ({"initial": float("inf")}, "inf"),
        ({"initial": (-2, 1)}, "-2"),
        ({"initial": (1, float("inf"))}, "inf"),
        ({"initial": (30, 15)}, r"\(30, 15\)"),
        ({"initial": (15,)}, r"\(15,\)"),
        ({"initial": (15, 30, 45)}, r"\(15, 30, 45\)"),
        ({"initial": "60"}, "60"),
        ({"initial": None}, "None"),
        ({"initial": True}, "True"),
        ({"initial": 60, "maximum": 59}, "59"),
        ({"initial": (15, 30), "maximum": 14}, "14"),
        ({"initial": 1, "maximum": float("nan")}, "nan"),
        ({"initial": 1, "maximum": -1}, "-1"),
        ({"initial": 1, "factor": 0.5}, "0.5"),
        ({"initial": 1, "factor": float("inf")}, "inf"),
        ({"initial": 1, "factor": float("nan")}, "nan"),
        ({"initial": 1, "jitter": -0.1}, "-0.1"),
        ({"initial": 1, "jitter": float("nan")}, "nan"),
        ({"initial": 1, "jitter": float("inf")}, "inf"),
    ],
)
def test_a_bad_argument_is_a_value_error_that_names_and_shows_it(arguments: dict[str, Any], shown: str) -> None:
    *_, name = arguments
    with pytest.raises(ValueError, match=f"^{name} must be .*got .*{shown}"):
        Backoff(**arguments)


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_bad_scale_is_a_value_error_that_names_and_shows_it(factor: float) -> None:
    with pytest.raises(ValueError, match=f"^factor must be .*got {factor}$"):
        Backoff(1).scaled(factor)


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("backoff", [Backoff(60), Backoff((15, 30)), Backoff(0)], ids=["number", "range", "zero"])
def test_retries_count_from_one(backoff: Backoff, number: int) -> None:
    for ask in (backoff.floor, backoff.ceiling, lambda n: backoff.wait(n, lambda: 0.5)):
        with pytest.raises(ValueError, match=str(number)):
            ask(number)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_backoff_survives_pickling(protocol: int) -> None:
    backoff = Backoff((1, 2), 3, 4, 0.5)
    assert pickle.loads(pickle.dumps(backoff, protocol)) == backoff  # noqa: S301
