"""An account of a server: its queue, its rate-limit episode and its learned limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.store.shared import SharedState
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.limit import Cost, cost_of
from lamella.throttle.permits import may_send, next_permit
from lamella.throttle.queue import Count, Queue, waiting_of
from lamella.throttle.quota import Station, ask, waiting_for

if TYPE_CHECKING:  # most programs share no limit with other processes
    from lamella.throttle.fleet import Lease

_R = TypeVar("_R")


@dataclass(eq=False, slots=True)
class Episode:
    """A rate-limit episode, or refusals that may become one. It lasts from a refusal to the next success."""

    began: float  # by the loop's clock
    context: SpanContext  # the span of the refused call
    queued_before: int  # the number of calls that were queued and sent before the episode
    last: float  # when the last attempt before the refusal was sent. A success of a later attempt disproves the episode
    recorded: bool  # whether a span and metrics are recorded
    wait: float = 0.0
    refused: int = 0
    generation: int = 0  # generation of the last refused permit. A success with a later generation ends the episode
    started: int = field(default_factory=time.time_ns)


class Learning(NamedTuple):
    """How the limits of accounts are learned."""

    state: SharedState
    period: float
    """The period to assume while none is known, in seconds."""
    learns: bool
    """False if the user has stated the limit."""
    cost: Cost | None


@dataclass(eq=False, slots=True)
class Account:
    """An account with a learned limit. It is a :class:`lamella.throttle.quota.Station` of each of its calls."""

    name: str  # a hash: the key itself may be a credential
    server: Mapping[str, AttributeValue]
    measured: Mapping[str, AttributeValue]  # the attributes of the server on metrics
    learning: Learning
    count: Count
    queue: Queue = field(init=False)
    episode: Episode | None = None
    doubt: Episode | None = None
    belief: tuple[AttributeValue, ...] = ("none", 0.0, 0.0, 0)  # the last one that was recorded
    stations: tuple[Station, ...] = ()  # the stations of its last call, if the user states limits
    is_common: bool = True
    lease: Lease | None = None  # set if several processes share the account

    def __post_init__(self) -> None:
        new = Queue if self.lease is None else self.lease.new_queue
        self.queue = new(partial(ask, self), self.count)

    async def may_pass(self, call: Call) -> Wait | None:
        if self.lease is not None:
            return await self.lease.may_pass(
                waiting_for(self, call), _waited(call), cost_of(call.request, self.learning.cost)
            )
        return await self._ask(call, may_send)

    async def take(self, call: Call) -> Permit | Wait:
        if self.lease is not None:
            return await self.lease.take(
                waiting_for(self, call), _waited(call), cost_of(call.request, self.learning.cost)
            )
        return await self._ask(call, next_permit)

    async def earliest(self, call: Call, ahead: int) -> float | None:
        return None  # unknown: the learned limit may change

    async def _ask(self, call: Call, change: Callable[[RateEstimate, float, Sequence[float], float, Asked], _R]) -> _R:
        state, period, learns, cost = self.learning
        waited = _waited(call)
        extra = self.queue.points - self.queue.in_flight
        asked = Asked(learns, self.queue.waiting, waited, extra, cost_of(call.request, cost))
        return await state.update(call.span, self.name, RateEstimate, change, self.queue.sent_at, period, asked)


def _waited(call: Call) -> float:
    """Return for how many seconds *call* has been queued."""
    queued = waiting_of(call)
    return 0.0 if queued is None else asyncio.get_running_loop().time() - queued[0]
