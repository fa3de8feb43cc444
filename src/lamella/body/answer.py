"""Reading the body of an answer without taking it from whoever reads it next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from typing import Any, NamedTuple

import aiohttp

from lamella._aiohttp import arrived_bytes, put_back
from lamella.redaction import redact_json, redact_text

__all__ = [
    "ErrorBody",
    "finish_error_body",
    "messages_in",
    "parse_error_body",
    "peek",
    "take_error_body",
    "wait_for_body",
    "whole_bodies",
    "whole_limit",
]

_ERROR_BYTES = 64 * 1024
# So that a secret is not cut in two, and its first half kept.
_OVERLAP = 8 * 1024
_ERROR_SECONDS = 5.0
_MOST_MESSAGES = 20
_MOST_SHOWN = 5
_DEEPEST = 6


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


class ErrorBody(NamedTuple):
    """What an error's body says. Each part is empty or None where it says nothing that can be understood."""

    body: bytes
    payload: Any = None
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


async def take_error_body(response: aiohttp.ClientResponse, until: float = inf) -> bytes:
    """Return the first bytes of the body, secrets included, or what has come before it broke or time was up.

    Time is up after a few seconds, or at *until*, a moment of the loop's clock. -inf means to wait for nothing.
    """
    content = response.content
    if content.is_eof() and content.exception() is None:
        # It is all there: no need for a clock.
        return await peek(response, _ERROR_BYTES + _OVERLAP)
    if until == -inf:
        return b""
    chunks: list[bytes] = []
    await _take_error_body(content, until, chunks)
    return b"".join(chunks)[: _ERROR_BYTES + _OVERLAP]


async def finish_error_body(response: aiohttp.ClientResponse, until: float = inf) -> None:
    """Wait as :func:`take_error_body` does, so that the connection of a short body can be used again."""
    if not response.content.is_eof():
        await _take_error_body(response.content, until, [])


async def _take_error_body(content: aiohttp.StreamReader, until: float, chunks: list[bytes]) -> None:
    # The status is known and says enough: a broken or slow body must not turn it into another error.
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + _ERROR_SECONDS, until)):
            await _peek(content, _ERROR_BYTES + _OVERLAP, chunks)


def messages_in(errors: Any, secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """The messages in the ``errors`` of an answer, each a line without *secrets*."""
    try:
        body = json.dumps({"errors": errors}, default=str).encode()
    except RecursionError:
        return ()
    found = parse_error_body(body, secrets)
    said = found.validation_errors + found.downstream_errors + found.details
    return tuple(redact_text(text, secrets) for text in said[:_MOST_SHOWN])


def parse_error_body(body: bytes, secrets: Iterable[str] = ()) -> ErrorBody:
    """Find the messages in *body*, which may be anything. Return its first 64 KiB, without *secrets*, with them."""
    body, payload = redact_json(body, _json(body) if len(body) <= _ERROR_BYTES else None, secrets)
    if not isinstance(payload, _NESTED):
        return ErrorBody(body[:_ERROR_BYTES], payload)
    found = _Found([], [], [])
    # At the top a list is one of errors only if its items say so.
    errors = (
        [item for item in payload if isinstance(item, dict) and "message" in item] if isinstance(payload, list) else []
    )
    if errors:
        _gather(found, errors, found.details)
    else:
        _gather(found, payload, None)
    return ErrorBody(body[:_ERROR_BYTES], payload, *map(tuple, found))


def _json(body: bytes | str) -> Any:
    # To look for its encoding takes longer than to parse it. (UTF-16 and UTF-32 have a zero in the first four bytes.)
    if isinstance(body, bytes) and body.isascii() and b"\0" not in body[:4]:
        body = body.decode("ascii")
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        # A wrong charset spoils a letter or two, not the structure.
        return _json(body.decode("utf-8", "replace")) if isinstance(body, bytes) else None
    except (ValueError, RecursionError):
        return None


_MESSAGES = frozenset(
    {"message", "messages", "detail", "details", "title", "errormessage", "errordescription", "error", "errors"}
)
# Made once: the call of isinstance would make a union of them each time.
_NESTED = (list, dict)
_NUMBER = (int, float)


class _Found(NamedTuple):
    """The messages of each kind."""

    details: list[str]
    validation: list[str]
    downstream: list[str]


def _gather(found: _Found, value: Any, group: list[str] | None, label: str = "", depth: int = 0) -> None:
    """Add each message in *value* to its group, whatever the shape; *group* is None outside of all errors."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for item in value:
            _gather(found, item, group, label, depth + 1)
    elif isinstance(value, dict):
        if group is not None:
            for line in _lines(value):
                _add(group, label, line)
        for key, part in value.items():
            name = key.lower().replace("_", "").replace("-", "")
            if "validationerror" in name:
                _gather(found, part, found.validation, "", depth + 1)
            elif "downstream" in name or name.startswith("targetsystemerror"):
                _gather(found, part, found.downstream, "", depth + 1)
            elif group is None:
                if name in _MESSAGES:
                    _gather(found, part, found.details, label, depth + 1)
            elif isinstance(part, _NESTED):
                _gather(found, part, group, label if name in _MESSAGES else key, depth + 1)
    elif group is not None and (text := _text(value)):
        _add(group, label, text)


def _add(group: list[str], label: str, text: str) -> None:
    message = f"{label}: {text}" if label else text
    if len(group) < _MOST_MESSAGES and message not in group:
        group.append(message)


def _lines(item: dict[str, Any]) -> list[str]:
    """``code: message`` in one, or ``field: message`` for each where none of them is called a message."""
    texts = {key: text for key, part in item.items() if (text := _text(part))}
    for key in texts:
        if "message" in key.lower():
            return [": ".join(texts.values())]
    return [f"{key}: {text}" for key, text in texts.items()]


def _text(value: object) -> str:
    """*value* as a text. Empty where it is none, or says nothing."""
    if isinstance(value, str):
        return value if value.strip() else ""
    return str(value) if isinstance(value, _NUMBER) and not isinstance(value, bool) else ""
