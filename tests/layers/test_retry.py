from __future__ import annotations

import asyncio
import gc
import io
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import stamina
from aiohttp import web
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from tests.layering import apart
from tests.sdk import Metering, Tracing
from tests.servers import Serve, ServeRaw

import lamella.errors
import lamella.redaction
from lamella import (
    ApiError,
    At,
    AttemptTimeout,
    Backoff,
    BadRequest,
    Classify,
    ConnectFailed,
    ConnectionLost,
    Failure,
    HeaderAuth,
    LamellaError,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    ServerStatusError,
    Slot,
    StopReason,
    TooManyRequests,
    deadline,
    stack,
)
from lamella.call import Call
from lamella.testing import VirtualClock

NOW = Backoff(initial=0)
RULES = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=NOW),
    Rule(503, "Service Unavailable", retry=NOW),
    *(Rule(failure, failure.name.title(), retry=NOW) for failure in Failure),
)


class Server:
    def __init__(self, *statuses: int, **headers: str) -> None:
        self.statuses = list(statuses)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.bodies: list[bytes] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "Expect" in request.headers:
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.bodies.append(await request.read())
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200, headers=self.headers, text="body")


@pytest.mark.parametrize("layers", [(Retry(RULES), Classify(RULES)), (Retry(RULES),)])
async def test_retry_repeats_a_call_until_it_succeeds(serve: Serve, layers: tuple[Retry | Classify, ...]) -> None:
    server = Server(429, 503, 429)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        async with session.get("/") as response:
            assert (response.status, await response.text()) == (200, "body")
    assert len(server.bodies) == 4


async def test_the_error_has_all_details(serve: Serve, virtual_time: VirtualClock) -> None:
    rules = RuleBook(
        Rule(429, "Too Many Requests", hint="slow down", retry=Backoff(initial=60, jitter=0)),
        Rule(400, "Bad Request", hint="mend it"),
    )
    async with aiohttp.ClientSession(
        await serve(Server(429, 429, 400)), timeout=aiohttp.ClientTimeout(), middlewares=stack(rules)
    ) as session:
        with pytest.raises(BadRequest) as caught:
            await session.get("/path")
    error = caught.value
    assert [(record.number, record.status, record.exception) for record in error.attempts] == [
        (1, 429, None),
        (2, 429, None),
        (3, 400, None),
    ]
    assert [round(record.waited) for record in error.attempts] == [60, 120, 0]
    assert [record.rule for record in error.attempts] == ["Too Many Requests", "Too Many Requests", "Bad Request"]
    assert [record.attempts_left for record in error.attempts] == [4, 3, 2]
    assert error.stopped is StopReason.NOT_RETRYABLE
    assert error.rule == rules.rule_for(400)
    assert error.body == b"body"
    for part in ("GET http://127.0.0.1", "/path", "400 Bad Request", "mend it", "3 attempts in 180 s", "not retryable"):
        assert part in str(error)


async def test_without_classify_the_last_response_is_returned_readable(serve: Serve) -> None:
    server = Server(*[503] * 9)
    async with aiohttp.ClientSession(await serve(server), middlewares=(Retry(RULES, attempts=3),)) as session:
        async with session.get("/") as response:
            assert (response.status, await response.text()) == (503, "body")
        async with session.post("/") as response:
            assert [chunk async for chunk in response.content.iter_chunked(3)] == [b"bod", b"y"]
    assert len(server.bodies) == 4


async def test_a_long_error_body_is_returned_completely(serve: Serve) -> None:
    body = bytes(range(256)) * 4000

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400, body=body)

    async with aiohttp.ClientSession(await serve(answer), middlewares=stack(RULES, raise_errors=False)) as session:
        async with session.get("/") as response:
            assert await response.read() == body


@pytest.mark.parametrize(
    ("method", "options", "headers", "sends"),
    [
        ("GET", {}, {}, 5),
        ("PUT", {}, {}, 5),
        ("DELETE", {}, {}, 5),
        ("POST", {}, {}, 1),
        ("PATCH", {}, {}, 1),
        ("POST", {"retry_writes": True}, {}, 5),
        ("POST", {}, {"Idempotency-Key": "once"}, 5),
    ],
)
async def test_a_possibly_executed_request_is_repeated_only_if_safe(
    serve: Serve, method: str, options: dict[str, bool], headers: dict[str, str], sends: int
) -> None:
    server = Server(*[503] * 9)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES, **options)) as session:  # type: ignore[arg-type]
        with pytest.raises(ServerStatusError) as caught:
            await session.request(method, "/", data=b"body", headers=headers)
    assert server.bodies == [b"body"] * sends
    assert caught.value.stopped is (StopReason.UNSAFE_METHOD if sends == 1 else StopReason.ATTEMPTS_USED_UP)


