"""Bodies are looked into without being taken away, and an error's body may be anything."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import warnings
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from tests.servers import Serve, ServeRaw

from lamella import ApiError, Rule, _aiohttp
from lamella.body import answer as answer_body
from lamella.body.answer import finish_error_body, peek, take_error_body

BODY = json.dumps([{"id": number, "text": "ä" * 50} for number in range(300)], indent=1, ensure_ascii=False).encode()
FRAMINGS = ["length", "chunked", "gzip", "gzip chunked"]
LARGEST_ERROR = 64 * 1024


class ErrorBody(NamedTuple):
    """What an error says of its body."""

    body: bytes
    payload: Any = None
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


async def said_in(response: aiohttp.ClientResponse, secrets: tuple[str, ...] = ()) -> ErrorBody:
    """Return what the error for *response* says of its body."""
    body = await take_error_body(response)
    error = ApiError(response.request_info, status=500, rule=Rule(500, "Error"), body=body, secrets=secrets)
    return ErrorBody(error.body, error.payload, error.details, error.validation_errors, error.downstream_errors)


async def answer(request: web.Request) -> web.StreamResponse:
    """BODY in the framing that the path names."""
    framing = request.path.strip("/")
    headers = {"Content-Encoding": "gzip"} if "gzip" in framing else {}
    body = gzip.compress(BODY) if "gzip" in framing else BODY
    headers["X-Port"] = str(request.transport.get_extra_info("peername")[1]) if request.transport else ""
    if "chunked" not in framing:
        return web.Response(body=body, content_type="application/json", headers=headers)
    response = web.StreamResponse(headers=headers | {"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    for start in range(0, len(body), 1000):
        await response.write(body[start : start + 1000])
    return response


async def by_readline(response: aiohttp.ClientResponse) -> bytes:
    lines = []
    while line := await response.content.readline():
        assert line.count(b"\n") <= 1
        lines.append(line)
    return b"".join(lines)


async def by_read_n(response: aiohttp.ClientResponse) -> bytes:
    first = await response.content.read(10)
    assert 0 < len(first) <= 10
    return first + await response.content.readexactly(100) + await response.content.read(-1)


async def by_readchunk(response: aiohttp.ClientResponse) -> bytes:
    data, ended = b"", False
    while not (ended and response.content.at_eof()):
        chunk, ended = await response.content.readchunk()
        data += chunk
        ended = ended or not chunk
    return data


READERS: dict[str, Callable[[aiohttp.ClientResponse], Any]] = {
    "read": lambda response: response.read(),
    "text": lambda response: response.text(),
    "json": lambda response: response.json(),
    "iter_chunked": lambda response: gathered(response.content.iter_chunked(777)),
    "iter_any": lambda response: gathered(response.content.iter_any()),
    "iter_chunks": lambda response: gathered(chunk async for chunk, _ in response.content.iter_chunks()),
    "lines": lambda response: gathered(response.content),
    "readline": by_readline,
    "read(n)": by_read_n,
    "readchunk": by_readchunk,
}


async def gathered(chunks: Any) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.sampled
@pytest.mark.parametrize("limit", [1, 100, len(BODY) - 1, len(BODY), len(BODY) + 1, 10**7])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_peeked_body_can_be_read_in_every_way(serve: Serve, framing: str, limit: int) -> None:
    url = f"{await serve(answer)}/{framing}"
    expected: dict[str, Any] = dict.fromkeys(READERS, BODY) | {"text": BODY.decode(), "json": json.loads(BODY)}
    async with aiohttp.ClientSession() as session:
        for name, read in READERS.items():
            async with session.get(url) as response:
                assert await peek(response, limit) == BODY[:limit]
                assert await read(response) == expected[name], name
                assert response.connection is None


async def test_a_body_can_be_peeked_at_again_and_again(serve: Serve) -> None:
    url = f"{await serve(answer)}/chunked"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        for limit in (5, 5000, 1, 10**7, 0, 10**7):
            assert await peek(response, limit) == BODY[:limit]
        assert await said_in(response) == ErrorBody(BODY, json.loads(BODY))
        assert await response.read() == BODY


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_complete_body_is_read_without_copying(
    serve: Serve, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silence(*_: object) -> None:
        raise AssertionError("the filters of warnings are everybody's, and no thread may touch them")

    url = f"{await serve(answer)}/{framing}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        while not response.content.is_eof():
            await peek(response, 10**7)
        monkeypatch.setattr(warnings, "catch_warnings", silence)
        # From the middle of a piece on, and over the ends of pieces.
        for start, size in ((0, 10), (10, 1), (11, 1990), (2001, 5)):
            for limit in (0, 1, 999, 10_000, 10**7):
                assert await peek(response, limit) == BODY[start : start + limit]
            assert await response.content.readexactly(size) == BODY[start : start + size]
        assert await said_in(response) == ErrorBody(BODY[2006:], None)
        assert await response.content.read() == BODY[2006:]


async def test_peeking_begins_where_the_last_reader_stopped() -> None:
    loop = asyncio.get_running_loop()
    content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    for piece in (b"0123", b"4567", b"89"):
        content.feed_data(piece)
    assert answer_body._arrived(content, 99) is None
    content.feed_eof()
    for start in range(10):
        for limit in range(12):
            assert answer_body._arrived(content, limit) == b"0123456789"[start : start + limit]
        await content.readexactly(1)
    assert answer_body._arrived(content, 99) == b""


async def test_peeking_works_without_private_access_to_aiohttp(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{await serve(answer)}/length") as response:
        await peek(response, 10**7)
        monkeypatch.setattr(_aiohttp, "deque", list)  # aiohttp keeps it in something else
        assert answer_body._arrived(response.content, 1) is None
        assert await peek(response, 1000) == BODY[:1000]
        assert await said_in(response) == ErrorBody(BODY, json.loads(BODY))
        assert await response.read() == BODY


@pytest.mark.parametrize("look", [lambda response: peek(response, 10**6), take_error_body])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_completed_body_releases_its_connection(serve: Serve, framing: str, look: Any) -> None:
    url = f"{await serve(answer)}/{framing}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session, asyncio.timeout(10):
        first = await session.get(url)
        await look(first)
        # With the one connection still in use, this would wait for ever.
        second = await session.get(url)
        assert second.headers["X-Port"] == first.headers["X-Port"]
        assert [await first.read(), await second.read()] == [BODY, BODY]


@pytest.mark.sampled
@pytest.mark.parametrize("limit", [1000, 700_000])  # aiohttp pauses the server at 128 KiB
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_that_continues_keeps_its_connection_until_it_is_read(
    serve: Serve, framing: str, limit: int
) -> None:
    big = random.Random(7).randbytes(2_000_000)

    async def handler(request: web.Request) -> web.StreamResponse:
        zipped = "gzip" in framing
        headers = {"Content-Encoding": "gzip"} if zipped else {}
        response = web.Response(body=gzip.compress(big, 1) if zipped else big, headers=headers)
        if "chunked" in framing:
            response.enable_chunked_encoding()
        return response

    async with aiohttp.ClientSession() as session, session.get(await serve(handler)) as response:
        assert await peek(response, limit) == big[:limit]
        assert response.connection is not None
        assert await response.read() == big
        assert response.connection is None


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("HEAD", 200), ("HEAD", 500), ("GET", 204), ("GET", 304)])
async def test_an_empty_body_releases_its_connection(serve: Serve, method: str, status: int) -> None:
    async def empty(request: web.Request) -> web.Response:
        return web.Response(status=status, body=b"12345" if request.method == "HEAD" else None)

    async with aiohttp.ClientSession() as session, session.request(method, await serve(empty)) as response:
        assert await peek(response, 100) == b""
        assert await said_in(response) == ErrorBody(b"")
        assert response.connection is None
        assert await response.read() == b""


def raw(head: str, *parts: bytes, pause: float = 0, hang: bool = False) -> Any:
    """A connection that sends *head* and each of *parts* by itself, and then closes, or says no more."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 500 Oh\r\n{head}\r\n\r\n".encode())
        for part in parts:
            writer.write(part)
            await writer.drain()
            # A few turns of the loop are enough for the client to read it.
            for _ in range(1 if pause else 10):
                await asyncio.sleep(pause)
        if hang:
            await reader.read()

    return connection


