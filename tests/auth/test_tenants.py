"""Hundreds of tenants, whatever happens to calls, tokens and endpoint: each gets its own token, or its own end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextvars import ContextVar

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples
from tests.fuzz.calls import Answer, request_of
from tests.leftovers import tasks_of_lamella, timers_of_lamella

from lamella import HTTP_RULES, HeaderAuth, Retry, Token, Tokens, TokenUnavailable, Unauthorized, deadline
from lamella.pipeline import Pipeline
from lamella.testing import run_virtual

ORIGIN = "http://service.example"
tenant: ContextVar[str] = ContextVar("tenant")


class World:
    """An identity provider and a server, and what the calls of each tenant have ended in."""

    def __init__(self, seed: int, tenants: int, calls: int, failing: float, lasts: float, revoked: float) -> None:
        self.random = random.Random(seed)
        self.tenants, self.calls, self.failing, self.lasts, self.revoked = tenants, calls, failing, lasts, revoked
        self.valid: dict[str, str] = {}
        self.under_way: Counter[str] = Counter()
        self.failed: dict[LookupError, tuple[str, float]] = {}
        """The failures of fetches: whose token it was, and when."""
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    async def fetch(self, name: str) -> Token:
        assert tenant.get(None) is None, "the context of a caller"
        assert not self.under_way[name], "two fetches at a time"
        self.under_way[name] += 1
        try:
            await asyncio.sleep(self.random.expovariate(1.0))
            if self.random.random() < self.failing:
                failure = LookupError(name)
                self.failed[failure] = name, asyncio.get_running_loop().time()
                raise failure
            number = self.random.getrandbits(64)
            self.valid[name] = f"{name} {number}"
            return Token(self.valid[name], self.lasts)
        finally:
            self.under_way[name] -= 1

    async def send(self, request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
        name, token = tenant.get(), request.headers["Authorization"]
        assert token.split()[0] == name, "the token of another tenant"
        await asyncio.sleep(self.random.expovariate(10.0))
        if token != self.valid[name]:
            self.refused[name] += 1
            raise Unauthorized(request.request_info, status=401, rule=HTTP_RULES.rule_for(401))
        return Answer(200)  # type: ignore[return-value]

    async def call(self, session: aiohttp.ClientSession, layers: aiohttp.ClientMiddlewareType) -> None:
        name = f"tenant-{self.random.randrange(self.tenants)}"
        tenant.set(name)
        await asyncio.sleep(self.random.uniform(0, 60))
        loop, refused = asyncio.get_running_loop(), self.refused[name]
        seconds = self.random.choice([None, None, None, 0.3, 3.0])
        ends = None if seconds is None else loop.time() + seconds
        request = await request_of(session, "/")
        try:
            async with deadline(seconds or 3600.0):
                await layers(request, self.send)
            self.ended["well"] += 1
        except TokenUnavailable as error:
            self.ended["without a token"] += 1
            self.check_failure(error.__cause__, name)
        except Unauthorized:
            self.ended["refused twice"] += 1
            assert self.refused[name] >= refused + 2
        except TimeoutError:
            self.ended["too late"] += 1
            assert ends is not None, "the deadline of another call"
            assert loop.time() >= ends - 0.01

    def check_failure(self, cause: BaseException | None, name: str) -> None:
        """The call waited for this very fetch: one of its own tenant, which has failed just now."""
        assert isinstance(cause, LookupError)
        assert self.failed[cause] == (name, asyncio.get_running_loop().time())

    async def revoke(self) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(self.revoked))
            name = f"tenant-{self.random.randrange(self.tenants)}"
            self.valid[name] = ""

    async def live(self) -> None:
        tokens = Tokens(self.fetch, key=tenant.get, leeway=self.random.choice([0.0, 5.0, 60.0]))
        layers = Pipeline([Retry(HTTP_RULES), HeaderAuth({"Authorization": tokens}, origin=ORIGIN)])
        async with aiohttp.ClientSession(ORIGIN) as session:
            tasks = [asyncio.create_task(self.call(session, layers)) for _ in range(self.calls)]
            revoking = asyncio.create_task(self.revoke())
            cancelled = set(self.random.sample(tasks, self.calls // 10))
            for task in cancelled:
                asyncio.get_running_loop().call_later(self.random.uniform(0, 65), task.cancel)
            ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10_000)
            for task, end in zip(tasks, ends, strict=True):
                assert end is None or (isinstance(end, asyncio.CancelledError) and task in cancelled), repr(end)
            revoking.cancel()
            await tokens.aclose()
            assert not tasks_of_lamella()
            assert not timers_of_lamella()


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32),
    tenants=st.sampled_from([1, 20, 300]),
    failing=st.sampled_from([0.0, 0.3]),
    lasts=st.sampled_from([1.0, 20.0, 3600.0]),
    revoked=st.sampled_from([0.01, 1.0, 10.0]),
)
@examples(50, deadline=None)
def test_no_tenant_gets_the_token_the_deadline_or_the_cancellation_of_another(
    seed: int, tenants: int, failing: float, lasts: float, revoked: float
) -> None:
    world = World(seed, tenants, 200, failing, lasts, revoked)
    run_virtual(world.live())
    assert world.ended["well"]
