"""State that the layers of one call share, and per-call state of each layer."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import aiohttp
from opentelemetry.trace import Span

from lamella.attempt_record import AttemptRecord
from lamella.errors import LamellaError
from lamella.rules import Rule, StopReason, WaitSource
from lamella.scope import CallOptions

S = TypeVar("S")


class Stop(NamedTuple):
    """Why there was no further attempt."""

    reason: StopReason
    rule: Rule | None
    """The rule that applied."""
    error: LamellaError | None = None
    """The rejection that a layer of this call raised before anything was sent."""


class Circuit(Protocol):
    """The interface between ``Retry`` and the ``Breaker`` around it."""

    async def failed(self, error: BaseException) -> None:
        """Report that an attempt failed with *error*."""

    async def open_for(self) -> float:
        """Return for how many seconds no attempt may be sent; 0.0 while the circuit is closed or half-open."""
        ...

    async def admit(self) -> bool:
        """Return whether one more attempt may be sent now."""
        ...


class Observer(Protocol):
    """Counts the waits between the attempts of a call."""

    def wait_begins(self, rule: Rule, source: WaitSource | None) -> None:
        """Record that the call begins to wait because of *rule*."""

    def wait_ends(self) -> None:
        """Record that the wait, if any, is over."""


class Call:
    """State that the layers of one call share. Each hop of a redirect is a call, because aiohttp makes a new request
    for it."""

    # Class attributes as defaults for what few calls set or read.

    span: Span | None = None
    """The span of the whole call."""
    now: float = 0.0
    """The loop's time at this step of the call, read once for all hooks that do not wait."""
    answer: aiohttp.ClientResponse | None = None
    """The response to the current attempt. A layer may have turned it into an error since."""
    circuit: Circuit | None = None

    def __init__(self, request: aiohttp.ClientRequest) -> None:
        self.request = request
        # Each call reads the next ones, which takes longer where they are attributes of the class.
        self.deadline: float | None = None
        """When the call must have ended, by the loop's clock."""
        self.attempts = 0
        """The number of attempts begun, including earlier hops, as counted by ``AttemptSpan``."""
        self.records: tuple[AttemptRecord, ...] = ()
        """The records of attempts. Empty while there is only one attempt and it has not failed."""
        self.queued: float = 0.0
        """Total seconds in the queue of the account."""
        self.stop: Stop | None = None
        """Why there was no further attempt. None: not stopped."""
        self.secrets: tuple[str, ...] = ()
        """Values that an auth layer set; they are never shown."""
        self.state: Final[dict[object, object]] = {}
        """Per-call state of each layer; see `PerCall`."""

    @staticmethod
    def of(request: aiohttp.ClientRequest) -> Call:
        """Return the call of *request*."""
        call: Call | None = getattr(request, CALL_KEY, None)
        if call is None:
            call = Call(request)
            setattr(request, CALL_KEY, call)
        return call


CALL_KEY: Final = "_lamella_call"


_NONE: Final = object()


class PerCall(Generic[S]):
    """A value per call that ends with the call. To pass a value from `before` to `after`, a dict by call works as well.

    Args:
        make: Creates the value on first use.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make

    def of(self, call: Call) -> S:
        """Return the value of *call*; it may be changed in place."""
        value = call.state.get(self, _NONE)
        if value is _NONE:
            value = call.state[self] = self._make()
        return value  # type: ignore[return-value]

    def get(self, call: Call) -> S | None:
        """Return the value of *call*; None if there is none yet."""
        return call.state.get(self)  # type: ignore[return-value]

    def set(self, call: Call, value: S) -> None:
        """Set the value of *call*."""
        call.state[self] = value

    def take(self, call: Call) -> S | None:
        """Return the value of *call* and forget it; None if there is none."""
        return call.state.pop(self, None)  # type: ignore[return-value]


OPTIONS: Final = PerCall(CallOptions)
"""The :func:`lamella.options` of the block around the call, if any."""
BLOCK_END: Final = PerCall[float](lambda: inf)
"""The deadline of the block around the call, by the loop's clock, if any."""
OBSERVER: Final = PerCall[Observer | None](lambda: None)
"""What counts the waits of the call, if metrics are recorded."""
SENT_BEFORE: Final = PerCall[bool](lambda: False)
"""Whether a layer or another middleware may have sent the request before."""