@pytest.mark.parametrize(
    ("limit", "head", "part"),
    [
        (100, "Content-Length: 6", b"hello"),
        (6, "Content-Length: 6", b"hello"),
        (100, "Transfer-Encoding: chunked", b"5\r\nhello\r\n"),
        (6, "Transfer-Encoding: chunked", b"5\r\nhello\r\n"),
        (5, "Transfer-Encoding: chunked", b"5\r\nhello\r\n"),  # neither ended nor longer than the limit
        (100, "Content-Encoding: gzip\r\nContent-Length: 9", b"\x1f\x8bnot gz"),
        (100, "Content-Encoding: gzip\r\nContent-Length: 5", b"plain"),
    ],
)
async def test_a_body_that_breaks_before_the_limit_raises_what_aiohttp_raises(
    serve_raw: ServeRaw, limit: int, head: str, part: bytes
) -> None:
    async with aiohttp.ClientSession() as session, session.get(await serve_raw(raw(head, part))) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await peek(response, limit)


async def test_reading_stops_one_byte_after_the_limit(serve_raw: ServeRaw) -> None:
    url = await serve_raw(raw("Content-Length: 99", b"hello!", hang=True))
    async with aiohttp.ClientSession() as session, session.get(url) as response, asyncio.timeout(10):
        assert await peek(response, 5) == b"hello"


