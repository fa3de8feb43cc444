"""Which bodies can be sent again: whatever is said to be, a server reads twice."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.environment import HANGS
from tests.request_bodies import ONE_SHOT, OPTIONS, REPLAYABLE, Files, form, multipart
from tests.servers import Serve

from lamella import Backoff, Retry, Rule, RuleBook
from lamella._aiohttp import prepare_again
from lamella.body.request import is_replayable, note_interruption
from lamella.call import Call

BIG = bytes(range(256)) * 10_000  # more than the sockets between client and server hold


class Twice:
    """Sends each request twice where that is said to be safe, and keeps what was said."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        self.said.append(is_replayable(Call.of(request), sent=False))
        response = None
        try:
            try:
                response = await handler(request)
            finally:
                note_interruption(Call.of(request))
            response.release()
        except aiohttp.ClientConnectionError:
            pass
        self.said.append(is_replayable(Call.of(request), sent=True))
        if self.said[-1]:
            await prepare_again(request)
            writer = getattr(request, "_writer", None)
            assert writer is None or writer.done()
            response = await handler(request)
            self.said.append(is_replayable(Call.of(request), sent=True))
        assert response is not None
        return response


class Recorder:
    """A server that reads bodies; its first answer can come before the body has, or not at all."""

    def __init__(self, first: str = "answers") -> None:
        self.bodies: list[bytes] = []
        self.early: list[int] = []
        self._first = first

    async def __call__(self, request: web.Request) -> web.Response:
        if request.headers.get("Expect"):
            # A body that does not wait for "100 Continue" would be here after a few turns of the loop.
            for _ in range(10):
                await asyncio.sleep(0)
            self.early.append(request.content.total_bytes)
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        first, self._first = self._first, "answers"
        if first != "answers":
            await request.content.read(1000)
            if first == "hangs up" and request.transport:
                request.transport.abort()
            return web.Response(status=503, headers={"Connection": "close"})
        self.bodies.append(await request.content.read())
        return web.Response()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    with Files(tmp_path) as found:
        yield found


@pytest.mark.sampled(8)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", REPLAYABLE)
async def test_a_replayable_body_can_be_read_twice(serve: Serve, files: Files, kind: str, option: str) -> None:
    make, expected = REPLAYABLE[kind]
    twice, server = Twice(), Recorder()
    async with aiohttp.ClientSession(middlewares=(twice,)) as session, asyncio.timeout(5):
        await session.put(await serve(server), **make(files), **OPTIONS[option])

    assert twice.said == [True, True, True]
    first, second = server.bodies
    assert first == second
    assert (first == expected) if expected is not None else first
    assert server.early == ([0, 0] if option == "expect" else [])


@pytest.mark.sampled
@pytest.mark.parametrize("option", ["plain", "gzip", "expect"])
@pytest.mark.parametrize("kind", ONE_SHOT)
async def test_a_consumed_body_is_not_replayable(serve: Serve, files: Files, kind: str, option: str) -> None:
    twice, server = Twice(), Recorder()
    data = ONE_SHOT[kind](files)
    async with aiohttp.ClientSession(middlewares=(twice,)) as session, asyncio.timeout(5):
        data = await data if asyncio.iscoroutine(data) else data
        await session.put(await serve(server), data=data, **OPTIONS[option])

    assert twice.said == [True, False]
    [body] = server.bodies
    assert b"abc" in body


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", ["answers early", "hangs up"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "make",
    [
        lambda _: BIG[:1_000_000],  # more bytes at once would be a warning
        lambda _: io.BytesIO(BIG),
        lambda _: multipart(io.BytesIO(BIG)),
        lambda _: form(a=io.BytesIO(BIG)),
    ],
    ids=["bytes", "buffer", "multipart", "form"],
)
async def test_a_partly_sent_body_is_sent_again_from_its_beginning(
    serve: Serve, files: Files, make: Callable[[Files], Any], option: str, first: str
) -> None:
    twice, server = Twice(), Recorder(first)
    # A POST, which aiohttp does not send again by itself.
    async with aiohttp.ClientSession(middlewares=(twice,)) as session, asyncio.timeout(10):
        response = await session.post(await serve(server), data=make(files), **OPTIONS[option])

    assert response.status == 200
    assert twice.said == [True, True, True]
    [body] = server.bodies
    assert (BIG if len(body) >= len(BIG) else BIG[:1_000_000]) in body