async def test_a_rejected_or_unsent_write_is_sent_again(serve: Serve, unused_url: str) -> None:
    server = Server(429, 429)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        async with session.post("/", data=b"body") as response:
            assert response.status == 200
        with pytest.raises(ConnectFailed) as caught:
            await session.post(unused_url, data=b"body")
    assert server.bodies == [b"body"] * 3
    assert len(caught.value.attempts) == 5


async def test_an_unsent_stream_does_not_prevent_a_retry(unused_url: str) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"body"

    async with aiohttp.ClientSession(middlewares=stack(RULES)) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.post(unused_url, data=stream())
    assert (len(caught.value.attempts), caught.value.stopped) == (5, StopReason.ATTEMPTS_USED_UP)


@pytest.fixture
async def unused_url(serve_raw: ServeRaw) -> str:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("kind", ["bytes", "str", "json", "form", "multipart", "BytesIO", "compressed", "expect100"])
async def test_bodies_are_sent_again_identical(serve: Serve, kind: str) -> None:
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"content" * 1000), filename="a.txt")
    options: dict[str, dict[str, object]] = {
        "bytes": {"data": b"body" * 1000},
        "str": {"data": "bödy"},
        "json": {"json": {"a": 1}},
        "form": {"data": {"a": "b"}},
        "multipart": {"data": form},
        "BytesIO": {"data": io.BytesIO(b"body" * 1000)},
        "compressed": {"data": b"body" * 1000, "compress": "gzip"},
        "expect100": {"data": b"body", "expect100": True},
    }
    server = Server(429, 429)
    async with aiohttp.ClientSession(await serve(server), middlewares=stack(RULES)) as session:
        async with session.post("/", **options[kind]) as response:  # type: ignore[arg-type]
            assert response.status == 200
    assert len(server.bodies) == 3
    assert server.bodies[0]
    assert len(set(server.bodies)) == 1


async def test_a_rejected_100_continue_is_awaited_again(serve_raw: ServeRaw) -> None:
    """The server refuses before the body is sent; the second time it wants it."""
    bodies: list[bytes] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not bodies:
            bodies.append(b"")
            writer.write(b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            bodies.append(await reader.readexactly(4))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=stack(RULES)) as session:
        async with asyncio.timeout(5), session.post("/", data=b"body", expect100=True) as response:
            assert response.status == 200
    assert bodies == [b"", b"body"]


async def test_retry_after_is_honoured(serve: Serve, virtual_time: VirtualClock, tracing: Tracing) -> None:
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=1, maximum=3600)))
    layers = stack(rules, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(
        await serve(Server(429, Retry_After="90")), timeout=aiohttp.ClientTimeout(), middlewares=layers
    ) as session:
        await session.get("/")
    assert virtual_time.elapsed == pytest.approx(90, abs=0.5)
    [event] = tracing.call.events
    assert (event.attributes or {})["lamella.wait"] == 90.0
    assert (event.attributes or {})["lamella.wait_source"] == "retry_after"


async def test_an_endless_retry_after_stops_the_call_at_once(serve: Serve, virtual_time: VirtualClock) -> None:
    async with aiohttp.ClientSession(
        await serve(Server(429, Retry_After="9" * 500)), middlewares=stack(RULES)
    ) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.get("/")
    assert caught.value.stopped is StopReason.WAIT_TOO_LONG
    assert virtual_time.elapsed < 1


@pytest.mark.parametrize("by_hand", [True, False])
async def test_a_deadline_stops_before_a_wait_that_would_end_after_it(
    serve: Serve, virtual_time: VirtualClock, by_hand: bool
) -> None:
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)))
    layers = (Retry(rules, attempts=None, deadline=200), Classify(rules)) if by_hand else stack(rules, deadline=200)
    server = Server(*[429] * 9)
    async with aiohttp.ClientSession(
        await serve(server), timeout=aiohttp.ClientTimeout(), middlewares=layers
    ) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.get("/")
    assert caught.value.stopped is StopReason.DEADLINE
    assert len(server.bodies) == 3
    assert virtual_time.elapsed == pytest.approx(180, abs=0.5)