@pytest.mark.parametrize(
    ("head", "parts", "expected"),
    [
        ("Content-Length: 99", [b'{"message": "wai'], ErrorBody(b'{"message": "wai')),
        ("Content-Length: 99", [b'{"mess', b'age": "m"}'], ErrorBody(b'{"message": "m"}', {"message": "m"}, ("m",))),
        ("Transfer-Encoding: chunked", [b"5\r\n[1, 2\r\n"], ErrorBody(b"[1, 2")),
        ("Connection: close", [b"[1", b", 2]"], ErrorBody(b"[1, 2]", [1, 2])),
        ("Content-Length: 99999", [b"x" * 60_000, b"y" * 5000], ErrorBody(b"x" * 60_000 + b"y" * 5000)),
        ("Content-Length: 99", [], ErrorBody(b"")),
        ("Content-Encoding: gzip\r\nContent-Length: 9", [b"\x1f\x8bnot gz!"], ErrorBody(b"")),
        ("Content-Encoding: gzip\r\nContent-Length: 5", [b"plain"], ErrorBody(b"")),
    ],
)
async def test_the_received_part_of_a_truncated_error_body_is_kept(
    serve_raw: ServeRaw, head: str, parts: list[bytes], expected: ErrorBody
) -> None:
    async with aiohttp.ClientSession() as session, session.get(await serve_raw(raw(head, *parts))) as response:
        assert await said_in(response) == expected


@pytest.mark.parametrize("exception", [aiohttp.ClientPayloadError("broken off"), ConnectionResetError()])
async def test_what_had_arrived_of_a_body_that_has_already_broken_off_is_kept(exception: Exception) -> None:
    loop = asyncio.get_running_loop()
    content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    content.feed_data(b'{"mess')
    content.feed_data(b"age")
    content.set_exception(exception)
    response = cast(aiohttp.ClientResponse, SimpleNamespace(content=content))
    assert answer_body.arrived_error_body(response) == b'{"message'
    assert await take_error_body(response) == b'{"message'


