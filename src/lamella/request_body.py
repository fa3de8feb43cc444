"""Whether a request's body can be sent once more, and making it ready for that."""

from __future__ import annotations

import aiohttp
from aiohttp import payload

from lamella.call import Call

__all__ = ["is_replayable", "is_written", "note_interruption", "rewind"]


def is_replayable(request: aiohttp.ClientRequest, *, sent: bool) -> bool:
    """Whether the body, sent again, would be the same bytes; *sent* tells whether its writing may have begun.

    aiohttp sends a stream that is used up as an empty body, without an error.
    """
    body = request.body
    if not sent:
        return not getattr(body, "consumed", False)
    return not body or _replays(body, Call.of(request).interrupted)


def is_written(request: aiohttp.ClientRequest) -> bool:
    """Whether all of the request's body has been written."""
    writer = getattr(request, "_writer", None)
    return writer is None or writer.done()


def note_interruption(request: aiohttp.ClientRequest) -> None:
    """To be called as soon as a send has ended, before anything else is awaited: was its body still being written?"""
    if getattr(request, "_writer", None) is not None:
        Call.of(request).interrupted = True


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
        file = body._value
        return not getattr(body, "consumed", False) and not file.closed and bool(file.seekable())
    if isinstance(body, aiohttp.MultipartWriter):
        return not getattr(body, "consumed", False) and all(_replays(part, interrupted) for part, *_ in body)
    # A payload of somebody else's may be used up without knowing it.
    return False


async def rewind(request: aiohttp.ClientRequest) -> None:
    """Make *request* ready to be sent again: its last writer has ended, and 100-continue is awaited anew."""
    await request.close()
    request.update_expect_continue()
