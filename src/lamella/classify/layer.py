"""``Classify``: turn a bad response into a typed error."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import aiohttp

from lamella.body.answer import arrived_error_body
from lamella.body.request import note_interruption
from lamella.call import OPTIONS, Call
from lamella.classify.failures import ERROR_STATUS, failure_of
from lamella.classify.judge import ERROR_HEADERS, Judged, api_error, api_error_with, judge
from lamella.cookies import keep_cookies
from lamella.credentials import hidden_headers
from lamella.errors import ApiError, LamellaError
from lamella.limits import not_cancelled
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import RuleBook, check_rules


class Classify(Layer):
    """Raise :class:`lamella.ApiError` for status 400 or above, :class:`lamella.TransportError` for no response.

    A response below 400 is an error if a rule with ``when`` says so.

    It belongs innermost, so that all other layers see one kind of failure. The connection of an error response is
    released before the error is raised. The body is read for 5 seconds at most, within the limits of attempt and call.
    A truncated, hanging or undecodable body still raises the error of the status. Below 400 a rule may need the body,
    up to 8 MiB; if it does not arrive, the attempt fails as with :class:`Buffer`.

    aiohttp silently repeats an idempotent request if its connection turns out to be closed. This layer prevents that,
    so the layers see every attempt, and :class:`lamella.Retry` repeats it instead.

    Args:
        rules: The meaning of each status.
    """

    slot = Slot.CLASSIFY
    single = True

    def __init__(self, rules: RuleBook) -> None:
        check_rules(rules, "Classify(")
        self.shared: Mapping[str, object] = {"rules": rules}
        self._rules = rules
        self._below_400 = rules.below_400

    def after(self, call: Call, result: Result) -> Result | Awaitable[Result | None] | None:
        if not isinstance(result, BaseException):
            if result.status < ERROR_STATUS and not self._below_400 and OPTIONS not in call.state:
                return None
            rules = self._rules_of(call)
            if result.status < ERROR_STATUS:
                return self._look(call, result, rules) if result.status in rules.below_400 else None
            if OPTIONS in call.state and not OPTIONS.of(call).get("raise_errors", True):
                return None
            return self._error(call, result, rules)
        if not isinstance(result, aiohttp.ClientError | OSError):
            return None
        note_interruption(call)
        return failure_of(call, result, self._rules_of(call))

    def _rules_of(self, call: Call) -> RuleBook:
        return OPTIONS.of(call).get("rules", self._rules) if OPTIONS in call.state else self._rules

    async def _look(self, call: Call, response: aiohttp.ClientResponse, rules: RuleBook) -> LamellaError | None:
        """Return the error for *response*, whose status is below 400, if a rule calls it one; otherwise None."""
        note_interruption(call)
        try:
            judged = await judge(call, response, rules)
        except (aiohttp.ClientError, OSError) as exc:
            keep_cookies(call, response)
            response.close()
            return failure_of(call, exc, rules)
        if judged is None:
            return None
        error = self._error(call, response, rules, judged)
        return error if isinstance(error, ApiError) else await error

    def _error(
        self, call: Call, response: aiohttp.ClientResponse, rules: RuleBook, judged: Judged | None = None
    ) -> ApiError | Awaitable[ApiError]:
        note_interruption(call)
        keep_cookies(call, response)
        ERROR_HEADERS.set(call, response.headers)
        body = arrived_error_body(response)
        if body is None:
            return self._late_error(call, response, rules, judged)
        try:
            return api_error_with(response, body, rules, call.secrets, judged=judged, hidden=hidden_headers(call))
        finally:
            response.release()

    async def _late_error(
        self, call: Call, response: aiohttp.ClientResponse, rules: RuleBook, judged: Judged | None
    ) -> ApiError:
        try:
            with not_cancelled(call) as until:
                hidden = hidden_headers(call)
                return await api_error(response, rules, call.secrets, until=until, judged=judged, hidden=hidden)
        finally:
            response.release()

    def __repr__(self) -> str:
        return f"Classify({self._rules!r})"
