"""Read the body of a response so that the caller can still read it."""

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

# More than an error keeps, so that truncation does not split a secret and keep its first half.
_MOST_READ = ERROR_BYTES + 8 * 1024
_ERROR_SECONDS = 5.0
_MOST_SHOWN = 5
# TimeoutError is an OSError.
_BROKEN = (aiohttp.ClientError, OSError)


async def peek(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return up to *limit* bytes of the body without consuming it.

    Waits until the body has ended or is longer than *limit*. When it has ended, the connection is released. Raises the
    exceptions that aiohttp raises while reading a body.
    """
    whole = _arrived(response.content, limit)
    if whole is not None:
        return whole
    chunks: list[bytes] = []
    await _peek(response.content, limit, chunks)
    return b"".join(chunks)[:limit]


async def wait_for_body(response: aiohttp.ClientResponse, limit: int) -> bool:
    """Wait until the body has ended or is longer than *limit*, without copying it. Return whether it has ended.

    As with :func:`peek`, the body can still be read.
    """
    return await _peek(response.content, limit, [])


class _Whole:
    """A request for whole bodies. A task started inside the block inherits it, so the block switches it off at its
    end."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit: int | None = limit


_whole: ContextVar[_Whole | None] = ContextVar("lamella_whole_bodies", default=None)


@contextmanager
def whole_bodies(limit: int) -> Iterator[None]:
    """Let ``Buffer`` read bodies of any kind, up to *limit* bytes, for the calls made inside."""
    wish = _Whole(limit)
    token = _whole.set(wish)
    try:
        yield
    finally:
        wish.limit = None
        _whole.reset(token)


def whole_limit() -> int | None:
    """Return the limit of :func:`whole_bodies`; None outside a block."""
    wish = _whole.get()
    return None if wish is None else wish.limit


async def _peek(content: aiohttp.StreamReader, limit: int, chunks: list[bytes]) -> bool:
    """Read into *chunks* until there are more than *limit* bytes, then put them back. Return whether the body ended."""
    size = 0
    try:
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
        return size <= limit
    except RuntimeError as exc:
        # aiohttp's exception when the connection has ended without notifying the body.
        raise aiohttp.ClientPayloadError(str(exc)) from exc
    finally:
        if chunks:
            put_back(content, chunks)


def _arrived(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """Return up to *limit* bytes of a complete body; None if it is incomplete or aiohttp gives no access."""
    return _buffered(content, limit) if content.is_eof() and content.exception() is None else None


def _buffered(content: aiohttp.StreamReader, limit: int) -> bytes | None:
    """Return up to *limit* bytes that have arrived; None if aiohttp gives no access."""
    # Reading them and putting them back costs five times as much.
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


def arrived_error_body(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the result of :func:`take_error_body` if nothing more will arrive; None if it may."""
    content = response.content
    read = _buffered if isinstance(content.exception(), _BROKEN) else _arrived
    return read(content, _MOST_READ)


async def take_error_body(response: aiohttp.ClientResponse, until: float = inf) -> bytes:
    """Return the first 72 KiB of the body, or the part that arrived before it broke off or time ran out.

    Time runs out after a few seconds, or at *until*, by the loop's clock. -inf means not to wait.
    """
    content = response.content
    if (body := arrived_error_body(response)) is not None:
        return body  # no timeout is needed
    if content.is_eof() and content.exception() is None:
        return await peek(response, _MOST_READ)
    if until == -inf:
        return b""
    chunks: list[bytes] = []
    await _wait_for_error_body(content, until, chunks)
    return b"".join(chunks)[:_MOST_READ]


async def finish_error_body(response: aiohttp.ClientResponse, until: float = inf) -> None:
    """Wait as :func:`take_error_body` does, so that the connection of a short body can be reused."""
    if not response.content.is_eof():
        await _wait_for_error_body(response.content, until, [])


async def _wait_for_error_body(content: aiohttp.StreamReader, until: float, chunks: list[bytes]) -> None:
    # The status is known: a broken or slow body must not turn it into another error.
    with suppress(*_BROKEN):
        async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + _ERROR_SECONDS, until)):
            await _peek(content, _MOST_READ, chunks)


def messages_in(errors: Any, secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the messages in the ``errors`` of a response, each as one line without *secrets*."""
    try:
        body = json.dumps({"errors": errors}, default=str).encode()
    except RecursionError:
        return ()
    found = parse(redact_body(body, secrets))
    said = found.validation_errors + found.downstream_errors + found.details
    return tuple(redact_text(text, secrets) for text in said[:_MOST_SHOWN])
