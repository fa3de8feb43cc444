"""``Buffer``: the body is read inside the attempt."""

from __future__ import annotations

import aiohttp

from lamella.answer_body import wait_for_body
from lamella.call import ORDER, Call, Layer, Send
from lamella.classification import shown_cause, transport_error
from lamella.cookies import keep_cookies
from lamella.request_body import note_interruption

__all__ = ["Buffer"]

_ENDLESS = frozenset({"text/event-stream", "multipart/x-mixed-replace"})


class Buffer(Layer):
    """Waits for the whole body before the attempt counts as good, so that one cut in the middle is tried again.

    Nothing is copied out of aiohttp's hands: the answer can be read by ``read()``, ``json()`` or as a stream, as
    without this layer. A body longer than the limit, or one that is not meant to end (as of
    ``text/event-stream``), is handed on as the stream it is. It stands inside of ``Timeout`` and ``Retry``, and
    outside of ``Classify``, which reads the bodies of errors by itself.

    Args:
        limit: How many bytes of a body are waited for.

    Raises:
        ValueError: *limit* is less than 1.
    """

    rank = ORDER.index("Buffer")

    def __init__(self, limit: int = 8 * 1024 * 1024) -> None:
        if limit < 1:
            raise ValueError(f"limit must be a number of bytes, 1 or more, not {limit!r}")
        self._limit = limit

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        return response.content.is_eof() or self._is_stream(response)

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        response = await send(request, call)
        if response.content.is_eof() or self._is_stream(response):
            return response
        # Should the body break off, its status is known all the same.
        call.answer = response
        # If the body breaks off or the attempt times out, aiohttp never gets the answer.
        keep_cookies(request, call, response)
        try:
            await wait_for_body(response, self._limit)
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

    def _is_stream(self, response: aiohttp.ClientResponse) -> bool:
        """Whether the body is not meant to end, or known to be too long: waiting for it would be in vain."""
        # (What is upgraded, to a websocket or the like, has no body by aiohttp: it is at its end already.)
        return response.content_type in _ENDLESS or (response.content_length or 0) > self._limit

    def __repr__(self) -> str:
        return f"Buffer({self._limit})"
