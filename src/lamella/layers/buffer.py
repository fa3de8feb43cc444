"""``Buffer``: the body is read inside the attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import aiohttp

from lamella.answer_body import wait_for_body, whole_limit
from lamella.call import ORDER, Call, Layer, Send, is_redirect
from lamella.classification import ERROR_STATUS, shown_cause, transport_error
from lamella.cookies import keep_cookies
from lamella.request_body import is_written, note_interruption

__all__ = ["Buffer"]

_ENDLESS = frozenset({"text/event-stream", "multipart/x-mixed-replace"})


class Buffer(Layer):
    """Reads a body whose length is known inside the attempt, so that one that is cut or stalls is a failed attempt.

    The answer can be read by ``read()``, ``json()`` or as a stream, as without this layer. Everything else is handed
    on at once, as the stream that it is: a body that does not say its length (chunked, or ended by the connection),
    one that is longer than *limit*, ``text/event-stream``, the answer to a request whose body is still being written,
    a redirect, and an error answer. Of a compressed body the length counts as it is sent; what exceeds *limit*
    unpacked is handed on as a stream. The layer stands inside of ``Timeout`` and ``Retry``.

    Args:
        limit: The number of bytes of a body that are read.
        whole: Content types, such as ``"application/json"``, whose bodies are read whether or not they say their
            length, each with a limit of its own in bytes. For an API that never streams them: they arrive as a whole,
            without their HTTP chunk boundaries.

    Raises:
        ValueError: A limit is less than 1.
    """

    rank = ORDER.index("Buffer")

    def __init__(self, limit: int = 8 * 1024 * 1024, *, whole: Mapping[str, int] = MappingProxyType({})) -> None:
        if min([limit, *whole.values()]) < 1:
            raise ValueError(f"a limit must be a number of bytes, 1 or more, got {limit!r} and {dict(whole)!r}")
        self._limit = limit
        self._whole = dict(whole)

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        return response.content.is_eof() or not self._wanted(response)

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        response = await send(request, call)
        if response.content.is_eof() or not (limit := self._wanted(response)):
            return response
        # Should the body break off, its status is known all the same.
        call.answer = response
        # If the body breaks off or the attempt times out, aiohttp never gets the answer.
        keep_cookies(request, call, response)
        try:
            if not is_written(request):
                # A writer that has only been told to go on ends in the next turn of the loop.
                await asyncio.sleep(0)
                if not is_written(request):
                    return response
            await wait_for_body(response, limit)
        except (aiohttp.ClientError, OSError) as exc:
            note_interruption(request)
            response.close()
            error = transport_error(request, exc)
            if error is None:
                raise
            raise error from shown_cause(exc)
        except BaseException:
            note_interruption(request)
            response.close()
            raise
        return response

    def _wanted(self, response: aiohttp.ClientResponse) -> int:
        """Return the number of bytes of the body to wait for. 0: none, it is handed on as a stream."""
        # (What is upgraded, to a websocket or the like, has no body by aiohttp: it is at its end already.)
        if response.status >= ERROR_STATUS or is_redirect(response):
            return 0
        length, kind = response.content_length, response.content_type
        limit = whole_limit() or self._whole.get(kind)
        if limit is None:
            if length is None or kind in _ENDLESS:
                return 0
            limit = self._limit
        return limit if length is None or length <= limit else 0

    def __repr__(self) -> str:
        whole = f", whole={self._whole!r}" if self._whole else ""
        return f"Buffer({self._limit}{whole})"
