"""What retries may add to the load of a session, with real sockets."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
import stamina
from aiohttp import web
from tests.json_store import JsonStore
from tests.sdk import Metering, Tracing
from tests.servers import Serve, ServeRaw

from lamella import (
    Backoff,
    Failure,
    LamellaError,
    RetryBudget,
    Rule,
    RuleBook,
    ServerStatusError,
    StopReason,
    TooManyRequests,
    deadline,
    stack,
)
from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(10, jitter=0)),
    Rule(503, "Service Unavailable", retry=Backoff(1, factor=1, jitter=0)),
    *(Rule(failure, failure.name.title(), retry=Backoff(1)) for failure in Failure),
)


class Server:
    """Down, but for the times when it is not."""

    def __init__(self, status: int = 503) -> None:
        self.status = status
        self.requests = 0

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        return web.Response(status=self.status)


def client(url: str, budget: RetryBudget | None, **options: object) -> aiohttp.ClientSession:
    layers = stack(RULES, retry_budget=budget, **{"throttle": False, **options})  # type: ignore[arg-type]
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers)


async def storm(session: aiohttp.ClientSession, calls: int) -> list[LamellaError]:
    """The errors of so many calls, at once."""

    async def call() -> LamellaError | None:
        try:
            async with session.get("/"):
                return None
        except LamellaError as error:
            return error

    return [error for error in await asyncio.gather(*(call() for _ in range(calls))) if error is not None]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("store", [None, MemoryStore(), JsonStore()], ids=["none", "memory", "shared"])
async def test_in_an_outage_retries_add_at_most_the_ratio_and_the_capacity(
    serve: Serve, virtual_time: VirtualClock, store: Store | None
) -> None:
    server = Server()
    async with client(await serve(server), RetryBudget(0.2, 10), store=store) as session:
        errors = []
        for _ in range(8):
            errors += await storm(session, 25)
            await asyncio.sleep(10)
    assert len(errors) == 200
    assert 200 + 0.2 * 200 <= server.requests <= 200 + 0.2 * 200 + 10
    assert {error.stopped for error in errors} <= {StopReason.RETRY_BUDGET_EMPTY, StopReason.ATTEMPTS_USED_UP}
    assert sum(len(error.attempts) for error in errors) == server.requests


async def test_without_a_budget_every_call_uses_all_its_attempts(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server()
    async with client(await serve(server), None) as session:
        errors = await storm(session, 30)
    assert server.requests == 150
    assert {error.stopped for error in errors} == {StopReason.ATTEMPTS_USED_UP}


@pytest.mark.slow
@pytest.mark.parametrize("total", [None, 300.0])
async def test_a_session_has_a_budget_by_default(serve: Serve, virtual_time: VirtualClock, total: float | None) -> None:
    server = Server()
    layers = stack(RULES, throttle=False)
    async with aiohttp.ClientSession(
        await serve(server), timeout=aiohttp.ClientTimeout(total), middlewares=layers
    ) as session:
        await storm(session, 100)  # the budget is full: there is no room for more
        assert server.requests == 100 + 50
        await storm(session, 100)
    assert server.requests == 100 + 50 + 100 + 20


@pytest.mark.slow
async def test_two_sessions_with_one_store_have_one_budget(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server()
    url, store, budget = await serve(server), JsonStore(), RetryBudget(0.0, 10)
    async with client(url, budget, store=store) as here, client(url, budget, store=store) as there:
        await asyncio.gather(storm(here, 20), storm(there, 20))
    assert server.requests == 40 + 10


async def test_retries_are_taken_from_a_shared_budget_in_tens(serve: Serve, virtual_time: VirtualClock) -> None:
    server, store = Server(), JsonStore()
    async with client(await serve(server), RetryBudget(0.0, 50), store=store, attempts=2) as session:
        for _ in range(20):
            await storm(session, 1)
    assert server.requests == 20 + 20
    assert store.asked == 2


async def test_an_empty_budget_makes_failures_final_with_a_reason(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    providers = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    async with client(await serve(server), RetryBudget(0.0, 1), **providers) as session:
        began = virtual_time.now
        [first] = await storm(session, 1)
        assert virtual_time.now - began == pytest.approx(1, abs=0.01)
        assert (first.stopped, len(first.attempts)) == (StopReason.RETRY_BUDGET_EMPTY, 2)
        tracing.exporter.clear()
        began = virtual_time.now
        [error] = await storm(session, 1)
        assert virtual_time.now == began
    assert isinstance(error, ServerStatusError)
    assert (error.stopped, len(error.attempts)) == (StopReason.RETRY_BUDGET_EMPTY, 1)
    assert error.attempts[0].attempts_left == 4
    assert "stopped: retry budget empty" in str(error)
    assert "retry budget empty" in caplog.text
    assert dict(tracing.call.attributes or {})["lamella.stop_reason"] == "retry_budget_empty"
    [event] = tracing.call.events
    assert (event.name, dict(event.attributes or {})["lamella.stop_reason"]) == ("lamella.stop", "retry_budget_empty")
    [(given, number)] = metering.points("lamella.call.stops")
    assert (given["lamella.stop_reason"], number) == ("retry_budget_empty", 2)


@pytest.mark.parametrize("longest", [None, 1000.0])
async def test_each_call_refills_the_budget(serve: Serve, virtual_time: VirtualClock, longest: float | None) -> None:
    server = Server()
    async with client(await serve(server), RetryBudget(0.2, 1), attempts=2, deadline=longest) as session:
        assert [len(error.attempts) for error in await storm(session, 3)] == [2, 1, 1]
        server.status = 200
        assert await storm(session, 7) == []
        server.status = 503
        assert sorted(len(error.attempts) for error in await storm(session, 2)) == [1, 2]


async def test_a_retry_after_429_costs_no_budget(serve: Serve, virtual_time: VirtualClock) -> None:
    """It says when to come back; and the throttle sees to it that it is rare."""
    server = Server(429)
    async with client(await serve(server), RetryBudget(0.0, 1), attempts=3) as session:
        errors = await storm(session, 20)
        assert [type(error) for error in errors] == [TooManyRequests] * 20
        assert {error.stopped for error in errors} == {StopReason.ATTEMPTS_USED_UP}
        assert server.requests == 60
        server.status = 503
        assert sorted(len(error.attempts) for error in await storm(session, 2)) == [1, 2]


async def test_a_retry_on_an_idle_closed_connection_costs_no_budget(serve_raw: ServeRaw) -> None:
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")  # and then it is closed

    budget = RetryBudget(0.0, 1)
    async with client(await serve_raw(once), budget) as session:
        for _ in range(6):
            async with session.get("/") as response:
                assert response.status == 200
    assert connections == 6


async def test_a_failure_without_retry_costs_no_budget(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(400)
    async with client(await serve(server), RetryBudget(0.0, 1), attempts=2) as session:
        await storm(session, 20)
        server.status = 503
        with pytest.raises(ServerStatusError) as unsafe:
            await session.post("/")
        assert unsafe.value.stopped is StopReason.UNSAFE_METHOD
        assert [len(error.attempts) for error in await storm(session, 1)] == [2]


async def test_a_too_long_wait_costs_no_budget(serve: Serve, virtual_time: VirtualClock) -> None:
    """Nor is it the budget that is to blame, when that is empty."""
    server = Server()
    async with client(await serve(server), RetryBudget(0.0, 1), attempts=2) as session:
        for attempts in (2, 1):
            with deadline(0.5):
                [hasty] = await storm(session, 1)
            assert (hasty.stopped, len(hasty.attempts)) == (StopReason.DEADLINE, 1)
            assert [len(error.attempts) for error in await storm(session, 1)] == [attempts]


async def test_the_switches_of_stamina_work_with_a_budget(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server()
    async with client(await serve(server), RetryBudget(0.0, 2), attempts=2) as session:
        stamina.set_active(False)
        try:
            assert [len(error.attempts) for error in await storm(session, 5)] == [1] * 5
        finally:
            stamina.set_active(True)
        assert [len(error.attempts) for error in await storm(session, 1)] == [2]  # nothing was spent
        began = virtual_time.now
        with stamina.set_testing(True, attempts=2):
            assert [len(error.attempts) for error in await storm(session, 2)] == [2, 1]
        assert virtual_time.now == began


async def test_a_failing_store_fails_no_call(
    serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = JsonStore()
    store.fails = lambda: 1 / 0
    server = Server()
    async with client(await serve(server), RetryBudget(0.0, 3), store=store, attempts=2) as session:
        errors = await storm(session, 10)
    assert sorted(len(error.attempts) for error in errors) == [*[1] * 7, *[2] * 3]
    assert len([record for record in caplog.records if "the store" in record.message]) == 1


async def test_a_call_cancelled_during_a_store_operation_frees_its_connection(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    async def long(request: web.Request) -> web.StreamResponse:
        # Longer than what aiohttp reads by itself, so that the connection is not free before somebody lets go.
        return web.Response(status=503, body=bytes(1_200_000))

    # Then aiohttp complains of an answer that is merely forgotten.
    asyncio.get_running_loop().set_debug(True)
    store = JsonStore()
    store.fails = lambda: asyncio.get_running_loop().create_future()
    options = {"store": store, "raise_errors": False, "buffer": None}
    async with client(await serve(long), RetryBudget(), **options) as session:
        task = asyncio.create_task(session._request("GET", "/"))
        await asyncio.sleep(0.1)
        held = session.connector._acquired  # type: ignore[union-attr]
        assert held
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not held
        del task
