"""The ten traps of the design: each test fails when its guard is taken out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import stamina
from aiohttp import web
from opentelemetry import metrics, trace
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from tests.sdk import Tracing
from tests.servers import Serve, serving

from lamella import (
    AttemptSpan,
    AttemptTimeout,
    Backoff,
    Buffer,
    Classify,
    ConnectionLost,
    Failure,
    HeaderAuth,
    NotFound,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    StopReason,
    TooManyRequests,
    TransportError,
    stack,
)
from lamella.testing import VirtualClock

NOW = Backoff(initial=0)
RULES = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=NOW),
    Rule(503, "Service Unavailable", retry=NOW),
    *(Rule(failure, failure.name.title(), retry=NOW) for failure in Failure),
)


class Server:
    """Counts what it gets, and answers with the next of the given statuses, the last one for ever."""

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        self.statuses = list(statuses)
        self.headers = headers
        self.bodies: list[bytes] = []
        self.requests: list[web.Request] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.requests.append(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200, text="body", headers=self.headers)


async def test_1_aiohttp_does_not_run_the_chain_a_second_time(serve: Serve) -> None:
    server = Server(0)
    url = await serve(server)
    for method, sends in (("GET", 5), ("POST", 1)):
        server.bodies.clear()
        async with aiohttp.ClientSession(middlewares=stack(RULES, attempts=5)) as session:
            with pytest.raises(ConnectionLost):
                await session.request(method, url)
        assert len(server.bodies) == sends


@pytest.mark.parametrize("layers", [(Classify(RULES),), (Retry(RULES, attempts=1),), (Buffer(), Classify(RULES))])
async def test_1_aiohttp_does_not_repeat_a_call_with_a_single_layer(
    serve: Serve, layers: tuple[Classify | Retry | Buffer, ...]
) -> None:
    server = Server(0)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        with pytest.raises(TransportError):
            await session.get("/")
    assert len(server.bodies) == 1


async def test_1_a_request_on_a_stale_connection_is_resent_at_once(serve: Serve) -> None:
    server = Server(200, 0, 200)
    rules = RuleBook(Rule(Failure.CONNECTION_LOST, "Lost", retry=Backoff(initial=3600)))
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(rules)) as session:
        for _ in range(2):
            async with session.get("/") as response:
                assert response.status == 200
    assert len(server.bodies) == 3


async def test_1_a_stale_connection_is_retried_only_once(serve: Serve) -> None:
    server = Server(0)
    rules = RuleBook(Rule(Failure.CONNECTION_LOST, "Lost", retry=Backoff(initial=3600)))
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(rules, deadline=60)) as session:
        with pytest.raises(ConnectionLost) as caught:
            await session.get("/")
    assert (len(server.bodies), caught.value.stopped) == (2, StopReason.DEADLINE)


async def test_2_a_consumed_stream_is_never_sent_again(serve: Serve) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"

    server = Server(429, 200)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.put("/", data=stream())
    assert server.bodies == [b"abc"]
    assert caught.value.stopped is StopReason.BODY_NOT_REPLAYABLE


async def test_3_the_sessions_total_is_the_deadline(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(429)
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)))
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(await serve(server), timeout=timeout, middlewares=stack(rules)) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.get("/")
    # 60 + 120 s fit; 240 more would not, and are not slept through first.
    assert caught.value.stopped is StopReason.DEADLINE
    assert len(server.bodies) == 3
    assert virtual_time.elapsed == pytest.approx(180, abs=0.5)


async def test_3_the_deadline_error_comes_before_aiohttps(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1000)
        return web.Response()

    for total in (3.0, 30.5):
        tracing.exporter.clear()
        timeout = aiohttp.ClientTimeout(total=total)
        layers = stack(RULES, tracer_provider=tracing.provider)
        async with aiohttp.ClientSession(await serve(never), timeout=timeout, middlewares=layers) as session:
            with pytest.raises(AttemptTimeout) as caught:
                await session.get("/")
        assert caught.value.stopped is StopReason.DEADLINE
        assert (tracing.call.attributes or {})["lamella.outcome"] == "failure"


async def test_3_the_sessions_total_also_ends_waits(serve: Serve, virtual_time: VirtualClock) -> None:
    async def token() -> str:
        await asyncio.sleep(1000)
        return "token"

    timeout = aiohttp.ClientTimeout(total=3)
    layers = stack(RULES, auth=HeaderAuth({"X-Token": token}))
    async with aiohttp.ClientSession(await serve(Server(200)), timeout=timeout, middlewares=layers) as session:
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/")
    assert caught.value.stopped is StopReason.DEADLINE


async def test_3_a_request_without_a_total_has_no_deadline(serve: Serve, virtual_time: VirtualClock) -> None:
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=600)))
    timeout = aiohttp.ClientTimeout(total=300)
    url = await serve(Server(429, 200))
    async with aiohttp.ClientSession(url, timeout=timeout, middlewares=stack(rules)) as session:
        async with session.get("/", timeout=aiohttp.ClientTimeout(total=None)) as response:
            assert response.status == 200
    assert virtual_time.elapsed > 599


@pytest.mark.sampled(1)
@pytest.mark.parametrize("raise_errors", [True, False])
async def test_4_no_connection_is_held_during_a_wait(serve: Serve, no_waits: None, raise_errors: bool) -> None:
    """Twenty calls that all get a 429 first, through one connection."""
    seen: set[str] = set()
    # Then aiohttp complains of an answer that is merely forgotten.
    asyncio.get_running_loop().set_debug(True)

    async def first_refuses(request: web.Request) -> web.StreamResponse:
        again = request.path in seen
        seen.add(request.path)
        # Longer than what aiohttp buffers by itself, so that the connection is not free before somebody lets go.
        return web.Response(status=200 if again else 429, text="x" * (10 if again else 1_200_000))

    url = await serve(first_refuses)
    connector = aiohttp.TCPConnector(limit=1)
    layers = stack(RULES, raise_errors=raise_errors, buffer=None)

    async def call(number: int) -> int:
        async with session.get(f"/{number}") as response:
            await response.read()
            return response.status

    async with aiohttp.ClientSession(url, connector=connector, middlewares=layers) as session, asyncio.timeout(10):
        assert await asyncio.gather(*(call(number) for number in range(20))) == [200] * 20


async def test_5_no_credential_follows_a_redirect_to_another_origin(serve: Serve) -> None:
    there = Server(200)
    foreign = await serve(there)

    async def redirect(request: web.Request) -> web.StreamResponse:
        assert request.headers["X-API-KEY"] == "s3cr3t-key"
        raise web.HTTPTemporaryRedirect(foreign)

    home = await serve(redirect)
    for origin in (home, None):
        auth = HeaderAuth({"X-API-KEY": "s3cr3t-key"}, origin=origin, existing="keep")
        # Even when it is one of the session's headers, which aiohttp carries along.
        headers = {"X-API-KEY": "s3cr3t-key"}
        async with aiohttp.ClientSession(headers=headers, middlewares=(auth,)) as session:
            async with session.get(home) as response:
                assert response.status == 200
    assert [request.headers.get("X-API-KEY") for request in there.requests] == [None, None]


async def test_6_stamina_is_not_entered_before_something_failed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []
    real = stamina.retry_context

    def enter(**options: Any) -> Any:
        entered.append(options)
        return real(**options)

    monkeypatch.setattr(stamina, "retry_context", enter)
    async with aiohttp.ClientSession(await serve(Server(200, 404, 429, 200)), middlewares=stack(RULES)) as session:
        await session.get("/")
        with pytest.raises(NotFound):
            # Nor for what is not sent again.
            await session.get("/")
        assert not entered
        await session.get("/")
        assert len(entered) == 1


async def test_7_many_retries_do_not_cause_many_log_lines(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_on_retry_hooks(None)
    url = await serve(Server(429))
    # A handler takes whatever a logger lets through.
    written: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", written.append)
    monkeypatch.setattr(logging.getLogger("stamina"), "handlers", [handler])
    async with aiohttp.ClientSession(url, middlewares=stack(RULES)) as session:
        with caplog.at_level(logging.INFO), pytest.raises(TooManyRequests):
            await session.get("/")
        assert written == []
        # One line for the call, and none for a retry.
        assert [record.name for record in caplog.records] == ["lamella"]
        with caplog.at_level(logging.DEBUG, "stamina"), pytest.raises(TooManyRequests):
            await session.get("/")
        assert [(record.levelno, record.message) for record in caplog.records if record.name == "stamina"] == [
            (logging.DEBUG, "stamina.retry_scheduled")
        ] * 4

    # Lines of the user's own are none of our business.
    @stamina.retry(on=KeyError, attempts=2, wait_initial=0, wait_jitter=0)
    def fails() -> None:
        raise KeyError

    with caplog.at_level(logging.INFO), pytest.raises(KeyError):
        fails()
    assert (caplog.records[-1].name, caplog.records[-1].levelno) == ("stamina", logging.WARNING)


async def test_7_user_hooks_are_called_without_secrets(serve: Serve) -> None:
    details: list[RetryDetails] = []

    def hook(told: RetryDetails) -> None:
        details.append(told)

    set_on_retry_hooks([hook])  # type: ignore[list-item]  # a protocol with a union of None and a context manager
    try:
        auth = HeaderAuth({"X-API-KEY": "s3cr3t-key"})
        async with aiohttp.ClientSession(await serve(Server(429, 200)), middlewares=stack(RULES, auth=auth)) as session:
            await session.get("/?api_key=s3cr3t-key")
    finally:
        set_on_retry_hooks(None)
    [told] = details
    assert (told.retry_num, told.args, told.kwargs) == (1, (), {})
    assert isinstance(told.caused_by, TooManyRequests)
    assert "lamella" in told.name
    assert "s3cr3t-key" not in repr(told)


async def test_7_retries_work_with_a_stamina_version_that_takes_no_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is the one thing that we ask of it that its documentation does not tell of."""
    made = stamina.retry_context

    class Nameless:
        def __init__(self, **options: Any) -> None:
            self._attempts = made(**options)

        def __aiter__(self) -> Any:
            return aiter(self._attempts)

    monkeypatch.setattr(stamina, "retry_context", Nameless)
    async with aiohttp.ClientSession(await serve(Server(429, 200)), middlewares=stack(RULES)) as session:
        assert (await session.get("/")).status == 200


