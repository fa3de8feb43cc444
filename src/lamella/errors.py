"""The errors that a call may end in.

::

    LamellaError
    ├── ApiError (aiohttp.ClientResponseError)          an answer whose status is an error
    │   ├── ClientStatusError                       4xx
    │   │   ├── BadRequest                              400
    │   │   ├── Unauthorized                            401
    │   │   ├── Forbidden                               403
    │   │   ├── NotFound                                404
    │   │   ├── MethodNotAllowed                        405
    │   │   └── TooManyRequests                         429
    │   └── ServerStatusError                       5xx
    │       └── InternalServerError                     500
    └── TransportError (aiohttp.ClientConnectionError)  no answer, or half of one
        ├── ConnectFailed                               nothing was sent: DNS, refused, TLS interrupted
        │   ├── ConnectTimeout (TimeoutError)           no connection in time, or none free in the pool
        │   └── ProxyRefused                            a proxy refuses to connect (407, 403)
        ├── CertificateInvalid                          nothing was sent: the server is not trusted
        ├── ConnectionLost                              it broke after something was sent
        ├── AnswerInvalid                               the answer exceeds aiohttp's limits, or is damaged
        ├── AttemptTimeout (TimeoutError)               no answer in time
        └── RequestRejected                         lamella itself did not send it
            ├── CircuitOpen                             the service is known to be down
            └── RateLimited                             the rate limit would keep it waiting for too long

They derive from aiohttp's own, so that ``except aiohttp.ClientError`` goes on working. None derives from
``ClientOSError`` or ``ServerDisconnectedError``: on those aiohttp runs all middlewares a second time by itself.
No message, ``repr`` or field of theirs holds a header value that may be a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

import aiohttp
from yarl import URL

from lamella.redaction import one_line, redact_headers, redact_text, redact_url, shown_url
from lamella.rules import Failure, Outcome, Rule, StopReason, WaitSource

__all__ = [
    "AnswerInvalid",
    "ApiError",
    "AttemptRecord",
    "AttemptTimeout",
    "BadRequest",
    "CertificateInvalid",
    "CircuitOpen",
    "ClientStatusError",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "Forbidden",
    "InternalServerError",
    "LamellaError",
    "MethodNotAllowed",
    "NotFound",
    "ProxyRefused",
    "RateLimited",
    "RequestRejected",
    "ServerStatusError",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "api_error_class",
]


class AttemptRecord(NamedTuple):
    """One attempt of a call. ``status`` or ``exception`` (the name of its class) is None; times are in seconds."""

    number: int
    status: int | None
    exception: str | None
    took: float
    waited: float = 0.0
    """How long the call waited after it; 0.0 after the last one."""
    rule: str | None = None
    """The title of the rule that applied. None for a send that ended well."""
    wait_source: WaitSource | None = None
    """Where the length of the wait came from. None: there was none."""
    attempts_left: int | None = None
    """How often it could be sent after this. None: as often as it takes."""
    deadline_left: float | None = None
    """Seconds that were left of the deadline. None: there was none."""
    queued: float = 0.0
    """How long it had waited in the queue of its account before it was sent; not a part of ``took``."""


class LamellaError(Exception):
    """A call that failed: what happened, what was tried, what to do about it."""

    rule: Rule
    """What the rule book says of it: title, description, hint, whether it is worth another try."""
    method: str
    url: str
    """The URL without user, password and the values of telling query keys."""
    retry_after: float | None = None
    """Seconds that the server asked to wait. None: it did not."""
    attempts: tuple[AttemptRecord, ...] = ()
    """One record a send. Empty without a ``Retry`` layer."""
    stopped: StopReason | None = None
    """Why there was no further try. None without a ``Retry`` layer."""

    @property
    def outcome(self) -> Outcome:
        """The status of the answer, or why there was none."""
        raise NotImplementedError

    def _what(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        line = _sentence(f"{self.method} {self.url}: {self._what()}")
        if self.rule.hint:
            line = f"{line}. {_sentence(self.rule.hint)}"
        line = one_line(line)
        if not self.attempts and not self.stopped:
            return line
        end = []
        if self.attempts:
            seconds = sum(record.queued + record.took + record.waited for record in self.attempts)
            sends = "1 attempt" if len(self.attempts) == 1 else f"{len(self.attempts)} attempts"
            end.append(f"{sends} in {seconds:.3g} s")
        if self.stopped:
            end.append(f"stopped: {self.stopped.phrase}")
        return f"{line} ({', '.join(end)})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # The constructors of aiohttp's and of OSError's classes do not fit what pickle and copy would call.
        return _blank, (type(self),), {**vars(self), "rule": self.rule.without_condition()}


def _sentence(text: str) -> str:
    return text.rstrip().rstrip(".")


def _blank(cls: type[LamellaError]) -> LamellaError:
    return cls.__new__(cls)


class ApiError(LamellaError, aiohttp.ClientResponseError):
    """An answer whose status is an error, or that a rule calls one."""

    status: int
    body: bytes
    """The answer's body as far as it could be read, at most 64 KiB."""
    payload: Any
    """The body as JSON, or None where it is not JSON."""
    validation_errors: tuple[str, ...]
    """What is wrong with the request, item by item, where the answer says so."""
    downstream_errors: tuple[str, ...]
    """What the system behind the API said, where the answer tells."""
    details: tuple[str, ...]
    """The answer's own messages that are neither of these two."""

    def __init__(
        self,
        request_info: aiohttp.RequestInfo,
        *,
        status: int,
        rule: Rule,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        payload: Any = None,
        details: tuple[str, ...] = (),
        validation_errors: tuple[str, ...] = (),
        downstream_errors: tuple[str, ...] = (),
        retry_after: float | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self.url, shown = shown_url(request_info.real_url, secrets)
        self.method = request_info.method
        info = aiohttp.RequestInfo(shown, self.method, redact_headers(request_info.headers, secrets), shown)  # type: ignore[arg-type]
        title, given = rule.title_of(status), redact_headers(headers or {}, secrets)
        super().__init__(info, (), status=status, message=title, headers=given)
        self.args = ()
        self.rule = rule
        self.body = body
        self.payload = payload
        self.details = _redacted(details, secrets)
        self.validation_errors = _redacted(validation_errors, secrets)
        self.downstream_errors = _redacted(downstream_errors, secrets)
        self.retry_after = retry_after

    @property
    def outcome(self) -> Outcome:
        """The status of the answer."""
        return self.status

    def _what(self) -> str:
        said = "; ".join((self.details + self.validation_errors + self.downstream_errors)[:5])
        return f"{self.status} {self.rule.title_of(self.status)}" + (f" [{redact_text(said)}]" if said else "")


def _redacted(texts: tuple[str, ...], secrets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([redact_text(text, secrets) for text in texts]) if texts else ()


class ClientStatusError(ApiError):
    """4xx: the request is at fault."""


class BadRequest(ClientStatusError):
    """400."""


class Unauthorized(ClientStatusError):
    """401."""


class Forbidden(ClientStatusError):
    """403."""


class NotFound(ClientStatusError):
    """404."""


class MethodNotAllowed(ClientStatusError):
    """405."""


class TooManyRequests(ClientStatusError):
    """429."""


class ServerStatusError(ApiError):
    """5xx, or a status that no server should send (RFC 9110, section 15)."""


class InternalServerError(ServerStatusError):
    """500."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    429: TooManyRequests,
    500: InternalServerError,
}


def api_error_class(status: int) -> type[ApiError]:
    """Return the class for a *status* that is an error."""
    if status < 400:
        return ApiError
    return _BY_STATUS.get(status) or (ClientStatusError if status < 500 else ServerStatusError)


class TransportError(LamellaError, aiohttp.ClientConnectionError):
    """No answer, or half of one."""

    failure: ClassVar[Failure]
    reason: str
    """What the layer below said, in a line."""

    def __init__(self, method: str, url: URL, rule: Rule, reason: str = "", *, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.method = method
        self.url = redact_url(url, secrets)
        self.rule = rule
        self.reason = redact_text(reason, secrets)

    @property
    def outcome(self) -> Outcome:
        """Why there was no answer."""
        return self.failure

    def _what(self) -> str:
        return self.rule.title + (f" ({self.reason})" if self.reason else "")


class ConnectFailed(TransportError):
    """Nothing was sent: DNS, connection refused, an interrupted TLS handshake."""

    failure = Failure.CONNECT_FAILED


class ConnectTimeout(ConnectFailed, TimeoutError):
    """Nothing was sent: there was no connection in time."""

    in_pool: bool = False
    """Whether it was waiting for a free connection of the session's pool, which says nothing about the server."""


class ProxyRefused(ConnectFailed):
    """Nothing was sent: the proxy refuses to connect to the server, and would do so again (407, 403, …)."""

    failure = Failure.PROXY_REFUSED


class CertificateInvalid(TransportError):
    """Nothing was sent: the server's certificate is not trusted, or no TLS version or cipher suits both sides."""

    failure = Failure.CERTIFICATE_INVALID


class ConnectionLost(TransportError):
    """It broke after something was sent: the request may have been carried out."""

    failure = Failure.CONNECTION_LOST


class AnswerInvalid(TransportError):
    """aiohttp rejects the answer: its headers exceed a limit of the session, or its body cannot be decompressed."""

    failure = Failure.ANSWER_INVALID


class AttemptTimeout(TransportError, TimeoutError):
    """No answer in time: the request may have been carried out."""

    failure = Failure.ATTEMPT_TIMEOUT


class RequestRejected(TransportError):
    """lamella did not send it, because of what became of other calls: nothing was carried out."""

    since: datetime
    """When that began (UTC)."""
    until: datetime
    """When it may be sent again, as far as is known (UTC); ``retry_after`` is the same in seconds from now."""

    def __init__(
        self,
        method: str,
        url: URL,
        rule: Rule,
        *,
        since: float,
        until: float,
        stopped: StopReason,
        secrets: tuple[str, ...] = (),
    ) -> None:
        """*since* is in seconds before now, *until* in seconds from now."""
        now = datetime.now(UTC)
        self.since = now - timedelta(seconds=since)
        self.until = now + timedelta(seconds=until)
        self.retry_after = until
        self.stopped = stopped
        reason = f"since {_clock(self.since)}, until {_clock(self.until)}, which is in {until:.3g} s"
        super().__init__(method, url, rule, reason, secrets=secrets)


class CircuitOpen(RequestRejected):
    """Not sent: the circuit of its service is open."""

    failure = Failure.CIRCUIT_OPEN


class RateLimited(RequestRejected):
    """Not sent: its turn under the rate limit would come after its deadline, or the server asks for too long a wait.

    ``stopped`` says which: ``deadline`` or ``wait_too_long``.
    """

    failure = Failure.RATE_LIMITED


def _clock(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"