async def test_a_deadline_ends_an_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10_000)
        return web.Response()

    for method in ("GET", "POST"):
        async with aiohttp.ClientSession(
            await serve(never), timeout=aiohttp.ClientTimeout(), middlewares=(Retry(RULES, deadline=30),)
        ) as session:
            with pytest.raises(AttemptTimeout, match="deadline of 30 s") as caught:
                await session.request(method, "/")
        assert caught.value.stopped is StopReason.DEADLINE
    assert virtual_time.elapsed == pytest.approx(60, abs=0.5)


async def test_a_truncated_body_fails_the_attempt(serve_raw: ServeRaw) -> None:
    connections = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf" + b"half" * (connections > 2))
        await writer.drain()

    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=stack(RULES)) as session:
        async with session.get("/") as response:
            assert await response.read() == b"halfhalf"
    assert connections == 3


async def test_errors_of_foreign_layers_pass(serve: Serve) -> None:
    class Boom(Exception):
        pass

    async def boom(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise Boom

    calls = 0

    async def no_file(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal calls
        calls += 1
        raise FileNotFoundError("/run/token")

    url = await serve(Server())
    async with aiohttp.ClientSession(url, middlewares=(Retry(RULES), boom, Classify(RULES))) as session:
        with pytest.raises(Boom):
            await session.get("/")
    async with aiohttp.ClientSession(url, middlewares=(Retry(RULES), no_file, Classify(RULES))) as session:
        # aiohttp itself makes its own of every OSError.
        with pytest.raises(aiohttp.ClientOSError):
            await session.get("/")
    assert calls == 1


async def test_a_custom_layer_may_ask_for_a_retry(serve: Serve) -> None:
    """An API that says 200 and means 503."""
    answers = iter(["busy", "busy", "done"])

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=next(answers))

    async def look(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        if await response.text() == "busy":
            raise ServerStatusError(response.request_info, status=503, rule=RULES.rule_for(503))
        return response

    async with aiohttp.ClientSession(await serve(answer), middlewares=(Retry(RULES), look)) as session:
        async with session.get("/") as response:
            assert await response.text() == "done"


@pytest.mark.parametrize("sends", [0, 1], ids=["before the first send", "before a later one"])
async def test_the_error_of_an_inner_call_passes_unchanged(serve: Serve, sends: int) -> None:
    async def token() -> str:
        if len(server.bodies) < sends:
            return "the first"
        async with inner.get("/token") as response:
            return await response.text()

    tokens, server = Server(*[503] * 9), Server(*[429] * sends)
    async with (
        aiohttp.ClientSession(await serve(tokens), middlewares=stack(RULES, attempts=2)) as inner,
        aiohttp.ClientSession(
            await serve(server), middlewares=stack(RULES, attempts=4, auth=HeaderAuth({"X-Token": token}))
        ) as session,
    ):
        with pytest.raises(ServerStatusError, match="/token") as caught:
            await session.get("/")
    assert len(tokens.bodies) == len(caught.value.attempts) == 2
    assert len(server.bodies) == sends


async def test_a_closed_session_is_not_retried(unused_url: str) -> None:
    connector = aiohttp.TCPConnector()
    session = aiohttp.ClientSession(middlewares=stack(RULES), connector=connector)
    await connector.close()
    with pytest.raises(RuntimeError, match="closed"):
        await session.get(unused_url)
    await session.close()


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"deadline": 0}, {"deadline": -1}, {"deadline": float("inf")}, {"attempts": None}]
)
def test_bad_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"attempts|deadline"):
        Retry(RULES, **options)  # type: ignore[arg-type]


async def test_by_default_a_call_is_sent_five_times(serve: Serve) -> None:
    server = Server(*[503] * 9)
    async with aiohttp.ClientSession(await serve(server), middlewares=(Retry(RULES),)) as session:
        await session.get("/")
    assert len(server.bodies) == 5