@pytest.mark.parametrize(
    ("head", "parts", "expected"),
    [
        ("Content-Length: 5000", [], ErrorBody(b"")),
        ("Content-Length: 5000", [b'{"mess'], ErrorBody(b'{"mess')),
        ("Transfer-Encoding: chunked", [b"3\r\n[1]\r\n"], ErrorBody(b"[1]", [1])),
        # aiohttp does not tell the reader of such a body that it ended.
        ("Transfer-Encoding: chunked", [b"3\r\n[1]\r\n", b"GARBAGE\r\n"], ErrorBody(b"[1]", [1])),
    ],
)
async def test_the_first_seconds_of_a_slow_error_body_are_kept(
    serve_raw: ServeRaw, monkeypatch: pytest.MonkeyPatch, head: str, parts: list[bytes], expected: ErrorBody
) -> None:
    assert 1 <= answer_body._ERROR_SECONDS <= 10
    monkeypatch.setattr(answer_body, "_ERROR_SECONDS", 0.01)
    url = await serve_raw(raw(head, *parts, hang=True))
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert await said_in(response) == expected


async def test_a_trickling_error_body_is_not_read_forever(serve_raw: ServeRaw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_body, "_ERROR_SECONDS", 0.01)
    url = await serve_raw(raw("Content-Length: 5000", *[b"x"] * 1000, pause=0.001))
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        said = await said_in(response)

    assert 0 < len(said.body) < 1000
    assert set(said.body) == set(b"x")


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_waiting_for_a_slow_error_can_be_cancelled(serve_raw: ServeRaw, how: str) -> None:
    url = await serve_raw(raw("Content-Length: 5000", b"x", hang=True))
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await take_error_body(response)
        else:
            task = asyncio.create_task(take_error_body(response))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def error_with(body: bytes, content_type: str = "application/json") -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=500, body=body, headers={"Content-Type": content_type})

    return handler


async def error_body(serve: Serve, body: bytes, content_type: str = "application/json") -> ErrorBody:
    async with aiohttp.ClientSession() as session:
        async with session.get(await serve(error_with(body, content_type))) as response:
            said = await said_in(response)
            assert await response.read() == body
    assert said.body == body[:LARGEST_ERROR]
    return said


@pytest.mark.parametrize("size", [LARGEST_ERROR - 1, LARGEST_ERROR, LARGEST_ERROR + 1, 10**6])
async def test_the_beginning_of_a_long_error_body_is_read(serve: Serve, size: int) -> None:
    said = await error_body(serve, b"[" + b" " * (size - 2) + b"]")

    assert said.payload == ([] if size <= LARGEST_ERROR else None)


async def test_the_beginning_of_a_long_compressed_error_body_is_kept(serve: Serve) -> None:
    async def bomb(request: web.Request) -> web.Response:
        return web.Response(status=500, body=gzip.compress(b"0" * 10**7), headers={"Content-Encoding": "gzip"})

    async with aiohttp.ClientSession() as session, session.get(await serve(bomb)) as response:
        assert await said_in(response) == ErrorBody(b"0" * LARGEST_ERROR)


@pytest.mark.parametrize("more", [0, 9])
async def test_truncating_an_error_body_leaves_no_half_secret(serve_raw: ServeRaw, more: int) -> None:
    """Not even of one as long as a header may be; whether all of the body is there, or it breaks off."""
    secret = "".join(f"{number:05}" for number in range(1600))
    begins = b"x" * (LARGEST_ERROR - 5)
    body = begins + secret.encode() + b"y" * 10
    url = await serve_raw(
        raw(f"Content-Length: {len(body) + more}", body[: LARGEST_ERROR + 3], body[LARGEST_ERROR + 3 :])
    )
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        if not more:
            await peek(response, len(body))
        assert (await said_in(response, (secret,))).body == begins + b"REDAC"


MESSAGE = '{"message": "Größe", "code": 7}'


