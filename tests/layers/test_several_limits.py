"""Several limits that the user states at once: a call waits for all of them, and for nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples
from tests.json_store import JsonStore
from tests.layers.accounts import MINUTE, account_of, at_rest, client, now, quickly, throttle_in
from tests.servers import Serve, serving
from yarl import URL

from lamella import Limit, RateLimited, StatedLimit, StopReason, stack
from lamella.testing import Limiter, SlidingWindow, VirtualClock


def path_of(request: aiohttp.ClientRequest) -> str | None:
    return request.url.path


def everybody(_: aiohttp.ClientRequest) -> None:
    return None


def points_of(request: aiohttp.ClientRequest) -> float:
    return float(request.headers.get("X-Points", "1"))


LEXWARE = [Limit(2, per=1, scope=path_of), Limit(5, per=1, key=everybody)]
"""2 a second for each account and path, and 5 a second for the integrator."""


@dataclass
class Server:
    """Refuses what exceeds one of its limits; each has a number of requests or points, and a key."""

    rates: Sequence[tuple[SlidingWindow, Callable[[web.Request], str]]] = ()
    most: Callable[[web.Request], tuple[str, int]] = lambda _: ("", 10**9)
    latency: float = 0.05
    headers: dict[str, str] = field(default_factory=dict)
    limiters: dict[tuple[int, str], Limiter] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    came: list[tuple[float, str, str]] = field(default_factory=list)
    """When, which account, which path and number."""
    refused: int = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        account = request.headers.get("X-Account", "")
        self.came.append((now(), account, request.path_qs))
        key, most = self.most(request)
        refused = self.in_flight[key] >= most
        for number, (limit, key_of) in enumerate(self.rates):
            limiter = self.limiters.setdefault((number, key_of(request)), limit.limiter())
            for _ in range(int(request.headers.get("X-Points", "1"))):
                refused = refused or limiter.allow(now()) > 0
        self.refused += refused
        self.in_flight[key] += 1
        try:
            await asyncio.sleep(float(request.query.get("takes", self.latency)))
        finally:
            self.in_flight[key] -= 1
        return web.Response(status=429 if refused else 200, headers=self.headers)


async def get(session: aiohttp.ClientSession, path: str = "/", account: str = "", points: int = 1) -> int:
    headers = {"X-Account": account, "X-Points": str(points)}
    async with session.get(path, headers=headers if account else {"X-Points": str(points)}) as response:
        return response.status


async def test_limits_per_path_and_for_the_integrator_apply_together(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(
        [
            (SlidingWindow(2, 1), lambda request: f"{request.headers['X-Account']} {request.path}"),
            (SlidingWindow(5, 1), lambda _: ""),
        ]
    )
    async with client(await serve(server), *stack(MINUTE, limits=LEXWARE, account=account_of)) as session:
        began = now()
        calls = [(f"/{path}", f"account {account}") for _ in range(5) for account in range(10) for path in range(2)]
        assert await asyncio.gather(*(get(session, *each) for each in calls)) == [200] * 100
        assert server.refused == 0
        assert now() - began <= 19.05 * 1.2  # the integrator's limit is the narrowest
        at_rest(session)


@pytest.mark.slow
async def test_limits_in_flight_and_per_minute_apply_together(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server([(SlidingWindow(300, 60), lambda _: "")], most=lambda _: ("", 5), latency=0.5)
    layers = stack(MINUTE, limits=[Limit(concurrent=5), Limit(300, per=60)])
    async with client(await serve(server), *layers) as session:
        began = now()
        assert await asyncio.gather(*(get(session) for _ in range(700))) == [200] * 700
        assert server.refused == 0
        assert now() - began <= 130 * 1.1  # 300 in 30 s, 300 in the next minute, and 100 in 10 s
        at_rest(session)


async def test_calls_wait_for_a_minute_limit_but_fail_for_a_daily_quota(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    server = Server([(SlidingWindow(10, 60), lambda _: ""), (SlidingWindow(25, 86_400), lambda _: "")])
    layers = stack(MINUTE, limits=[Limit(10, per=60), Limit(25, per=86_400)])
    async with client(await serve(server), *layers) as session:
        began = now()
        tasks = [asyncio.create_task(get(session)) for _ in range(40)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:25] == [200] * 25
        assert now() - began == pytest.approx(120, rel=0.02)
        for error in results[25:]:
            assert isinstance(error, RateLimited)
            assert error.stopped is StopReason.WAIT_TOO_LONG
            assert error.retry_after == pytest.approx(86_400 - 120, rel=0.01)
        with pytest.raises(RateLimited):
            await get(session)
        assert server.refused == 0
        at_rest(session)
        await asyncio.sleep(86_400 * 1.02)
        assert await get(session) == 200


async def test_a_waiting_path_does_not_delay_other_paths(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server()
    layers = stack(MINUTE, limits=[Limit(1, per=60, scope=path_of), Limit(10, per=60)])
    async with client(await serve(server), *layers) as session:
        slow = [asyncio.create_task(get(session, "/slow")) for _ in range(3)]
        await asyncio.sleep(1)
        began = now()
        assert await get(session, "/quick") == 200
        assert now() - began < 0.2
        await asyncio.gather(*slow)
        at_rest(session)


async def test_a_blocked_account_does_not_delay_others_at_a_common_limit(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    server = Server([(SlidingWindow(1, 60), lambda request: request.headers["X-Account"])])
    layers = stack(MINUTE, limits=[Limit(100, per=60, key=everybody), Limit(concurrent=4)], account=account_of)
    async with client(await serve(server), *layers) as session:
        blocked = [asyncio.create_task(get(session, account="blocked")) for _ in range(3)]
        await asyncio.sleep(1)
        began = now()
        assert await get(session, account="another") == 200
        assert now() - began < 0.2
        await asyncio.gather(*blocked)
        at_rest(session)


async def test_calls_of_several_accounts_pass_in_order_of_arrival(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server()
    layers = stack(MINUTE, limits=[Limit(1, per=1, key=everybody), Limit(2, per=1)], account=account_of)
    async with client(await serve(server), *layers) as session:
        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(get(session, f"/{number}", f"account {number % 3}")))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert [path for _, _, path in server.came] == [f"/{number}" for number in range(20)]


async def test_an_older_call_overtakes_a_younger_one_at_a_common_limit(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    """The older one comes back after a 500, when the younger one is the first of its account already."""
    failed: list[str] = []

    async def server(request: web.Request) -> web.StreamResponse:
        come.append(request.path)
        if request.path == "/older" and not failed:
            failed.append(request.path)
            return web.Response(status=500)
        return web.Response()

    come: list[str] = []
    layers = stack(MINUTE, limits=[Limit(1, per=30, key=everybody), Limit(9, per=60)], account=account_of)
    async with client(await serve(server), *layers) as session:
        older = asyncio.create_task(get(session, "/older", "a"))  # it fails, and comes back after 15 s
        await asyncio.sleep(1)
        younger = [asyncio.create_task(get(session, f"/{number}", "a")) for number in range(2)]
        assert await asyncio.gather(older, *younger) == [200] * 3
        assert come == ["/older", "/older", "/0", "/1"]
        at_rest(session)


@pytest.mark.parametrize(
    ("store", "moments"),
    [
        (None, range(0, 40, 4)),
        pytest.param(None, [each for each in range(40) if each % 4], marks=pytest.mark.slow),
        pytest.param("slow", range(0, 40, 5), marks=pytest.mark.slow),
        pytest.param("slow", [each for each in range(40) if each % 5], marks=pytest.mark.slow),
    ],
    ids=["here", "here, more moments", "slow store", "slow store, more moments"],
)
async def test_a_cancelled_call_leaves_no_permit_behind(
    serve: Serve, virtual_time: VirtualClock, store: str | None, moments: Sequence[int]
) -> None:
    server = Server(latency=1.0)
    limits = [
        Limit(concurrent=2, scope=path_of),
        Limit(concurrent=3),
        Limit(concurrent=4, key=everybody),
        Limit(30, per=10, key=everybody, scope=path_of),
    ]
    layers = stack(MINUTE, limits=limits, account=account_of, store=None if store is None else JsonStore(slow=0.02))
    async with client(await serve(server), *layers) as session:
        for delay in [each * 0.013 for each in moments]:
            tasks = [asyncio.create_task(get(session, f"/{n % 2}", f"account {n % 3}")) for n in range(12)]
            await asyncio.sleep(delay)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [task.result() for task in tasks[1::2]] == [200] * 6
            await asyncio.sleep(0.5)
            at_rest(session)


async def test_a_call_counts_only_against_the_limits_of_its_scope(serve: Serve, virtual_time: VirtualClock) -> None:
    def writes(request: aiohttp.ClientRequest) -> str | None:
        return "writes" if request.method == "POST" else None

    layers = stack(MINUTE, limits=[Limit(1, per=60, scope=writes)])
    async with client(await serve(Server()), *layers) as session:
        began = now()
        await asyncio.gather(*(get(session) for _ in range(10)))
        assert now() - began < 1
        for _ in range(2):
            async with session.post("/"):
                pass
        assert now() - began == pytest.approx(60, abs=1)


async def test_a_stated_account_limit_works_beside_a_learned_scope(serve: Serve, virtual_time: VirtualClock) -> None:
    """The account's limit is that of all of its scopes."""
    layers = stack(MINUTE, limits=[Limit(2, per=60)], scope=path_of)
    async with client(await serve(Server()), *layers) as session:
        began = now()
        await asyncio.gather(*(get(session, f"/{number}") for number in range(4)))
        assert now() - began == pytest.approx(60, abs=1)


