"""An error answer is known by its status, whatever becomes of its body: it is returned, or raised, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import pytest
from tests.layering import apart, together
from tests.sdk import Tracing
from tests.servers import ServeRaw

from lamella import (
    AttemptTimeout,
    Backoff,
    Breaker,
    Classify,
    ConnectionLost,
    NotFound,
    Retry,
    Rule,
    RuleBook,
    ServerStatusError,
    StopReason,
    Timeout,
    deadline,
    maesn,
    stack,
)
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]

RULES: Final = maesn.RULES
CHUNKED: Final = "Transfer-Encoding: chunked"
SAID: Final = b'{"message": "no such invoice"}'
LENGTH: Final = f"Content-Length: {len(SAID) + 100}"


class Server:
    """Answers each request with the next status, and with a body that is broken."""

    def __init__(self, broken: str, *statuses: int) -> None:
        self.sends = 0
        self._broken = broken
        self._statuses = statuses

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = self._statuses[min(self.sends, len(self._statuses) - 1)]
        self.sends += 1
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n".encode())
        if status < 400:
            writer.write(b"Content-Length: 4\r\n\r\n" + (b"" if head.startswith(b"HEAD") else b"well"))
            await reader.read()
            return
        framing, body, end = BROKEN[self._broken]
        writer.write(f"{framing}\r\n\r\n".encode() + body)
        await writer.drain()
        await END[end](reader, writer)


async def _closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.01)


async def _is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b" ")
        await asyncio.sleep(0.5)


END: Final = {"closes": _closes, "is silent": _is_silent, "trickles": _trickles}
BROKEN: Final[dict[str, tuple[str, bytes, str]]] = {
    "cut before the body": (LENGTH, b"", "closes"),
    "cut": (LENGTH, SAID, "closes"),
    "cut in a chunk": (CHUNKED, b"99\r\n" + SAID, "closes"),
    "cut gzip of any kind": ("Content-Encoding: gzip\r\nContent-Length: 99", b"\x1f\x8b", "closes"),
    "hangs before the body": (LENGTH, b"", "is silent"),
    "hangs": (LENGTH, SAID, "is silent"),
    "hangs in a chunk": (CHUNKED, b"99\r\n" + SAID, "is silent"),
    "hangs until the end": ("X: y", SAID, "is silent"),
    "trickles": ("Content-Length: 9999", SAID, "trickles"),
    "no gzip": ("Content-Encoding: gzip\r\nContent-Length: 10", b"not a gzip", "is silent"),
    "no deflate, chunked": (f"Content-Encoding: deflate\r\n{CHUNKED}", b"a\r\nno deflate\r\n0\r\n\r\n", "is silent"),
}


def unraised(**options: Any) -> Layers:
    return stack(RULES, raise_errors=False, **options)


UNRAISED: Final[dict[str, Callable[[str], Layers]]] = {
    "all": lambda _: unraised(),
    "fused": lambda _: (together(unraised()),),
    "with a deadline": lambda _: unraised(deadline=10_000),
    "with a breaker": lambda _: (together(stack(RULES, Breaker(), raise_errors=False)),),
    "Retry alone": lambda _: (Retry(RULES),),
    "Maesn's": lambda url: maesn.layers("key", "account", url, raise_errors=False),
}


@pytest.mark.sampled
@pytest.mark.parametrize("layers", UNRAISED)
@pytest.mark.parametrize("broken", BROKEN)
async def test_without_raise_errors_an_error_response_is_returned_at_once(
    broken: str, layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server(broken, 404)
    url = await serve_raw(server)
    connector = aiohttp.TCPConnector()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout, middlewares=UNRAISED[layers](url)
    ) as session:
        async with session.get("/") as response:
            assert response.status == 404
            assert virtual_time.elapsed < 0.5
        assert not connector._acquired
    assert server.sends == 1


@pytest.mark.parametrize("broken", BROKEN)
async def test_the_caller_reads_an_error_body_as_with_bare_aiohttp(
    broken: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    async def read(layers: Layers) -> object:
        got = []
        async with aiohttp.ClientSession(url, middlewares=layers) as session, session.get("/") as response:
            try:
                async with asyncio.timeout(3):
                    got += [part async for part in response.content.iter_any()]
            except Exception as exc:  # noqa: BLE001 - compared
                return b"".join(got), type(exc)
        return b"".join(got), None

    url = await serve_raw(Server(broken, 404))
    assert await read(unraised()) == await read(())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layers", UNRAISED)
@pytest.mark.parametrize("broken", BROKEN)
async def test_without_raise_errors_the_status_decides_about_a_retry(
    broken: str, layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server(broken, 503)
    url = await serve_raw(server)
    connector = aiohttp.TCPConnector()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout, middlewares=UNRAISED[layers](url)
    ) as session:
        async with session.get("/") as response:
            assert response.status == 503
        assert server.sends == 5
        async with session.post("/") as response:
            assert response.status == 503
        assert not connector._acquired
    assert server.sends == 6


@pytest.mark.sampled(4)
@pytest.mark.parametrize("broken", BROKEN)
async def test_a_success_after_error_responses_is_returned(
    broken: str, serve_raw: ServeRaw, virtual_time: VirtualClock, tracing: Tracing
) -> None:
    url = await serve_raw(Server(broken, 503, 429, 200))
    layers = unraised(tracer_provider=tracing.provider)
    async with (
        aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=None), middlewares=layers) as session,
        session.get("/") as response,
    ):
        assert (response.status, await response.read()) == (200, b"well")
    assert [(span.attributes or {}).get("error.type") for span in tracing.sends] == ["503", "429", None]


async def test_a_slow_error_body_is_read_so_that_its_connection_is_reused(
    serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    connections = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for status in (503, 503, 200):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\n\r\n".encode())
            await asyncio.sleep(0.1)
            writer.write(b"body")

    async with (
        aiohttp.ClientSession(
            await serve_raw(connection), timeout=aiohttp.ClientTimeout(total=None), middlewares=unraised()
        ) as session,
        session.get("/") as response,
    ):
        assert (response.status, await response.read()) == (200, b"body")
    assert connections == 1


@pytest.mark.parametrize("wait", [1.0, 100.0])
async def test_the_rest_of_an_error_body_is_read_during_the_wait(
    wait: float, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    """So that it takes neither longer than the wait nor any time of the deadline."""
    server = Server("hangs", 503)
    rules = RuleBook(Rule(503, "Unavailable", retry=Backoff(wait, maximum=wait, jitter=0)))
    layers = stack(rules, raise_errors=False, deadline=3.5 * wait)
    async with aiohttp.ClientSession(await serve_raw(server), middlewares=layers) as session:
        async with session.get("/", timeout=aiohttp.ClientTimeout(total=None)) as response:
            assert response.status == 503
    assert server.sends == 4
    assert virtual_time.elapsed == pytest.approx(3 * wait, abs=0.1)


RAISED: Final[dict[str, Callable[[str], Layers]]] = {
    "all": lambda _: stack(RULES, attempt_timeout=2),
    "fused": lambda _: (together(stack(RULES, attempt_timeout=2)),),
    "without Buffer": lambda _: stack(RULES, attempt_timeout=2, buffer=None),
    "with a longer deadline": lambda _: stack(RULES, attempt_timeout=2, deadline=100),
    "with a shorter deadline": lambda _: (together(stack(RULES, attempt_timeout=60, deadline=2)),),
    "a deadline alone": lambda _: (Retry(RULES, deadline=2), Classify(RULES)),
    "a timeout alone": lambda _: (Timeout(2), Classify(RULES)),
    "Maesn's": lambda url: maesn.layers("key", "account", url, attempt_timeout=2),
}


@pytest.mark.sampled
@pytest.mark.parametrize("layers", RAISED)
@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_error_body_raises_the_error_of_its_status_in_time(
    broken: str, layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server(broken, 404)
    url = await serve_raw(server)
    connector = aiohttp.TCPConnector()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout, middlewares=RAISED[layers](url)
    ) as session:
        with pytest.raises(NotFound) as caught:
            await session.get("/")
        assert virtual_time.elapsed <= 2.1
        assert not connector._acquired
        # What came of the body is there.
        said = b"" if {"gzip", "deflate,"} & {*broken.split()} else BROKEN[broken][1][-len(SAID) :]
        assert caught.value.body.rstrip() == said
        # Nothing of the attempt goes on: no limit ends what the caller does next.
        await asyncio.sleep(100)
    assert server.sends == 1


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layers", RAISED)
async def test_a_hanging_error_body_is_retried_by_its_status(
    layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server("hangs", 503)
    url = await serve_raw(server)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout, middlewares=RAISED[layers](url)) as session:
        with pytest.raises(ServerStatusError) as caught:
            await session.get("/")
    short = "deadline" in layers and "longer" not in layers
    expected = {
        "with a longer deadline": (StopReason.DEADLINE, 3),
        "a timeout alone": (None, 1),
    }.get(layers, (StopReason.DEADLINE, 1) if short else (StopReason.ATTEMPTS_USED_UP, 5))
    assert (caught.value.stopped, server.sends) == expected
    assert all(record.status == 503 and record.took <= 2.1 for record in caught.value.attempts)


@pytest.mark.parametrize("session_total", [False, True], ids=["a deadline around the call", "the session's total"])
async def test_no_other_limit_turns_an_error_response_into_a_timeout(
    session_total: bool, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    url = await serve_raw(Server("hangs", 404))
    timeout = aiohttp.ClientTimeout(total=2 if session_total else None)
    async with aiohttp.ClientSession(url, timeout=timeout, middlewares=stack(RULES)) as session:
        with deadline(100 if session_total else 2), pytest.raises(NotFound):
            await session.get("/")
    assert virtual_time.elapsed <= 2.1


@pytest.mark.parametrize("options", [{}, {"deadline": 3}], ids=["attempt", "deadline"])
async def test_a_busy_loop_at_the_timeout_does_not_change_the_error(
    options: dict[str, float], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    """All limits are due in the same turn of the loop then."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 9\r\n\r\n1")
        await writer.drain()
        await asyncio.sleep(1)
        virtual_time._now += 10  # as if a callback had taken that long
        await reader.read()

    layers = stack(RULES, attempt_timeout=3, **options)  # type: ignore[arg-type]
    async with aiohttp.ClientSession(await serve_raw(connection), middlewares=layers) as session:
        with pytest.raises(NotFound):
            await session.get("/")


