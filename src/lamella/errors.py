"""The errors that a call may raise.

::

    LamellaError
    ├── ApiError (aiohttp.ClientResponseError)          an error response
    │   ├── ClientStatusError                           4xx
    │   │   ├── BadRequest                              400
    │   │   ├── Unauthorized                            401
    │   │   ├── Forbidden                               403
    │   │   ├── NotFound                                404
    │   │   ├── MethodNotAllowed                        405
    │   │   ├── Conflict                                409
    │   │   ├── UnprocessableContent                    422
    │   │   └── TooManyRequests                         429
    │   └── ServerStatusError                           5xx
    │       ├── InternalServerError                     500
    │       └── ServiceUnavailable                      503
    └── TransportError (aiohttp.ClientConnectionError)  no response, or half of one
        ├── ConnectFailed                               nothing was sent: DNS, refused, TLS interrupted
        │   ├── ConnectTimeout (TimeoutError)           no connection in time, or none free in the pool
        │   └── ProxyRefused                            a proxy refuses to connect (407, 403)
        ├── CertificateInvalid                          nothing was sent: the server is not trusted
        ├── ConnectionLost                              the connection broke after something was sent
        ├── AnswerInvalid                               the response exceeds aiohttp's limits, or is corrupt
        ├── AttemptTimeout (TimeoutError)               no response in time
        └── RequestRejected                             lamella did not send it
            ├── CircuitOpen                             the circuit of the service is open
            ├── RateLimited                             the rate limit would queue it for too long
            └── TokenUnavailable                        the token could not be fetched

They derive from aiohttp's errors, so that ``except aiohttp.ClientError`` keeps working. None derives from
``ClientOSError`` or ``ServerDisconnectedError``: on those aiohttp runs all middlewares a second time.
No message, ``repr`` or field contains a credential of the request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from lamella.attempt_record import AttemptRecord
from lamella.error_body import Said, code_in, parse, request_id_in
from lamella.redaction import one_line, redact_later, redact_text, shown_url
from lamella.rules import Failure, Outcome, Rule, StopReason


class LamellaError(Exception):
    """A failed call: what happened, what was tried, and what to do about it."""

    rule: Rule
    """The rule that applies: title, description, hint, and whether the failure is retryable."""
    method: str
    url: str
    """The URL without user, password and the values of query keys that name a secret."""
    retry_after: float | None = None
    """Seconds that the server asked to wait. None: not stated."""
    attempts: tuple[AttemptRecord, ...] = ()
    """One record per attempt. Empty without a ``Retry`` layer."""
    stopped: StopReason | None = None
    """Why there was no further attempt. None without a ``Retry`` layer."""
    retried: bool = False
    """Whether the call continued after it. Then ``repr`` is short: stamina's hook makes one per retry."""

    @property
    def outcome(self) -> Outcome:
        """The status of the response, or why there was none."""
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
            many = "1 attempt" if len(self.attempts) == 1 else f"{len(self.attempts)} attempts"
            end.append(f"{many} in {seconds:.3g} s")
        if self.stopped:
            end.append(f"stopped: {self.stopped.phrase}")
        return f"{line} ({', '.join(end)})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {f'{self.outcome}, retried' if self.retried else self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle and copy cannot call these constructors.
        getattr(self, "request_info", None)  # an ApiError sets its fields when it is read
        return _blank, (type(self),), {**vars(self), "rule": self.rule.without_condition()}


def _sentence(text: str) -> str:
    return text.rstrip().rstrip(".")


def _blank(cls: type[LamellaError]) -> LamellaError:
    return cls.__new__(cls)


def _request_info(url: str, method: str) -> dict[str, object]:
    shown = URL(url)
    return {"request_info": aiohttp.RequestInfo(shown, method, CIMultiDict(), shown)}  # type: ignore[arg-type]


def summary_of(error: Exception) -> Exception:
    """Return a copy of a LamellaError with its texts and request ID, without traceback, cause, body and headers."""
    if not isinstance(error, LamellaError):
        return error
    summary = _blank(type(error))
    for name, value in (error._summary() if isinstance(error, ApiError) else vars(error)).items():
        setattr(summary, name, value)  # takes less memory than vars().update()
    return summary