async def test_a_limit_can_count_points(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server([(SlidingWindow(100, 60), lambda _: "")])
    layers = stack(MINUTE, limits=[Limit(100, per=60), Limit(concurrent=8, key=everybody)], cost=points_of)
    async with client(await serve(server), *layers) as session:
        began = now()
        assert await asyncio.gather(*(get(session, points=number % 9 + 1) for number in range(180))) == [200] * 180
        assert server.refused == 0
        assert now() - began <= 540 * 1.02  # 900 points, and in their order a minute has room for 93 to 100
        at_rest(session)


async def test_each_limit_may_have_its_own_cost_function(serve: Serve, virtual_time: VirtualClock) -> None:
    layers = stack(MINUTE, limits=[Limit(10, per=60), Limit(10, per=60, cost=lambda _: 5)])
    async with client(await serve(Server()), *layers) as session:
        began = now()
        await asyncio.gather(*(get(session) for _ in range(4)))
        assert now() - began == pytest.approx(60, abs=1)


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "3", None])
async def test_an_invalid_cost_is_reported(serve: Serve, cost: Any) -> None:
    for options in ({"cost": lambda _: cost}, {"limits": Limit(10, per=60, cost=lambda _: cost)}):
        async with client(await serve(Server()), *stack(MINUTE, **options)) as session:
            with pytest.raises(ValueError, match=rf"^cost must be a finite number, 0 or more, got {cost!r}$"):
                await get(session)
            at_rest(session)


