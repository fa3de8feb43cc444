"""``Throttle`` with real sockets: a limit of one path or method does not hold up the rest of the account."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean

import aiohttp
import pytest
from aiohttp import web
from tests.layers.accounts import KINDS, MINUTE, at_rest, client, limit_of, now, quickly
from tests.servers import serving
from yarl import URL

from lamella import ApiError, Limit, Throttle, stack
from lamella.testing import FixedWindow
from lamella.testing import Limit as ServersLimit
from lamella.throttle.belief import Belief

Request = tuple[str, str]
"""Method and path."""
Limits = Callable[[str, str], str | None]
"""Returns the name of the limit of a request, or None."""


@dataclass
class Server:
    """A server with limits for some of its methods and paths."""

    limit_of: Limits
    limits: dict[str, ServersLimit]
    came: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.limiters = {name: limit.limiter() for name, limit in self.limits.items()}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        name = self.limit_of(request.method, request.path)
        self.came[request.path] += 1
        await asyncio.sleep(0.1)
        limiter = None if name is None else self.limiters.get(name)
        if name is not None and (limiter is None or limiter.allow(now()) > 0):
            self.refused[request.path] += 1
            return web.Response(status=429)
        return web.Response()


@dataclass(frozen=True)
class Result:
    """What became of calls."""

    delays: dict[Request, list[float]]
    """Seconds from the start of each call to its end, without those of its answer."""
    took: float
    belief: Belief


def run(server: Server, calls: Sequence[tuple[float, str, str]], **options: object) -> Result:
    """Send *calls* (when, method, path) and wait for those that do not go to a path that refuses everything."""

    async def main() -> Result:
        throttle = Throttle(MINUTE, **options)  # type: ignore[arg-type]
        async with serving(server) as url, client(url, *stack(MINUTE, throttle)) as session:
            delays: dict[Request, list[float]] = {}
            began = now()

            async def call(at: float, method: str, path: str) -> None:
                await asyncio.sleep(at)
                started = now()
                try:
                    async with session.request(method, path):
                        delays.setdefault((method, path), []).append(now() - started - 0.1)
                except ApiError:
                    assert path == "/dead"

            tasks = [(asyncio.create_task(call(*each)), each) for each in calls]
            wanted = [task for task, (_, _, path) in tasks if path != "/dead"]
            await asyncio.gather(*wanted)
            result = Result(delays, now() - began, throttle.state(URL(url)))
            for task, _ in tasks:
                task.cancel()
            await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
            at_rest(session)
            return result

    result: Result = quickly(main)
    return result


def arrivals(number: int, rate: float, request_of: Callable[[random.Random], Request]) -> list[tuple[float, str, str]]:
    """Return *number* calls, *rate* a second, at random times."""
    source, at, calls = random.Random(3), 0.0, []
    for _ in range(number):
        at += source.expovariate(rate)
        calls.append((at, *request_of(source)))
    return calls


def mean_delay(result: Result, method: str, path: str) -> float:
    """Return the mean delay of the calls with *method* to *path* or below it."""
    found = [delays for kind, delays in result.delays.items() if kind[0] == method and kind[1].startswith(path)]
    return fmean(chain.from_iterable(found))


def parts_of(result: Result) -> set[str]:
    return {part for part, _ in result.belief.parts}


def test_a_path_that_is_always_refused_does_not_delay_the_others() -> None:
    """One call in ten went there, six a minute: the others were queued for a day."""
    calls = arrivals(200, 0.1, lambda source: ("GET", "/dead" if source.random() < 0.1 else "/orders"))
    result = run(Server(lambda _, path: "dead" if path == "/dead" else None, {}), calls)
    assert mean_delay(result, "GET", "/orders") < 1
    assert parts_of(result) == {"GET /dead"}


def test_a_small_limit_of_a_path_does_not_delay_the_others() -> None:
    """Half of the calls went there, two a second: the others were queued for half an hour."""
    calls = arrivals(300, 2.0, lambda source: ("GET", source.choice(["/search", "/orders"])))
    server = Server(lambda _, path: path if path == "/search" else None, {"/search": FixedWindow(10, 60)})
    result = run(server, calls)
    assert mean_delay(result, "GET", "/orders") < 30  # the first two refused calls come one after the other
    assert max(result.delays["GET", "/orders"]) < 90
    assert parts_of(result) == {"GET /search"}
    [(_, belief)] = result.belief.parts
    assert (belief.kind, belief.requests, belief.period) == ("window", 10, 60)
    assert result.belief.kind == "none"
    # The calls that are limited take as long as with a scope.
    scoped = run(Server(server.limit_of, server.limits), calls, scope=lambda request: request.url.path)
    assert result.took <= 1.05 * scoped.took


def test_a_limit_of_a_method_does_not_delay_the_others() -> None:
    paths = ["/orders", "/items", "/customers"]
    calls = arrivals(300, 2.0, lambda source: (source.choice(["GET", "POST"]), source.choice(paths)))
    server = Server(lambda method, _: method if method == "POST" else None, {"POST": FixedWindow(10, 60)})
    result = run(server, calls)
    assert parts_of(result) == {"POST /*"}
    assert mean_delay(result, "GET", "/") < 30
    assert max(delay for (method, _), delays in result.delays.items() if method == "GET" for delay in delays) < 90


def test_the_paths_below_one_share_a_limit() -> None:
    """Each call has another path, so no single path shows the limit."""
    calls = arrivals(
        300, 2.0, lambda source: ("GET", f"/{source.choice(['orders', 'items'])}/{source.randrange(1000)}")
    )
    server = Server(lambda _, path: "orders" if path.startswith("/orders/") else None, {"orders": FixedWindow(10, 60)})
    result = run(server, calls)
    assert parts_of(result) == {"GET /orders/*"}
    assert mean_delay(result, "GET", "/items/") < 1


def test_each_of_four_paths_has_a_limit() -> None:
    calls = [(0.0, "GET", path) for path in ("/a", "/b", "/a", "/c", "/a", "/d", "/b", "/a") * 50]
    server = Server(lambda _, path: path, dict.fromkeys(("/a", "/b", "/c", "/d"), FixedWindow(20, 60)))
    result = run(server, calls)
    assert result.took <= 1.15 * (200 / 20 - 1) * 60
    assert sum(server.came.values()) <= 1.2 * len(calls)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_of_the_account_is_not_split(kind: str) -> None:
    paths = ["/a", "/b", "/c", "/d"]
    source = random.Random(5)
    calls = [(0.0, source.choice(["GET", "POST"]), source.choice(paths)) for _ in range(500)]
    alike = [(0.0, "GET", "/") for _ in calls]
    times = []
    for each in (calls, alike):
        server = Server(lambda *_: "", {"": limit_of(kind, 40, 60, retry_after=False)})
        result = run(server, each)
        assert result.belief.parts == ()
        times.append((result.took, sum(server.came.values())))
    assert times[0] == pytest.approx(times[1])


def test_a_part_is_split_off_beside_a_stated_limit() -> None:
    """A call that waits in the queue of the stated limit moves to that of its part."""
    calls = arrivals(200, 2.0, lambda source: ("GET", source.choice(["/search", "/orders"])))
    server = Server(lambda _, path: path if path == "/search" else None, {"/search": FixedWindow(10, 60)})
    result = run(server, calls, limits=Limit(concurrent=20))
    assert parts_of(result) == {"GET /search"}
    assert max(result.delays["GET", "/orders"]) < 90


def test_a_wrong_split_is_merged() -> None:
    """A path was refused for some minutes; afterwards it shares the limit of the account."""
    calls = [(float(number), "GET", "/a" if number % 2 else "/b") for number in range(60)]
    calls += [(600.0 + number / 100, "GET", "/a" if number % 2 else "/b") for number in range(600)]
    began: list[float] = []

    def limited(_: str, path: str) -> str:
        began.append(now())
        return path if path == "/a" and now() < began[0] + 300 else ""

    assert parts_of(run(Server(limited, {"": FixedWindow(60, 60)}), calls[:60])) == {"GET /a"}
    began.clear()
    result = run(Server(limited, {"": FixedWindow(60, 60)}), calls)
    assert result.belief.parts == ()
    assert result.took - 600 < 1.75 * (600 / 60 - 1) * 60  # two refusals of both are needed to see it


@pytest.mark.parametrize("paths", [1, 3])
def test_a_limit_that_accounts_share_is_not_split(paths: int) -> None:
    """A refused call comes back when the others have used the limit up again: that is no sign of a part."""
    seen: list[Belief] = []

    async def main() -> float:
        throttle = Throttle(MINUTE, key=lambda request: request.headers["account"])
        server = Server(lambda *_: "", {"": FixedWindow(60, 60)})
        source = random.Random(7)
        async with serving(server) as url, client(url, *stack(MINUTE, throttle)) as session:

            async def work(account: str) -> None:
                for _ in range(30):
                    async with session.get(f"/{source.randrange(paths)}", headers={"account": account}):
                        pass

            began = now()
            await asyncio.gather(*(work(str(number)) for number in range(20)))
            seen.extend(throttle.state(URL(url), str(number)) for number in range(20))
            at_rest(session)
            return now() - began

    took = quickly(main)
    assert [belief.parts for belief in seen] == [()] * 20
    assert took < 1.7 * (600 / 60 - 1) * 60


def test_the_name_of_a_part_shows_no_secret() -> None:
    """The server may have got a key in the path that is in a header as well."""

    async def main() -> Belief:
        throttle = Throttle(MINUTE)
        server = Server(lambda _, path: "dead" if path.startswith("/s3cret-key-1") else None, {})
        async with serving(server) as url, client(url, *stack(MINUTE, throttle)) as session:
            session.headers["Authorization"] = "Bearer s3cret-key-1"
            calls = [
                asyncio.create_task(_get(session, 10.0 * n, "/s3cret-key-1" if n % 3 == 1 else "/orders"))
                for n in range(30)
            ]
            await asyncio.sleep(3600)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            return throttle.state(URL(url))

    belief = quickly(main)
    [(part, _)] = belief.parts
    assert part.startswith("GET /")
    assert "s3cret" not in part


async def _get(session: aiohttp.ClientSession, at: float, path: str) -> None:
    await asyncio.sleep(at)
    with suppress(ApiError):
        async with session.get(path):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 15, 18])
def test_calls_to_paths_with_mixed_limits_all_end(seed: int) -> None:
    """Three paths have limits, two share one, one is always refused, and a quarter of the calls is cancelled."""
    source = random.Random(seed)
    limits: dict[str, ServersLimit] = {
        path: FixedWindow(source.choice([2, 5, 10, 30]), 60) for path in ("/a", "/b", "/c")
    }
    shared = FixedWindow(source.choice([20, 50, 200]), 60).limiter()
    server = Server(lambda _, path: path if path == "/dead" or path in limits else None, limits)
    paths = [source.choice(["/a", "/b", "/c", "/d", "/d", "/dead", "/free"]) for _ in range(600)]

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path in {"/c", "/d"} and shared.allow(now()) > 0:
            return web.Response(status=429)
        return await server(request)

    async def main() -> float:
        async with serving(answer) as url, client(url, *stack(MINUTE, Throttle(MINUTE), attempts=100)) as session:
            tasks = [asyncio.create_task(_get(session, source.uniform(0, 600), path)) for path in paths]
            for task in tasks:
                if source.random() < 0.25:
                    await asyncio.sleep(source.uniform(0, 8))
                    task.cancel()
            await asyncio.wait([task for task, path in zip(tasks, paths, strict=True) if path != "/dead"])
            took = now()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            at_rest(session)
            return took

    # The smallest limit alone needs up to 90 calls / 2 * 60 s.
    assert quickly(main) < 6000
