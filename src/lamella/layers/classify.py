"""``Classify``: a bad answer becomes a typed error."""

from __future__ import annotations

import aiohttp

from lamella.call import ORDER, Call, Layer, Send
from lamella.classification import ERROR_STATUS, api_error, last_send, shown_cause, transport_error
from lamella.errors import ApiError
from lamella.policy import RuleBook
from lamella.request_body import note_interruption

__all__ = ["Classify"]


class Classify(Layer):
    """Raises :class:`lamella.ApiError` for an answer of status 400 or more, :class:`lamella.TransportError` for none.

    It stands innermost, so that all the other layers see one kind of failure. The connection of a bad answer is
    free again when its error is raised. Its body is read for 5 seconds at most, and no longer than the attempt and
    the call may take: a body that is cut, hangs or cannot be decoded still gives the error of the status.

    aiohttp silently sends an idempotent request a second time when its connection turns out to be closed. Below
    this layer it cannot: each send is one that the layers know of, and :class:`lamella.Retry` sends again.

    Args:
        rules: What each status means.
    """

    rank = ORDER.index("Classify")

    def __init__(self, rules: RuleBook) -> None:
        self._rules = rules

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        call.answer = None
        call.before = getattr(request, "response", None)
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        return response.status < ERROR_STATUS

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        before = call.before
        try:
            response = await send(request, call)
            if response.status < ERROR_STATUS:
                return response
            note_interruption(request)
            call.answer = response
            try:
                raise await self._error(request, call, response)
            finally:
                response.release()
        except (aiohttp.ClientError, OSError) as exc:
            note_interruption(request)
            error = transport_error(request, exc, self._rules, unsent=last_send(request) is before)
            if error is None:
                raise
            try:
                raise error from shown_cause(exc)
            finally:
                del error  # its traceback holds on to this frame: they must not keep each other alive

    async def _error(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse) -> ApiError:
        with call.not_cancelled(request.loop) as until:
            return await api_error(response, self._rules, call.secrets, until=until)

    def __repr__(self) -> str:
        return f"Classify({self._rules!r})"
