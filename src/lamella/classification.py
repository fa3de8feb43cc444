"""From what aiohttp says to a typed error: an answer with an error status, or a failure without one."""

from __future__ import annotations

import time
from collections.abc import Iterable

import aiohttp
from aiohttp import http_exceptions

from lamella.answer_body import read_error_body
from lamella.call import secrets_of
from lamella.errors import (
    ApiError,
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    LamellaError,
    RateLimited,
    TransportError,
    api_error_class,
)
from lamella.policy import RuleBook, StopReason, parse_http_date, parse_retry_after
from lamella.redaction import secrets_in

__all__ = [
    "ERROR_STATUS",
    "api_error",
    "last_send",
    "note_secrets",
    "rate_limited",
    "require_open",
    "retry_after_of",
    "shown_cause",
    "transport_error",
]

ERROR_STATUS = 400
"""An answer with this status or a greater one is an error."""

_SECRETS = "_lamella_secrets"

_NOTHING_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ServerFingerprintMismatch,
)


async def api_error(response: aiohttp.ClientResponse, rules: RuleBook, known_secrets: Iterable[str] = ()) -> ApiError:
    """The error for *response*, whose status is an error. Its body can still be read afterwards."""
    info = response.request_info
    known: tuple[str, ...] = vars(response).get(_SECRETS, ())
    secrets = secrets_in(info.real_url, info.headers, (*known_secrets, *known))
    said = await read_error_body(response, secrets)
    return api_error_class(response.status)(
        info,
        status=response.status,
        rule=rules.rule_for(response.status),
        headers=response.headers,
        body=said.body,
        payload=said.payload,
        details=said.details,
        validation_errors=said.validation_errors,
        downstream_errors=said.downstream_errors,
        retry_after=retry_after_of(response),
        secrets=secrets,
    )


def note_secrets(response: aiohttp.ClientResponse, secrets: tuple[str, ...]) -> None:
    """Let :func:`api_error` know of *secrets* that its request no longer has in its headers."""
    vars(response)[_SECRETS] = secrets


def retry_after_of(answer: aiohttp.ClientResponse | aiohttp.ClientResponseError) -> float | None:
    """Return what ``Retry-After`` says, in seconds from now. None: nothing that can be understood."""
    headers = answer.headers
    value = None if headers is None else headers.get("Retry-After")
    if headers is None or value is None:
        return None
    # Measured on the server's own clock, where it tells it, a date is right even when ours is wrong.
    now = time.time()
    their_now = parse_http_date(headers.get("Date"), now)
    return parse_retry_after(value, now if their_now is None else their_now)


def require_open(request: aiohttp.ClientRequest) -> None:
    """To be called after a wait: of a session that was closed meanwhile aiohttp makes an AssertionError without a word.

    Raises:
        RuntimeError: The session of *request* is closed, as aiohttp says it of a call that begins.
    """
    if request.session.closed:
        raise RuntimeError("Session is closed")


def last_send(request: aiohttp.ClientRequest) -> object:
    """Another object after each send of *request*; where aiohttp does not tell, after each question."""
    return getattr(request, "response", object())


def transport_error(
    request: aiohttp.ClientRequest, exc: Exception, rules: RuleBook | None = None, *, unsent: bool = False
) -> TransportError | None:
    """The error for *exc*, or None where it is none of the transport's and should pass as it is.

    *unsent* tells that aiohttp has not begun to write the request.
    """
    kind = _kind(exc)
    if kind is None or request.session.closed:
        return None
    if isinstance(exc, aiohttp.ClientResponseError):
        reason = f"not HTTP: {exc.message}" if kind is ConnectionLost else f"proxy: {exc.status} {exc.message}"
    else:
        reason = str(exc) or type(exc).__name__
    if kind is ConnectionLost and unsent and request.proxy is not None and request.is_ssl():
        # Between us and the proxy, which was asked for a tunnel: aiohttp has no name of its own for that.
        kind = ConnectFailed
    return kind(
        request.method,
        request.url,
        (rules or _NO_RULES).rule_for(kind.failure),
        reason,
        secrets=secrets_of(request),
    )


def shown_cause(exc: Exception) -> Exception | None:
    """*exc* as the cause of an error of ours. None where it would show the request's headers or the server's bytes."""
    return None if isinstance(exc, aiohttp.ClientResponseError) else exc


_NO_RULES = RuleBook()


def _kind(exc: Exception) -> type[TransportError] | None:
    if isinstance(exc, LamellaError):
        return None
    if isinstance(exc, _NOTHING_SENT):
        return ConnectFailed
    if isinstance(exc, TimeoutError):
        return AttemptTimeout
    if isinstance(exc, aiohttp.ClientResponseError):
        # aiohttp makes one of these of an answer that is not HTTP; others come from other people's middlewares.
        return ConnectionLost if isinstance(exc.__cause__, http_exceptions.HttpProcessingError) else None
    if isinstance(exc, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return ConnectionLost
    return None


def rate_limited(
    request: aiohttp.ClientRequest,
    rules: RuleBook | None,
    *,
    since: float,
    until: float,
    stopped: StopReason = StopReason.DEADLINE,
) -> RateLimited:
    """Return the error for a call that a rate limit holds up for too long.

    *since* is in seconds before now, *until* in seconds from now.
    """
    return RateLimited(
        request.method,
        request.url,
        (rules or _NO_RULES).rule_for(RateLimited.failure),
        since=since,
        until=until,
        stopped=stopped,
        secrets=secrets_of(request),
    )
