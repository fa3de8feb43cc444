"""A page is read inside the attempt whatever its size: one that stalls ends in time, and one that is cut is retried."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from tests.servers import ServeRaw

from lamella import AttemptTimeout, ConnectionLost, HeaderAuth, maesn, stack
from lamella.batch import Journal
from lamella.testing import VirtualClock

MB: Final = 2**20
LARGER: Final = 9 * MB
"""More than Buffer reads of any other answer."""
RECORDS: Final = [{"invoiceId": str(number), "note": "x" * (LARGER // 10)} for number in range(10)]
PAGE: Final = json.dumps({"meta": {"pagination": {"total": 10, "totalPages": 1}}, "data": RECORDS}).encode()
SMALL: Final = json.dumps({"meta": {"pagination": {"total": 1, "totalPages": 1}}, "data": RECORDS[:1]}).encode()


def maesns(url: str) -> aiohttp.ClientSession:
    return maesn.session("key", "account", url)


def own_session(url: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(url, timeout=timeout, middlewares=maesn.layers("key", "account", url))


def other_layers(url: str) -> aiohttp.ClientSession:
    """Without the layers of maesn.session, and with a small limit."""
    layers = stack(maesn.RULES, auth=HeaderAuth({"X-API-KEY": "key"}, origin=url), buffer=1000)
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=None), middlewares=layers)


SESSIONS: Final = (maesns, own_session, other_layers)
CHUNKED: Final = "Transfer-Encoding: chunked"


def chunked(data: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in pieces(data, MB // 3)) + b"0\r\n\r\n"


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 0, mtime=0)


# The headers, and the body as it is sent.
FRAMINGS: Final[dict[str, tuple[str, bytes]]] = {
    "length": (f"Content-Length: {len(PAGE)}", PAGE),
    "chunked": (CHUNKED, chunked(PAGE)),
    "gzip": (f"Content-Encoding: gzip\r\nContent-Length: {len(gzipped(PAGE))}", gzipped(PAGE)),
    "gzip chunked": (f"Content-Encoding: gzip\r\n{CHUNKED}", chunked(gzipped(PAGE))),
    "no type": (f"X: y\r\n{CHUNKED}", chunked(PAGE)),
    "events": (f"Content-Type: text/event-stream\r\n{CHUNKED}", chunked(PAGE)),
}
WHOLE: Final = 10**12


class Server:
    """Sends the page, at first only some bytes of it, and then closes, stalls or trickles."""

    def __init__(self, framing: str, *sends: tuple[int, str]) -> None:
        self.sends = 0
        self._framing = FRAMINGS[framing]
        self._sends = sends

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            size, end = self._sends[min(self.sends, len(self._sends) - 1)]
            self.sends += 1
            headers, body = self._framing
            kind = "" if "Content-Type" in headers or "X: y" in headers else "Content-Type: application/json\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}{headers}\r\n\r\n".encode())
            for piece in pieces(body[:size], MB):
                writer.write(piece)
                await writer.drain()
            match end:
                case "closes":
                    return
                case "stalls":
                    await reader.read()
                    return
                case "trickles":
                    for byte in body[size:]:
                        if writer.is_closing():
                            return
                        writer.write(bytes([byte]))
                        await asyncio.sleep(5)


async def read(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    return [record async for record in maesn.records(session, "invoices")]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", SESSIONS)
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("fault", ["closes", "stalls", "trickles"])
async def test_a_truncated_large_page_is_retried(
    fault: str,
    framing: str,
    make: Callable[[str], aiohttp.ClientSession],
    serve_raw: ServeRaw,
    virtual_time: VirtualClock,
) -> None:
    server = Server(framing, (len(FRAMINGS[framing][1]) - 1000, fault), (WHOLE, ""))
    async with make(await serve_raw(server)) as session:
        assert await read(session) == RECORDS
        assert isinstance(session.connector, aiohttp.TCPConnector)
        assert not session.connector._acquired
    assert server.sends == 2
    assert (virtual_time.elapsed > 60) is (fault != "closes")
    assert virtual_time.elapsed < 100


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("fault", "error"), [("closes", ConnectionLost), ("stalls", AttemptTimeout), ("trickles", AttemptTimeout)]
)
async def test_an_always_truncated_large_page_is_an_error(
    fault: str, error: type[Exception], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server("chunked", (LARGER - 1000, fault))
    async with maesns(await serve_raw(server)) as session:
        with pytest.raises(error):
            await read(session)
    assert server.sends == 5


async def test_a_sync_with_stalling_and_broken_large_pages_is_complete(
    serve_raw: ServeRaw, virtual_time: VirtualClock, tmp_path: Path
) -> None:
    server = Server("length", (LARGER - 1000, "stalls"), (LARGER - 1000, "closes"), (WHOLE, ""))
    async with maesns(await serve_raw(server)) as session, Journal.open(tmp_path / "journal", batch="b") as journal:
        report = await maesn.sync(session, {"north": "account"}, ["invoices"], journal=journal)
    assert report.done
    assert (report.records, server.sends) == (len(RECORDS), 3)


@pytest.mark.parametrize("size", [len(SMALL), 20_000])
async def test_a_page_shorter_than_its_stated_length_is_retried(
    size: int, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    """A length that is too large looks as a body that is cut."""
    sends = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sends
        sends += 1
        await reader.readuntil(b"\r\n\r\n")
        length = len(SMALL) + (sends == 1)
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + SMALL[: size if sends == 1 else None]
        )

    async with maesns(await serve_raw(connection)) as session:
        assert await read(session) == RECORDS[:1]
    assert sends == 2


async def test_a_page_longer_than_its_stated_length_fails_alone(
    serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    sends = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sends
        while await reader.readuntil(b"\r\n\r\n"):
            sends += 1
            length = len(SMALL) - (100 if sends == 1 else 0)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(SMALL)

    async with maesns(await serve_raw(connection)) as session:
        with pytest.raises(ValueError, match=r"page 1 of invoices is not readable JSON"):
            await read(session)
        assert await read(session) == RECORDS[:1]


@pytest.mark.parametrize("make", SESSIONS)
async def test_a_page_with_a_too_large_stated_length_is_not_read(
    make: Callable[[str], aiohttp.ClientSession], serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    sent = 0

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {64 * MB + 1}\r\n\r\n".encode())
        while not writer.is_closing():
            writer.write(b"x" * MB)
            sent += 1
            await writer.drain()

    async with make(await serve_raw(connection)) as session:
        with pytest.raises(ValueError, match="page 1 of invoices is longer than 64 MiB"):
            await read(session)
        assert isinstance(session.connector, aiohttp.TCPConnector)
        assert not session.connector._acquired
    assert sent < 20


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framing", ["length", "chunked", "gzip"])
async def test_a_session_without_buffer_reads_large_pages(framing: str, serve_raw: ServeRaw) -> None:
    url = await serve_raw(Server(framing, (WHOLE, "")))
    async with aiohttp.ClientSession(url, middlewares=stack(maesn.RULES, buffer=None)) as session:
        assert await read(session) == RECORDS
    async with aiohttp.ClientSession(url) as session:
        assert await read(session) == RECORDS


@pytest.mark.parametrize("framing", ["length", "chunked", "gzip"])
async def test_a_large_page_needs_at_most_four_times_its_size(framing: str, serve_raw: ServeRaw) -> None:
    """As bytes in pieces, as bytes, as text and as records."""
    url = await serve_raw(Server(framing, (WHOLE, "")))
    async with maesns(url) as session:
        tracemalloc.start(1)
        try:
            async for page in maesn.pages(session, "invoices"):
                assert len(page.records) == len(RECORDS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4 * len(PAGE)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framing", ["length", "chunked", "gzip", "gzip chunked"])
@pytest.mark.parametrize("fault", ["closes", "stalls", "trickles"])
async def test_truncated_large_json_is_retried(
    fault: str, framing: str, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    server = Server(framing, (len(FRAMINGS[framing][1]) - 1000, fault), (WHOLE, ""))
    async with maesns(await serve_raw(server)) as session, session.get("/accounting/invoices") as response:
        assert (await response.json())["data"] == RECORDS
    assert server.sends == 2


# What is neither a page nor JSON passes on as a stream.


class Document:
    """Sends a document, and waits in its middle until the client has seen its beginning."""

    def __init__(self, *headers: str) -> None:
        self.size = (65 if "Content-Type: application/json" in headers else 40) * MB
        self.seen = asyncio.Event()
        self._head = "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode()
        self._chunked = CHUNKED in headers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await self.answer(writer)

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head)
        for number in range(self.size // MB):
            writer.write((b"%x\r\n" % MB if self._chunked else b"") + bytes(MB) + (b"\r\n" if self._chunked else b""))
            await writer.drain()
            if not number:
                await self.seen.wait()
        writer.write(b"0\r\n\r\n" if self._chunked else b"")
        await writer.drain()


DOCUMENTS: Final = {
    "a PDF": ("Content-Type: application/pdf", f"Content-Length: {40 * MB}"),
    "a PDF without a length": ("Content-Type: application/pdf", CHUNKED),
    "octets": ("Content-Type: application/octet-stream", CHUNKED),
    "a ZIP until the end": ("Content-Type: application/zip", "Connection: close"),
    "JSON of more than a page": ("Content-Type: application/json", f"Content-Length: {65 * MB}"),
}


async def download(session: aiohttp.ClientSession, document: Document) -> None:
    async with asyncio.timeout(20), session.get("/document") as response:
        size = len(await response.content.readexactly(MB))
        document.seen.set()
        async for piece in response.content.iter_chunked(2**16):
            size += len(piece)
        assert size == document.size


@pytest.mark.sampled(1)
@pytest.mark.parametrize("make", [maesns, own_session])
@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_a_large_document_is_a_stream(
    kind: str, make: Callable[[str], aiohttp.ClientSession], serve_raw: ServeRaw
) -> None:
    document = Document(*DOCUMENTS[kind])
    async with make(await serve_raw(document)) as session:
        tracemalloc.start(1)
        try:
            await download(session, document)
            assert tracemalloc.get_traced_memory()[1] < 10 * MB
        finally:
            tracemalloc.stop()


async def test_bodies_are_streams_between_pages_and_in_tasks_started_by_a_page(serve_raw: ServeRaw) -> None:
    """Only the call that reads a page is one that reads all of its body."""
    document = Document(*DOCUMENTS["octets"])
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"/document" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(f"HTTP/1.1 200 OK\r\n{FRAMINGS['length'][0]}\r\n\r\n".encode() + PAGE)
        await document.answer(writer)

    async def later() -> None:
        await go_on.wait()
        await download(session, document)

    async def start(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if not tasks:
            tasks.append(asyncio.ensure_future(later()))
        return await handler(request)

    url = await serve_raw(connection)
    layers = (start, *maesn.layers("key", "account", url))
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        async for page in maesn.pages(session, "invoices"):
            assert page.records == RECORDS
            await download(session, document)
        document.seen.clear()
        go_on.set()
        await tasks[0]


async def test_the_maximum_page_size_is_the_documented_one() -> None:
    assert sys.modules["lamella.sync.page"]._LONGEST == 64 * MB
    assert "64 MiB" in (Path(__file__).parents[2] / "docs/explanation/security.md").read_text()