@pytest.mark.sampled(2)
@pytest.mark.parametrize("first", ["answers early", "hangs up"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "make",
    [lambda files: files.binary(BIG), lambda files: multipart(b"abc", files.binary(BIG))],
    ids=["file", "multipart"],
)
async def test_a_partly_sent_file_is_sent_again_completely_or_not(
    serve: Serve, files: Files, make: Callable[[Files], Any], option: str, first: str
) -> None:
    """When its writer was stopped, a thread may still be reading from it: the second send would begin anywhere."""
    twice, server = Twice(), Recorder(first)
    async with aiohttp.ClientSession(middlewares=(twice,)) as session, asyncio.timeout(10):
        with suppress(AssertionError):
            await session.post(await serve(server), data=make(files), **OPTIONS[option])

    if twice.said == [True, False]:
        assert server.bodies == []
    else:
        assert twice.said == [True, True, True]
        assert BIG in server.bodies[0]


class HeldFile(io.BufferedReader):
    """Only its first part can be read at once: the thread that reads the second waits until *goes_on* is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.goes_on = threading.Event()
        self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > 1:
            self.goes_on.wait(HANGS)
        return super().read(size)


class Impatient:
    """A server that answers as soon as the second part of *file* is being read."""

    def __init__(self, file: HeldFile) -> None:
        self.requests = 0
        self._file = file

    async def __call__(self, _: web.Request) -> web.Response:
        self.requests += 1
        while self._file.reads < 2:  # noqa: ASYNC110  nothing tells when
            await asyncio.sleep(0.001)
        return web.Response(status=503, headers={"Connection": "close"})


@pytest.fixture
def held_file(tmp_path: Path) -> Iterator[HeldFile]:
    (tmp_path / "body").write_bytes(BIG)
    with HeldFile(tmp_path / "body") as file:
        try:
            yield file
        finally:
            file.goes_on.set()


# In chunks: some versions of aiohttp read a file whose length goes with it all at once.
@pytest.mark.parametrize("whole", [lambda file: file, lambda file: multipart(b"abc", file)], ids=["file", "multipart"])
async def test_a_file_that_a_thread_still_reads_from_is_not_sent_again(
    serve: Serve, held_file: HeldFile, whole: Callable[[Any], Any]
) -> None:
    twice, server = Twice(), Impatient(held_file)
    async with (
        aiohttp.ClientSession(middlewares=(twice,)) as session,
        asyncio.timeout(10),
        session.post(await serve(server), data=whole(held_file), chunked=True) as response,
    ):
        assert response.status == 503
    assert twice.said == [True, False]
    assert server.requests == 1


@pytest.mark.parametrize("total", [None, 60.0], ids=["no deadline", "a deadline"])
async def test_retry_alone_does_not_resend_a_file_in_use(
    serve: Serve, held_file: HeldFile, total: float | None
) -> None:
    server, rules = Impatient(held_file), RuleBook(Rule(503, "Service Unavailable", retry=Backoff(0)))
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total), middlewares=(Retry(rules),)) as session,
        asyncio.timeout(10),
        session.put(await serve(server), data=held_file, chunked=True) as response,
    ):
        assert response.status == 503
    assert server.requests == 1


@pytest.mark.parametrize("kind", ["async generator", "stream"])
async def test_a_consumed_stream_is_not_resent_after_a_failed_connection(serve: Serve, files: Files, kind: str) -> None:
    async def fail_last(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        assert not is_replayable(Call.of(request), sent=False)
        return response

    data = ONE_SHOT[kind](files)
    async with aiohttp.ClientSession(middlewares=(fail_last,)) as session:
        data = await data if asyncio.iscoroutine(data) else data
        await session.post(await serve(Recorder()), data=data)


async def test_a_file_that_was_closed_is_not_replayable(serve: Serve, files: Files) -> None:
    server, file = Recorder(), files.binary()

    async def close(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        assert is_replayable(Call.of(request), sent=True)
        file.close()
        assert not is_replayable(Call.of(request), sent=True)
        return response

    async with aiohttp.ClientSession(middlewares=(close,)) as session:
        await session.put(await serve(server), data=file)

    assert len(server.bodies) == 1


@pytest.mark.parametrize("kind", ["async generator", "stream", "received part"])
async def test_an_unsent_stream_is_sent_after_a_failed_connection(serve: Serve, files: Files, kind: str) -> None:
    server = Recorder()
    data = ONE_SHOT[kind](files)

    async def fail_first(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        right, request.url = request.url, request.url.with_port(1)
        with pytest.raises(aiohttp.ClientConnectorError):
            await handler(request)
        request.url = right
        assert is_replayable(Call.of(request), sent=False)
        await prepare_again(request)
        return await handler(request)

    async with aiohttp.ClientSession(middlewares=(fail_first,)) as session:
        data = await data if asyncio.iscoroutine(data) else data
        await session.post(await serve(server), data=data)

    assert server.bodies == [b"abcdef"]
