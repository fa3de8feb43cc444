"""``Throttle`` and refusals of several kinds: by chance, by the number in flight, and where the account is used up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples
from tests.layers.accounts import MINUTE, at_rest, client, get, in_episode, now, quickly, throttle_in
from tests.servers import Serve, serving
from yarl import URL

from lamella import Backoff, Limit, Rule, RuleBook, StatedLimit, Throttle, TooManyRequests, stack
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket, VirtualClock
from lamella.testing import Limit as ServersLimit
from lamella.throttle.belief import Belief, believed
from lamella.throttle.estimate import RateEstimate

SECOND = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(1, jitter=0)))


class Server:
    """Refuses by chance, beyond so many in flight, and beyond a limit."""

    def __init__(
        self,
        *,
        chance: float = 0.0,
        most: int = 10**9,
        limit: ServersLimit | None = None,
        latency: float = 0.02,
        seed: int = 1,
    ) -> None:
        self.chance = chance
        self.most = most
        self.limiter = limit.limiter() if limit else None
        self.latency = latency
        self.random = random.Random(seed)
        self.in_flight = 0
        self.came: list[tuple[float, str, int]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        number = request.query["n"]
        at = now()
        if (
            self.random.random() < self.chance
            or self.in_flight >= self.most
            or (self.limiter is not None and self.limiter.allow(at) > 0)
        ):
            self.came.append((at, number, 429))
            return web.Response(status=429)
        self.came.append((at, number, 200))
        self.in_flight += 1
        try:
            await asyncio.sleep(self.latency)
        finally:
            self.in_flight -= 1
        return web.Response()

    @property
    def refused(self) -> dict[str, float]:
        """When each call was refused last."""
        return {number: at for at, number, status in self.came if status == 429}


def crowd(server: Server, rules: RuleBook, calls: int, at_once: int) -> tuple[float, dict[str, float], RateEstimate]:
    """Make so many calls. Return how long all of them took, and each, and what was learned."""

    async def main() -> tuple[float, dict[str, float], RateEstimate]:
        took: dict[str, float] = {}
        async with serving(server) as url, client(url, *stack(rules, spans=False, retry_budget=None)) as session:
            numbers = iter(range(calls))

            async def work() -> None:
                for number in numbers:
                    began = now()
                    assert await get(session, number) == 200
                    took[str(number)] = now() - began

            began = now()
            await asyncio.gather(*(work() for _ in range(at_once)))
            lasted = now() - began
            await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
            at_rest(session)
            [state] = throttle_in(session)._state._local._states.values()
            assert isinstance(state, RateEstimate)
            return lasted, took, state

    result: tuple[float, dict[str, float], RateEstimate] = quickly(main)
    return result


def waited_their_minute(server: Server, seconds: float) -> bool:
    """Return whether no call was sent again sooner than *seconds* after its refusal."""
    refused: dict[str, float] = {}
    for at, number, status in server.came:
        if at < refused.get(number, -seconds) + seconds - 1e-9:  # the clock rounds
            return False
        if status == 429:
            refused[number] = at
    return True


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("calls", "at_once", "chance"),
    [
        (600, 500, 0.02),
        (400, 10, 0.02),
        (200, 3, 0.02),
        pytest.param(600, 100, 0.02, marks=pytest.mark.slow),  # between the first two
    ],
)
def test_a_random_429_delays_only_its_own_call(calls: int, at_once: int, chance: float) -> None:
    server = Server(chance=chance)
    _, took, _ = crowd(server, MINUTE, calls, at_once)
    assert server.refused
    assert max(seconds for number, seconds in took.items() if number not in server.refused) < 0.5
    assert waited_their_minute(server, 60)
    # The refused ones wait for their minutes and for nothing else.
    for number, times in Counter(number for _, number, status in server.came if status == 429).items():
        assert took[number] < 60 * (2**times - 1) + 0.5


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("most", "calls", "latency"),
    [
        (10, 600, 0.05),
        (3, 200, 0.05),
        (1, 100, 0.05),
        pytest.param(50, 2000, 0.05, marks=pytest.mark.slow),
        (10, 100, 1.0),
    ],
)
def test_a_limit_of_attempts_in_flight_is_learned(most: int, calls: int, latency: float) -> None:
    server = Server(most=most, latency=latency)
    took, _, estimate = crowd(server, SECOND, calls, 500)
    assert took <= 1.2 * calls * latency / most + 0.5
    assert len(server.refused) <= 0.05 * calls + 12
    assert abs(estimate.most - most) <= 1
    assert estimate.is_sure
    assert not estimate.generation, "the account was never used up"


@pytest.mark.slow
def test_a_window_is_learned_beside_a_limit_in_flight() -> None:
    server = Server(most=10, latency=0.05, limit=FixedWindow(100, 1))
    took, _, _ = crowd(server, SECOND, 1000, 500)
    assert took <= 10 * 1.2
    assert len(server.came) <= 1.1 * 1000


@pytest.mark.slow
def test_a_window_is_learned_beside_random_refusals() -> None:
    server = Server(chance=0.02, limit=FixedWindow(100, 1))
    took, _, _ = crowd(server, SECOND, 1000, 500)
    assert took <= 10 * 1.25
    assert len(server.came) <= 1.15 * 1000


async def refuse_one(serve: Serve, plan: Callable[[str], bool]) -> tuple[str, Counter[str]]:
    """Serve, refuse the first attempt of each call that *plan* says, and return the URL and the attempts."""
    came: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        number = request.query["n"]
        came[number] += 1
        await asyncio.sleep(0.1)
        return web.Response(status=429 if plan(number) and came[number] == 1 else 200)

    return await serve(answer), came


async def test_after_an_undecided_refusal_one_attempt_is_sent_alone(serve: Serve, virtual_time: VirtualClock) -> None:
    url, came = await refuse_one(serve, lambda number: number == "refused")
    async with client(url, *stack(MINUTE)) as session:
        assert await get(session, "before") == 200
        refused = asyncio.create_task(get(session, "refused"))
        await asyncio.sleep(0.11)
        began = now()
        assert await asyncio.gather(*(get(session, number) for number in range(4))) == [200] * 4
        assert now() - began < 0.5
        assert not in_episode(session)
        assert came["0"] == 1
        await asyncio.sleep(0)
        assert not refused.done()
        assert await refused == 200
        at_rest(session)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_second_refusal_blocks_the_account(serve: Serve, virtual_time: VirtualClock, alone: bool) -> None:
    """Nothing is sent until the wait of the first refusal has passed; one that never passed anything closes at once."""
    url, _ = await refuse_one(serve, lambda number: number in {"refused", "alone"})
    async with client(url, *stack(MINUTE, attempts=1)) as session:
        if alone:
            assert await get(session, "before") == 200
        began = now()
        with pytest.raises(TooManyRequests):
            await get(session, "refused")
        if alone:
            assert not in_episode(session)
            with pytest.raises(TooManyRequests):
                await get(session, "alone")
        assert in_episode(session)
        assert await get(session, "later") == 200
        assert now() - began == pytest.approx(60.2, abs=0.01)
        assert not in_episode(session)


async def test_a_limit_of_one_path_does_not_delay_the_others(serve: Serve, virtual_time: VirtualClock) -> None:
    limiters = {path: FixedWindow(10, 60).limiter() for path in ("/a", "/b")}

    async def answer(request: web.Request) -> web.StreamResponse:
        limiter = limiters.get(request.path)
        return web.Response(status=429 if limiter is not None and limiter.allow(now()) > 0 else 200)

    throttle = Throttle(MINUTE, scope=lambda request: request.url.path)
    url = await serve(answer)
    async with client(url, *stack(MINUTE, throttle)) as session:

        async def call(path: str) -> float:
            began = now()
            async with session.get(path) as response:
                assert response.status == 200
            return now() - began

        limited = [asyncio.create_task(call("/a")) for _ in range(30)]
        assert max(await asyncio.gather(*(call("/free") for _ in range(100)))) < 1
        assert max(await asyncio.gather(*(call("/b") for _ in range(10)))) < 1
        await asyncio.sleep(1)
        origin = URL(url)
        assert throttle.blocked_for(origin, scope="/a") > 50
        assert [throttle.blocked_for(origin, scope=path) for path in ("/b", "/free")] == [0, 0]
        assert throttle.blocked_for(origin) == 0
        await asyncio.gather(*limited)
        at_rest(session)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("server", "calls", "kind", "requests", "in_flight"),  # of a bucket it is not the limit, but how its rate is kept
    [
        (lambda: Server(limit=FixedWindow(50, 1)), 400, "window", 50, None),
        (lambda: Server(limit=TokenBucket(50, 50)), 400, "bucket", 50, ...),
        (lambda: Server(limit=TokenBucket(50, 10)), 600, "bucket", 50, ...),
        (lambda: Server(most=10, latency=0.05), 400, "none", 0, 10),
        (Server, 100, "none", 0, None),
    ],
)
def test_the_estimate_can_be_read(
    server: Callable[[], Server], calls: int, kind: str, requests: float, in_flight: object
) -> None:
    belief = believed(crowd(server(), SECOND, calls, 200)[2], None)
    assert belief.kind == kind
    assert in_flight in (belief.in_flight, ...)
    assert belief.requests == pytest.approx(requests, rel=0.3)
    assert belief.by_chance == pytest.approx(0, abs=0.02)


async def test_an_unknown_account_has_no_estimate(serve: Serve, virtual_time: VirtualClock) -> None:
    url = URL(await serve(Server()))
    assert Throttle(MINUTE).state(url) == Belief("none", 0.0, 0.0, None, 0.0)
    throttle = Throttle(MINUTE, limits=Limit(5, 60))
    assert throttle.state(url) == Belief("stated", 5.0, 60, None, 0.0)
    assert not throttle._accounts
    async with client(str(url), *stack(MINUTE, throttle)) as session:
        await get(session)
        belief = throttle.state(url)
        [left] = belief.stated
        assert left.reset == pytest.approx(60.0)
        assert left == StatedLimit(4.0, 5, left.reset, name="Limit(5, per=60)")
        assert belief == Belief("stated", 5.0, 60, None, 0.0, (left,))


@pytest.mark.slow
@examples(15)
@given(
    limit=st.sampled_from([None, FixedWindow(50, 1), SlidingWindow(50, 1), TokenBucket(50, 50)]),
    most=st.sampled_from([10**9, 10**9, 5, 20]),
    chance=st.sampled_from([0.0, 0.0, 0.02]),
    at_once=st.sampled_from([10, 100, 400]),
    seed=st.integers(0, 2**32),
)
def test_no_call_is_lost_or_much_slower_for_any_limits(
    limit: ServersLimit | None, most: int, chance: float, at_once: int, seed: int
) -> None:
    """Compared with an oracle that knows the limits: at most 1.5 times as long, and what the measurement takes.

    docs/explanation/together.md says what refusals by chance may cost beside another limit.
    """
    calls = 500
    server = Server(limit=limit, most=most, chance=chance, seed=seed)
    took, _, _ = crowd(server, SECOND, calls, at_once)  # asserts that each call ends well
    assert waited_their_minute(server, 1)
    best = calls * server.latency / min(most, at_once)
    if limit is not None:
        best = max(best, calls / 50 - 1)
    assert took <= (100 if chance else 1.5 * best + 1)
