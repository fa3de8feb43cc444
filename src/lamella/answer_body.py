"""Reading the body of an answer without taking it from whoever reads it next."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from lamella.redaction import redact_json

__all__ = ["ErrorBody", "peek", "read_error_body", "wait_for_body"]

_ERROR_BYTES = 64 * 1024
# So that a secret is not cut in two, and its first half kept.
_OVERLAP = 8 * 1024
_ERROR_SECONDS = 5.0
_MOST_MESSAGES = 20
_DEEPEST = 6


async def peek(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Up to *limit* bytes of the body, which can still be read as if nothing had happened.

    It waits until the body has ended or is longer than *limit*. When it has ended, its connection is free again.
    Raises what aiohttp raises while a body is read.
    """
    chunks: list[bytes] = []
    await _peek(response.content, limit, chunks)
    return b"".join(chunks)[:limit]


async def wait_for_body(response: aiohttp.ClientResponse, limit: int) -> None:
    """As :func:`peek`, for whom it is enough that the body is there: not more than *limit* is held, and no copy."""
    await _peek(response.content, limit, [])


async def _peek(content: aiohttp.StreamReader, limit: int, chunks: list[bytes]) -> None:
    size = 0
    try:
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    finally:
        if chunks:
            with warnings.catch_warnings():
                # Deprecated since 2018 without a successor: the only way to hand a stream on unchanged.
                warnings.simplefilter("ignore", DeprecationWarning)
                # One by one: put together they would be there twice.
                for chunk in reversed(chunks):
                    content.unread_data(chunk)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What an error's body says. Each part is empty or None where it says nothing that can be understood."""

    body: bytes
    payload: Any = None
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


async def read_error_body(response: aiohttp.ClientResponse, secrets: Iterable[str] = ()) -> ErrorBody:
    """The first 64 KiB of the body, or what came of it within a few seconds or before it broke, without *secrets*."""
    if response.content.is_eof() and response.content.exception() is None:
        # It is all there: no need for a clock.
        return _parse(await peek(response, _ERROR_BYTES + _OVERLAP), secrets)
    chunks: list[bytes] = []
    # The status is known and says enough: a broken or slow body must not turn it into another error.
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(_ERROR_SECONDS):
            await _peek(response.content, _ERROR_BYTES + _OVERLAP, chunks)
    return _parse(b"".join(chunks)[: _ERROR_BYTES + _OVERLAP], secrets)


def _parse(body: bytes, secrets: Iterable[str] = ()) -> ErrorBody:
    """Find the messages in *body*, which may be anything, and take the *secrets* out of it."""
    body, payload = redact_json(body, _json(body) if len(body) <= _ERROR_BYTES else None, secrets)
    groups: dict[str, list[str]] = {"details": [], "validation": [], "downstream": []}
    # At the top a list is one of errors only if its items say so.
    errors = (
        [item for item in payload if isinstance(item, dict) and "message" in item] if isinstance(payload, list) else []
    )
    for group, message in _messages(errors, "details") if errors else _messages(payload, None):
        if len(groups[group]) < _MOST_MESSAGES and message not in groups[group]:
            groups[group].append(message)
    return ErrorBody(
        body[:_ERROR_BYTES], payload, tuple(groups["details"]), tuple(groups["validation"]), tuple(groups["downstream"])
    )


def _json(body: bytes | str) -> Any:
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


def _messages(value: Any, group: str | None, label: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Each message in *value* with its group, whatever the shape; *group* is None outside of all errors."""
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for item in value:
            yield from _messages(item, group, label, depth + 1)
    elif isinstance(value, dict):
        if group is not None:
            for line in _lines(value):
                yield group, f"{label}: {line}" if label else line
        for key, part in value.items():
            name = key.lower().replace("_", "").replace("-", "")
            if "validationerror" in name:
                yield from _messages(part, "validation", "", depth + 1)
            elif "downstream" in name or name.startswith("targetsystemerror"):
                yield from _messages(part, "downstream", "", depth + 1)
            elif name in _MESSAGES and (isinstance(part, list | dict) or group is None):
                yield from _messages(part, group or "details", label, depth + 1)
            elif group is not None and isinstance(part, list | dict):
                yield from _messages(part, group, key, depth + 1)
    elif group is not None and _is_text(value):
        yield group, f"{label}: {value}" if label else str(value)


def _lines(item: dict[str, Any]) -> list[str]:
    """``code: message`` in one, or ``field: message`` for each where none of them is called a message."""
    texts = {key: str(part) for key, part in item.items() if _is_text(part)}
    if any("message" in key.lower() for key in texts):
        return [": ".join(texts.values())]
    return [f"{key}: {text}" for key, text in texts.items()]


def _is_text(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())
