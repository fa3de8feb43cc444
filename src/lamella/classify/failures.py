"""Turn aiohttp's exceptions and error responses into typed errors."""

from __future__ import annotations

import errno
import re
import ssl
import time
from collections.abc import Iterable
from traceback import walk_tb
from types import CodeType
from typing import Final, TypeVar

import aiohttp
from aiohttp import http_exceptions

from lamella._aiohttp import is_unsent
from lamella.body.answer import messages_in
from lamella.call import Call, Stop
from lamella.credentials import noted_secrets, secrets_of
from lamella.errors import (
    AnswerInvalid,
    ApiError,
    AttemptTimeout,
    CertificateInvalid,
    ClientStatusError,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    LamellaError,
    ProxyRefused,
    RequestRejected,
    TransportError,
)
from lamella.redaction import secrets_in
from lamella.rules import Rule, RuleBook, StopReason, asked_wait, seconds_of, server_now

_T = TypeVar("_T", bound=TransportError)
_R = TypeVar("_R", bound=RequestRejected)

ERROR_STATUS = 400
"""A response with this status or above is an error."""

_DEEPEST = 6
"""Levels of nested objects that are searched for an error; anything deeper counts as one."""

_NO_ERRORS: Final = frozenset({"", "0", "false", "none", "null"})
"""Texts of a field for errors that state that there are none."""