async def test_7_user_hooks_are_called_before_each_wait(serve: Serve, virtual_time: VirtualClock) -> None:
    told: list[tuple[str, int, float, float, float]] = []
    order: list[str] = []

    class Scheduled:
        """stamina's hooks may give it something to enter until the wait is over."""

        def __enter__(self) -> None:
            order.append("scheduled")

        def __exit__(self, *_: object) -> None:
            order.append("over")

    def hook(details: RetryDetails) -> Scheduled:
        told.append(
            (details.name, details.retry_num, details.wait_for, details.waited_so_far, virtual_time.elapsed // 10 * 10)
        )
        return Scheduled()

    async def note(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        order.append("sent")
        return await handler(request)

    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)))
    server = Server(429, 429, 200)
    set_on_retry_hooks([hook])
    try:
        async with aiohttp.ClientSession(
            await serve(server), timeout=aiohttp.ClientTimeout(), middlewares=(*stack(rules, throttle=False), note)
        ) as session:
            await session.get("/")
    finally:
        set_on_retry_hooks(None)
    name = "lamella.Retry"
    assert told == [(name, 1, 60.0, 0.0, 0.0), (name, 2, 120.0, 60.0, 60.0)]
    assert order[:5] == ["sent", "scheduled", "over", "sent", "scheduled"]
    assert order[-2:] == ["over", "sent"]