async def test_a_deadline_may_be_a_fraction_of_a_second(serve: Serve, virtual_time: VirtualClock) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10_000)
        return web.Response()

    async with aiohttp.ClientSession(await serve(never), middlewares=(Retry(RULES, deadline=0.5),)) as session:
        with pytest.raises(AttemptTimeout, match=r"deadline of 0\.5 s"):
            await session.get("/")
    assert virtual_time.elapsed == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("total", "ends"), [(0.04, 0.038), (1.0, 0.95), (300.0, 299.9)])
async def test_a_call_ends_slightly_before_the_sessions_total(
    serve: Serve, virtual_time: VirtualClock, total: float, ends: float
) -> None:
    """A twentieth of it before, and never more than a tenth of a second."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10_000)
        return web.Response()

    async with aiohttp.ClientSession(
        await serve(never), timeout=aiohttp.ClientTimeout(total), middlewares=(Retry(RULES),)
    ) as session:
        began = virtual_time.now
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/")
        assert virtual_time.now - began == pytest.approx(ends, abs=0.001)
    assert caught.value.stopped is StopReason.DEADLINE


async def test_an_attempt_ended_by_the_deadline_is_not_repeated(serve: Serve, virtual_time: VirtualClock) -> None:
    """Though to the clock's last digit it may have been a little before."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10_000)
        return web.Response()

    url = await serve(never)
    for tenths in range(1, 20):
        layers = (Retry(RULES, deadline=tenths / 10),)
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
            with pytest.raises(AttemptTimeout) as caught:
                await session.get("/")
        assert caught.value.stopped is StopReason.DEADLINE
        assert [(record.wait_source, record.deadline_left) for record in caught.value.attempts] == [(None, 0)]


async def test_another_timeout_than_the_deadline_is_a_failed_attempt(serve: Serve, virtual_time: VirtualClock) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(10_000)
        return web.Response()

    timeout = aiohttp.ClientTimeout(total=None, sock_read=1)
    layers = (Retry(RULES, attempts=3, deadline=100),)
    async with aiohttp.ClientSession(await serve(never), timeout=timeout, middlewares=layers) as session:
        with pytest.raises(AttemptTimeout) as caught:
            await session.get("/")
    assert (len(caught.value.attempts), caught.value.stopped) == (3, StopReason.ATTEMPTS_USED_UP)
    assert "deadline" not in caught.value.reason


async def test_nothing_is_sent_without_time_left_and_the_reason_is_reported(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    async with aiohttp.ClientSession(
        await serve(server), middlewares=stack(RULES, tracer_provider=tracing.provider)
    ) as session:
        with deadline(1):
            await asyncio.sleep(2)
            with pytest.raises(AttemptTimeout) as caught:
                await session.get("/")
    assert not server.bodies
    assert (caught.value.stopped, caught.value.attempts) == (StopReason.DEADLINE, ())
    assert (tracing.call.attributes or {})["lamella.stop_reason"] == "deadline"
    assert [event.name for event in tracing.call.events] == ["lamella.stop"]
    assert [record.levelname for record in caplog.records if record.name == "lamella"] == ["WARNING"]


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_another_call_has_the_connection_during_the_wait(
    serve: Serve, virtual_time: VirtualClock, raise_errors: bool
) -> None:
    statuses = [503]

    async def answer(request: web.Request) -> web.StreamResponse:
        # Longer than what aiohttp reads by itself, so that the connection is not free before somebody lets go.
        return web.Response(status=statuses.pop(), body=bytes(1_200_000)) if statuses else web.Response()

    rules = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(60, jitter=0)))
    layers = stack(rules, raise_errors=raise_errors, buffer=None)
    async with aiohttp.ClientSession(
        await serve(answer),
        timeout=aiohttp.ClientTimeout(),
        connector=aiohttp.TCPConnector(limit=1),
        middlewares=layers,
    ) as session:
        waits = asyncio.create_task(get(session))
        await asyncio.sleep(1)
        assert await get(session) == 200
        assert virtual_time.elapsed < 2
        assert await waits == 200
        assert virtual_time.elapsed >= 60


async def get(session: aiohttp.ClientSession) -> int:
    async with session.get("/") as response:
        return response.status


