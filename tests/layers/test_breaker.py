from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, TypeVarTuple

import aiohttp
import anyio
import pytest
import stamina
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode
from tests.cancelling import cancelled_at, thrown_away_at
from tests.layering import together
from tests.sdk import Tracing
from tests.servers import Connection, Serve, ServeRaw
from yarl import URL

from lamella import (
    AttemptRecord,
    AttemptTimeout,
    Backoff,
    Breaker,
    CircuitOpen,
    Classify,
    ConnectFailed,
    ConnectionLost,
    Failure,
    LamellaError,
    MemoryStore,
    NotFound,
    RateLimited,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    ServiceUnavailable,
    StopReason,
    Timeout,
)
from lamella.call import Call
from lamella.testing import VirtualClock, run_virtual

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

Layers = tuple[aiohttp.ClientMiddlewareType, ...]
CLASSIFY = Classify(RuleBook())
SECRET = "s3cret-account-key"


class Service:
    """Answers with a status that can be set, or the next of its script; a path in digits is a status of its own.

    While `go_on` is not set, it keeps all of them waiting, but not for ever.
    """

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.script: list[int] = []
        self.body = b"body"
        self.sends = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.sends += 1
        async with asyncio.timeout(1000):
            await self.go_on.wait()
        own = request.path.strip("/")
        status = self.script.pop(0) if self.script else self.status
        return web.Response(status=int(own) if own.isdigit() else status, body=self.body)


def again(sends: int, wait: float) -> Retry:
    """A call is sent so many times, so many seconds apart."""
    backoff = Backoff(initial=wait, factor=1, jitter=0)
    return Retry(RuleBook(Rule("5xx", "Server Error", retry=backoff)), attempts=sends)