@pytest.mark.parametrize(
    ("body", "content_type", "payload", "details"),
    [
        (b"", "application/json", None, ()),
        (b"<html><title>502 Bad Gateway</title></html>", "text/html", None, ()),
        (b"not found", "application/json", None, ()),
        (b"\x00\xff\xfe\x80", "application/octet-stream", None, ()),
        (b'{"message": "m"', "application/json", None, ()),
        (b'{"message": "m"} trailing', "application/json", None, ()),
        (b"null", "application/json", None, ()),
        (b"5", "application/json", 5, ()),
        (b'"text"', "application/json", "text", ()),
        (b"{}", "application/json", {}, ()),
        (b'{"message": "m"}', "text/html", {"message": "m"}, ("m",)),
        (b' \r\n{"message": "m"}\n', "application/problem+json", {"message": "m"}, ("m",)),
        (b'{"message": "a", "message": "b"}', "application/json", {"message": "b"}, ("b",)),
        (MESSAGE.encode(), "application/json", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode(), "application/json; charset=utf-16", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode(), "application/json; charset=no-such", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode("utf-8-sig"), "application/json", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode("utf-16"), "application/json; charset=utf-16", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode("utf-16-le"), "application/json", json.loads(MESSAGE), ("Größe",)),
        (MESSAGE.encode("utf-32"), "application/json", json.loads(MESSAGE), ("Größe",)),
        ('{"message": "m"}'.encode("utf-16-le"), "application/json", {"message": "m"}, ("m",)),
        ('{"message": "m"}'.encode("utf-32-be"), "application/json", {"message": "m"}, ("m",)),
        (MESSAGE.encode("utf-16")[:-1], "application/json", None, ()),
    ],
)
async def test_error_bodies_are_parsed(
    serve: Serve, body: bytes, content_type: str, payload: object, details: tuple[str, ...]
) -> None:
    assert await error_body(serve, body, content_type) == ErrorBody(body, payload, details)


async def test_a_wrong_charset_garbles_only_letters(serve: Serve) -> None:
    said = await error_body(serve, MESSAGE.encode("latin-1"))

    assert said.payload["code"] == 7
    [detail] = said.details
    assert (detail[:2], detail[-1:]) == ("Gr", "e")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 5000 + b"]" * 5000,
        b"[" * 60_000,
        b'{"errors":' * 5000 + b"1" + b"}" * 5000,
        b'{"errors":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"validationErrors":' * 100 + b'"x"' + b"}" * 100,
        b"1" * 5000,
        b'{"message": ' + b"1" * 5000 + b"}",
        b"NaN",
        b'{"message": NaN, "errors": [Infinity, -Infinity]}',
        b'{"message": 1e999}',
        b'{"message": "\\ud800\\u0000\\u001b[31m"}',
        b'{"": "", " ": null, "errors": {"": [[], {}, [[]], {"": {}}]}}',
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_any_body_can_be_parsed(serve: Serve, body: bytes) -> None:
    said = await error_body(serve, body)

    for text in (*said.details, *said.validation_errors, *said.downstream_errors):
        assert isinstance(text, str)


ITEM = {"field": "limit", "message": "must be 5"}