@pytest.mark.parametrize(("after", "waited"), [(20, 20), (70, 60)], ids=["in its wait", "in the send after it"])
async def test_a_cancelled_call_reports_its_wait_once(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, after: float, waited: float
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        sent.append(request)
        if len(sent) == 2:
            await asyncio.sleep(10_000)
        return web.Response(status=503)

    sent: list[web.Request] = []
    rules = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(60, jitter=0)))
    layers = stack(rules, deadline=100, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(
        await serve(answer), timeout=aiohttp.ClientTimeout(), middlewares=layers
    ) as session:
        task = asyncio.create_task(session.get("/"))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert (tracing.call.attributes or {})["lamella.wait"] == pytest.approx(waited, abs=0.1)
    told = [(event.name, dict(event.attributes or {})) for event in tracing.call.events]
    assert [name for name, _ in told] == ["lamella.retry", "lamella.stop"]
    # What was left when it was decided to wait, and what is left now.
    assert [given["lamella.deadline_left"] for _, given in told] == pytest.approx([100, 100 - after], abs=0.1)
    assert told[-1][1]["lamella.stop_reason"] == "cancelled"


async def test_each_attempt_has_its_own_time_in_the_queue(serve: Serve, virtual_time: VirtualClock) -> None:
    """The first waits there for another's refusal, the second for nobody."""
    rules = RuleBook(
        Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)),
        Rule(503, "Service Unavailable", retry=Backoff(initial=100, jitter=0)),
    )
    server = Server(429, 503, 400)
    async with aiohttp.ClientSession(
        await serve(server), timeout=aiohttp.ClientTimeout(), middlewares=stack(rules, attempts=2)
    ) as session:
        with deadline(30), pytest.raises(TooManyRequests):
            await session.get("/")
        with pytest.raises(BadRequest) as caught:
            await session.get("/")
    assert [record.queued for record in caught.value.attempts] == pytest.approx([60, 0], abs=0.1)
    assert [record.took for record in caught.value.attempts] == pytest.approx([0, 0], abs=0.1)


async def test_extra_attempts_by_staminas_test_mode_leave_nothing_behind(serve: Serve) -> None:
    async with aiohttp.ClientSession(await serve(Server(*[503] * 9)), middlewares=stack(RULES, attempts=2)) as session:
        with stamina.set_testing(True, attempts=3), pytest.raises(ServerStatusError) as caught:
            await session.get("/")
    assert [record.attempts_left for record in caught.value.attempts] == [1, 0, 0]


@pytest.mark.parametrize("layers", [stack(RULES), (Retry(RULES),)], ids=["stack", "Retry alone"])
async def test_nothing_is_parsed_or_redacted_for_an_attempt_that_is_retried(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, layers: tuple[aiohttp.ClientMiddlewareType, ...]
) -> None:
    looked: list[str] = []

    def watch(module: ModuleType, name: str) -> None:
        given = getattr(module, name)

        def look(*args: Any) -> Any:
            looked.append(name)
            return given(*args)

        monkeypatch.setattr(module, name, look)

    for name in ("redact_body", "redact_headers", "redact_answer_headers", "shown_url"):
        watch(lamella.redaction, name)
    for name in ("parse", "redact_text"):
        watch(lamella.errors, name)
    set_on_retry_hooks(None)  # the default one makes a repr of each failure
    async with aiohttp.ClientSession(await serve(Server(503, 429)), middlewares=layers) as session:
        assert (await session.get("/?token=hunter22")).status == 200
        assert looked == []
    async with aiohttp.ClientSession(await serve(Server(503, 400)), middlewares=stack(RULES)) as session:
        with pytest.raises(BadRequest) as caught:
            await session.get("/?token=hunter22")
    assert "hunter22" not in str(caught.value)
    assert looked.count("redact_body") == 1, "that of the last attempt"


async def test_the_repr_of_an_error_is_short_while_its_call_continues(serve: Serve) -> None:
    seen: list[LamellaError] = []
    short: list[str] = []

    def hook(details: RetryDetails) -> None:
        assert isinstance(details.caused_by, LamellaError)
        seen.append(details.caused_by)
        short.append(repr(details.caused_by))

    set_on_retry_hooks([hook])
    try:
        async with aiohttp.ClientSession(await serve(Server(503, *[429] * 9)), middlewares=stack(RULES)) as session:
            with pytest.raises(TooManyRequests) as caught:
                await session.get("/?token=hunter22")
    finally:
        set_on_retry_hooks(None)
    assert short == ["<ServiceUnavailable: 503, retried>", *["<TooManyRequests: 429, retried>"] * 3]
    assert [error.retried for error in seen] == [True] * 4
    assert "/?token=REDACTED: 503 Service Unavailable" in str(seen[0])
    assert not caught.value.retried
    assert repr(caught.value) == f"<TooManyRequests: {caught.value}>"