class SharedStore:
    """Keeps states as JSON, and has a clock of its own, as a store for many processes does. It may be slow, or fail."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.broken = False
        self.states: dict[str, str] = {}
        self.asked = 0

    async def update(self, key: str, new: Callable[[], S], change: Callable[[S, float, *Ts], R], *args: *Ts) -> R:
        self.asked += 1
        if self.broken:
            raise ConnectionError(f"redis://user:{SECRET}@redis.example: {key}")
        # It is changed somewhere in the middle of a wait.
        await asyncio.sleep(self.seconds)
        state: Any = new()
        if key in self.states:
            state = type(state)(**json.loads(self.states[key]))
        answer = change(state, asyncio.get_running_loop().time() + 1e9, *args)
        self.states[key] = json.dumps(asdict(state), allow_nan=False)
        await asyncio.sleep(self.seconds)
        return answer


def slow_store() -> SharedStore:
    return SharedStore(0.01)


def client(url: str, *layers: aiohttp.ClientMiddlewareType, **options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers, **options)


async def get(session: aiohttp.ClientSession, url: str = "/", **options: Any) -> int | type[BaseException]:
    """The status of the answer, or the class of the error."""
    try:
        async with session.get(url, **options) as response:
            await response.read()
            return response.status
    except LamellaError as error:
        return type(error)


def attributes(of: Any) -> dict[str, Any]:
    return dict(of.attributes or {})


def quick(**options: Any) -> Breaker:
    """It opens with the first failure, for 30 s, and closes with the first success."""
    return Breaker(**({"minimum": 1, "failures": 0.01, "open_for": 30.0, "probes": 1} | options))


async def test_an_open_circuit_rejects_at_once_with_start_and_end_time(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    service = Service(503)
    breaker = Breaker(failures=0.5, minimum=4, window=30, open_for=60)
    async with client(await serve(service), breaker, CLASSIFY) as session:
        service.status = 200
        assert [await get(session) for _ in range(2)] == [200, 200]
        service.status = 503
        assert [await get(session) for _ in range(2)] == [ServiceUnavailable] * 2
        await asyncio.sleep(20)
        began, before = virtual_time.now, datetime.now(UTC)
        with pytest.raises(CircuitOpen) as caught:
            await session.get(f"/path/{SECRET}", params={"token": "4711"}, headers={"X-API-KEY": SECRET})
        assert virtual_time.now == began
    after, error = datetime.now(UTC), caught.value
    assert service.sends == 4
    assert before - timedelta(seconds=20.5) <= error.since <= after - timedelta(seconds=20)
    assert before + timedelta(seconds=39.5) <= error.until <= after + timedelta(seconds=40)
    assert error.retry_after == pytest.approx(40, abs=0.5)
    assert error.stopped is StopReason.CIRCUIT_OPEN
    assert (error.method, error.rule) == ("GET", RuleBook().rule_for(Failure.CIRCUIT_OPEN))
    assert isinstance(error, aiohttp.ClientError)
    for part in ("/path/REDACTED?token=REDACTED: Circuit Open (since 2", "which is in 40 s", "stopped: circuit open"):
        assert part in str(error)
    assert SECRET not in repr(error)


async def test_a_circuit_closes_after_successful_probes_only(serve: Serve, virtual_time: VirtualClock) -> None:
    service = Service(503)
    async with client(await serve(service), quick(probes=2), CLASSIFY) as session:
        assert await get(session) is ServiceUnavailable
        await asyncio.sleep(29)
        assert await get(session) is CircuitOpen
        await asyncio.sleep(1)
        assert await get(session, "/200") == 200
        assert await get(session) is ServiceUnavailable
        assert await get(session, "/200") is CircuitOpen
        await asyncio.sleep(30)
        service.go_on.clear()
        probes = asyncio.gather(*(get(session, path) for path in ("/200", "/404")))
        await asyncio.sleep(1)
        with pytest.raises(CircuitOpen) as caught:
            await session.get("/200")
        service.go_on.set()
        assert await probes == [200, NotFound]
        # It has not been closed for 61 s, and is half-open with no place free: for 29 s at the most.
        assert (datetime.now(UTC) - caught.value.since).total_seconds() == pytest.approx(61, abs=0.5)
        assert caught.value.retry_after == pytest.approx(29, abs=0.5)
        # It is closed: all pass.
        assert await asyncio.gather(*(get(session, "/200") for _ in range(5))) == [200] * 5


@pytest.mark.parametrize("layers", [(CLASSIFY,), ()], ids=["Classify", "alone"])
@pytest.mark.parametrize(
    ("status", "opens"),
    [(200, False), (302, False), (400, False), (404, False), (429, False), (500, True), (599, True)],
)
async def test_responses_that_show_whether_the_service_works(
    serve: Serve, layers: Layers, status: int, opens: bool
) -> None:
    async with client(await serve(Service(status)), quick(), *layers) as session:
        await get(session, allow_redirects=False)
        assert (await get(session, allow_redirects=False) is CircuitOpen) is opens


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("connection", [hang_up, garbage, silence])
@pytest.mark.parametrize("layers", [(Timeout(5), CLASSIFY), ()], ids=["layers", "alone"])
async def test_a_missing_response_is_a_failure(
    serve_raw: ServeRaw, virtual_time: VirtualClock, connection: Connection, layers: Layers
) -> None:
    timeout = aiohttp.ClientTimeout(sock_read=8)
    async with aiohttp.ClientSession(await serve_raw(connection), timeout=timeout, middlewares=(quick(), *layers)) as s:
        with pytest.raises((aiohttp.ClientError, TimeoutError)) as caught:
            await s.post("/")
        assert isinstance(caught.value, ConnectionLost | AttemptTimeout) is bool(layers)
        with pytest.raises(CircuitOpen):
            await s.get("/")


@pytest.mark.parametrize("layers", [(CLASSIFY,), ()], ids=["Classify", "alone"])
async def test_a_failed_connection_is_a_failure(serve_raw: ServeRaw, layers: Layers) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with client(f"http://127.0.0.1:{port}", quick(), *layers) as session:
        with pytest.raises(ConnectFailed if layers else aiohttp.ClientConnectorError):
            await session.get("/")
        with pytest.raises(CircuitOpen):
            await session.get("/")


async def test_the_second_attempt_that_aiohttp_makes_by_itself_counts(serve_raw: ServeRaw) -> None:
    """Without a Classify below: the first opens the circuit, and the second is refused."""
    sends = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sends.append(await reader.readuntil(b"\r\n\r\n"))

    async with client(await serve_raw(connection), quick()) as session:
        with pytest.raises(CircuitOpen):
            await session.get("/")
    assert len(sends) == 1


def raising(error: Exception) -> aiohttp.ClientMiddlewareType:
    async def layer(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise error

    return layer


def info() -> aiohttp.RequestInfo:
    url = URL("http://other.example/")
    return aiohttp.RequestInfo(url, "GET", {}, url)  # type: ignore[arg-type]


def another_calls_end() -> Exception:
    url = URL("http://tokens.example/")
    error = ConnectionLost("GET", url, RuleBook().rule_for(Failure.CONNECTION_LOST))
    error.stopped = StopReason.ATTEMPTS_USED_UP
    return error


def not_sent(kind: type[RateLimited | CircuitOpen], reason: StopReason) -> LamellaError:
    url = URL("http://other.example/")
    return kind("GET", url, RuleBook().rule_for(kind.failure), since=1, until=1, stopped=reason)


@pytest.mark.parametrize(
    ("error", "works"),
    [
        (ValueError("not the service's"), None),
        (not_sent(RateLimited, StopReason.DEADLINE), None),
        (not_sent(CircuitOpen, StopReason.CIRCUIT_OPEN), None),
        (another_calls_end(), None),
        (aiohttp.InvalidURL("http://"), None),
        (aiohttp.ClientResponseError(info(), (), status=200), None),
        (aiohttp.ClientResponseError(info(), (), status=404), True),
        (aiohttp.ClientResponseError(info(), (), status=503), False),
        (aiohttp.ClientPayloadError("cut"), False),
        (aiohttp.ServerTimeoutError(), False),
        (TimeoutError(), False),
    ],
    ids=lambda value: (
        f"{type(value).__name__}-{getattr(value, 'status', '')}" if isinstance(value, Exception) else None
    ),
)
async def test_errors_that_show_whether_the_service_works(
    serve: Serve, virtual_time: VirtualClock, error: Exception, works: bool | None
) -> None:
    breaker = Breaker(minimum=2, failures=0.01, open_for=30, probes=1)
    url = await serve(Service())
    async with client(url, breaker, raising(error)) as session, client(url, breaker) as other:
        for _ in range(2):
            with pytest.raises(type(error)):
                await session.get("/")
        assert await get(other) == (CircuitOpen if works is False else 200)
        assert [await get(other, "/503") for _ in range(2)] == (
            [CircuitOpen] * 2 if works is False else [503, CircuitOpen]
        )
        await asyncio.sleep(31)
        with pytest.raises(type(error)):
            await session.get("/")
        # It is closed, where one failure is too few; or the place is free, and one is enough.
        expected = {True: [503, 200], None: [503, CircuitOpen], False: [CircuitOpen] * 2}
        assert [await get(other, path) for path in ("/503", "/200")] == expected[works]


async def test_an_unsent_attempt_does_not_count(serve: Serve, virtual_time: VirtualClock) -> None:
    async def refuse(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        call = Call.of(request)
        call.records = (AttemptRecord(1, 503, None, 0.1),)
        error = not_sent(RateLimited, StopReason.DEADLINE)
        error.attempts = tuple(call.records)
        raise error

    breaker = quick()
    async with client(await serve(Service()), breaker, refuse) as session:
        for _ in range(2):
            with pytest.raises(RateLimited):
                await session.get("/")


async def test_each_origin_has_its_own_circuit(serve: Serve) -> None:
    first, second = await serve(Service(503)), await serve(Service())
    async with client(first, quick(), CLASSIFY) as session:
        assert await get(session) is ServiceUnavailable
        assert await get(session, f"{second}/") == 200
        assert await get(session, "/200") is CircuitOpen


async def test_a_redirect_to_another_origin_uses_its_circuit(serve: Serve) -> None:
    target = Service(503)
    url = await serve(target)

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{url}/")

    start = await serve(elsewhere)
    async with client(start, quick(), CLASSIFY) as session:
        assert [await get(session) for _ in range(2)] == [ServiceUnavailable, CircuitOpen]
        assert await get(session, allow_redirects=False) == 302
    assert target.sends == 1


async def test_a_key_decides_who_shares_a_circuit(serve: Serve) -> None:
    async with client(
        await serve(Service()), quick(key=lambda request: request.headers["X-Account"]), CLASSIFY
    ) as session:
        assert await get(session, "/503", headers={"X-Account": "a"}) is ServiceUnavailable
        assert await get(session, headers={"X-Account": "b"}) == 200
        assert await get(session, headers={"X-Account": "a"}) is CircuitOpen
        with pytest.raises(KeyError):
            await session.get("/")


async def test_layers_that_share_a_store_share_their_circuits(serve: Serve, virtual_time: VirtualClock) -> None:
    store = slow_store()
    service = Service(503)
    url = await serve(service)
    async with client(url, quick(store=store), CLASSIFY) as one, client(url, quick(store=store), CLASSIFY) as other:
        assert await get(one) is ServiceUnavailable
        assert await get(other) is CircuitOpen
        await asyncio.sleep(30)
        assert await get(other, "/200") == 200
        assert await get(one, "/200") == 200


@pytest.mark.slow
async def test_two_thousand_concurrent_calls_cause_only_a_few_probes(serve: Serve, virtual_time: VirtualClock) -> None:
    service = Service(503)
    async with client(await serve(service), quick(probes=3), CLASSIFY) as session:
        await get(session)
        await asyncio.sleep(30)
        service.go_on.clear()
        calls = asyncio.gather(*(get(session, "/200") for _ in range(2000)))
        await asyncio.sleep(1)
        assert service.sends == 4
        service.go_on.set()
        outcomes = await calls
        assert (outcomes.count(200), outcomes.count(CircuitOpen)) == (3, 1997)
        assert await get(session, "/200") == 200


@pytest.mark.slow
async def test_the_circuit_opens_once_for_two_thousand_concurrent_calls(
    serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """All have passed it when the first of them fails; those that succeed after that do not close it."""
    caplog.set_level(logging.INFO, logger="lamella")
    service = Service()
    broken = asyncio.Event()

    async def send(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await broken.wait()
        if request.headers["X-Number"] != "1999":
            raise aiohttp.ServerTimeoutError
        return await handler(request)

    breaker = Breaker(failures=0.5, minimum=100, open_for=60, probes=3)
    async with client(await serve(service), breaker, send, CLASSIFY) as session:

        async def call(number: int) -> object:
            with suppress(TimeoutError):
                return await get(session, headers={"X-Number": str(number)})
            return TimeoutError

        calls = asyncio.gather(*(call(number) for number in range(2000)))
        await asyncio.sleep(1)
        broken.set()
        outcomes = await calls
        assert (outcomes.count(TimeoutError), outcomes.count(200)) == (1999, 1)
        assert await asyncio.gather(*(call(1999) for _ in range(200))) == [CircuitOpen] * 200
    [record] = caplog.records
    assert "opened: 100 of 100 attempts failed in 30 s, so no attempt is sent for 60 s" in record.getMessage()
    assert service.sends == 1


# What Retry and the circuit report to each other.


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("layers", [(CLASSIFY,), ()], ids=["Classify", "alone"])
async def test_every_attempt_counts_once(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, layers: Layers, wrapped: bool
) -> None:
    service = Service(503)
    breaker = Breaker(failures=0.5, minimum=6, window=60)
    span = RequestSpan(tracer_provider=tracing.provider)
    # As one middleware without its Retry, it sees an answer that Retry has reported already.
    outer = (together((span, breaker)),) if wrapped else (span, breaker)
    async with client(await serve(service), *outer, again(3, wait=1), *layers) as session:
        failed = ServiceUnavailable if layers else 503
        assert await get(session) == failed
        assert service.sends == 3
        # Two good ones: 3 of 5 have failed, which are too few.
        assert [await get(session, "/200") for _ in range(2)] == [200, 200]
        began = virtual_time.now
        assert await get(session) == failed
        # The sixth attempt has opened it, and so the call does not wait.
        assert virtual_time.now == began
    assert service.sends == 6
    reasons = [attributes(call).get("lamella.stop_reason") for call in tracing.spans]
    assert reasons == ["attempts_used_up", None, None, "circuit_open"]


async def test_with_disabled_retry_the_outcome_of_the_call_counts(serve: Serve, virtual_time: VirtualClock) -> None:
    async with client(await serve(Service(503)), quick(minimum=2), again(3, wait=1), CLASSIFY) as session:
        stamina.set_active(False)
        try:
            assert [await get(session) for _ in range(3)] == [ServiceUnavailable, ServiceUnavailable, CircuitOpen]
        finally:
            stamina.set_active(True)


async def test_a_call_asks_the_circuit_again_after_a_wait(serve: Serve, virtual_time: VirtualClock) -> None:
    service = Service(503)
    url = await serve(service)
    breaker = Breaker(failures=0.9, minimum=3, open_for=30, probes=1)
    async with client(url, breaker, again(3, wait=10), CLASSIFY) as session, client(url, breaker, CLASSIFY) as others:
        waiting = asyncio.create_task(session.get("/").__aenter__())
        await asyncio.sleep(9)
        assert [await get(others) for _ in range(3)] == [ServiceUnavailable, ServiceUnavailable, CircuitOpen]
        with pytest.raises(ServiceUnavailable) as caught:
            await waiting
    assert caught.value.stopped is StopReason.CIRCUIT_OPEN
    assert service.sends == 3
    assert virtual_time.elapsed == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_an_attempt_after_a_wait_may_be_a_probe(serve: Serve, virtual_time: VirtualClock, status: int) -> None:
    service = Service(503)
    async with client(await serve(service), quick(), again(2, wait=40), CLASSIFY) as session:
        waiting = asyncio.create_task(get(session))
        await asyncio.sleep(39)
        assert service.sends == 1
        service.status = status
        service.go_on.clear()
        await asyncio.sleep(5)
        # It has the one place.
        assert service.sends == 2
        assert await get(session, "/200") is CircuitOpen
        service.go_on.set()
        assert await waiting == {200: 200, 404: NotFound, 503: ServiceUnavailable}[status]
        assert await get(session, "/200") == (CircuitOpen if status == 503 else 200)


async def test_a_probe_after_a_wait_is_released(serve: Serve, virtual_time: VirtualClock) -> None:
    service = Service(503)
    async with client(await serve(service), quick(), again(2, wait=40), CLASSIFY) as session:
        waiting = asyncio.create_task(get(session))
        await asyncio.sleep(39)
        service.go_on.clear()
        await asyncio.sleep(5)
        waiting.cancel()
        await asyncio.wait([waiting])
        service.go_on.set()
        assert waiting.cancelled()
        assert await get(session, "/200") == 200


async def test_a_call_that_asks_twice_has_one_probe(serve: Serve, virtual_time: VirtualClock) -> None:
    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        circuit = Call.of(request).circuit
        assert circuit is not None
        assert await circuit.open_for() == 0.0
        assert await circuit.admit()
        assert await circuit.admit()
        return await handler(request)

    url = await serve(Service())
    breaker = quick(probes=2)
    async with client(url, breaker, CLASSIFY) as session, client(url, breaker, twice, CLASSIFY) as doubled:
        assert await get(session, "/503") is ServiceUnavailable
        await asyncio.sleep(30)
        assert await get(doubled, "/200") == 200
        # Another success is needed, and a failure opens it again.
        assert await get(session, "/503") is ServiceUnavailable
        assert await get(session, "/200") is CircuitOpen


# Whatever ends a call: its probe is released.


def places(store: SharedStore | MemoryStore) -> int:
    """Return how many probes are in flight, as far as the store knows."""
    if isinstance(store, MemoryStore):
        return sum(len(state.probes) for state in store._states.values())
    return sum(len(json.loads(state)["probes"]) for state in store.states.values())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", [MemoryStore, slow_store])
@pytest.mark.parametrize(("status", "waits"), [(200, False), (200, True), (503, True)])
async def test_a_call_cancelled_at_any_await_releases_its_probe(
    serve: Serve, virtual_time: VirtualClock, kind: Callable[[], MemoryStore | SharedStore], waits: bool, status: int
) -> None:
    service = Service()
    service.body = b"x" * 1_000_000  # more than aiohttp reads before it is asked to
    url = await serve(service)
    step = 1
    while await _cancelled(step, url, service, kind(), waits, status):
        step += 1
    assert step > 3, "a call waits more often than that"


async def _cancelled(
    step: int, url: str, service: Service, store: SharedStore | MemoryStore, waits: bool, status: int
) -> bool:
    """Cancel a call with a probe at its *step*-th await; return whether it has as many."""
    answers = []

    async def keep(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        # An answer that is not garbage keeps its connection until somebody releases it.
        answers.append(await handler(request))
        return answers[-1]

    connector = aiohttp.TCPConnector(limit=1)
    retry: Layers = (again(2, wait=40),) if waits else ()
    async with (
        client(url, quick(store=store), *retry, CLASSIFY, keep, connector=connector) as session,
        client(url, quick(store=store)) as other,
    ):
        began = asyncio.get_running_loop().time()
        service.script = [503, status]
        if not waits:
            assert await get(other) == 503
            await asyncio.sleep(31)
        task = asyncio.ensure_future(_stepped(step, session))
        await asyncio.wait([task])
        assert not connector._acquired, f"a connection is held after the cancellation at step {step}"
        assert not places(store), f"a place is held after the cancellation at step {step}"
        assert task.cancelled() or not task.result(), f"the cancellation at step {step} was swallowed"
        if status == 200 or waits:
            # If its first attempt has opened the circuit, it is half-open now, and closed if its second one succeeded.
            await asyncio.sleep(max(began + 31 - asyncio.get_running_loop().time(), 0))
        if status == 200:
            service.script = []
            assert await get(other) == 200, f"the circuit is not passed after the cancellation at step {step}"
        return task.cancelled()


async def _stepped(step: int, session: aiohttp.ClientSession) -> bool:
    reached, _ = await cancelled_at(step, get(session))
    return reached


@pytest.mark.parametrize("kind", [MemoryStore, slow_store])
async def test_the_probe_of_a_discarded_call_expires(
    serve: Serve, virtual_time: VirtualClock, kind: Callable[[], MemoryStore | SharedStore]
) -> None:
    service = Service()
    url = await serve(service)
    step, thrown_away = 0, True
    while thrown_away:
        step += 1
        store = kind()
        # Its connection is there already: an event loop does not recover from one that is thrown away half-made.
        connector = aiohttp.TCPConnector(keepalive_timeout=60)
        async with client(url, quick(store=store), CLASSIFY, connector=connector) as session:
            service.script = [503]
            assert await get(session) is ServiceUnavailable
            await asyncio.sleep(31)
            thrown_away = await thrown_away_at(step, get(session))
            if isinstance(store, MemoryStore):
                assert not places(store), f"a place is held after step {step}"
            else:
                # Nothing can be awaited any more, so only time gives it back.
                await asyncio.sleep(31)
            assert await get(session) == 200, f"the circuit is not passed after step {step}"
    assert step > (5 if kind is slow_store else 1), "a call waits more often than that"


def test_a_call_can_be_discarded_after_its_loop_closed() -> None:
    async def hang(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await asyncio.sleep(1000)
        raise AssertionError

    async def half() -> Coroutine[Any, Any, object]:
        async with client("http://127.0.0.1:9", breaker, raising(TimeoutError())) as session:
            with pytest.raises(TimeoutError):
                await session.get("/")
        await asyncio.sleep(31)
        async with client("http://127.0.0.1:9", breaker, hang) as session:
            call = get(session)
            call.send(None)
            assert places(store) == 1
            return call

    store = MemoryStore()
    breaker = quick(store=store)
    call = run_virtual(half())
    call.close()


async def test_a_call_that_anyio_cancels_releases_its_probe(serve: Serve, virtual_time: VirtualClock) -> None:
    store, service = slow_store(), Service(503)
    async with client(await serve(service), quick(store=store), CLASSIFY) as session:
        await get(session)
        await asyncio.sleep(31)
        service.go_on.clear()
        with anyio.move_on_after(5) as scope:
            await get(session)
        assert scope.cancelled_caught
        assert service.sends == 2
        assert not places(store)


async def test_a_hanging_store_delays_a_cancellation_only_briefly(serve: Serve, virtual_time: VirtualClock) -> None:
    store, service = slow_store(), Service(503)
    async with client(await serve(service), quick(store=store), CLASSIFY) as session:
        await get(session)
        await asyncio.sleep(31)
        service.go_on.clear()
        call = asyncio.create_task(get(session))
        await asyncio.sleep(1)
        assert places(store) == 1
        store.seconds = 1000.0
        began = virtual_time.now
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert virtual_time.now - began < 0.3


async def test_while_the_store_fails_the_breaker_uses_its_own_state(
    serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store, service = SharedStore(), Service(503)
    store.broken = True
    async with client(await serve(service), quick(store=store), CLASSIFY) as session:
        assert [await get(session), await get(session)] == [ServiceUnavailable, CircuitOpen]
        store.broken = False
        await asyncio.sleep(6)
        assert [await get(session), await get(session)] == [ServiceUnavailable, CircuitOpen]
        await asyncio.sleep(30)
        service.go_on.clear()
        call = asyncio.create_task(get(session, "/200"))
        await asyncio.sleep(1)
        store.broken = True
        service.go_on.set()
        # What became of a probe is lost to the others for now, and the call is not.
        assert await call == 200
        assert await get(session, "/200") == 200
        assert await get(session) is ServiceUnavailable
        assert await get(session) is CircuitOpen
    assert SECRET not in caplog.text


async def test_the_store_is_asked_once_per_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    store, service = slow_store(), Service()
    async with client(await serve(service), quick(store=store), CLASSIFY) as session:
        service.go_on.clear()
        call = asyncio.create_task(get(session))
        await asyncio.sleep(1)
        call.cancel()
        await asyncio.wait([call])
        # An attempt that is no probe need not be released.
        assert store.asked == 1
        service.go_on.set()
        await get(session)
        assert store.asked == 3
        await get(session, "/503")
        assert store.asked == 5
        assert await get(session) is CircuitOpen
        assert store.asked == 6


async def test_another_layer_may_repeat_a_call_without_leftovers(serve: Serve) -> None:
    left = []

    async def twice(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        with pytest.raises(ServiceUnavailable):
            await handler(request)
        left.append(Call.of(request).circuit)
        with pytest.raises(CircuitOpen):
            await handler(request)
        left.append(Call.of(request).circuit)
        raise TimeoutError

    async with client(await serve(Service(503)), twice, quick(), CLASSIFY) as session:
        with pytest.raises(TimeoutError):
            await session.get("/")
    assert left == [None, None]


# What is reported, and what is not.


async def test_spans_metrics_and_log_show_transitions(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lamella")
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    url = await serve(Service(503))
    breaker = Breaker(minimum=2, window=20, open_for=30, probes=2, meter_provider=meters)
    span = RequestSpan(tracer_provider=tracing.provider, meter_provider=meters)
    async with client(url, span, breaker) as session:
        for _ in range(2):
            await get(session)
        assert [await get(session) for _ in range(3)] == [CircuitOpen] * 3
        await asyncio.sleep(30)
        await get(session)
        await asyncio.sleep(30)
        for _ in range(3):
            await get(session, "/200")
    calls = tracing.spans
    events = [[(event.name, attributes(event)) for event in call.events] for call in calls]
    assert [len(each) for each in events] == [0, 1, 0, 0, 0, 1, 0, 1, 0]
    opened = {"lamella.circuit.attempts": 2, "lamella.circuit.failures": 2, "lamella.circuit.open_for": 30.0}
    assert events[1] == [("lamella.circuit.open", opened)]
    [(name, reopened)], [(closing, closed)] = events[5], events[7]
    assert (name, closing) == ("lamella.circuit.open", "lamella.circuit.close")
    assert reopened == {"lamella.circuit.open_for": 30.0, "lamella.circuit.was_open": pytest.approx(30, abs=0.5)}
    assert closed == {"lamella.circuit.was_open": pytest.approx(60, abs=0.5)}

    refused = calls[2]
    assert attributes(refused)["lamella.stop_reason"] == "circuit_open"
    assert attributes(refused)["error.type"] == "CircuitOpen"
    assert refused.status.status_code is StatusCode.ERROR
    assert "Circuit Open (since" in str(refused.status.description)

    data = reader.get_metrics_data()
    assert data is not None
    metrics = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
    points: Any = metrics["lamella.breaker.transitions"].data.data_points
    host, port = url.removeprefix("http://").split(":")
    where = {"server.address": host, "server.port": int(port)}
    assert {attributes(point)["lamella.circuit.state"]: point.value for point in points} == {
        "open": 2,
        "half_open": 2,
        "closed": 1,
    }
    for point in points:
        assert attributes(point) == where | {"lamella.circuit.state": attributes(point)["lamella.circuit.state"]}
    [stopped] = metrics["lamella.call.stops"].data.data_points
    assert (attributes(stopped)["lamella.rule"], attributes(stopped)["lamella.stop_reason"]) == (
        "Circuit Open",
        "circuit_open",
    )

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"the circuit of {url} opened: 2 of 2 attempts failed in 20 s, so no attempt is sent for 30 s"),
        ("INFO", f"the circuit of {url} stays open for another 30 s: a probe failed 30 s after it had opened"),
        ("INFO", f"the circuit of {url} closed: it had been open for 60 s"),
    ]
    assert [vars(record)["lamella.circuit.state"] for record in caplog.records] == ["open", "open", "closed"]
    for record, call in zip(caplog.records, (calls[1], calls[5], calls[7]), strict=True):
        assert vars(record).items() >= where.items()
        assert call.context is not None
        assert vars(record)["span_id"] == f"{call.context.span_id:016x}"
        assert vars(record)["trace_id"] == f"{call.context.trace_id:032x}"


async def test_a_clock_of_whole_seconds_and_settings_of_whole_numbers_are_reported_as_floats(
    serve: Serve, tracing: Tracing
) -> None:
    seconds = [0]
    store = MemoryStore(clock=lambda: seconds[0])
    span = RequestSpan(tracer_provider=tracing.provider)
    async with client(await serve(Service(503)), span, quick(store=store, open_for=30)) as session:
        await get(session)
        seconds[0] = 30
        await get(session, "/200")
    told = [value for call in tracing.spans for event in call.events for value in attributes(event).values()]
    assert [value for value in told if value in {30, 60}] == [30.0, 30.0]
    assert [type(value) for value in told if value in {30, 60}] == [float, float]


async def test_without_a_call_span_the_event_is_on_the_current_span(serve: Serve, tracing: Tracing) -> None:
    async with client(await serve(Service(503)), quick(minimum=1, open_for=5)) as session:
        with tracing.provider.get_tracer("test").start_as_current_span("test"):
            await get(session)
    [span] = tracing.spans
    assert [event.name for event in span.events] == ["lamella.circuit.open"]


async def test_the_key_of_a_circuit_is_never_shown(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = slow_store()
    breaker = quick(store=store, key=lambda request: request.headers["X-Account"])
    shown = [repr(breaker)]
    span = RequestSpan(tracer_provider=tracing.provider)
    async with client(await serve(Service(503)), span, breaker, CLASSIFY) as session:
        for wait in (0, 1, 30, 31):
            await asyncio.sleep(wait)
            with pytest.raises(LamellaError) as caught:
                await session.get("/", headers={"X-Account": SECRET})
            shown += [repr(caught.value), repr(vars(caught.value))]
        await asyncio.sleep(30)
        assert await get(session, "/200", headers={"X-Account": SECRET}) == 200
        store.seconds = 1000
        assert await get(session, "/200", headers={"X-Account": SECRET}) == 200
    shown += [span.to_json() for span in tracing.spans]
    shown += [repr(vars(record)) for record in caplog.records if record.name == "lamella"]
    shown.append(repr(store.states))
    assert len(store.states) == 1
    assert len(shown) > 15
    for text in shown:
        assert SECRET not in text


# How it is made.


async def test_the_breaker_must_be_outside_retry(serve: Serve) -> None:
    async with client(await serve(Service()), Retry(RuleBook()), Breaker()) as session:
        with pytest.raises(ValueError, match="Breaker must be outside Retry"):
            await session.get("/")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"failures": 0.0}, "failures must be a fraction, greater than 0 and at most 1, got 0.0"),
        ({"window": 0}, "window must be a finite number of seconds greater than 0, got 0"),
        ({"minimum": 0}, "minimum must be a whole number, 1 or more, got 0"),
        ({"open_for": float("inf")}, "open_for must be a finite number of seconds greater than 0, got inf"),
        ({"probes": -1}, "probes must be a whole number, 1 or more, got -1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        Breaker(**options)


def test_the_repr_of_a_breaker_shows_its_settings() -> None:
    assert repr(Breaker(key=lambda _: SECRET)) == (
        "Breaker(failures=0.5, window=30, minimum=20, open_for=30, probes=3)"
    )
