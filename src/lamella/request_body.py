"""Whether a request's body can be sent once more, and making it ready for that."""

from __future__ import annotations

import aiohttp
from aiohttp import payload

__all__ = ["is_replayable", "rewind"]


def is_replayable(request: aiohttp.ClientRequest, *, sent: bool) -> bool:
    """Whether the body, sent again, would be the same bytes; *sent* tells whether its writing may have begun.

    aiohttp sends a stream that is used up as an empty body, without an error.
    """
    body = request.body
    return not body or (_replays(body) if sent else not getattr(body, "consumed", False))


def _replays(body: object) -> bool:
    if isinstance(body, bytes | bytearray | tuple | payload.BytesPayload):
        return True
    if isinstance(body, payload.AsyncIterablePayload):
        return False
    if isinstance(body, payload.IOBasePayload):
        # aiohttp goes back to where the file stood, if the file can.
        file = body._value
        return not getattr(body, "consumed", False) and not file.closed and bool(file.seekable())
    if isinstance(body, aiohttp.MultipartWriter):
        return not getattr(body, "consumed", False) and all(_replays(part) for part, *_ in body)
    # A payload of somebody else's may be used up without knowing it.
    return False


async def rewind(request: aiohttp.ClientRequest) -> None:
    """Make *request* ready to be sent again: its last writer has ended, and 100-continue is awaited anew."""
    await request.close()
    request.update_expect_continue()
