"""What the layers of one call share, and what each of them keeps for it."""

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
    """The refusal that a layer of this call has raised itself, before anything was sent."""


class Circuit(Protocol):
    """What ``Retry`` asks and reports to the ``Breaker`` around it."""

    async def failed(self, error: BaseException) -> None:
        """An attempt has ended in *error*."""

    async def open_for(self) -> float:
        """Return for how many seconds no attempt can pass; 0.0 while the circuit is closed or half-open."""
        ...

    async def admit(self) -> bool:
        """Return whether one more attempt may pass now."""
        ...


class Observer(Protocol):
    """What counts the waits of a call between its attempts."""

    def wait_begins(self, rule: Rule, source: WaitSource | None) -> None:
        """The call begins to wait, because of *rule*."""

    def wait_ends(self) -> None:
        """The wait is over, if there was one."""


class Call:
    """What the layers of one call share. A redirect makes a call of each hop: aiohttp makes a new request for it."""

    # Defaults of the class: most calls need few of them, and to set a dozen attributes takes ten times as long.

    span: Span | None = None
    """The span of the whole call."""
    now: float = 0.0
    """The loop's time at this step of the call: it is read once for all hooks that need not wait for anything."""
    deadline: float | None = None
    """When the call must have ended, by the loop's clock."""
    attempts = 0
    """How many were begun, those of earlier hops included, as far as ``AttemptSpan`` saw."""
    answer: aiohttp.ClientResponse | None = None
    """The answer to the current attempt. A layer may have turned it into an error since."""
    records: tuple[AttemptRecord, ...] = ()
    """One for each attempt that ``Retry`` knows of. Empty while there is only one, and it did not fail."""
    queued: float = 0.0
    """Seconds that it waited for the account's rate limit, in sum."""
    stop: Stop | None = None
    """Why there was no further attempt. None: nothing has stopped it."""
    circuit: Circuit | None = None
    observer: Observer | None = None
    secrets: tuple[str, ...] = ()
    """Values that an auth layer has set: nothing shows them."""

    def __init__(self, request: aiohttp.ClientRequest) -> None:
        self.request = request
        self.state: Final[dict[object, object]] = {}
        """Of each layer what it keeps for this call: see `PerCall`."""

    @staticmethod
    def of(request: aiohttp.ClientRequest) -> Call:
        """Return the call that *request* belongs to."""
        call: Call | None = getattr(request, CALL_KEY, None)
        if call is None:
            call = Call(request)
            setattr(request, CALL_KEY, call)
        return call


CALL_KEY: Final = "_lamella_call"


_NONE: Final = object()


class PerCall(Generic[S]):
    """A value of each call, which ends with it. What `before` leaves for `after` may be in a dict by call instead.

    Args:
        make: Makes the value when it is first asked for.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make

    def of(self, call: Call) -> S:
        """Return the value of *call*, which may be changed in place."""
        value = call.state.get(self, _NONE)
        if value is _NONE:
            value = call.state[self] = self._make()
        return value  # type: ignore[return-value]

    def get(self, call: Call) -> S | None:
        """Return the value of *call*. None: there is none yet."""
        return call.state.get(self)  # type: ignore[return-value]

    def set(self, call: Call, value: S) -> None:
        """Put *value* in the place of that of *call*."""
        call.state[self] = value

    def take(self, call: Call) -> S | None:
        """Return the value of *call*, and forget it. None: there is none."""
        return call.state.pop(self, None)  # type: ignore[return-value]


OPTIONS: Final = PerCall(CallOptions)
"""What :func:`lamella.options` says for the call, where it is made inside of that."""
BLOCK_END: Final = PerCall[float](lambda: inf)
"""When the calls of the block that the call is made in must have ended, by the loop's clock, if they must."""
SENT_BEFORE: Final = PerCall[bool](lambda: False)
"""Whether a layer, or a middleware of others, may have sent the request before."""
