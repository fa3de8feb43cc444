"""What has to come of a call, by rules: nothing here was recorded, and nothing asks lamella."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import aiohttp
from tests.faults.calls import ATTEMPTS, Layers, Request
from tests.faults.catalogue import End, Fault, Phase

from lamella import (
    AnswerInvalid,
    AttemptTimeout,
    BadRequest,
    CertificateInvalid,
    ClientStatusError,
    Conflict,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    Forbidden,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    ProxyRefused,
    ServerStatusError,
    ServiceUnavailable,
    StopReason,
    TooManyRequests,
    Unauthorized,
    UnprocessableContent,
)

__all__ = ["IDEMPOTENT", "SOME", "Expected", "expected", "reads_the_body"]

Kind = type[BaseException]

_CLASSES: Final[dict[int, Kind]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Conflict,
    422: UnprocessableContent,
    429: TooManyRequests,
    500: InternalServerError,
    503: ServiceUnavailable,
}
_TRIED_AGAIN: Final = frozenset({429, 500, 502, 503, 504})
"""The guide's, and what Maesn's rules make of 502, 503 and 504."""
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2."""
_MOST_OF_AN_ERROR: Final = 72 * 1024
"""How much of an error's body is read for its messages."""


SOME: Final = "(some)"


@dataclass(frozen=True)
class Expected:
    """What has to come of a call."""

    error: Kind | None
    """What is raised: by the call, or while its answer is read."""
    stopped: StopReason | None
    """Why there was no further try, where a Retry can say so."""
    status: int | None
    """Of the answer that the caller gets. None: it gets none."""
    sends: int
    arrived: int
    """How often the request's body arrived, whole each time."""
    kept: int
    """How many connections are good for another call."""
    ends: tuple[str | None, ...]
    """``error.type`` of each send's span; ``SOME`` where it is aiohttp's own name for it."""


def expected(fault: Fault, request: Request, layers: Layers, *, always: bool) -> Expected:
    """What has to come of *request* through *layers*, whose sends meet *fault* always, or the first one alone."""
    kind = _failure(fault, layers)
    stop = None if kind is None else _stop(kind, fault, request, layers)
    again = layers.retry and kind is not None and stop is StopReason.ATTEMPTS_USED_UP
    faulty = 1 if not (again and always) else ATTEMPTS
    well = int(again and not always)
    read_whole = fault.phase >= Phase.HEAD and not fault.unread
    error, status = (None, 200) if well else _handed_on(kind, fault, layers)
    return Expected(
        error=error,
        stopped=stop if layers.retry and not well else None,
        status=status,
        sends=faulty + well,
        arrived=faulty * read_whole + well,
        kept=1 if well else int(_is_kept(kind, fault, request, layers)),
        ends=((_type(kind, layers),) * faulty + (None,) * well) if layers.spans else (),
    )


def _type(kind: int | Kind | None, layers: Layers) -> str | None:
    if kind is None:
        return None
    if isinstance(kind, int):
        return str(kind)
    return kind.__name__ if layers.classify else SOME


def _failure(fault: Fault, layers: Layers) -> int | Kind | None:
    """What one send ends in, for the layers above: a status, no answer, or well (None)."""
    status = fault.status if fault.status >= 400 else None
    if fault.phase is Phase.DONE:
        return status
    if fault.phase is Phase.BODY and not reads_the_body(fault, layers):
        return status  # it says enough, and the body is the caller's
    match fault.end:
        case End.BREAKS:
            return fault.final or (ConnectFailed if fault.phase is Phase.CONNECT else ConnectionLost)
        case End.SILENCE if fault.phase is Phase.CONNECT:
            return ConnectTimeout  # by the layer's limit, or by the session's own for a connection
        case End.SILENCE:
            return AttemptTimeout
        case End.DRIP:
            return AttemptTimeout if layers.timeout else status
        case _:
            return AttemptTimeout if layers.timeout else TimeoutError  # the caller's own


def reads_the_body(fault: Fault, layers: Layers) -> bool:
    """Whether a body that breaks off, or takes too long, is a failed attempt."""
    return fault.status < 400 and layers.buffer and (fault.sized or layers.whole_json)


def _stop(kind: int | Kind, fault: Fault, request: Request, layers: Layers) -> StopReason:
    """Why there is no other try, in the order of the contract's questions."""
    if kind is TimeoutError:
        return StopReason.CANCELLED
    if (isinstance(kind, int) and kind not in _TRIED_AGAIN) or kind in {
        CertificateInvalid,
        ProxyRefused,
        AnswerInvalid,
    }:
        return StopReason.NOT_RETRYABLE
    unsent = kind in {ConnectFailed, ConnectTimeout}
    nothing_done = unsent or kind == 429
    if not (nothing_done or request.method in IDEMPOTENT or request.key or layers.retry_writes):
        return StopReason.UNSAFE_METHOD
    # A body that waits for "100 Continue" and gets none is never begun.
    if request.stream and not unsent and "expect100" not in fault.options:
        return StopReason.BODY_NOT_REPLAYABLE
    return StopReason.ATTEMPTS_USED_UP


def _handed_on(kind: int | Kind | None, fault: Fault, layers: Layers) -> tuple[Kind | None, int | None]:
    """The error that the caller gets for a send that was the last one, and the status of the answer."""
    if kind is not None and not isinstance(kind, int):
        return kind, None
    if kind is not None and layers.classify:
        return _CLASSES.get(kind) or (ClientStatusError if kind < 500 else ServerStatusError), None
    if fault.phase is not Phase.BODY:
        return None, fault.status
    # The caller reads a body that nobody has waited for.
    reading: dict[End, Kind] = {
        End.BREAKS: aiohttp.ClientPayloadError,
        End.SILENCE: TimeoutError,
        End.ENDLESS: TimeoutError,
    }
    return reading.get(fault.end), fault.status


def _is_kept(kind: int | Kind | None, fault: Fault, request: Request, layers: Layers) -> bool:
    """Whether the connection of a send that met the fault is good for another call."""
    if not fault.kept or not (kind is None or isinstance(kind, int)):
        return False
    if kind is not None and layers.classify and request.method != "HEAD":
        # An error's body is read for a few seconds, and up to a length.
        return fault.end is not End.DRIP and len(fault.answer or b"") <= _MOST_OF_AN_ERROR
    return True