@pytest.mark.parametrize(
    ("payload", "details", "validation", "downstream"),
    [
        ({"errors": None, "data": [], "meta": {"warnings": ["w"]}}, (), (), ()),
        ({"errors": {}}, (), (), ()),
        ({"errors": []}, (), (), ()),
        ({"errors": ""}, (), (), ()),
        ({"errors": "e"}, ("e",), (), ()),
        ({"errors": ["a", "b"]}, ("a", "b"), (), ()),
        ({"errors": {"message": "m"}}, ("m",), (), ()),
        ({"errors": [{"code": "E1", "message": "m"}, {"message": "n"}]}, ("E1: m", "n"), (), ()),
        ({"error": {"error": {"message": "m"}}}, ("m",), (), ()),
        ({"error": "e", "error_description": "d"}, ("e", "d"), (), ()),
        ({"title": "t", "detail": "d", "status": 400}, ("t", "d"), (), ()),
        ({"Message": "m", "errorMessage": "e"}, ("m", "e"), (), ()),
        ({"messages": ["m"]}, ("m",), (), ()),
        ({"details": "d"}, ("d",), (), ()),
        ([{"errorCode": "E1", "message": "m"}, {"id": 2}, 3], ("E1: m",), (), ()),
        ({"message": "m", "errors": [{"message": "m"}]}, ("m",), (), ()),
        ({"message": "m", "data": {"message": "harmless"}, "rawData": {"error": "x"}}, ("m",), (), ()),
        ({"validationErrors": [ITEM, "s"]}, (), ("limit: must be 5", "s"), ()),
        ({"validation_errors": [ITEM]}, (), ("limit: must be 5",), ()),
        ({"validation-errors": [ITEM]}, (), ("limit: must be 5",), ()),
        ({"ValidationErrors": "v"}, (), ("v",), ()),
        ({"errors": {"message": "m", "validationErrors": [ITEM]}}, ("m",), ("limit: must be 5",), ()),
        ({"errors": {"error": {"validationErrors": [ITEM]}}}, (), ("limit: must be 5",), ()),
        ({"downstreamErrors": ["d"]}, (), (), ("d",)),
        ({"downstreamError": {"code": 7, "message": "d"}}, (), (), ("7: d",)),
        ({"downstream_errors": [{"message": "d"}]}, (), (), ("d",)),
        ({"downstream": "d"}, (), (), ("d",)),
        ({"targetSystemErrors": ["d"]}, (), (), ("d",)),
        ({"target_system_error": "d"}, (), (), ("d",)),
        ({"errors": {"downstreamErrors": ["d"], "validationErrors": ["v"], "message": "m"}}, ("m",), ("v",), ("d",)),
        ({"validationErrors": None, "downstreamErrors": None, "message": None}, (), (), ()),
    ],
    ids=json.dumps,
)
async def test_the_messages_of_an_error_are_found_and_distinguished(
    serve: Serve, payload: object, details: tuple[str, ...], validation: tuple[str, ...], downstream: tuple[str, ...]
) -> None:
    body = json.dumps(payload).encode()

    assert await error_body(serve, body) == ErrorBody(body, payload, details, validation, downstream)


@pytest.mark.parametrize(
    ("payload", "group", "words"),
    [
        ({"validationErrors": {"limit": "must be 5"}}, "validation_errors", ["limit", "must be 5"]),
        ({"validationErrors": {"limit": ["must be 5", "is odd"]}}, "validation_errors", ["limit", "must be 5", "odd"]),
        ({"validationErrors": [{"field": "limit", "messages": ["must be 5"]}]}, "validation_errors", ["must be 5"]),
        ({"errors": {"limit": ["must be 5"]}}, "details", ["limit", "must be 5"]),
        ({"errors": [{"message": "m", "validationErrors": [ITEM]}]}, "validation_errors", ["must be 5"]),
        ({"errors": [{"message": "m", "downstreamErrors": ["no company"]}]}, "downstream_errors", ["no company"]),
        ({"downstreamErrors": {"error": {"message": "no company"}}}, "downstream_errors", ["no company"]),
        ({"downstreamErrors": [{"system": "x", "errors": ["no company"]}]}, "downstream_errors", ["no company"]),
        ({"errors": {"title": ["is empty"], "email": ["is odd"]}}, "details", ["title: is empty", "email: is odd"]),
        ({"errors": {"address": {"zip": ["is odd"]}}}, "details", ["address: zip: is odd"]),
        ({"detail": [{"loc": ["body", "x"], "msg": "is missing"}]}, "details", ["is missing"]),
    ],
    ids=json.dumps,
)
async def test_the_messages_of_other_common_shapes_are_found(
    serve: Serve, payload: object, group: str, words: list[str]
) -> None:
    said = await error_body(serve, json.dumps(payload).encode())

    for word in words:
        assert word in " ".join(getattr(said, group))


