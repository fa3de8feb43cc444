"""Every fault, as it arrives: at a bare socket, and at a bare aiohttp client."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella.maesn.sandbox import Sandbox
from lamella.testing import Fault, VirtualClock
from lamella.testing.faults import SLOW_PIECES


async def connect(sandbox: Sandbox) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = sandbox.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /accounting/bills?limit=100 HTTP/1.1\r\nHost: {host}\r\nX-API-KEY: {sandbox.api_key}\r\n"
        f"X-ACCOUNT-KEY: {sandbox.account_key}\r\n\r\n".encode()
    )
    return reader, writer


async def read_all(reader: asyncio.StreamReader) -> tuple[bytes, BaseException | None]:
    """What arrives until the end of the connection, and what ended it."""
    data = bytearray()
    try:
        while piece := await reader.read(1 << 16):
            data += piece
    except ConnectionError as error:
        return bytes(data), error
    return bytes(data), None


async def test_a_fault_breaks_the_answer_of_any_aiohttp_server(serve: Serve) -> None:
    faults = iter([Fault.CUT_BODY, Fault.RESET_BEFORE_HEADERS])

    async def handler(request: web.Request) -> web.StreamResponse:
        whole = web.json_response({"id": 1}, headers={"X-Request-Id": "r-1"})
        fault = next(faults, None)
        return whole if fault is None else await fault.answer(request, whole)

    url = await serve(handler)
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            assert response.headers["X-Request-Id"] == "r-1"
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.json()
        with pytest.raises(aiohttp.ClientError):
            await session.post(url)
        async with session.get(url) as response:
            assert await response.json() == {"id": 1}


class TestOnTheWire:
    async def received(self, sandbox: Sandbox, fault: Fault) -> tuple[bytes, BaseException | None]:
        sandbox.script(fault)
        reader, writer = await connect(sandbox)
        try:
            return await read_all(reader)
        finally:
            writer.transport.abort()

    async def test_reset_before_headers(self, sandbox: Sandbox) -> None:
        data, error = await self.received(sandbox, Fault.RESET_BEFORE_HEADERS)
        assert data == b""
        assert isinstance(error, ConnectionResetError)

    async def test_reset_after_headers(self, sandbox: Sandbox) -> None:
        data, error = await self.received(sandbox, Fault.RESET_AFTER_HEADERS)
        head, body = data.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: " in head
        assert body == b""
        assert isinstance(error, ConnectionResetError)

    async def test_cut_body(self, sandbox: Sandbox) -> None:
        data, error = await self.received(sandbox, Fault.CUT_BODY)
        head, body = data.split(b"\r\n\r\n")
        [promised] = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
        assert len(body) == int(promised.split()[1]) // 2 > 0
        assert error is None

    async def test_endless_headers(self, sandbox: Sandbox) -> None:
        data, error = await self.received(sandbox, Fault.ENDLESS_HEADERS)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\n\r\n" not in data
        assert 1 << 20 < len(data) < 8 << 20
        assert error is None

    async def test_garbage(self, sandbox: Sandbox) -> None:
        data, error = await self.received(sandbox, Fault.GARBAGE)
        assert data
        assert not data.startswith(b"HTTP")
        assert error is None

    async def test_slow_body(self, sandbox: Sandbox, virtual_time: VirtualClock) -> None:
        data, error = await self.received(sandbox, Fault.SLOW_BODY)
        sandbox.script(200)
        reader, writer = await connect(sandbox)
        whole = await reader.readuntil(b"\r\n\r\n")
        length = int(whole.split(b"Content-Length: ")[1].split()[0])
        assert data.split(b"\r\n\r\n")[1] == await reader.readexactly(length)
        assert error is None
        assert SLOW_PIECES - 2 <= virtual_time.elapsed <= SLOW_PIECES
        writer.transport.abort()

    async def test_silence(self, sandbox: Sandbox, virtual_time: VirtualClock) -> None:
        sandbox.script(Fault.SILENCE)
        reader, writer = await connect(sandbox)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await reader.read(1)
        assert virtual_time.elapsed == pytest.approx(3600)
        writer.transport.abort()


class TestAtTheClient:
    """What aiohttp makes of it. ClientPayloadError comes from the body, all others before it."""

    @pytest.fixture
    async def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (Fault.RESET_BEFORE_HEADERS, aiohttp.ClientOSError),
            (Fault.RESET_AFTER_HEADERS, aiohttp.ClientPayloadError),
            (Fault.CUT_BODY, aiohttp.ClientPayloadError),
            # The error depends on the limits for headers that this version of aiohttp has.
            (Fault.ENDLESS_HEADERS, aiohttp.ClientError),
            (Fault.SLOW_BODY, TimeoutError),
            (Fault.GARBAGE, aiohttp.ClientResponseError),
            (Fault.SILENCE, TimeoutError),
        ],
        ids=lambda value: value.name if isinstance(value, Fault) else "",
    )
    @pytest.mark.usefixtures("virtual_time")
    async def test_error(
        self, sandbox: Sandbox, session: aiohttp.ClientSession, fault: Fault, error: type[Exception]
    ) -> None:
        sandbox.script(fault)
        async with session:
            with pytest.raises(error):
                # POST: aiohttp does not send it a second time by itself.
                async with session.post(f"{sandbox.url}/accounting/bills", json={}) as response:
                    await response.read()
        assert [received.outcome for received in sandbox.received] == [fault]

    @pytest.mark.parametrize("fault", [Fault.RESET_AFTER_HEADERS, Fault.CUT_BODY, Fault.SLOW_BODY])
    @pytest.mark.usefixtures("virtual_time")
    async def test_status_and_headers_arrive(
        self, sandbox: Sandbox, session: aiohttp.ClientSession, fault: Fault
    ) -> None:
        sandbox.script(fault)
        async with session, session.get(f"{sandbox.url}/auth/xero", headers={"X-API-KEY": sandbox.api_key}) as response:
            assert response.status == 200
            assert response.content_type == "text/html"


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in {Fault.SILENCE, Fault.SLOW_BODY}])
async def test_connection_is_over_afterwards(sandbox: Sandbox, fault: Fault) -> None:
    sandbox.script(fault)
    reader, writer = await connect(sandbox)
    await read_all(reader)
    assert reader.at_eof() or reader.exception()
    writer.transport.abort()


def test_repr_names_the_fault() -> None:
    assert repr(Fault.CUT_BODY) == "Fault.CUT_BODY"
