"""Determine whether a request's body can be sent again, and prepare it for that."""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp import payload

from lamella._aiohttp import body_file, is_begun, is_being_written
from lamella.call import Call, PerCall

_INTERRUPTED: Final = PerCall[bool](lambda: False)
"""Whether an attempt ended before all of the body was written."""


def is_replayable(call: Call, *, sent: bool) -> bool:
    """Return whether the body would be the same if sent again; *sent*: whether its writing may have begun.

    aiohttp sends a consumed stream as an empty body without an error.
    """
    body = call.request.body
    if not body:
        return True
    if not (sent and is_begun(call.request)):
        return not getattr(body, "consumed", False)
    return _replays(body, _INTERRUPTED.of(call))


def note_interruption(call: Call) -> None:
    """Record whether the body was still being written; call it right after an attempt, before any other await."""
    if is_being_written(call.request):
        _INTERRUPTED.set(call, True)


def _replays(body: object, interrupted: bool) -> bool:
    if isinstance(body, bytes | bytearray | tuple | payload.BytesPayload):
        return True
    if isinstance(body, payload.AsyncIterablePayload):
        return False
    if isinstance(body, payload.IOBasePayload):
        if interrupted and not isinstance(body, payload.BytesIOPayload):
            # A thread may still read from the file and would move its position during the next attempt.
            return False
        # aiohttp seeks back to the initial position, if the file is seekable.
        file = body_file(body)
        return not getattr(body, "consumed", False) and not file.closed and bool(file.seekable())
    if isinstance(body, aiohttp.MultipartWriter):
        return not getattr(body, "consumed", False) and all(_replays(part, interrupted) for part, *_ in body)
    # A custom payload may be consumed without knowing it.
    return False
