"""Whether a request's body can be sent once more, and making it ready for that."""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp import payload

from lamella._aiohttp import body_file, is_begun, is_being_written
from lamella.call import Call, PerCall

_INTERRUPTED: Final = PerCall[bool](lambda: False)
"""Whether an attempt ended before all of the body was written."""


def is_replayable(call: Call, *, sent: bool) -> bool:
    """Whether the body, sent again, would be the same bytes; *sent* tells whether its writing may have begun.

    aiohttp sends a stream that is used up as an empty body, without an error.
    """
    body = call.request.body
    if not (sent and is_begun(call.request)):
        return not getattr(body, "consumed", False)
    return not body or _replays(body, _INTERRUPTED.of(call))


def note_interruption(call: Call) -> None:
    """To be called as soon as a send has ended, before anything else is awaited: was its body still being written?"""
    if is_being_written(call.request):
        _INTERRUPTED.set(call, True)


def _replays(body: object, interrupted: bool) -> bool:
    if isinstance(body, bytes | bytearray | tuple | payload.BytesPayload):
        return True
    if isinstance(body, payload.AsyncIterablePayload):
        return False
    if isinstance(body, payload.IOBasePayload):
        if interrupted and not isinstance(body, payload.BytesIOPayload):
            # A thread may still be reading from the file, and would move it under the feet of the next send.
            return False
        # aiohttp goes back to where the file stood, if the file can.
        file = body_file(body)
        return not getattr(body, "consumed", False) and not file.closed and bool(file.seekable())
    if isinstance(body, aiohttp.MultipartWriter):
        return not getattr(body, "consumed", False) and all(_replays(part, interrupted) for part, *_ in body)
    # A payload of somebody else's may be used up without knowing it.
    return False
