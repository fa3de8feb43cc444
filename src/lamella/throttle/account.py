"""An account of a server: its queue, its rate-limit episode and its learned limit."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import aiohttp
from opentelemetry.trace import SpanContext
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.call import Call, PerCall
from lamella.credentials import secrets_of
from lamella.origins import origin_of
from lamella.redaction import redact_text
from lamella.store.shared import SharedState, hash_key
from lamella.throttle.belief import believed
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.limit import Cost, cost_of
from lamella.throttle.permits import may_send, next_permit
from lamella.throttle.queue import Count, Queue, waiting_of
from lamella.throttle.quota import Station, ask, waiting_for

if TYPE_CHECKING:  # most programs share no limit with other processes, and many are never refused
    from lamella.store.network import NetworkStore
    from lamella.throttle.fleet import Lease
    from lamella.throttle.parts import PartEvidence

MOST_IDLE: Final = 1_000
"""The number of accounts from which those that are idle are removed, if the store has all that is known about them."""
_MOST_PARTS: Final = 8
_DEPTH: Final = 3  # levels of the path, the lowest ones first, that may be a part
_UNRECORDED: Final = ("", 0.0, 0.0, 0)
_REFUSED: Final = PerCall[bool](lambda: False)  # set when the call was refused

_R = TypeVar("_R")


@dataclass(eq=False, repr=False, slots=True)
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


@dataclass(eq=False, repr=False, slots=True)
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
    belief: tuple[str, float, float, int] = ("none", 0.0, 0.0, 0)  # the last one that was recorded
    stations: tuple[Station, ...] = ()  # the stations of its last call, if the user states limits
    is_common: bool = True
    lease: Lease | None = None  # set if several processes share the account
    part: str = ""  # the name of this part of an account, as shown. Empty: it is not a part
    parts: Parts | None = None  # its parts, or those of the account that it is a part of. None: nothing shows any

    def __post_init__(self) -> None:
        new = Queue if self.lease is None else self.lease.new_queue
        self.queue = new(partial(ask, self), self.count)
        known = self.learning.state.last_known(self.name)
        if isinstance(known, RateEstimate) and self.learning.learns and not self.part:
            self.belief = believed(known, None).limits  # it was recorded before the account was dropped as idle

    @property
    def is_idle(self) -> bool:
        """Whether no call waits and no attempt is in flight, here or in a part."""
        accounts = (self,) if self.parts is None or self.part else (self, *self.parts.accounts.values())
        return not any(each.queue.in_flight or each.queue.waiting for each in accounts)

    def is_in_store(self, now: float) -> bool:
        """Return whether the store has all that is known about the account, so that it can be made again."""
        has_parts = self.parts is not None and self.parts.are_likely
        held = self.episode or self.doubt or has_parts or self.lease or self.stations
        return not held and self.queue.blocked_until <= now

    def has_passed(self, request: aiohttp.ClientRequest, permit: Permit) -> None:
        """Note an attempt that has passed, for the limits of parts."""
        if self.parts is None:
            return
        if self.part:
            self.parts.evidence.part_has_passed(self.parts.part_of(self))
            return
        self.parts.evidence.has_passed(_parts_of(request), permit)
        if not (self.parts.accounts or self.parts.evidence.suspects):
            self.parts = None

    def charged(self, call: Call, permit: Permit, estimate: RateEstimate) -> Account | None:
        """Return the account whose limit has refused *call*: this one or a part. None: a part, which knows it.

        *estimate* is that of this account. A part that is proven to have its own limit is split off.
        """
        if self.parts is None:
            from lamella.throttle.parts import PartEvidence

            self.parts = Parts(self, PartEvidence())
        if self.part:
            self.parts.merge(self, permit)
            return self
        return self.parts.charged(call, permit, estimate)

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
        if self.parts is not None and not self.part and await self._gives_way(call, self.parts.evidence):
            return Wait(None, blocked=False)
        return await self._ask(call, next_permit)

    async def _gives_way(self, call: Call, evidence: PartEvidence) -> bool:
        """Put a call of another part first if the next attempt tests whether the account is used up."""
        memory = self.learning.state.memory
        if memory is None or not evidence.suspects:
            return False
        estimate = memory.of(self.name, RateEstimate)
        if not (estimate.refusals or estimate.trial_at >= 0) or await self._ask(call, may_send) is not None:
            return False
        return self.queue.put_first(lambda call: evidence.suspicion(_parts_of(call.request)))

    async def earliest(self, call: Call, ahead: int) -> float | None:
        return None  # unknown: the learned limit may change

    async def _ask(self, call: Call, change: Callable[[RateEstimate, float, Sequence[float], float, Asked], _R]) -> _R:
        state, period, learns, cost = self.learning
        waited = _waited(call)
        extra = self.queue.points - self.queue.in_flight
        asked = Asked(learns, self.queue.waiting, waited, extra, cost_of(call.request, cost))
        return await state.update(call.span, self.name, RateEstimate, change, self.queue.sent_at, period, asked)


@dataclass(eq=False, repr=False, slots=True)
class Parts:
    """The parts of an account that have been split off, and the evidence for more."""

    rest: Account
    evidence: PartEvidence
    accounts: dict[str, Account] = field(default_factory=dict)

    @property
    def are_likely(self) -> bool:
        """Whether there are parts, or refusals that speak for one and that no success has disproved."""
        suspects = self.evidence.suspects.values()
        return bool(self.accounts) or any(each.sent_at >= 0 or each.chance < 1 for each in suspects)

    def of(self, request: aiohttp.ClientRequest) -> Account:
        """Return the part that *request* belongs to, or the rest of the account."""
        if not self.accounts:
            return self.rest
        return next((self.accounts[part] for part in _parts_of(request) if part in self.accounts), self.rest)

    def part_of(self, account: Account) -> str:
        """Return the name of the part that *account* is. Empty: of the rest, or it has been merged."""
        return next((part for part, each in self.accounts.items() if each is account), "")

    def charged(self, call: Call, permit: Permit, estimate: RateEstimate) -> Account | None:
        """Do what :meth:`Account.charged` does for an attempt of the rest."""
        if self.of(call.request) is not self.rest:
            return None  # it was sent before the part was split off
        queue, now = self.rest.queue, self.rest.learning.state.now()
        alone, is_first = permit.among == 1 and queue.in_flight == 1, not _REFUSED.get(call)
        _REFUSED.set(call, True)
        found = self.evidence.was_refused(
            _parts_of(call.request), now, permit, estimate, alone=alone, is_first=is_first
        )
        if found is None:
            self.merge(self.rest, permit)
            return self.rest
        part, is_proven = found
        return self._split(part, call, estimate) if is_proven and self._has_room() else None

    def merge(self, refused: Account, permit: Permit) -> None:
        """Merge the parts that share the limit of the rest, now that an attempt of *refused* was refused."""
        for each in self.evidence.to_merge(self.part_of(refused), permit):
            self.accounts.pop(each).queue.dismiss(lambda _: True)

    def _has_room(self) -> bool:
        """Return whether another part can be split off. If necessary, remove one that is not used."""
        if len(self.accounts) < _MOST_PARTS:
            return True
        idle = next((part for part, account in self.accounts.items() if account.is_idle), None)
        if idle is not None:
            self.evidence.splits.pop(idle, None)
            del self.accounts[idle]
        return idle is not None

    def _split(self, part: str, call: Call, estimate: RateEstimate) -> Account:
        rest = self.rest
        name = f"{rest.name} {part}"
        if rest.learning.state.memory is not None:
            rest.learning.state.memory.keep(name, RateEstimate())
        shown = redact_text(part, secrets_of(call))
        new = Account(name, rest.server, rest.measured, rest.learning, rest.count, part=shown, parts=self)
        new.belief = _UNRECORDED
        self.accounts[part] = new
        if self.evidence.split(part):
            self.evidence.restore(estimate)
            rest.queue.block(0.0)
        rest.queue.dismiss(lambda call: part in _parts_of(call.request))
        return new


def _waited(call: Call) -> float:
    """Return for how many seconds *call* has been queued."""
    queued = waiting_of(call)
    return 0.0 if queued is None else asyncio.get_running_loop().time() - queued[0]


def _parts_of(request: aiohttp.ClientRequest) -> tuple[str, ...]:
    return parts_of(request.method, request.url.raw_path)


@lru_cache(maxsize=1024)
def parts_of(method: str, path: str) -> tuple[str, ...]:
    """Return the names of the parts that a request belongs to, the narrowest one first, such as ``GET /orders/*``."""
    paths = [path]
    while len(paths) < _DEPTH and (path := path.rpartition("/")[0]):
        paths.append(f"{path}/*")
    return (*(f"{each} {path}" for path in paths for each in (method, "*")), f"{method} /*")


def account_name(url: URL, key: str | None, scope: str | None) -> str:
    """Return the name of the account of *key* at the origin of *url*. *scope*: of one of its limits."""
    return hash_key(origin_of(url), key if scope is None else f"{key or ''}\n{scope}")


def leased(fleet: NetworkStore, name: str, learning: Learning) -> Lease:
    """Return the lease of an account that several processes share."""
    from lamella.throttle.fleet import Lease
    from lamella.throttle.lease_policy import Learned

    return Lease(fleet, name, Learned(learning.period, learning.learns))


def forget_idle(accounts: OrderedDict[str, Account], ended: Callable[[Account], object], *, too_many: bool) -> None:
    """Remove a few idle accounts, so that each new account frees more than one place. *ended* is called with each.

    Unless there are *too_many*, remove only those about which the store has all that is known.
    """
    now = asyncio.get_running_loop().time()
    for name, account in list(islice(accounts.items(), 4)):
        if account.is_idle and (too_many or account.is_in_store(now)):
            ended(account)
            account.learning.state.pack(name)
            del accounts[name]
        else:
            accounts.move_to_end(name)