async def test_7_a_hook_that_fails_ends_the_call(serve: Serve) -> None:
    def hook(_: RetryDetails) -> None:
        raise LookupError("a hook of the user's")

    server = Server(429)
    set_on_retry_hooks([hook])  # type: ignore[list-item]  # as above
    try:
        async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
            with pytest.raises(LookupError, match="user's"):
                await session.get("/")
    finally:
        set_on_retry_hooks(None)
    assert len(server.bodies) == 1


async def test_7_the_switches_of_stamina_work(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(429)
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=60)))

    async def sends(raise_errors: bool = True) -> int:
        server.bodies.clear()
        timeout = aiohttp.ClientTimeout(total=None)
        layers = stack(rules, raise_errors=raise_errors)
        async with aiohttp.ClientSession(url, timeout=timeout, middlewares=layers) as session:
            if not raise_errors:
                async with session.get("/") as response:
                    assert (response.status, await response.text()) == (429, "body")
            else:
                with pytest.raises(TooManyRequests) as caught:
                    await session.get("/")
                assert caught.value.stopped is StopReason.ATTEMPTS_USED_UP
                assert len(caught.value.attempts) == len(server.bodies)
        return len(server.bodies)

    url = await serve(server)
    stamina.set_active(False)
    try:
        assert await sends() == 1
        assert await sends(raise_errors=False) == 1
    finally:
        stamina.set_active(True)
    for attempts, cap, expected in ((1, False, 1), (3, False, 3), (8, False, 8), (8, True, 5)):
        with stamina.set_testing(True, attempts=attempts, cap=cap):
            assert await sends() == expected
            assert await sends(raise_errors=False) == expected
    assert virtual_time.elapsed < 1
    assert await sends() == 5
    assert virtual_time.elapsed > 60 * 15 - 1