class ApiError(LamellaError, aiohttp.ClientResponseError):
    """A response that is an error by its status or by a rule.

    URL, headers and body are redacted on first access, because most errors are retried and never read.

    Args:
        request_info: The request.
        status: Of its response.
        headers: Of its response. None: it has none.
        body: Of its response; the error keeps 64 KiB.
        rule: The rule that applies.
        retry_after: Seconds that the server asked to wait. None: not stated.
        secrets: Texts to remove, besides the credentials in the request's URL and headers.
        hidden: Names of further headers to redact, in lower case.
    """

    __slots__ = ("_look",)  # not in vars(), which debuggers and error trackers show

    url: str
    status: int
    body: bytes
    """The first 64 KiB of the response body, as far as it arrived."""

    def __init__(
        self,
        request_info: aiohttp.RequestInfo,
        *,
        status: int,
        rule: Rule,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        retry_after: float | None = None,
        secrets: Iterable[str] = (),
        hidden: Collection[str] = (),
    ) -> None:
        super().__init__(request_info, (), status=status, message=rule.title_of(status))
        del self.request_info, self.headers
        self.args: tuple[Any, ...] = ()
        self.method: str = request_info.method
        self.rule = rule
        self.retry_after = retry_after
        self._look: Callable[[], dict[str, object]] | None = redact_later(
            request_info, headers or {}, body, secrets=secrets, hidden=hidden
        )

    if not TYPE_CHECKING:  # type checkers must know exactly these attributes

        def __getattr__(self, name: str) -> Any:
            if name in {"url", "request_info", "headers", "body"} and self._look is not None:
                vars(self).update(self._look())
                self._look = None
            return super().__getattribute__(name)

    @cached_property
    def _said(self) -> Said:
        # From the redacted body, because secrets are not kept.
        payload, *messages = parse(self.body)
        return Said(payload, *[tuple(map(redact_text, texts)) for texts in messages])

    @property
    def payload(self) -> Any:
        """The body as JSON, or None if it is not JSON. Parsed on first access."""
        return self._said.payload

    @cached_property
    def error_code(self) -> str | None:
        """The API's own error code in the body, such as ``lock_timeout``, or None."""
        return (found := code_in(self.payload, self.status)) and redact_text(found)

    @property
    def details(self) -> tuple[str, ...]:
        """The messages of the body that are neither validation nor downstream errors."""
        return self._said.details

    @property
    def validation_errors(self) -> tuple[str, ...]:
        """Validation errors of the request, if the body has any."""
        return self._said.validation_errors

    @property
    def downstream_errors(self) -> tuple[str, ...]:
        """Errors of the system behind the API, if the body has any."""
        return self._said.downstream_errors

    @property
    def request_id(self) -> str | None:
        """The server's ID for this request, from the usual response headers. None: not stated."""
        found = request_id_in(self.headers or {})
        return found and redact_text(found)

    @property
    def outcome(self) -> Outcome:
        """The status of the response."""
        return self.status

    def _summary(self) -> dict[str, Any]:
        request_id = self.request_id
        fields = vars(self) | {
            "headers": CIMultiDict({"x-request-id": request_id} if request_id else {}),
            "body": b"",
            "error_code": self.error_code,
            "_said": self._said._replace(payload=None),
            "_look": partial(_request_info, self.url, self.method),
        }
        fields.pop("request_info", None)
        return fields

    def _what(self) -> str:
        said = "; ".join((self.details + self.validation_errors + self.downstream_errors)[:5])
        if (code := self.error_code) and code not in said:
            said = f"{code}: {said}" if said else code
        return f"{self.status} {self.rule.title_of(self.status)}" + (f" [{redact_text(said)}]" if said else "")


class ClientStatusError(ApiError):
    """4xx: the request is wrong."""


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


class Conflict(ClientStatusError):
    """409."""


class UnprocessableContent(ClientStatusError):
    """422."""


class TooManyRequests(ClientStatusError):
    """429."""


class ServerStatusError(ApiError):
    """5xx, or a status that no server should send (RFC 9110, section 15)."""


class InternalServerError(ServerStatusError):
    """500."""


class ServiceUnavailable(ServerStatusError):
    """503."""


class TransportError(LamellaError, aiohttp.ClientConnectionError):
    """No response, or half of one."""

    failure: ClassVar[Failure]
    reason: str
    """The message of the underlying exception in one line."""

    def __init__(self, method: str, url: URL, rule: Rule, reason: str = "", *, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.method = method
        self.url: str = shown_url(url, secrets)[0]
        self.rule = rule
        self.reason = redact_text(reason, secrets)

    @property
    def outcome(self) -> Outcome:
        """Why there was no response."""
        return self.failure

    def _what(self) -> str:
        return f"{self.rule.title} ({self.reason})" if self.reason else self.rule.title


class ConnectFailed(TransportError):
    """Nothing was sent: DNS, connection refused, an interrupted TLS handshake."""

    failure = Failure.CONNECT_FAILED


class ConnectTimeout(ConnectFailed, TimeoutError):
    """Nothing was sent: no connection in time."""

    in_pool: bool = False
    """Whether the call waited for the session's connection pool, which says nothing about the server."""


class ProxyRefused(ConnectFailed):
    """Nothing was sent: the proxy refuses to connect to the server, and a retry would not help (407, 403, …)."""

    failure = Failure.PROXY_REFUSED


class CertificateInvalid(TransportError):
    """Nothing was sent: the server's certificate is not trusted, or the sides share no TLS version or cipher."""

    failure = Failure.CERTIFICATE_INVALID


class ConnectionLost(TransportError):
    """The connection broke after something was sent, so the request may have been carried out."""

    failure = Failure.CONNECTION_LOST


class AnswerInvalid(TransportError):
    """aiohttp rejected the response: its headers exceed a limit of the session, or its body cannot be decompressed."""

    failure = Failure.ANSWER_INVALID


class AttemptTimeout(TransportError, TimeoutError):
    """No response in time; the request may have been carried out."""

    failure = Failure.ATTEMPT_TIMEOUT


class RequestRejected(TransportError):
    """lamella did not send the request because of the results of other calls. Nothing was carried out."""

    since: datetime
    """When the reason for rejection began (UTC)."""
    until: datetime
    """When the request may be sent again, as far as is known (UTC). ``retry_after`` is the same in seconds from now."""

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
        self.retry_after: float | None = until
        self.stopped: StopReason | None = stopped
        began, ends = (f"{moment:%Y-%m-%d %H:%M:%S}Z" for moment in (self.since, self.until))
        reason = f"since {began}, until {ends}, which is in {until:.3g} s"
        super().__init__(method, url, rule, reason, secrets=secrets)


class CircuitOpen(RequestRejected):
    """Not sent: the circuit of its service is open."""

    failure = Failure.CIRCUIT_OPEN


class RateLimited(RequestRejected):
    """Not sent: it would be queued beyond its deadline, or the server asks for too long a wait. See ``stopped``."""

    failure = Failure.RATE_LIMITED


class TokenUnavailable(RequestRejected):
    """Not sent: the fetch of the token failed. ``__cause__`` is the error of the fetch."""

    failure = Failure.TOKEN_UNAVAILABLE
