from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.testing import FixedWindow, Limit, SlidingWindow, TokenBucket

LIMITS = [FixedWindow(3, 60), SlidingWindow(3, 60), TokenBucket(0.05, 3)]

moments = st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(sorted)
sizes = st.integers(1, 6)
periods = st.floats(0.001, 1e4)


def before(moment: float) -> float:
    return math.nextafter(moment, -math.inf)


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_refuses_after_its_number_at_one_moment(limit: Limit) -> None:
    limiter = limit.limiter()
    assert [limiter.allow(1000.1) for _ in range(3)] == [0, 0, 0]
    assert limiter.allow(1000.1) > 0


@pytest.mark.parametrize("limit", LIMITS, ids=repr)
def test_accounts_do_not_share_a_state(limit: Limit) -> None:
    first, second = limit.limiter(), limit.limiter()
    while first.allow(5.0) == 0:
        pass
    assert second.allow(5.0) == 0


class TestFixedWindow:
    def test_window_opens_with_the_first_request_and_excludes_its_end(self) -> None:
        limiter = FixedWindow(2, 60).limiter()
        assert limiter.allow(10) == 0
        assert limiter.allow(69) == 0
        assert limiter.allow(69) == 1
        assert 0 < limiter.allow(before(70)) < 1e-9
        assert limiter.allow(70) == 0

    def test_lets_a_burst_over_the_boundary_through(self) -> None:
        limiter = FixedWindow(2, 60).limiter()
        assert [limiter.allow(at) for at in (0, before(60), 60, 60)] == [0, 0, 0, 0]
        assert limiter.allow(60) == 60

    @given(moments, sizes, periods)
    def test_never_more_than_its_number_in_a_window(self, arrivals: list[float], requests: int, per: float) -> None:
        limiter = FixedWindow(requests, per).limiter()
        ends, admitted = -math.inf, 0
        for now in arrivals:
            if now >= ends:
                ends, admitted = now + per, 0
            wait = limiter.allow(now)
            assert (wait == 0) == (admitted < requests)
            admitted += wait == 0


class TestSlidingWindow:
    def test_each_slot_becomes_free_separately(self) -> None:
        limiter = SlidingWindow(2, 60).limiter()
        assert [limiter.allow(at) for at in (0, 59)] == [0, 0]
        assert limiter.allow(59.5) == 0.5
        assert limiter.allow(60) == 0
        assert limiter.allow(60) == 59
        assert limiter.allow(119) == 0

    @given(moments, sizes, periods)
    def test_never_more_than_its_number_in_any_window(self, arrivals: list[float], requests: int, per: float) -> None:
        limiter = SlidingWindow(requests, per).limiter()
        admitted = [now for now in arrivals if limiter.allow(now) == 0]
        for first, later in zip(admitted, admitted[requests:], strict=False):
            assert later >= first + per


class TestTokenBucket:
    def test_one_token_at_a_time_after_the_burst(self) -> None:
        limiter = TokenBucket(rate=0.5, burst=3).limiter()
        assert [limiter.allow(7) for _ in range(3)] == [0, 0, 0]
        assert limiter.allow(7) == 2
        assert limiter.allow(before(9)) > 0
        assert limiter.allow(9) == 0
        assert limiter.allow(9) == 2

    def test_is_never_fuller_than_its_burst(self) -> None:
        limiter = TokenBucket(rate=1, burst=2).limiter()
        assert limiter.allow(0) == 0
        assert [limiter.allow(1000) for _ in range(2)] == [0, 0]
        assert limiter.allow(1000) == 1

    def test_whole_burst_at_a_moment_that_binary_cannot_hold(self) -> None:
        limiter = TokenBucket(rate=10 / 3, burst=1000).limiter()
        assert {limiter.allow(12345.678) for _ in range(1000)} == {0}
        assert limiter.allow(12345.678) == pytest.approx(0.3)

    @given(moments, st.floats(0.001, 1000), sizes)
    def test_agrees_with_exact_arithmetic(self, arrivals: list[float], rate: float, burst: int) -> None:
        limiter = TokenBucket(rate, burst).limiter()
        tokens, last = Fraction(burst), Fraction(0)
        for now in arrivals:
            tokens = min(Fraction(burst), tokens + (Fraction(now) - last) * Fraction(rate))
            last = Fraction(now)
            wait = limiter.allow(now)
            if wait == 0:
                tokens -= 1
                # The deviation that a float clock of this size has, in tokens.
                assert tokens >= -rate * 1e-9
            else:
                assert wait == pytest.approx(float((1 - tokens) / Fraction(rate)), abs=1e-9)


@given(
    limit=st.one_of(
        st.builds(FixedWindow, sizes, periods),
        st.builds(SlidingWindow, sizes, periods),
        st.builds(TokenBucket, st.floats(0.001, 1000), sizes),
    ),
    arrivals=moments,
)
def test_the_wait_is_exact(limit: Limit, arrivals: list[float]) -> None:
    """Who waits as long as was said is admitted; who waits the least bit less is not."""
    limiter = limit.limiter()
    last = 0.0
    for now in arrivals:
        if now < last:
            continue
        wait = limiter.allow(now)
        if wait:
            if (almost := before(now + wait)) > now:
                assert limiter.allow(almost) > 0
            assert limiter.allow(now + wait) == 0
            last = now + wait


def test_the_wait_is_never_a_rounding_error_too_few() -> None:
    """Of moments taken at random, one in a hundred rounds the wrong way."""
    draw = random.Random(0)
    for _ in range(2000):
        start, per = draw.uniform(0, 1000), draw.uniform(0, 10)
        limiter = FixedWindow(1, per).limiter()
        assert limiter.allow(start) == 0
        now = start + per * draw.random()
        assert limiter.allow(now + limiter.allow(now)) == 0


@pytest.mark.parametrize("requests", [0, -1, 1.5, True, "3", math.nan])
@pytest.mark.parametrize("kind", [FixedWindow, SlidingWindow])
def test_rejects_requests(kind: type[FixedWindow], requests: int) -> None:
    with pytest.raises(ValueError, match=r"requests must be a whole number, 1 or more, got "):
        kind(requests, 60)


@pytest.mark.parametrize("per", [0, -1, math.inf, math.nan, "60", True])
def test_rejects_a_period(per: float) -> None:
    with pytest.raises(ValueError, match=r"per must be a finite number of seconds greater than 0, got "):
        SlidingWindow(1, per)


def test_rejects_a_bucket() -> None:
    with pytest.raises(ValueError, match="rate must be a finite number greater than 0, got 0"):
        TokenBucket(0)
    with pytest.raises(ValueError, match="burst must be a whole number, 1 or more, got 0"):
        TokenBucket(1, 0)


@pytest.mark.parametrize("retry_after", ["seconds", None, 5])
def test_rejects_a_form_of_retry_after(retry_after: bool) -> None:
    with pytest.raises(ValueError, match='retry_after must be True, False or "date", got '):
        FixedWindow(1, 60, retry_after)
