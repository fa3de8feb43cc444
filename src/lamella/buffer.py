"""``Buffer``: the body is read inside the attempt."""

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
from lamella.cookies import keep_cookies
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import RuleBook
from lamella.telemetry.redirects import is_redirect

_NO_RULES = RuleBook()
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
        # If the body breaks off or the attempt times out, aiohttp never gets the answer.
        keep_cookies(call, response)
        try:
            if not is_written(call.request):
                # A writer that has only been told to go on ends in the next turn of the loop.
                await asyncio.sleep(0)
                if not is_written(call.request):
                    return None
            await wait_for_body(response, limit)
        except BaseException as exc:
            note_interruption(call)
            response.close()
            if isinstance(exc, aiohttp.ClientError | OSError):
                return failure_of(call, exc, _NO_RULES) or exc
            raise
        return None

    def _wanted(self, call: Call, response: aiohttp.ClientResponse) -> int:
        """Return the number of bytes of the body to wait for. 0: none, it is handed on as a stream."""
        # (What is upgraded, to a websocket or the like, has no body by aiohttp: it is at its end already.)
        if response.status >= ERROR_STATUS or is_redirect(response):
            return 0
        length, kind = response.content_length, response.content_type
        limit = whole_limit() or self._whole.get(kind)
        given = OPTIONS.get(call) or {}
        if limit is None or "buffer" in given:
            if limit is None and (length is None or kind in _ENDLESS):
                return 0
            limit = given.get("buffer", self._limit) or 0
        return limit if length is None or length <= limit else 0

    def __repr__(self) -> str:
        whole = f", whole={self._whole!r}" if self._whole else ""
        return f"Buffer({self._limit}{whole})"
