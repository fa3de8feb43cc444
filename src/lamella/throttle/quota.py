"""The limits that the user states: a call waits for all limits that it counts against.

A ``Quota`` is the limits that the same requests count against, with one queue. A call enters the queues in order, from
the narrowest (a path of an account) through that of its account to the widest (the integrator's). Only the first call
of a queue enters the next one, once its own limits would let it pass. It has no permit while it waits there. When the
last queue lets it pass, it gets the permits of all queues, or none. Each queue is first come, first served, and all
calls enter the queues in the same order, so no call waits forever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import aiohttp

from lamella.call import Call, PerCall
from lamella.origins import origin_of
from lamella.store.shared import SharedState, hash_key
from lamella.throttle.estimate import Permit, Wait
from lamella.throttle.limit import Cost, Limit, Of, cost_of
from lamella.throttle.queue import Count, Queue
from lamella.throttle.stated import StatedLimit
from lamella.throttle.usage import InFlight, Usage, earliest, record, take, uses, wait_for

if TYPE_CHECKING:  # most programs share no limit with other processes
    from lamella.store.network import NetworkStore
    from lamella.throttle.fleet import Lease

_MOST: Final = 10_000


class Station(Protocol):
    """Something that a call has to pass: its account or a quota. Each one has a queue."""

    queue: Queue
    is_common: bool
    """Whether all calls of an account have to pass this station."""

    async def may_pass(self, call: Call) -> Wait | None:
        """Return the wait until *call* may pass. None: it may pass now."""
        ...

    async def take(self, call: Call) -> Permit | Wait:
        """Issue a permit for *call*, or return the wait."""
        ...

    async def earliest(self, call: Call, ahead: int) -> float | None:
        """Return after how many seconds a call with *ahead* calls before it may pass at the earliest. None: unknown."""
        ...


Held = Sequence[tuple[Station, Permit]]


@dataclass(eq=False, repr=False, slots=True)
class Passage:
    """The stations that one attempt has to pass, and the permits that it already has."""

    stations: tuple[Station, ...]
    """In order, the narrowest one first."""
    held: list[tuple[Station, Permit]] = field(default_factory=list)

    def release(self) -> None:
        """Release the unused permits."""
        held, self.held = self.held, []
        release(held)


PASSAGE: Final = PerCall[Passage | None](lambda: None)


async def ask(station: Station, call: Call, queue: Queue, ahead: int) -> Permit | Wait:
    """Ask *station* and the stations behind it for permits for *call*. *ahead* is the number of calls before it in its
    queue.

    The queue of each station calls this function.
    """
    passage = PASSAGE.get(call) or Passage((station,))
    behind = passage.stations[passage.stations.index(station) + 1 :]
    if ahead:
        moments = [await each.earliest(call, ahead) for each in (station, *behind) if each is station or each.is_common]
        return Wait(max((each for each in moments if each is not None), default=None), blocked=False)
    if behind:
        if (wait := await station.may_pass(call)) is not None:
            return wait
        inner = await behind[0].queue.enter(call, queue)
        if isinstance(inner, Wait):
            return inner._replace(blocked=False)  # other calls of this queue may not need to pass the next station
    try:
        answer = await station.take(call)
    except BaseException:
        passage.release()
        raise
    if isinstance(answer, Permit):
        passage.held.append((station, answer))
    else:
        passage.release()
    return answer


def waiting_for(station: Station, call: Call) -> int:
    """Return the number of calls that wait for a permit of *station*, including those in the queues outside it."""
    passage = PASSAGE.get(call)
    if passage is None:
        return station.queue.waiting
    return max(each.queue.waiting for each in passage.stations[: passage.stations.index(station) + 1])


def release(held: Held) -> None:
    """Release unused permits."""
    for station, permit in held:
        station.queue.end(permit)


async def ended(call: Call, held: Held, *, counts: bool) -> None:
    """Release the permits of an attempt that has ended. *counts*: the server may have counted it."""
    if not held:
        return
    station, permit = held[0]
    try:
        if counts and isinstance(station, Quota):
            await station.record(call, permit)
    finally:
        station.queue.end(permit)
        await ended(call, held[1:], counts=counts)


@dataclass(eq=False, repr=False, slots=True)
class Quota:
    """The usage of the limits that the same requests count against, and the queue of the calls that wait for them."""

    name: str
    limits: tuple[Limit, ...]
    cost: Cost | None
    is_common: bool
    state: SharedState
    lease: Lease | None = None
    queue: Queue = field(init=False)

    async def may_pass(self, call: Call) -> Wait | None:
        if self.lease is not None:
            return await self.lease.may_pass(waiting_for(self, call), 0.0, self._cost(call))
        return await self.state.update(
            call.span, self.name, Usage, wait_for, self._in_flight, self.limits, self._cost(call)
        )

    async def take(self, call: Call) -> Permit | Wait:
        if self.lease is not None:
            return await self.lease.take(waiting_for(self, call), 0.0, self._cost(call))
        return await self.state.update(
            call.span, self.name, Usage, take, self._in_flight, self.limits, self._cost(call)
        )

    async def earliest(self, call: Call, ahead: int) -> float | None:
        if self.cost is not None:
            return None
        if self.lease is not None:
            return earliest(self.lease.known, self.lease.now(), self._in_flight, self.limits, ahead)
        return await self.state.update(call.span, self.name, Usage, earliest, self._in_flight, self.limits, ahead)

    async def record(self, call: Call, permit: Permit) -> None:
        """Record an attempt that the server may have counted."""
        if self.lease is not None:
            self.lease.ended(permit, passed=True)
            return
        await self.state.note(call.span, self.name, Usage, record, self.limits, permit.cost)

    def uses(self) -> list[StatedLimit]:
        """Return what remains of the limits, as far as this process knows."""
        usage = self.state.last_known(self.name) if self.lease is None else self.lease.known
        known, now = usage if isinstance(usage, Usage) else Usage(), (self.lease or self.state).now()
        return uses(known, now, self._in_flight, self.limits)

    @property
    def _in_flight(self) -> InFlight:
        return InFlight(self.queue.in_flight, self.queue.points)

    def _cost(self, call: Call) -> float:
        return cost_of(call.request, self.cost)


class _Group(NamedTuple):
    """Limits that the same requests count against."""

    limits: tuple[Limit, ...]
    key: Of | None
    scope: Of | None
    cost: Cost | None
    is_wide: bool
    """Whether a call passes this group after its account."""
    is_common: bool


class Quotas:
    """The quotas of all calls: the 10,000 most recently used ones and those in use.

    Args:
        limits: The limits that the user states.
        key: Returns the account of a request.
        scope: Returns the name of the learned limit of the account that a request counts against.
        cost: Returns the points of a request, for limits without a cost function.
        state: Stores the usage.
        fleet: The store of the processes that share the quotas. None: they are not shared, or are shared through
            *state*.
    """

    def __init__(
        self,
        limits: Sequence[Limit],
        *,
        key: Of | None,
        scope: Of | None,
        cost: Cost | None,
        state: SharedState,
        fleet: NetworkStore | None = None,
    ) -> None:
        self._fleet = fleet
        self._groups = _grouped(limits, key, scope, cost)
        self._state = state
        self._quotas: OrderedDict[str, Quota] = OrderedDict()

    def __iter__(self) -> Iterator[Quota]:
        return iter(self._quotas.values())

    def clear(self) -> None:
        """Forget all quotas. Their usage stays in the store."""
        self._quotas = OrderedDict()

    def passage(self, request: aiohttp.ClientRequest, account: Station, count: Count) -> Passage:
        """Return the stations that *request* of *account* has to pass. *count* is passed to the queues."""
        before: list[Station] = []
        behind: list[Station] = []
        for number, group in enumerate(self._groups):
            scope = None if group.scope is None else group.scope(request)
            if scope is None and group.scope is not None and not group.is_common:
                continue
            key = None if group.key is None else group.key(request)
            name = hash_key(origin_of(request.url), f"limit {number}\n{key or ''}\n{scope or ''}")
            (behind if group.is_wide else before).append(self._quota(name, group, count))
        return Passage((*before, account, *behind))

    def _quota(self, name: str, group: _Group, count: Count) -> Quota:
        quota = self._quotas.get(name)
        if quota is None:
            lease = None if self._fleet is None else _leased(self._fleet, name, group.limits)
            quota = self._quotas[name] = Quota(name, group.limits, group.cost, group.is_common, self._state, lease)
            asks = partial(ask, quota)
            quota.queue = Queue(asks, count) if lease is None else lease.new_queue(asks, count)
            if len(self._quotas) > _MOST:
                self._forget_idle()
        self._quotas.move_to_end(name)
        return quota

    def _forget_idle(self) -> None:
        for name, quota in list(islice(self._quotas.items(), 4)):
            if not (quota.queue.in_flight or quota.queue.waiting):
                del self._quotas[name]


def _leased(fleet: NetworkStore, name: str, limits: tuple[Limit, ...]) -> Lease:
    from lamella.throttle.fleet import Lease
    from lamella.throttle.lease_policy import Stated

    return Lease(fleet, name, Stated(limits))


def _grouped(limits: Sequence[Limit], key: Of | None, scope: Of | None, cost: Cost | None) -> tuple[_Group, ...]:
    """Return *limits* in groups, the narrowest group first."""

    def width(limit: Limit) -> int:
        if limit.key is None:
            return 1 if limit.scope is scope else 2 if limit.scope is None else 0
        return 3 if limit.scope is not None else 4

    def alike(limit: Limit) -> tuple[object, ...]:
        return width(limit), limit.key, limit.scope, limit.cost

    def in_order() -> Iterator[_Group]:
        seen: list[tuple[object, ...]] = []
        for each in limits:
            if alike(each) not in seen:
                seen.append(alike(each))
        by_likeness = sorted(limits, key=lambda limit: (width(limit), seen.index(alike(limit))))
        for _, same in groupby(by_likeness, alike):
            group = tuple(same)
            first = group[0]
            yield _Group(
                group,
                first.key or key,
                first.scope,
                first.cost or cost,
                is_wide=width(first) > 0,
                is_common=width(first) in {1, 2},
            )

    return tuple(in_order())
