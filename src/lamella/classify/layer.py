"""``Classify``: a bad answer becomes a typed error."""

from __future__ import annotations

from collections.abc import Awaitable

import aiohttp

from lamella.body.request import note_interruption
from lamella.classify.failures import ERROR_STATUS, api_error, failure_of
from lamella.cookies import keep_cookies
from lamella.credentials import hidden_headers
from lamella.errors import ApiError
from lamella.limits import not_cancelled
from lamella.pipeline import Call, Layer, Result, Slot
from lamella.rules import RuleBook

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

    slot = Slot.CLASSIFY
    single = True

    def __init__(self, rules: RuleBook) -> None:
        self._rules = rules

    def after(self, call: Call, result: Result) -> Result | Awaitable[Result] | None:
        if not isinstance(result, BaseException):
            return None if result.status < ERROR_STATUS else self._error(call, result)
        if not isinstance(result, aiohttp.ClientError | OSError):
            return None
        note_interruption(call)
        return failure_of(call, result, self._rules)

    async def _error(self, call: Call, response: aiohttp.ClientResponse) -> ApiError:
        note_interruption(call)
        keep_cookies(call, response)
        try:
            with not_cancelled(call) as until:
                return await api_error(response, self._rules, call.secrets, until=until, hidden=hidden_headers(call))
        finally:
            response.release()

    def __repr__(self) -> str:
        return f"Classify({self._rules!r})"
