"""503 with ``Retry-After`` is a rate limit: for the throttle, the retry budget, the breaker and a batch's outage."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import aiohttp
import pytest
from aiohttp import web
from tests.json_store import JsonStore
from tests.layers.accounts import KINDS, account_of, at_rest, client, in_episode, limit_of, now, quickly
from tests.servers import Serve, serving

from lamella import (
    ApiError,
    Backoff,
    Breaker,
    CircuitOpen,
    Classify,
    LamellaError,
    RateLimited,
    RetryBudget,
    Rule,
    RuleBook,
    ServerStatusError,
    StopReason,
    Throttle,
    maesn,
    stack,
)
from lamella.batch import Batch
from lamella.batch.outage import _works
from lamella.classify.judge import api_error_class
from lamella.testing import Limit as ServersLimit
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(60, jitter=0)),
    *(Rule(status, "Server Error", retry=Backoff(15, factor=1, jitter=0)) for status in (500, 502, 503, 504)),
)
SECOND = {
    "the guide's, scaled": maesn.RULES.scaled(1 / 60),
    "a second": RuleBook(Rule(503, "Service Unavailable", retry=Backoff(1))),
    "soon": RuleBook(Rule(503, "Service Unavailable", retry=Backoff(0.01))),
}


class Server:
    """Refuses what is beyond its limit, or the next requests of all, with a status and ``Retry-After``."""

    def __init__(self, *, limit: ServersLimit | None = None, latency: float = 0.02) -> None:
        self.limiter = limit.limiter() if limit else None
        self.status = 503
        self.asks: str | None = None
        """For how long it asks. None: as long as its limit says."""
        self.down = 0
        self.form = "seconds"
        self.latency = latency
        self.at: list[float] = []
        self.refused = 0
        self.methods: list[str] = []

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.at.append(now())
        self.methods.append(request.method)
        wait = self.limiter.allow(now()) if self.limiter else 0.0
        refused = wait > 0 or self.down > 0
        if self.down:
            self.down -= 1
        await asyncio.sleep(self.latency)
        if not refused:
            return web.Response()
        self.refused += 1
        after = self.asks if self.asks is not None else str(math.ceil(wait))
        if self.form == "date":
            after = format_datetime(datetime.now(UTC) + timedelta(seconds=math.ceil(wait)), usegmt=True)
        return web.Response(status=self.status, headers={"Retry-After": after} if after else {})


async def get(session: aiohttp.ClientSession, account: str = "", method: str = "GET", **options: str) -> int:
    headers = {"X-Account": account} if account else {}
    async with session.request(method, "/", headers={**headers, **options}) as response:
        return response.status


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
@pytest.mark.parametrize(
    "rules", [name if name == "a second" else pytest.param(name, marks=pytest.mark.slow) for name in SECOND]
)
def test_many_calls_above_the_limit_lose_nothing(kind: str, rules: str) -> None:
    """A thousand calls, 500 at a time, for a hundred a second: as with 429."""
    limit = limit_of(kind, 100, 1.0)
    server = Server(limit=limit)

    async def main() -> float:
        async with serving(server) as url:
            async with client(url, *stack(SECOND[rules], spans=False)) as session:
                numbers = iter(range(1000))

                async def work() -> None:
                    for _ in numbers:
                        assert await get(session) == 200

                began = now()
                await asyncio.gather(*(work() for _ in range(500)))
                await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
                at_rest(session)
                return now() - began

    took = quickly(main)
    assert len(server.at) <= 1000 * (1.10 if rules != "soon" else 1.15)
    assert took <= 10 * 1.15


async def refusing(serve: Serve, server: Server, down: int, asks: str | None) -> str:
    server.down, server.asks = down, asks
    return await serve(server)


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_503_with_retry_after_blocks_only_its_account(
    serve: Serve, virtual_time: VirtualClock, form: str
) -> None:
    server = Server()
    url = await refusing(serve, server, 1, "30" if form == "seconds" else None)
    if form == "date":
        server.asks = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    async with client(url, *stack(RULES, account=account_of)) as session:
        first = asyncio.create_task(get(session, "a"))
        await asyncio.sleep(1)
        others = [asyncio.create_task(get(session, "a")) for _ in range(5)]
        assert await get(session, "b") == 200
        assert now() - server.at[0] < 2
        assert await asyncio.gather(first, *others) == [200] * 6
        assert len(server.at) == 8
        assert [at - server.at[0] for at in server.at[2:]] == pytest.approx([30.0] * 6, abs=1.1)
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("status", "asks", "free"),
    [
        (503, "1", True),
        (503, "0", True),
        (429, "", True),
        (503, "", False),
        (503, "soon", False),
        (503, "-1", False),
        (500, "1", False),
        (502, "1", False),
        (504, "1", False),
    ],
)
@pytest.mark.parametrize("throttle", [True, False])
async def test_retries_after_a_503_rate_limit_cost_no_budget(
    serve: Serve, virtual_time: VirtualClock, status: int, asks: str, free: bool, throttle: bool
) -> None:
    server = Server()
    url = await refusing(serve, server, 12, asks)
    server.status = status
    layers = stack(RULES, retry_budget=RetryBudget(0.0, 1), throttle=throttle, attempts=20)
    async with client(url, *layers) as session:
        results = await asyncio.gather(*(get(session) for _ in range(4)), return_exceptions=True)
        if free:
            assert results == [200] * 4
        else:
            stopped = [error.stopped for error in results if isinstance(error, LamellaError)]
            assert stopped == [StopReason.RETRY_BUDGET_EMPTY] * 4


@pytest.mark.sampled
@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize(("asks", "opens"), [("1", False), ("", True)])
@pytest.mark.parametrize("by", ["all layers", "no Retry", "answers"])
async def test_the_breaker_does_not_count_a_503_rate_limit(
    serve: Serve, virtual_time: VirtualClock, store: bool, asks: str, opens: bool, by: str
) -> None:
    server = Server()
    url = await refusing(serve, server, 5, asks)
    breaker = Breaker(minimum=1, store=JsonStore(slow=0.0) if store else None)
    layers: dict[str, tuple[aiohttp.ClientMiddlewareType, ...]] = {
        "all layers": stack(RULES, breaker, attempts=1, throttle=False),
        "no Retry": (breaker, Classify(RULES)),
        "answers": (breaker,),
    }
    async with client(url, *layers[by]) as session:
        seen: list[object] = []
        for _ in range(5):
            try:
                seen.append(await get(session))
            except ApiError as error:
                seen.append(error.status)
            except CircuitOpen:
                seen.append(None)
        assert seen == ([503, None, None, None, None] if opens else [503] * 5)


async def test_a_503_rate_limit_does_not_change_a_half_open_circuit(serve: Serve, virtual_time: VirtualClock) -> None:
    """A probe that is refused leaves its place to the next one."""
    server = Server()
    url = await refusing(serve, server, 1, "")
    async with client(url, *stack(RULES, Breaker(minimum=1, probes=1), attempts=1, throttle=False)) as session:
        with pytest.raises(ServerStatusError):
            await get(session)
        with pytest.raises(CircuitOpen):
            await get(session)
        await asyncio.sleep(30)
        server.down, server.asks = 3, "1"
        for _ in range(3):
            with pytest.raises(ServerStatusError):
                await get(session)
        server.down, server.asks = 1, ""
        with pytest.raises(ServerStatusError):
            await get(session)
        with pytest.raises(CircuitOpen):
            await get(session)
        await asyncio.sleep(30)
        assert await get(session) == 200


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {}, None])
async def test_an_error_of_another_middleware_is_judged_in_the_same_way(
    serve: Serve, virtual_time: VirtualClock, headers: dict[str, str] | None
) -> None:
    async def raising(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        response.release()
        raise aiohttp.ClientResponseError(response.request_info, (), status=503, headers=headers)  # type: ignore[arg-type]

    async with client(await serve(Server()), Breaker(minimum=1), raising) as session:
        with pytest.raises(aiohttp.ClientResponseError):
            await get(session)
        with pytest.raises(aiohttp.ClientResponseError if headers else CircuitOpen):
            await get(session)


@pytest.mark.parametrize(
    ("status", "retry_after", "works"),
    [(503, 1.0, None), (503, 0.0, None), (503, None, False), (500, 1.0, False), (502, 1.0, False), (429, None, True)],
)
async def test_a_503_without_retry_after_is_an_outage(
    serve: Serve, status: int, retry_after: float | None, works: bool | None
) -> None:
    async with client(await serve(Server())) as session, session.get("/") as response:
        rule = RULES.rule_for(status)
        error = api_error_class(status)(response.request_info, status=status, rule=rule, retry_after=retry_after)
    assert _works(error) is works


@pytest.mark.slow
@pytest.mark.parametrize("asks", ["60", ""])
async def test_a_batch_continues_for_other_accounts(serve: Serve, virtual_time: VirtualClock, asks: str) -> None:
    """Without `Retry-After` it waits for the outage to end, and the breaker opens."""
    server = Server()
    server.down, server.asks = 10**9, asks

    async def answer(request: web.Request) -> web.StreamResponse:
        return await server(request) if request.headers["X-Account"] == "a" else web.Response()

    async with client(await serve(answer), *stack(RULES, Breaker(minimum=2), account=account_of)) as session:
        outages: list[object] = []

        async def work(item: int) -> int:
            return await get(session, "a" if item < 4 else "b")

        batch = Batch(work, range(40), at_once=8, account=lambda item: item < 4, at_once_per_account=4, patience=300)
        async with batch:
            async for outcome in batch:
                outages.append(batch.outage)
                if outcome.item >= 4 and asks:
                    assert outcome.done
        assert (set(outages) == {None}) is bool(asks)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_write_with_503_is_not_repeated_but_blocks_the_account(
    serve: Serve, virtual_time: VirtualClock, method: str
) -> None:
    """That it was refused is no proof that nothing was carried out."""
    server = Server()
    async with client(await refusing(serve, server, 1, "30"), *stack(RULES)) as session:
        with pytest.raises(ServerStatusError) as caught:
            await get(session, method=method)
        assert caught.value.stopped is StopReason.UNSAFE_METHOD
        assert server.methods == [method]
        assert in_episode(session)
        assert await get(session, method=method) == 200
        assert server.at[1] - server.at[0] == pytest.approx(30, abs=1)
        server.down = 1
        assert await get(session, method=method, **{"Idempotency-Key": "1"}) == 200
        assert server.methods == [method] * 4


@pytest.mark.parametrize(
    "layers", [(Throttle(RULES),), (Throttle(RULES), Classify(RULES))], ids=["alone", "classified"]
)
async def test_throttle_alone_recognizes_a_503_rate_limit(
    serve: Serve, virtual_time: VirtualClock, layers: tuple[aiohttp.ClientMiddlewareType, ...]
) -> None:
    server = Server()
    async with client(await refusing(serve, server, 1, "30"), *layers) as session:
        if len(layers) == 1:
            assert await get(session) == 503
        else:
            with pytest.raises(ServerStatusError):
                await get(session)
        assert await get(session) == 200
        assert server.at[1] - server.at[0] == pytest.approx(30, abs=1)
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.parametrize("asks", ["", "soon"])
async def test_a_503_without_retry_after_does_not_block_the_account(
    serve: Serve, virtual_time: VirtualClock, asks: str
) -> None:
    server = Server()
    async with client(await refusing(serve, server, 1, asks), *stack(RULES, attempts=1)) as session:
        with pytest.raises(ServerStatusError):
            await get(session)
        assert await get(session) == 200
        assert server.at[1] - server.at[0] < 1


async def test_in_an_outage_one_call_of_each_account_probes(serve: Serve, virtual_time: VirtualClock) -> None:
    """Two accounts with 30 calls each, ten minutes of 503 that says to come back in half a minute."""
    server = Server()
    url = await refusing(serve, server, 10**9, "30")
    async with client(url, *stack(RULES, account=account_of)) as session:
        calls = [asyncio.create_task(get(session, account)) for account in "ab" for _ in range(30)]
        await asyncio.sleep(600)
        assert len(server.at) <= 2 * (4 + 600 / 30)
        server.down = 0
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [error for error in results if error != 200]
        # Only those that asked have used attempts up.
        assert len(failed) <= 2 * 8
        for error in failed:
            assert isinstance(error, ServerStatusError)
            assert not isinstance(error, RateLimited)
        assert now() - server.at[0] < 900
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)
