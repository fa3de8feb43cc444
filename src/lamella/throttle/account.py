"""An account of a server: its queue, its rate-limit episode, and what is learned of its limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.store.shared import SharedState
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.fleet import Lease, LeasedQueue
from lamella.throttle.limit import Cost, cost_of
from lamella.throttle.permits import may_send, next_permit
from lamella.throttle.queue import Count, Queue, waiting_of
from lamella.throttle.quota import Station, ask, waiting_for

_R = TypeVar("_R")


@dataclass(eq=False, slots=True)
class Episode:
    """A rate-limit episode of an account: from a refusal to the next success. Until it is one, refusals in doubt."""

    began: float  # by the loop's clock
    context: SpanContext  # of the refused call
    queued_before: int  # calls that had been queued, and sent, before it
    last: float  # when the last attempt before it was sent; a success of a later one disproves it
    recorded: bool  # whether there is a span and metrics
    wait: float = 0.0
    refused: int = 0
    generation: int = 0  # of the last refused permit: a success with a later one ends the episode
    started: int = field(default_factory=time.time_ns)


class Learning(NamedTuple):
    """How the limits of accounts are learned."""

    state: SharedState
    period: float
    """To assume where nothing is known, in seconds."""
    learns: bool
    """False: the user has stated the limit."""
    cost: Cost | None


@dataclass(eq=False, slots=True)
class Account:
    """An account, whose limit is learned: a :class:`lamella.throttle.quota.Station` of each call."""

    name: str  # a hash: the key itself may be a credential
    server: Mapping[str, AttributeValue]
    measured: Mapping[str, AttributeValue]  # what metrics say about the server
    learning: Learning
    count: Count
    queue: Queue = field(init=False)
    episode: Episode | None = None
    doubt: Episode | None = None
    belief: tuple[AttributeValue, ...] = ("none", 0.0, 0.0, 0)  # as it was last recorded
    stations: tuple[Station, ...] = ()  # of its last call, where the user states limits
    is_common: bool = True
    lease: Lease | None = None  # where processes share the account

    def __post_init__(self) -> None:
        if self.lease is None:
            self.queue = Queue(partial(ask, self), self.count)
        else:
            self.queue = LeasedQueue(partial(ask, self), self.count, self.lease)

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
        return None  # what is learned may change

    async def _ask(self, call: Call, change: Callable[[RateEstimate, float, Sequence[float], float, Asked], _R]) -> _R:
        state, period, learns, cost = self.learning
        waited = _waited(call)
        extra = self.queue.points - self.queue.in_flight
        asked = Asked(learns, self.queue.waiting, waited, extra, cost_of(call.request, cost))
        return await state.update(call.span, self.name, RateEstimate, change, self.queue.sent_at, period, asked)


def _waited(call: Call) -> float:
    """Return for how many seconds *call* is queued."""
    queued = waiting_of(call)
    return 0.0 if queued is None else asyncio.get_running_loop().time() - queued[0]
