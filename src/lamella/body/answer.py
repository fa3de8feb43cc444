"""Read the body of an answer so that it can still be read by the caller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from typing import Any

import aiohttp

from lamella._aiohttp import arrived_bytes, put_back
from lamella.error_body import ERROR_BYTES, parse
from lamella.redaction import redact_body, redact_text

# More than an error keeps, so that a secret is not cut in two, and its first half kept.
_MOST_READ = ERROR_BYTES + 8 * 1024
_ERROR_SECONDS = 5.0
_MOST_SHOWN = 5


async def peek(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Up to *limit* bytes of the body, which can still be read as if nothing had happened.

    It waits until the body has ended or is longer than *limit*. When it has ended, its connection is free again.
    Raises what aiohttp raises while a body is read.
    """
    whole = _arrived(response.content, limit)
    if whole is not None:
        return whole
    chunks: list[bytes] = []
    await _peek(response.content, limit, chunks)
    return b"".join(chunks)[:limit]


async def wait_for_body(response: aiohttp.ClientResponse, limit: int) -> bool:
    """Wait until the body has ended or is longer than *limit*, without a copy. Return whether it has ended.

    As after :func:`peek`, it can still be read.
    """
    return await _peek(response.content, limit, [])


class _Whole:
    """A wish for whole bodies. A task that was started inside the block keeps it, and must not follow it later."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit: int | None = limit


_whole: ContextVar[_Whole | None] = ContextVar("lamella_whole_bodies", default=None)


@contextmanager
def whole_bodies(limit: int) -> Iterator[None]:
    """Let ``Buffer`` read bodies of any kind, up to *limit* bytes, in the calls that are made inside."""
    wish = _Whole(limit)
    token = _whole.set(wish)
    try:
        yield
    finally:
        wish.limit = None
        _whole.reset(token)


def whole_limit() -> int | None:
    """Return the limit of :func:`whole_bodies`. None: the call is not made inside."""
    wish = _whole.get()
    return None if wish is None else wish.limit


async def _peek(content: aiohttp.StreamReader, limit: int, chunks: list[bytes]) -> bool:
    """Read into *chunks* until there are more than *limit* bytes, and put them back. Return whether the body ended."""
    size = 0
    try:
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
        return size <= limit
    except RuntimeError as exc:
        # What aiohttp raises where the connection has ended and the body has not been told.
        raise aiohttp.ClientPayloadError(str(exc)) from exc
    finally:
        if chunks:
            put_back(content, chunks)


def _arrived(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """Up to *limit* bytes of a body that is all there. None: it is not, or aiohttp does not let us look."""
    if not content.is_eof() or content.exception() is not None:
        return None
    # To take it out and to put it back costs five times as much.
    arrived = arrived_bytes(content)
    if arrived is None:
        return None
    chunks, offset = arrived
    if len(chunks) == 1:
        return bytes(chunks[0][offset : offset + limit])
    found, size = [], -offset
    for chunk in chunks:
        found.append(chunk)
        size += len(chunk)
        if size >= limit:
            break
    return b"".join(found)[offset : offset + limit]


async def take_error_body(response: aiohttp.ClientResponse, until: float = inf) -> bytes:
    """Return the first 72 KiB of the body, or what has arrived of it before it broke or time was up.

    Time is up after a few seconds, or at *until*, a moment of the loop's clock. -inf means to wait for nothing.
    """
    content = response.content
    if content.is_eof() and content.exception() is None:
        # It is all there: no need for a clock.
        return await peek(response, _MOST_READ)
    if until == -inf:
        return b""
    chunks: list[bytes] = []
    await _wait_for_error_body(content, until, chunks)
    return b"".join(chunks)[:_MOST_READ]


async def finish_error_body(response: aiohttp.ClientResponse, until: float = inf) -> None:
    """Wait as :func:`take_error_body` does, so that the connection of a short body can be used again."""
    if not response.content.is_eof():
        await _wait_for_error_body(response.content, until, [])


async def _wait_for_error_body(content: aiohttp.StreamReader, until: float, chunks: list[bytes]) -> None:
    # The status is known and says enough: a broken or slow body must not turn it into another error.
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + _ERROR_SECONDS, until)):
            await _peek(content, _MOST_READ, chunks)


def messages_in(errors: Any, secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """The messages in the ``errors`` of an answer, each a line without *secrets*."""
    try:
        body = json.dumps({"errors": errors}, default=str).encode()
    except RecursionError:
        return ()
    found = parse(redact_body(body, secrets))
    said = found.validation_errors + found.downstream_errors + found.details
    return tuple(redact_text(text, secrets) for text in said[:_MOST_SHOWN])
