"""Bodies of requests that can be sent again, and bodies that cannot."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import payload
from aiohttp.base_protocol import BaseProtocol

__all__ = ["ONE_SHOT", "OPTIONS", "REPLAYABLE", "Files", "form", "multipart"]

TEXT = "Größe 7\n" * 10


class OneShot(payload.Payload):
    """A payload of somebody else's, which does not know that it is used up."""

    def __init__(self) -> None:
        super().__init__(iter([b"abc", b"def"]), content_type="text/plain")

    async def write(self, writer: Any) -> None:
        for chunk in self._value:
            await writer.write(chunk)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError


def multipart(*parts: Any) -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter("mixed", boundary="x" * 20)
    for part in parts:
        writer.append(part)
    return writer


def encoded_multipart() -> aiohttp.MultipartWriter:
    writer = multipart()
    for name, value in (("Content-Encoding", "gzip"), ("Content-Transfer-Encoding", "base64")):
        writer.append(b"abc" * 100, {name: value})
    return writer


def form(**fields: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields.items():
        data.add_field(name, value, filename=None if isinstance(value, str) else name)
    return data


async def generator() -> AsyncIterator[bytes]:
    yield b"abc"
    yield b"def"


def stream(content: bytes = b"abcdef") -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    reader = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    reader.feed_data(content)
    reader.feed_eof()
    return reader


async def received_part() -> aiohttp.BodyPartReader:
    content = stream(b"--x\r\nContent-Type: text/plain\r\n\r\nabcdef\r\n--x--\r\n")
    part = await aiohttp.MultipartReader({"Content-Type": "multipart/mixed; boundary=x"}, content).next()
    assert isinstance(part, aiohttp.BodyPartReader)
    return part


class Files:
    """Files of each kind, closed at the end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "body.txt"
        self._stack = ExitStack()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def binary(self, content: bytes = b"0123456789" * 100, at: int = 0) -> io.BufferedReader:
        self._path.write_bytes(content)
        file = self._stack.enter_context(self._path.open("rb"))
        file.seek(at)
        return file

    def text(self) -> io.TextIOWrapper:
        self._path.write_text(TEXT, encoding="utf-8")
        return self._stack.enter_context(self._path.open(encoding="utf-8"))

    def pipe(self) -> Any:
        ours, theirs = os.pipe()
        os.write(theirs, b"abcdef")
        os.close(theirs)
        return self._stack.enter_context(os.fdopen(ours, "rb"))


def bytes_at(position: int) -> io.BytesIO:
    buffer = io.BytesIO(b"0123456789")
    buffer.seek(position)
    return buffer


# What aiohttp is given, and what the server is to read: None where that has a boundary or the like in it.
REPLAYABLE: dict[str, tuple[Callable[[Files], dict[str, Any]], bytes | None]] = {
    "nothing": (lambda _: {}, b""),
    "empty bytes": (lambda _: {"data": b""}, b""),
    "bytes": (lambda _: {"data": b"abc"}, b"abc"),
    "bytearray": (lambda _: {"data": bytearray(b"abc")}, b"abc"),
    "memoryview": (lambda _: {"data": memoryview(b"abc")}, b"abc"),
    "text": (lambda _: {"data": TEXT}, TEXT.encode()),
    "json": (lambda _: {"json": {"a": [1, None]}}, b'{"a": [1, null]}'),
    "json payload": (lambda _: {"data": aiohttp.JsonPayload({"a": 1})}, b'{"a": 1}'),
    "mapping": (lambda _: {"data": {"a": "1", "b": "ü"}}, b"a=1&b=%C3%BC"),
    "urlencoded form": (lambda _: {"data": form(a="1", b="2")}, b"a=1&b=2"),
    "multipart form of bytes": (lambda _: {"data": form(a=b"abc")}, None),
    "multipart form of a buffer": (lambda _: {"data": form(a=io.BytesIO(b"abc"), b="2")}, None),
    "multipart form of a file": (lambda files: {"data": form(a=files.binary(), b="2")}, None),
    "buffer": (lambda _: {"data": io.BytesIO(b"abc")}, b"abc"),
    "empty buffer": (lambda _: {"data": io.BytesIO()}, b""),
    "buffer from its middle": (lambda _: {"data": bytes_at(4)}, b"456789"),
    "text buffer": (lambda _: {"data": io.StringIO(TEXT)}, TEXT.encode()),
    "file": (lambda files: {"data": files.binary()}, b"0123456789" * 100),
    "file from its middle": (lambda files: {"data": files.binary(at=995)}, b"56789"),
    "text file": (lambda files: {"data": files.text()}, TEXT.encode()),
    "empty multipart": (lambda _: {"data": multipart()}, None),
    "multipart": (lambda _: {"data": multipart(b"abc", "text", io.BytesIO(b"def"))}, None),
    "multipart of a file": (lambda files: {"data": multipart(files.binary(at=5), b"abc")}, None),
    "encoded multipart": (lambda _: {"data": encoded_multipart()}, None),
    "multipart in multipart": (lambda files: {"data": multipart(multipart(b"abc", files.binary()), b"x")}, None),
}


ONE_SHOT: dict[str, Callable[[Files], Any]] = {
    "async generator": lambda _: generator(),
    "stream": lambda _: stream(),
    "pipe": lambda files: files.pipe(),
    "foreign payload": lambda _: OneShot(),
    "received part": lambda _: received_part(),
    "multipart of a generator": lambda _: multipart(b"abc", generator()),
    "multipart of a pipe": lambda files: multipart(b"abc", files.pipe()),
    "multipart in multipart": lambda _: multipart(multipart(stream()), b"abc"),
    "multipart of a foreign payload": lambda _: multipart(OneShot()),
}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"chunked": True},
    "gzip": {"compress": "gzip"},
    "deflate": {"compress": True},
    "expect": {"expect100": True},
}