@pytest.mark.sampled
@pytest.mark.parametrize("layers", RAISED)
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_the_caller_can_cancel_while_an_error_body_is_read(
    how: str, layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    url = await serve_raw(Server("hangs", 404))
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(url, connector=connector, middlewares=RAISED[layers](url)) as session:
        if how == "cancel":
            task = asyncio.ensure_future(session.get("/"))
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(1):
                    await session.get("/")
            assert type(caught.value) is TimeoutError
        assert not connector._acquired


async def test_a_success_with_a_broken_body_fails_the_attempt(serve_raw: ServeRaw, virtual_time: VirtualClock) -> None:
    sends = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sends
        sends += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    async with aiohttp.ClientSession(
        await serve_raw(connection), timeout=aiohttp.ClientTimeout(total=None), middlewares=unraised()
    ) as session:
        with pytest.raises(ConnectionLost):
            await session.get("/")
    assert sends == 5


@pytest.mark.parametrize("layers", ["a timeout alone", "a deadline alone", "all"])
async def test_later_requests_of_a_middleware_are_still_limited(
    layers: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    """The limits of the attempt and the call are lifted for the reading alone."""
    sends = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sends
        await reader.readuntil(b"\r\n\r\n")
        sends += 1
        if sends == 1:
            writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 4\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(1)
            writer.write(b"body")
        await reader.read()

    async def again(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except NotFound:
            return await handler(request)

    *outer, innermost = apart(stack(RULES, attempt_timeout=2, attempts=1) if layers == "all" else RAISED[layers](""))
    async with aiohttp.ClientSession(
        await serve_raw(connection),
        timeout=aiohttp.ClientTimeout(total=None),
        middlewares=(*outer, again, innermost),
    ) as session:
        with pytest.raises(AttemptTimeout):
            await session.get("/")
    assert sends == 2
    assert virtual_time.elapsed == pytest.approx(2, abs=0.1)
