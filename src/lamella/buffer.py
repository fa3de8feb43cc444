"""``Buffer``: read the body inside the attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from types import MappingProxyType

import aiohttp

from lamella._aiohttp import is_written
from lamella.body.answer import wait_for_body, whole_limit
from lamella.body.request import note_interruption
from lamella.call import OPTIONS, Call
from lamella.checks import check_whole
from lamella.classify.failures import ERROR_STATUS, failure_of
from lamella.classify.judge import ENDLESS
from lamella.cookies import keep_cookies
from lamella.pipeline import Layer, Result, Slot
from lamella.telemetry.redirects import is_redirect


class Buffer(Layer):
    """Read a body of known length inside the attempt, so that a truncated or stalled body fails the attempt.

    The response can be read with ``read()``, ``json()`` or as a stream, as without this layer. All other bodies are
    passed on at once as streams: bodies without a stated length (chunked, or ended by closing the connection), bodies
    longer than *limit*, ``text/event-stream``, responses to a request whose body is still being written, redirects, and
    error responses. For a compressed body the transferred length counts; the part beyond *limit* after decompression is
    passed on as a stream. The layer belongs inside ``Timeout`` and ``Retry``.

    Args:
        limit: The maximum size of a body in bytes.
        whole: A mapping of content types, such as ``"application/json"``, to limits in bytes. Bodies of these types are
            read even if they do not state their length. Use it only for types that the API never streams: the body
            arrives as a whole, without HTTP chunk boundaries.

    Raises:
        ValueError: A limit is less than 1.
    """

    slot = Slot.BUFFER
    single = True

    def __init__(self, limit: int = 8 * 1024 * 1024, *, whole: Mapping[str, int] = MappingProxyType({})) -> None:
        check_whole("limit", limit)
        for kind, size in whole.items():
            check_whole(f"whole[{kind!r}]", size)
        self._limit = limit
        self._whole = dict(whole)

    def after(self, call: Call, result: Result) -> Awaitable[Result | None] | None:
        if isinstance(result, BaseException) or result.content.is_eof() or not (limit := self._wanted(call, result)):
            return None
        return self._read(call, result, limit)

    async def _read(self, call: Call, response: aiohttp.ClientResponse, limit: int) -> Result | None:
        # If the body breaks off or the attempt times out, aiohttp never gets the response.
        keep_cookies(call, response)
        try:
            if not is_written(call.request):
                # A writer that has just been resumed ends in the next iteration of the loop.
                await asyncio.sleep(0)
                if not is_written(call.request):
                    return None
            await wait_for_body(response, limit)
        except BaseException as exc:
            note_interruption(call)
            response.close()
            if isinstance(exc, aiohttp.ClientError | OSError):
                return failure_of(call, exc) or exc
            raise
        return None

    def _wanted(self, call: Call, response: aiohttp.ClientResponse) -> int:
        """Return the number of bytes of the body to wait for; 0 to pass the body on as a stream."""
        # (aiohttp treats an upgraded response, such as a websocket, as having an empty body.)
        if response.status >= ERROR_STATUS or is_redirect(response):
            return 0
        length, kind = response.content_length, response.content_type
        limit = whole_limit() or self._whole.get(kind)
        given = OPTIONS.get(call) or {}
        if limit is None or "buffer" in given:
            if limit is None and (length is None or kind in ENDLESS):
                return 0
            limit = given.get("buffer", self._limit) or 0
        return limit if length is None or length <= limit else 0

    def __repr__(self) -> str:
        whole = f", whole={self._whole!r}" if self._whole else ""
        return f"Buffer({self._limit}{whole})"
