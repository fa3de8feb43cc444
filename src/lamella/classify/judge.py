"""Judge a response by a rule book and make its error."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from math import inf
from typing import Final, NamedTuple

import aiohttp

from lamella import errors
from lamella.body.answer import peek, take_error_body
from lamella.call import OPTIONS, Call, PerCall
from lamella.classify.failures import ERROR_STATUS, retry_after_of, secrets_of_answer, wait_of
from lamella.credentials import noted_secrets
from lamella.errors import ApiError, ClientStatusError, ServerStatusError
from lamella.limits import not_cancelled
from lamella.logger import LOGGER
from lamella.redaction import one_line, redact_text
from lamella.rules import Answer, BodyNeeded, Rule, RuleBook

ERROR_HEADERS: Final = PerCall[Mapping[str, str] | None](lambda: None)
"""Headers of the last error response as received. Those of the error are redacted, which takes time."""

_MOST: Final = 8 * 2**20
"""Maximum size in bytes of a body below status 400 that a rule can see. For an error response a rule sees the error's
body."""
ENDLESS: Final = frozenset({"text/event-stream", "multipart/x-mixed-replace"})
"""Content types of bodies that may never end."""
_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    422: errors.UnprocessableContent,
    429: errors.TooManyRequests,
    500: errors.InternalServerError,
    503: errors.ServiceUnavailable,
}


class Judged(NamedTuple):
    """The judgement of a rule book on an error response."""

    rule: Rule
    retry_after: float | None
    """Seconds that the server asks to wait. None: not stated."""


_JUDGED: Final = PerCall[tuple[aiohttp.ClientResponse, RuleBook, Judged | None] | None](lambda: None)


async def judge(call: Call, response: aiohttp.ClientResponse, rules: RuleBook) -> Judged | None:
    """Judge *response* by *rules*, or by those of options() for *call*; return None if it is not an error.

    The body is read if a rule needs it, within the limits of the attempt, and can still be read afterwards. The rules
    are evaluated once, however many layers ask.

    Raises:
        TimeoutError: The body of a status below 400 did not arrive in time.
        aiohttp.ClientError: The body of a status below 400 is broken.
    """
    rules = (OPTIONS.get(call) or {}).get("rules", rules)
    known = _JUDGED.get(call)
    if known is not None and known[0] is response and known[1] is rules:
        return known[2]
    judged: Judged | None = None
    body_needed = False
    try:
        judged = _judged(response, rules, None, call.secrets)
    except BodyNeeded:
        body_needed = True
    if body_needed:  # outside the except block, so that later exceptions do not have BodyNeeded as context
        judged = _judged(response, rules, await _body(call, response), call.secrets)
    _JUDGED.set(call, (response, rules, judged))
    return judged


async def api_error(
    response: aiohttp.ClientResponse,
    rules: RuleBook,
    known_secrets: Iterable[str] = (),
    *,
    until: float = inf,
    judged: Judged | None = None,
    hidden: Collection[str] = (),
) -> ApiError:
    """Return the error for *response*. Its body can still be read afterwards.

    The error contains the part of the body that arrives by *until*, by the loop's clock, or within a few seconds. -inf
    means the body that is already complete. *judged* is the judgement on a status below 400. *hidden* are lower-case
    names of headers whose values are not shown.
    """
    body = await take_error_body(response, until)
    return api_error_with(response, body, rules, known_secrets, judged=judged, hidden=hidden)


def api_error_with(
    response: aiohttp.ClientResponse,
    body: bytes,
    rules: RuleBook,
    known_secrets: Iterable[str] = (),
    *,
    judged: Judged | None = None,
    hidden: Collection[str] = (),
) -> ApiError:
    """Return the error of :func:`api_error` for a *body* that is known."""
    judged = judged or _judged(response, rules, body, known_secrets)
    if judged is None:
        raise ValueError(f"status {response.status} is an error only with a judgement")
    return api_error_class(response.status)(
        response.request_info,
        status=response.status,
        rule=judged.rule,
        headers=response.headers,
        body=body,
        retry_after=judged.retry_after,
        secrets=(*known_secrets, *noted_secrets(response)),
        hidden=hidden,
    )


def _judged(
    response: aiohttp.ClientResponse, rules: RuleBook, body: bytes | None, known_secrets: Iterable[str]
) -> Judged | None:
    status = response.status
    if status < ERROR_STATUS and status not in rules.below_400:
        return None
    if not rules.looks_at(status):
        return Judged(rules.rule_for(status), retry_after_of(response))
    info, failed = response.request_info, partial(_log, response, known_secrets)
    answer = Answer(status, response.headers, method=info.method, url=str(info.real_url), body=body)
    rule = rules.judge(answer, failed)
    if rule is None:
        return None
    asked = rules.wait_of(answer, failed)
    return Judged(rule, retry_after_of(response) if asked is None else wait_of(response, asked))


async def _body(call: Call, response: aiohttp.ClientResponse) -> bytes:
    with not_cancelled(call) as until:
        if response.status >= ERROR_STATUS:
            return await take_error_body(response, until)
        if response.content_type in ENDLESS:
            return b""
        try:
            async with asyncio.timeout_at(None if until == inf else until):
                return await peek(response, _MOST)
        except TimeoutError as exc:
            raise TimeoutError("the body needed by a rule did not arrive in time") from exc


def _log(response: aiohttp.ClientResponse, known_secrets: Iterable[str], rule: Rule | None, exc: Exception) -> None:
    said = redact_text(f"{type(exc).__name__}: {exc}", secrets_of_answer(response, known_secrets))
    if rule is None:
        LOGGER.warning("retry_after of the rule book failed; using the headers: %s", one_line(said))
    else:
        LOGGER.warning("condition (when) of rule %r failed; the rule does not apply: %s", rule.title, one_line(said))


def api_error_class(status: int) -> type[ApiError]:
    """Return the error class for a response with *status*."""
    if status < 400:
        return ApiError
    return _BY_STATUS.get(status) or (ClientStatusError if status < 500 else ServerStatusError)