async def test_limits_of_the_server_and_the_user_apply_together(serve: Serve, virtual_time: VirtualClock) -> None:
    def left(headers: Mapping[str, str]) -> list[StatedLimit]:
        return [StatedLimit(float(headers["X-Left"]), 2, reset=30.0)]

    server = Server(headers={"X-Left": "0"})
    async with client(await serve(server), *stack(MINUTE, limits=[Limit(10, per=60), left])) as session:
        began = now()
        assert await get(session) == 200
        stated = throttle_in(session).state(session._base_url or URL()).stated
        # The loop's clock may be far from 0, and its sums are rounded.
        assert [each._replace(reset=round(each.reset or 0.0, 6)) for each in stated] == [
            StatedLimit(9.0, 10, 60.0, name="Limit(10, per=60)"),
            StatedLimit(0.0, 2, 30.0),
        ]
        assert await get(session) == 200
        assert now() - began == pytest.approx(30, abs=1.2)


async def test_state_shows_the_rest_of_stated_limits(serve: Serve, virtual_time: VirtualClock) -> None:
    limits = [Limit(5, per=60), Limit(concurrent=3), Limit(7, per=10, key=everybody)]
    url = await serve(Server(latency=1.0))
    async with client(url, *stack(MINUTE, limits=limits, account=account_of)) as session:
        tasks = [asyncio.create_task(get(session, account="a")) for _ in range(2)]
        await asyncio.sleep(0.5)
        belief = throttle_in(session).state(URL(url), "a")
        assert (belief.kind, belief.requests, belief.period) == ("stated", 5.0, 60)
        assert belief.stated == (
            StatedLimit(3.0, 5, name="Limit(5, per=60)"),
            StatedLimit(1, 3, name="Limit(concurrent=3)"),
            StatedLimit(5.0, 7, name="Limit(7, per=10, key=...)"),
        )
        await asyncio.gather(*tasks)