_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Responses of a proxy to CONNECT that may succeed on a retry. All others are final."""
# These patterns are compiled when a failure first needs them.
_PASSING_TLS: Final = "EOF|CLOSE_NOTIFY|INTERNAL_ERROR|USER_CANCELLED|RECORD_MAC"
"""OpenSSL's reasons for a failed handshake that may succeed on a retry. All others are final."""
_OUR_CERTIFICATE: Final = "CERTIFICATE|UNKNOWN_CA"
"""OpenSSL's reasons if a server rejects the client's certificate. With TLS 1.3 this happens after the handshake."""
_REJECTED: Final = "Too many headers|Can not decode"
"""aiohttp's messages for a rejected response, where the class of the exception is too general."""
_NETWORK: Final = frozenset(
    {errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
)
"""Connection errors for which Python has no class."""
_IN_OPENSSL: Final = r" \(_ssl\.c:\d+\)$"

# The frames of a traceback show what the exception interrupted.
_CONNECTING: Final = aiohttp.BaseConnector.connect.__code__
_IN_POOL: Final = getattr(getattr(aiohttp.BaseConnector, "_wait_for_available_connection", None), "__code__", None)


def secrets_of_answer(response: aiohttp.ClientResponse, known_secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the secrets that *response* may echo: those of its request, and *known_secrets*."""
    info = response.request_info
    return secrets_in(info.real_url, info.headers, (*known_secrets, *noted_secrets(response)))


def error_messages(response: aiohttp.ClientResponse, errors: object) -> tuple[str, ...] | None:
    """Return the messages in the ``errors`` of a response with a success status, without credentials; None if it has no
    errors.

    An error without text yields no message. No errors are ``None``, ``False``, 0, ``{}``, ``[]``, the texts ``""``,
    ``"false"``, ``"none"``, ``"null"`` and ``"0"``, and objects that contain only these.
    """
    if not _is_error(errors):
        return None
    return messages_in(errors, secrets_of_answer(response))


def _is_error(errors: object, depth: int = 0) -> bool:
    if isinstance(errors, dict) and depth < _DEEPEST:
        return any(_is_error(value, depth + 1) for value in errors.values())
    return errors.strip().lower() not in _NO_ERRORS if isinstance(errors, str) else bool(errors)


def retry_after_of(answer: aiohttp.ClientResponse | aiohttp.ClientResponseError) -> float | None:
    """Return the longest wait that the headers ask for, in seconds from now; None if they ask for none."""
    return None if answer.headers is None else asked_wait(answer.headers, time.time())


def wait_of(answer: aiohttp.ClientResponse, asked: float) -> float:
    """Return the wait that *answer* asks for by *asked*, which is seconds or a moment, in seconds from now."""
    return seconds_of(asked, server_now(answer.headers, time.time()))


def require_open(request: aiohttp.ClientRequest) -> None:
    """Raise RuntimeError, as aiohttp does for a new call, if the session of *request* was closed during a wait.

    Otherwise aiohttp raises an AssertionError without a message.
    """
    if request.session.closed:
        raise RuntimeError("Session is closed")


def failure_of(call: Call, exc: Exception, rules: RuleBook | None = None) -> TransportError | None:
    """Return the error that replaces *exc*, its cause; None if *exc* is not a transport failure."""
    error = transport_error(call, exc, rules)
    if error is not None:
        error.__cause__ = shown_cause(exc)
    return error


def transport_error(call: Call, exc: Exception, rules: RuleBook | None = None) -> TransportError | None:
    """Return the error for *exc*; None if it is not a transport failure and should pass unchanged."""
    request = call.request
    kind = _kind(exc)
    if kind is None or request.session.closed:
        return None
    reason = _reason(kind, exc)
    if kind is AttemptTimeout:
        return timed_out(call, exc, rules, reason)
    if kind is ConnectionLost and is_unsent(request) and request.proxy is not None and request.is_ssl():
        # A failure between us and the proxy during CONNECT, for which aiohttp has no exception of its own.
        kind, reason = ConnectFailed, f"proxy: {reason}"
    if kind is ConnectTimeout:
        return _connect_timeout(call, exc, rules, reason)
    return _error(kind, call, _rule_of_tls(exc, rules) if kind is CertificateInvalid else rules, reason)


def timed_out(call: Call, exc: BaseException, rules: RuleBook | None, reason: str) -> AttemptTimeout | ConnectTimeout:
    """Return the error for an attempt that took too long. *exc* ended it: a timeout or a cancellation."""
    # An unwritten request does not prove that nothing was sent, because another middleware may send it in its own way.
    # The exception must also have interrupted aiohttp's connector.
    if is_unsent(call.request) and was_connecting(exc):
        return _connect_timeout(call, exc, rules, reason)
    return _error(AttemptTimeout, call, rules, reason)


def was_connecting(exc: BaseException) -> bool:
    """Return whether *exc* interrupted aiohttp's connector, while waiting for the pool or connecting."""
    return _passed(exc, _CONNECTING)


def service_works(error: LamellaError) -> bool | None:
    """Return whether the *error* of a call shows that the service works; None if it shows nothing."""
    if isinstance(error, RequestRejected | CertificateInvalid | ProxyRefused | AnswerInvalid):
        return None
    if isinstance(error, ConnectTimeout) and error.in_pool:
        return None
    if isinstance(error, ClientStatusError):
        return True
    if isinstance(error, ApiError) and error.status < ERROR_STATUS:
        return None
    # 503 with Retry-After may be a rate limit or an outage.
    return None if error.rule.is_rate_limit(error.outcome, error.retry_after) else False


def shown_cause(exc: Exception) -> Exception | None:
    """Return *exc* as the cause of our error; None if it would show the request's headers or the server's bytes."""
    return None if isinstance(exc, aiohttp.ClientResponseError | aiohttp.ServerFingerprintMismatch) else exc


_NO_RULES = RuleBook()


def _error(kind: type[_T], call: Call, rules: RuleBook | None, reason: str) -> _T:
    rule = (rules or _NO_RULES).rule_for(kind.failure)
    return kind(call.request.method, call.request.url, rule, reason, secrets=secrets_of(call))


_TLS_FAILED: Final = Rule(
    CertificateInvalid.failure,
    "TLS Failed",
    "The TLS handshake with the server failed, so nothing was sent.",
    "Check the address: https:// needs a port that speaks TLS. Otherwise compare the TLS versions and ciphers of both.",
)
"""In place of the default rule, whose texts are about certificates."""


def _rule_of_tls(exc: Exception, rules: RuleBook | None) -> RuleBook | None:
    """Return the rules for a failure of TLS. The default one speaks of certificates, also where none is at fault."""
    reason = getattr(exc.__cause__, "reason", None) or "CERTIFICATE"
    is_other = isinstance(exc, aiohttp.ClientConnectorError) and not re.search(_OUR_CERTIFICATE, reason)
    is_default = (rules or _NO_RULES).rule_for(CertificateInvalid.failure) == _NO_RULES.rule_for(
        CertificateInvalid.failure
    )
    return RuleBook(_TLS_FAILED) if is_other and is_default else rules


def _connect_timeout(call: Call, exc: BaseException, rules: RuleBook | None, reason: str) -> ConnectTimeout:
    in_pool = _passed(exc, _IN_POOL)
    where = "waiting for a free connection in the pool" if in_pool else "connecting"
    error = _error(ConnectTimeout, call, rules, f"{reason}: still {where}")
    error.in_pool = in_pool
    return error


def _passed(exc: BaseException | None, code: CodeType | None) -> bool:
    """Return whether the traceback of *exc*, or of its cause, has a frame of the function *code*."""
    while exc is not None:
        if any(frame.f_code is code for frame, _ in walk_tb(exc.__traceback__)):
            return True
        exc = exc.__cause__
    return False


def _kind(exc: Exception) -> type[TransportError] | None:
    if isinstance(exc, LamellaError):
        return None
    if isinstance(exc, aiohttp.ServerFingerprintMismatch) or _is_refused_by_tls(exc):
        return CertificateInvalid
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return ConnectFailed if exc.status in _PASSING_STATUS else ProxyRefused
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return ConnectTimeout
    if isinstance(exc, aiohttp.ClientConnectorError):
        return ConnectTimeout if _is_timeout(exc.__cause__) else ConnectFailed
    if isinstance(exc, TimeoutError):
        return AttemptTimeout
    if _rejection(exc) is not None:
        return AnswerInvalid
    if isinstance(exc, aiohttp.ClientResponseError):
        # aiohttp raises one of these for a response that is not HTTP; other middlewares may raise the rest.
        return ConnectionLost if isinstance(exc.__cause__, http_exceptions.HttpProcessingError) else None
    if isinstance(exc, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | ConnectionError):
        return ConnectionLost
    # Any other OSError does not concern the connection: for example, a middleware could not find a file.
    return ConnectionLost if isinstance(exc, OSError) and exc.errno in _NETWORK else None


def _rejection(exc: BaseException | None) -> str | None:
    """Return why aiohttp rejected the response; None if it did not, or might accept the next one."""
    while exc is not None:
        if isinstance(exc, http_exceptions.LineTooLong):
            # The rest of the message is data from the server.
            return f"{exc.message.partition(' when reading')[0]} in a header line"
        if isinstance(exc, http_exceptions.HttpProcessingError) and re.match(_REJECTED, exc.message):
            return exc.message
        exc = exc.__cause__
    return None


def _is_refused_by_tls(exc: Exception) -> bool:
    """Return whether the TLS handshake failed because one side rejected the other, which is permanent."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return True
    reason = getattr(exc.__cause__, "reason", None) if isinstance(exc.__cause__, ssl.SSLError) else None
    if not reason:
        return False
    if isinstance(exc, aiohttp.ClientConnectorError):
        return not re.search(_PASSING_TLS, reason)
    return isinstance(exc, aiohttp.ClientOSError) and re.search(_OUR_CERTIFICATE, reason) is not None


def _is_timeout(exc: BaseException | None) -> bool:
    """Return whether *exc* is a timeout of the operating system, or asyncio's for a TLS handshake."""
    return isinstance(exc, TimeoutError) or (
        isinstance(exc, ConnectionAbortedError) and "handshake is taking longer" in str(exc)
    )


def _reason(kind: type[TransportError], exc: Exception) -> str:
    """Return the message for *exc* as one readable line."""
    if kind is AnswerInvalid:
        return _rejection(exc) or ""
    if isinstance(exc, aiohttp.ClientResponseError):
        return f"not HTTP: {exc.message}" if kind is ConnectionLost else f"proxy: {exc.status} {exc.message}"
    if isinstance(exc, aiohttp.ServerFingerprintMismatch):
        return f"{exc.host}:{exc.port}: the certificate's fingerprint is {exc.got.hex()}, not {exc.expected.hex()}"
    if isinstance(exc, aiohttp.ClientConnectorError) and (kind is CertificateInvalid or exc.strerror is None):
        # aiohttp's own message contains None or a tuple.
        cause = exc.__cause__ or exc
        said = getattr(cause, "verify_message", None) or str(cause) or type(cause).__name__
        return f"{exc.host}:{exc.port}: {re.sub(_IN_OPENSSL, '', said)}"
    return re.sub(_IN_OPENSSL, "", str(exc)) or type(exc).__name__


def rejected(
    kind: type[_R], call: Call, rules: RuleBook | None = None, *, since: float, until: float, stopped: StopReason
) -> _R:
    """Return the error for an attempt that a layer rejects before anything is sent, and end *call* with it.

    *since* is in seconds before now, *until* in seconds from now.
    """
    request, rule = call.request, (rules or _NO_RULES).rule_for(kind.failure)
    secrets = secrets_of(call)
    error = kind(request.method, request.url, rule, since=since, until=until, stopped=stopped, secrets=secrets)
    call.stop = Stop(stopped, rule, error)
    return error