async def test_every_decision_to_send_again_is_counted(
    serve: Serve, virtual_time: VirtualClock, metering: Metering
) -> None:
    rules = RuleBook(
        Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)),
        Rule(503, "Service Unavailable", retry=Backoff(initial=10, jitter=0)),
    )
    layers = stack(rules, throttle=False, meter_provider=metering.provider)
    async with aiohttp.ClientSession(
        await serve(Server(503, 429, 503)), timeout=aiohttp.ClientTimeout(), middlewares=layers
    ) as session:
        await session.get("/")
    points = metering.points("lamella.call.retries")
    counted = {given["lamella.rule"]: (given["lamella.wait_source"], number) for given, number in points}
    assert counted == {"Service Unavailable": ("rule", 2), "Too Many Requests": ("rule", 1)}


async def test_an_error_of_another_middleware_is_not_a_transport_failure(serve: Serve) -> None:
    """As raise_for_status makes one: it passes as it is, and is not sent again."""

    async def check(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        response.raise_for_status()
        return response

    server = Server(503)
    async with aiohttp.ClientSession(await serve(server), middlewares=(Retry(RULES), check)) as session:
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await session.get("/")
    assert not isinstance(caught.value, LamellaError)
    assert len(server.bodies) == 1


# With a total timeout of the session, which is a deadline, a call goes another way through the layer than without.
WAYS = pytest.mark.parametrize("total", [None, 300.0], ids=["no deadline", "a deadline"])


@WAYS
async def test_retry_alone_converts_errors_of_aiohttp(unused_url: str, total: float | None) -> None:
    timeout = aiohttp.ClientTimeout(total)
    async with aiohttp.ClientSession(timeout=timeout, middlewares=(Retry(RULES, attempts=2),)) as session:
        with pytest.raises(ConnectFailed) as caught:
            await session.post(unused_url)
    assert [record.exception for record in caught.value.attempts] == ["ConnectFailed"] * 2


@WAYS
@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_bare_error_of_a_middleware_is_handled(
    serve: Serve, tracing: Tracing, total: float | None, wrapped: bool
) -> None:
    """Nothing is made of an answer that is returned as it is, but the span tells why it was the last."""
    made = stack(RULES, raise_errors=False, throttle=False, tracer_provider=tracing.provider)
    layers = made if wrapped else apart(made)
    async with aiohttp.ClientSession(
        await serve(Server(400)), timeout=aiohttp.ClientTimeout(total), middlewares=layers
    ) as session:
        assert (await session.get("/")).status == 400
    assert (tracing.call.attributes or {})["lamella.stop_reason"] == "not_retryable"


@WAYS
async def test_the_successful_attempt_is_counted(serve: Serve, tracing: Tracing, total: float | None) -> None:
    """Without ``AttemptSpan`` nobody else counts them."""
    layers = (RequestSpan(tracer_provider=tracing.provider), Retry(RULES), Classify(RULES))
    async with aiohttp.ClientSession(
        await serve(Server(503, 429)), timeout=aiohttp.ClientTimeout(total), middlewares=layers
    ) as session:
        await session.get("/")
    assert (tracing.call.attributes or {})["lamella.attempts"] == 3


@WAYS
async def test_a_session_closed_before_a_repeat_by_a_middleware_raises(serve: Serve, total: float | None) -> None:
    """As some versions of aiohttp do themselves, where it was closed in the middle of a send."""

    async def again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        await request.session.close()
        return await handler(request)

    async with aiohttp.ClientSession(
        await serve(Server()), timeout=aiohttp.ClientTimeout(total), middlewares=(again, Retry(RULES))
    ) as session:
        with pytest.raises(RuntimeError, match="Session is closed"):
            await session.get("/")


async def test_a_passed_deadline_does_not_affect_the_next_call_of_the_same_request(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    async def again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        with deadline(5):
            (await handler(request)).release()
        await asyncio.sleep(10)
        return await handler(request)

    server = Server(200, 503)
    async with aiohttp.ClientSession(
        await serve(server), timeout=aiohttp.ClientTimeout(), middlewares=(again, *stack(RULES))
    ) as session:
        async with session.get("/") as response:
            assert response.status == 200
    assert len(server.bodies) == 3


async def test_aiohttps_own_except_clauses_keep_working(serve: Serve, unused_url: str) -> None:
    url = await serve(Server(*[503] * 99))
    async with aiohttp.ClientSession(middlewares=stack(RULES, attempts=1)) as session:
        with pytest.raises(aiohttp.ClientResponseError) as answered:
            await session.get(url)
        assert isinstance(answered.value, ApiError)
        assert (answered.value.status, answered.value.message) == (503, "Service Unavailable")
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(unused_url)
        with pytest.raises(aiohttp.ClientError) as failed:
            await session.get(unused_url)
        assert isinstance(failed.value, LamellaError)


@pytest.mark.slow
async def test_many_concurrent_calls_succeed(serve: Serve) -> None:
    async def flaky(request: web.Request) -> web.StreamResponse:
        counts[request.path] = counts.get(request.path, 0) + 1
        return web.Response(status=429 if counts[request.path] % 3 else 200)

    counts: dict[str, int] = {}
    async with aiohttp.ClientSession(await serve(flaky), middlewares=stack(RULES)) as session:
        async with asyncio.timeout(60):
            responses = await asyncio.gather(*(session.get(f"/{number}") for number in range(200)))
    assert {response.status for response in responses} == {200}
    assert set(counts.values()) == {3}


async def test_a_connection_lost_for_a_write_is_final(serve_raw: ServeRaw) -> None:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=stack(RULES)) as session:
        with pytest.raises(ConnectionLost) as caught:
            await session.post("/", data=b"x")
    assert caught.value.stopped is StopReason.UNSAFE_METHOD


class OpensMeanwhile:
    """A circuit that opens during the wait."""

    async def failed(self, error: BaseException) -> None:
        pass

    async def open_for(self) -> float:
        return 0.0

    async def admit(self) -> bool:
        return False


@WAYS
@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize(
    ("statuses", "circuit", "sends"),
    [((503, 503), None, 3), ((503,) * 9, None, 5), ((404,), None, 1), ((503,), OpensMeanwhile(), 1)],
)
async def test_a_call_leaves_nothing_for_the_garbage_collector(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    statuses: tuple[int, ...],
    circuit: OpensMeanwhile | None,
    sends: int,
    raise_errors: bool,
    total: float | None,
) -> None:
    caplog.set_level(logging.CRITICAL)  # pytest keeps what is logged
    requests: list[weakref.ref[aiohttp.ClientRequest]] = []
    errors: list[weakref.ref[BaseException]] = []

    async def note(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        requests.append(weakref.ref(request))
        # What failed before may have to be shown as the last; how it came about is over.
        assert not any(failed and failed.__traceback__ for failed in [ref() for ref in errors])
        try:
            return await handler(request)
        except ApiError as error:
            errors.append(weakref.ref(error))
            raise

    async def protect(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        Call.of(request).circuit = circuit
        return await handler(request)

    layers = [
        protect,
        *stack(RULES, At(Slot.CLASSIFY if raise_errors else Slot.INNERMOST, note), raise_errors=raise_errors),
    ]
    timeout = aiohttp.ClientTimeout(total)
    async with aiohttp.ClientSession(await serve(Server(*statuses)), timeout=timeout, middlewares=layers) as session:
        gc.disable()
        try:
            with suppress(ApiError):
                async with session.get("/") as response:
                    await response.read()
                    del response
            assert len(requests) == sends
            assert len(errors) == (raise_errors and min(len(statuses), sends))
            assert not any(ref() for ref in requests)
            assert not any(ref() for ref in errors)
        finally:
            gc.enable()


async def test_a_wait_is_recorded_if_the_circuit_opens_during_it(serve: Serve, virtual_time: VirtualClock) -> None:
    async def protect(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        Call.of(request).circuit = OpensMeanwhile()
        return await handler(request)

    rules = RuleBook(Rule(503, "Service Unavailable", retry=Backoff(10, jitter=0)))
    async with aiohttp.ClientSession(
        await serve(Server(503)), timeout=aiohttp.ClientTimeout(), middlewares=(protect, Retry(rules), Classify(rules))
    ) as session:
        with pytest.raises(ServerStatusError) as caught:
            await session.get("/")
    assert caught.value.stopped is StopReason.CIRCUIT_OPEN
    assert [record.waited for record in caught.value.attempts] == pytest.approx([10])