async def test_two_processes_with_one_store_respect_a_limit_together(serve: Serve, virtual_time: VirtualClock) -> None:
    server, store = Server([(SlidingWindow(4, 60), lambda _: "")]), JsonStore(slow=0.001)
    url = await serve(server)

    def layers() -> Any:
        return stack(MINUTE, limits=[Limit(4, per=60, key=everybody), Limit(3, per=60)], store=store)

    async with client(url, *layers()) as one, client(url, *layers()) as another:
        began = now()
        for session in (one, another) * 4:
            assert await get(session) == 200
        assert server.refused == 0
        assert now() - began == pytest.approx(120, abs=2)


async def test_a_deadline_that_a_stated_limit_would_exceed_fails_at_once(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    limits = [Limit(1, per=10, scope=path_of), Limit(100, per=60), Limit(50, per=60, key=everybody)]
    async with client(await serve(Server()), *stack(MINUTE, limits=limits, deadline=25.0)) as session:
        began = now()
        results = await asyncio.gather(*(get(session) for _ in range(6)), return_exceptions=True)
        assert results[:3] == [200] * 3
        assert all(isinstance(each, RateLimited) and each.stopped is StopReason.DEADLINE for each in results[3:])
        assert now() - began < 25
        at_rest(session)


@examples(30)
@given(
    limits=st.lists(
        st.builds(
            Limit,
            st.integers(1, 6),
            st.sampled_from([1.0, 7.0, 60.0]),
            scope=st.sampled_from([None, path_of]),
            key=st.sampled_from([None, everybody]),
        )
        | st.builds(
            Limit,
            concurrent=st.integers(1, 4),
            scope=st.sampled_from([None, path_of]),
            key=st.sampled_from([None, everybody]),
        ),
        min_size=1,
        max_size=4,
    ),
    calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 20)), min_size=1, max_size=40),
)
def test_no_call_is_refused_or_stuck_for_any_stated_limits(
    limits: list[Limit], calls: list[tuple[int, int, float]]
) -> None:
    def key_of(limit: Limit) -> Callable[[web.Request], str]:
        def key(request: web.Request) -> str:
            account = "" if limit.key else request.headers["X-Account"]
            return f"{account} {request.path if limit.scope else ''}"

        return key

    rates = [(SlidingWindow(each.requests, each.per), key_of(each)) for each in limits if each.requests and each.per]
    at_a_time = [(each.concurrent, key_of(each)) for each in limits if each.concurrent]
    flying: dict[tuple[int, str], int] = defaultdict(int)
    wrong: list[str] = []

    async def main() -> None:
        server = Server(rates)

        async def watched(request: web.Request) -> web.StreamResponse:
            keys = [(number, key(request)) for number, (_, key) in enumerate(at_a_time)]
            for number, key in keys:
                flying[number, key] += 1
                if flying[number, key] > at_a_time[number][0]:
                    wrong.append(f"{flying[number, key]} at a time")
            try:
                return await server(request)
            finally:
                for number, key in keys:
                    flying[number, key] -= 1

        async with serving(watched) as url:
            layers = stack(MINUTE, limits=limits, account=account_of, spans=False)
            async with client(url, *layers) as session:

                async def come(path: int, account: int, at: float) -> int:
                    await asyncio.sleep(at)
                    return await get(session, f"/{path}", f"account {account}")

                async with asyncio.timeout(60 * 45):
                    assert await asyncio.gather(*(come(*each) for each in calls)) == [200] * len(calls)
                assert (server.refused, wrong) == (0, [])
                at_rest(session)

    quickly(main)