def test_8_and_6_a_successful_unrecorded_call_computes_no_attributes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an SDK, no attribute is computed."""

    def fail(*_: object) -> dict[str, str]:
        raise AssertionError

    monkeypatch.setattr("lamella.telemetry.shared.described", fail)
    for name in ("response_attributes", "shown_url"):
        monkeypatch.setattr(f"lamella.telemetry.attempt_span.{name}", fail)

    async def main() -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response()

        nobody: Any = {"tracer_provider": trace.NoOpTracerProvider(), "meter_provider": metrics.NoOpMeterProvider()}
        layers = RequestSpan(**nobody), AttemptSpan(**nobody)
        async with serving(answer) as url, aiohttp.ClientSession(url, middlewares=layers) as session:
            async with session.get("/") as response:
                assert response.status == 200

    asyncio.run(main())


async def test_9_each_attempt_has_one_client_span_and_none_encloses_them(serve: Serve, tracing: Tracing) -> None:
    server = Server(429, 503, 200)
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        await session.get("/")
    call, sends = tracing.call, tracing.sends
    assert len(tracing.spans) == 4
    assert [span.parent and span.parent.span_id for span in sends] == [call.context.span_id] * 3
    assert [(span.attributes or {}).get("http.request.resend_count") for span in sends] == [None, 1, 2]
    assert [request.headers["traceparent"].split("-")[2] for request in server.requests] == [
        f"{span.context.span_id:016x}" for span in sends
    ]


async def test_10_a_cancelled_call_is_not_an_error_and_stays_cancelled(serve: Serve, tracing: Tracing) -> None:
    arrived = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.sleep(3600)
        return web.Response()

    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(never), middlewares=layers) as session:
        task = asyncio.create_task(session._request("GET", "/"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(tracing.spans) == 2
    for span in tracing.spans:
        assert span.status.is_unset
        assert "error.type" not in (span.attributes or {})
    assert (tracing.call.attributes or {})["lamella.outcome"] == "cancelled"
    assert (tracing.call.attributes or {})["lamella.stop_reason"] == "cancelled"