NOISE = {"email": "NOISE", "internal": {"note": "NOISE", "reason": ["NOISE"]}, "id": "NOISE"}


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"message": "m", **NOISE}, ("m",)),
        ({"error": {"message": "m", "type": "NOISE", "code": "quota", **NOISE}}, ("quota: m",)),
        ({"error": {"code": "quota", **NOISE}}, ("quota",)),
        ({"error": {"code": 404, "message": "m", "details": [{"reason": "NOISE", "metadata": NOISE}]}}, ("404: m",)),
        (
            {"error": {"code": "a", "message": "m", "details": [{"code": "b", "message": "n", **NOISE}]}},
            ("a: m", "b: n"),
        ),
        ({"errors": [{"title": "t", "detail": "d", "code": "c", "meta": NOISE, **NOISE}]}, ("c: t: d",)),
        ({"errors": [{"message": "m", "extensions": {"code": "NOISE", "stacktrace": ["NOISE"]}}]}, ("m",)),
        (
            {"message": "m", "errors": [{"resource": "NOISE", "field": "title", "code": "missing"}]},
            ("m", "title: missing"),
        ),
        ({"errors": {"message": "m", "validationErrors": [{**ITEM, **NOISE}]}}, ("m", "limit: must be 5")),
        ({"errors": [{"message": "m", "messages": ["n"], "field": "f", **NOISE}]}, ("f: m", "n")),
    ],
    ids=str,
)
async def test_only_message_code_and_field_of_an_error_are_shown(
    serve: Serve, payload: object, said: tuple[str, ...]
) -> None:
    found = await error_body(serve, json.dumps(payload).encode())

    assert found.details + found.validation_errors == said


@pytest.mark.parametrize(
    "around",
    [
        lambda inner: [inner],
        lambda inner: {"field": inner},
        lambda inner: {"error": inner},
        lambda inner: {"validationErrors": inner},
        lambda inner: {"downstreamErrors": inner},
    ],
    ids=["list", "field", "error", "validation", "downstream"],
)
async def test_messages_are_found_six_deep_and_no_deeper(serve: Serve, around: Callable[[object], object]) -> None:
    inner: object = ["m"]
    for _ in range(4):
        inner = around(inner)
    for payload, found in (({"errors": inner}, True), ({"errors": around(inner)}, False)):
        said = await error_body(serve, json.dumps(payload).encode())
        texts = said.details + said.validation_errors + said.downstream_errors
        assert [text.rpartition(" ")[2] for text in texts] == ["m"] * found


async def test_a_flag_is_not_a_message(serve: Serve) -> None:
    said = await error_body(serve, b'{"error": true, "message": "m", "errors": [{"fatal": false, "message": "n"}]}')

    assert said.details == ("m", "n")


async def test_only_the_first_of_many_messages_are_kept(serve: Serve) -> None:
    said = await error_body(serve, json.dumps({"errors": [f"e{number}" for number in range(1000)]}).encode())

    assert said.details == tuple(f"e{number}" for number in range(20))


@pytest.mark.parametrize("status", [200, 503])
async def test_a_connection_that_ends_without_notifying_the_body_is_lost(serve_raw: ServeRaw, status: int) -> None:
    """So it is after a chunk that is none, for aiohttp closes the connection and does not say why."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"no chunk\r\n")
        await reader.read()

    async with aiohttp.ClientSession() as session, session.get(await serve_raw(connection)) as response:
        while response.content._protocol.connected:  # noqa: ASYNC110 - nothing else says so
            await asyncio.sleep(0.01)
        with pytest.raises(aiohttp.ClientPayloadError):
            await peek(response, 100)
        async with asyncio.timeout(4):
            await finish_error_body(response)
            assert await said_in(response) == ErrorBody(b"")
