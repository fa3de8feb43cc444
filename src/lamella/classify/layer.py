"""``Classify``: a bad answer becomes a typed error."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import aiohttp

from lamella.body.request import note_interruption
from lamella.call import OPTIONS, Call
from lamella.classify.failures import ERROR_STATUS, failure_of
from lamella.classify.judge import Judged, api_error, judge
from lamella.cookies import keep_cookies
from lamella.credentials import hidden_headers
from lamella.errors import ApiError, LamellaError
from lamella.limits import not_cancelled
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import RuleBook, check_rules


class Classify(Layer):
    """Raises :class:`lamella.ApiError` for an answer of status 400 or more, :class:`lamella.TransportError` for none.

    So it does for an answer below 400 that a rule with ``when`` calls an error.

    It stands innermost, so that all the other layers see one kind of failure. The connection of a bad answer is
    free again when its error is raised. Its body is read for 5 seconds at most, and no longer than the attempt and
    the call may take: a body that is cut, hangs or cannot be decoded still gives the error of the status. Below 400 a
    rule may ask for the body, up to 8 MiB: if that does not come, the attempt has failed as with :class:`Buffer`.

    aiohttp silently sends an idempotent request a second time when its connection turns out to be closed. Below
    this layer it cannot: each send is one that the layers know of, and :class:`lamella.Retry` sends again.

    Args:
        rules: What each status means.
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
            if (given := OPTIONS.get(call)) is not None and not given.get("raise_errors", True):
                return None
            return self._error(call, result, rules)
        if not isinstance(result, aiohttp.ClientError | OSError):
            return None
        note_interruption(call)
        return failure_of(call, result, self._rules_of(call))

    def _rules_of(self, call: Call) -> RuleBook:
        given = OPTIONS.get(call)
        return self._rules if given is None else given.get("rules", self._rules)

    async def _look(self, call: Call, response: aiohttp.ClientResponse, rules: RuleBook) -> LamellaError | None:
        """Return the error that *response* is by a rule, though its status is none. None: it is no error."""
        note_interruption(call)
        try:
            judged = await judge(call, response, rules)
        except (aiohttp.ClientError, OSError) as exc:
            keep_cookies(call, response)
            response.close()
            return failure_of(call, exc, rules)
        return None if judged is None else await self._error(call, response, rules, judged)

    async def _error(
        self, call: Call, response: aiohttp.ClientResponse, rules: RuleBook, judged: Judged | None = None
    ) -> ApiError:
        note_interruption(call)
        keep_cookies(call, response)
        try:
            with not_cancelled(call) as until:
                hidden = hidden_headers(call)
                return await api_error(response, rules, call.secrets, until=until, judged=judged, hidden=hidden)
        finally:
            response.release()

    def __repr__(self) -> str:
        return f"Classify({self._rules!r})"
