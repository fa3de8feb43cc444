"""Reading the body of an answer without taking it from whoever reads it next."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

__all__ = ["ErrorBody", "peek", "read_error_body"]

_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 5.0
_MOST_MESSAGES = 20
_DEEPEST = 3


async def peek(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Up to *limit* bytes of the body, which can still be read as if nothing had happened.

    It waits until the body has ended or is longer than *limit*. When it has ended, its connection is free again.
    Raises what aiohttp raises while a body is read.
    """
    chunks: list[bytes] = []
    await _peek(response.content, limit, chunks)
    return b"".join(chunks)[:limit]


async def _peek(content: aiohttp.StreamReader, limit: int, chunks: list[bytes]) -> None:
    size = 0
    try:
        while size < limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    finally:
        if chunks:
            with warnings.catch_warnings():
                # Deprecated since 2018 without a successor: the only way to hand a stream on unchanged.
                warnings.simplefilter("ignore", DeprecationWarning)
                content.unread_data(b"".join(chunks))


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error's body says. Each part is empty or None where it says nothing that can be understood."""

    body: bytes
    payload: Any = None
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


async def read_error_body(response: aiohttp.ClientResponse) -> ErrorBody:
    """The first 64 KiB of the body, or what came of it within a few seconds or before it broke."""
    chunks: list[bytes] = []
    # The status is known and says enough: a broken or slow body must not turn it into another error.
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_SECONDS):
            await _peek(response.content, _ERROR_BYTES, chunks)
    return parse_error_body(b"".join(chunks)[:_ERROR_BYTES])


def parse_error_body(body: bytes) -> ErrorBody:
    """Find the messages in *body*; it may be anything."""
    payload = _json(body)
    if not isinstance(payload, dict):
        return ErrorBody(body, payload)
    groups: dict[str, list[str]] = {"details": [], "validation": [], "downstream": []}
    for group, message in _messages(payload):
        if len(groups[group]) < _MOST_MESSAGES and message not in groups[group]:
            groups[group].append(message)
    return ErrorBody(body, payload, tuple(groups["details"]), tuple(groups["validation"]), tuple(groups["downstream"]))


def _json(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        # A wrong charset spoils a letter or two, not the structure.
        return _json(body.decode("utf-8", "replace")) if isinstance(body, bytes) else None
    except (ValueError, RecursionError):
        return None


def _messages(payload: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Each message with the group it belongs to, from ``errors`` and its likes, whatever their shape."""
    for key, value in payload.items():
        name = key.lower().replace("_", "")
        if name == "validationerrors":
            yield from (("validation", text) for text in _texts(value))
        elif "downstream" in name or name in {"targetsystemerrors", "targetsystemerror"}:
            yield from (("downstream", text) for text in _texts(value))
        elif name in {"errors", "error"} and isinstance(value, dict) and depth < _DEEPEST:
            yield from _messages(value, depth + 1)
        elif name in {"errors", "error", "message", "detail", "title", "errormessage", "errordescription"}:
            yield from (("details", text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """One line for each item of a list, one for anything else: ``field: message`` where it has such parts."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            parts = [str(part) for part in item.values() if isinstance(part, str | int | float)]
            if parts:
                yield ": ".join(parts)
        elif isinstance(item, str | int | float) and str(item).strip():
            yield str(item)
