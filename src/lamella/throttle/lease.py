"""Lease permits to the processes that share an account: a pure exchange on a state of JSON values, no clock.

A holder (a ``Throttle`` of a process) reports the results of its attempts and the number of waiting calls. It gets
permits with start times up to a horizon. :class:`Learned` and :class:`Stated` use the same functions as one process.
Permits for later times rotate among the holders that want some and are kept until their holder asks. A permit for now
goes to the holder that asks, unless it is too far ahead of another one. The permits of a lost holder count as used.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, nextafter
from operator import attrgetter
from typing import Any, Final, NamedTuple

from lamella.throttle.estimate import Asked, Permit, Wait
from lamella.throttle.lease_policy import Outcome, Policy

_BEGIN: Final = 1000.0  # the time of a new state
_SHARES: Final = 20.0  # horizons in a period ...
_SHARES_ALONE: Final = 10.0  # ... and with only one holder
_FEWEST: Final = 4.0  # ... and with many holders
_EACH: Final = 0.01  # seconds of the horizon for each holder
_HORIZON: Final = (0.02, 3.0)  # bounds of the horizon in seconds, unless there are many holders
_ALIVE: Final = (2.0, 10.0)  # bounds in seconds of the period after which a silent holder is considered lost
_AT_ONCE: Final = 0.002  # seconds by which a permit may be issued before its time to the holder that asks
_WENT_BACK: Final = 1.0  # seconds. A smaller step back is only the difference between the clocks of two holders
_COME: Final = 0.55  # seconds within which all holders with calls make an exchange, see lamella.throttle.holding
_KEPT: Final = 32  # maximum permits kept for a holder until it asks
_AHEAD: Final = 16  # maximum lead in permits of the holder that asks over another one
_LONG: Final = 1.0  # seconds after which another one that waits for an answer gets the permit instead


class Report(NamedTuple):
    """What a holder reports in an exchange."""

    holder: str
    outcomes: Sequence[Outcome] = ()
    wanting: int = 0
    """The number of waiting calls."""
    spare: int = 0
    """The number of further permits that it takes while no limit is known."""
    waited: float = 0.0
    """Seconds that the first of these calls has waited."""
    cost: float = 1.0
    """Points that each permit covers."""
    holds: Sequence[Permit] = ()
    """The permits that the holder has, used or not, as they were leased."""


class Grant(NamedTuple):
    """What a holder gets in an exchange."""

    permits: tuple[Permit, ...]
    """All permits of the holder, including those that are used but not reported."""
    wait: Wait | None
    """The wait for another permit. None: the holder has as many as it wants."""
    refused: Wait | None
    """The wait that a reported refusal has begun. None: no wait has begun."""
    generation: int
    """Permits of an earlier generation must not be used."""
    holders: int
    rank: int
    """The position of this holder among the holders, from 0. The last one, with the fewest permits, asks first."""
    horizon: float
    wakes: Sequence[str] = ()
    """The holders to wake: a wait of theirs for an answer has ended, or they must report their results at once."""
    awaited: bool = False
    """Whether another holder waits for an answer."""


@dataclass(slots=True)
class Holder:
    """The state of a holder, in JSON values."""

    seen: float = 0.0
    wanting: int = 0
    waited: float = 0.0
    cost: float = 1.0
    given: int = 0  # permits so far: all holders should get the same number
    ahead: int = 0  # permits issued to it in exchanges of other holders. It does not know them yet
    since: float = -1.0  # when its wait for an answer, to any holder, began, or it last got a permit. Negative: none
    open: list[list[float]] = field(default_factory=list)  # its permits: at, generation, among, cost

    @property
    def waits(self) -> bool:
        """Whether it waits for an answer."""
        return self.since >= 0 and self.wanting > 0


@dataclass(slots=True)
class LeaseState:
    """The state of an account or a quota that several processes share."""

    known: Any  # a RateEstimate or a Usage
    clock: float = _BEGIN
    server: float | None = None  # the time by the store's clock at the last tick
    holders: dict[str, Holder] = field(default_factory=dict)
    serial: int = 0  # the number of exchanges, except those made while the state was closed
    closed_until: float = -1.0  # no permits are issued before this time, because the store has lost the newest state

    def tick(self, server: float, latest: float = inf) -> float:
        """Return the time. *server* is the time by the store's clock, which may jump.

        *latest* is the latest possible time, as far as this process knows.
        """
        if self.server is None or server < self.server - _WENT_BACK:
            self.server = server
        elif server > self.server:
            passed = server - self.server
            # If the clock is ahead of *latest*, it is another one than this process knows.
            self.clock += passed if self.clock > latest else min(passed, latest - self.clock)
            self.server = server
        return self.clock


def newest(
    stored: LeaseState | None, seen: LeaseState | None, server: float, policy: Policy, latest: float = inf
) -> LeaseState:
    """Return the newer state: the stored one, or the last one that this process has *seen* in the store.

    If *seen* is newer, the store has lost a state. No permits are issued until the other holders can restore theirs.
    """
    if seen is None or (stored is not None and stored.serial >= seen.serial):
        return stored or LeaseState(policy.new())
    seen.closed_until = seen.tick(server, latest) + _COME
    return seen


def exchange(state: LeaseState, now: float, report: Report, policy: Policy) -> Grant:
    """Process the report of a holder, and return the permits that it may use."""
    state.clock = max(state.clock, now)
    state.serial += now >= state.closed_until  # until then another holder's newer state takes its place
    me = state.holders.get(report.holder)
    if me is None:
        me = state.holders[report.holder] = Holder()
    waited_before = me.waits
    if not me.wanting and report.wanting:  # it does not catch up on permits that it did not want
        least = min((each.given for each in state.holders.values() if each.wanting), default=0)
        me.given = max(me.given, least)
    me.seen, me.wanting, me.waited, me.cost, me.ahead = now, report.wanting, report.waited, report.cost, 0
    if len(state.holders) == 1 or policy.is_free(state.known):
        me.wanting += report.spare
    begun = _settle(state, me, report, policy)
    _expire(state, now, policy)
    if me.since >= 0:  # others may have issued permits for the calls that it reports as waiting
        me.wanting = max(me.wanting - _unknown_to(me, report, state), 0)
    alone = len(state.holders) == 1
    shares = _SHARES_ALONE if alone else _SHARES
    period = policy.period(state.known)
    # Many holders exchange less often: they would overtake one another's swaps.
    horizon = max(_within(period / shares, _HORIZON), min(len(state.holders) * _EACH, period / _FEWEST))
    others = {name: each for name, each in state.holders.items() if each is not me}
    waiting = {name: each.ahead for name, each in others.items() if each.waits}
    wait, asks_next = _issue(state, now, me, policy, horizon)
    wakes = [name for name, ahead in waiting.items() if others[name].ahead > ahead or others[name] is asks_next]
    if wait is None or wait.seconds is not None:
        me.since = -1.0
    elif not waited_before:
        me.since = now
        if not waiting:
            wakes = [name for name, each in others.items() if each.open]  # they report at once from now on
    awaited = any(each.waits for each in others.values())
    rank = sorted(state.holders, key=lambda name: (-state.holders[name].given, name)).index(report.holder)
    generation = getattr(state.known, "generation", 0)
    return Grant(permits_of(me), wait, begun, generation, len(state.holders), rank, horizon, wakes, awaited)


def permits_of(holder: Holder) -> tuple[Permit, ...]:
    """Return the permits of *holder*, used or not."""
    return tuple(Permit(int(generation), at, int(among), cost) for at, generation, among, cost in holder.open)


def sizes(state: LeaseState) -> dict[str, tuple[int, bool, bool]]:
    """Return how many permits each holder has, whether it wants more, and whether it waits for an answer."""
    return {name: (len(each.open), each.wanting > 0, each.waits) for name, each in state.holders.items()}


def _settle(state: LeaseState, me: Holder, report: Report, policy: Policy) -> Wait | None:
    opened = {entry[0]: entry for entry in me.open}
    in_flight = _times(state)
    begun = None
    # An unused permit must not count as an attempt in flight when a refusal is evaluated.
    for outcome in sorted(report.outcomes, key=lambda each: (each.kind != "unused", each.ended)):
        if opened.pop(outcome.permit.at, None) is None:
            # Another process has removed the holder as lost, or the store has lost the permit.
            if outcome.kind in {"passed", "unknown"}:
                policy.used(state.known, outcome.ended, outcome.permit.cost)
            elif outcome.kind == "refused":
                begun = policy.settle(state.known, outcome, 0) or begun
            continue
        del in_flight[bisect_left(in_flight, outcome.permit.at)]
        if outcome.kind != "unused":
            begun = policy.settle(state.known, outcome, bisect_right(in_flight, outcome.ended)) or begun
    for at, held in {each.at: each for each in report.holds}.items():
        opened.setdefault(at, [at, held.generation, held.among, held.cost])  # a restored older state lacks this permit
    me.open = list(opened.values())
    return begun


def _times(state: LeaseState) -> list[float]:
    """Return the times of all permits, in order."""
    return sorted(entry[0] for each in state.holders.values() for entry in each.open)


def _unknown_to(me: Holder, report: Report, state: LeaseState) -> int:
    """Return how many permits others have issued to *me* that it may use and does not know yet."""
    known, generation = {each.at for each in report.holds}, getattr(state.known, "generation", 0)
    return sum(entry[0] not in known and entry[1] == generation and entry[3] == me.cost for entry in me.open)


def _expire(state: LeaseState, now: float, policy: Policy) -> None:
    alive = _within(policy.period(state.known), _ALIVE)
    for name, holder in list(state.holders.items()):
        if holder.seen < now - alive:
            for _, _, _, cost in holder.open:
                policy.used(state.known, now, cost)
            del state.holders[name]


def _issue(
    state: LeaseState, now: float, me: Holder, policy: Policy, horizon: float
) -> tuple[Wait | None, Holder | None]:
    """Issue permits up to the horizon. Return the wait of *me* for another permit, or None, and who has to ask.

    If *me* wants no more, those that wait for an answer get the rest. One of them has to ask if the next permit no
    longer depends on an answer. If one has not come for its permits yet, it gets no more.
    """
    line = [each for each in state.holders.values() if each.wanting > 0 and each.ahead < (1 if each.waits else _KEPT)]
    if now < state.closed_until:
        return Wait(state.closed_until - now, blocked=False) if me.wanting > 0 else None, None
    in_flight = _times(state)
    points = sum(entry[3] for each in state.holders.values() for entry in each.open)
    taken = set(in_flight)
    waiting = sum(each.wanting for each in state.holders.values())
    at = last = now
    while me.wanting > 0 or (line := [each for each in line if each.waits]):
        chosen = _next(line, me, at, now)
        asked = Asked(waiting=waiting, waited=max(each.waited for each in line), cost=chosen.cost)
        answer = policy.issue(state.known, at, in_flight, points, asked)
        if isinstance(answer, Wait):
            if answer.seconds is None or at + answer.seconds > now + horizon:
                if me.wanting <= 0:
                    return None, None if answer.seconds is None else chosen
                seconds = None if answer.seconds is None else at + answer.seconds - now
                again = None if answer.again is None else at + answer.again - now
                return answer._replace(seconds=seconds, again=again), None
            at += answer.seconds
            continue
        at = max(at, answer.at)
        moment = last if answer.at <= last < answer.at + _AT_ONCE else answer.at
        while moment in taken:  # its time identifies a permit
            moment = nextafter(moment, inf)
        last = moment
        chosen.open.append([moment, answer.generation, answer.among, answer.cost])
        taken.add(moment)
        insort(in_flight, moment)
        points += answer.cost
        waiting -= 1
        chosen.wanting -= 1
        chosen.given += 1
        chosen.ahead += chosen is not me
        if chosen.since >= 0:
            chosen.since = at
        if chosen.wanting <= 0 or chosen.ahead >= _KEPT:
            line.remove(chosen)
    return None, None


_given: Final = attrgetter("given")


def _next(line: Sequence[Holder], me: Holder, at: float, now: float) -> Holder:
    behind = line[0] if len(line) == 1 else min(line, key=_given)
    lead = 0 if behind.waits and now >= behind.since + _LONG else _AHEAD
    return me if me.wanting > 0 and at <= now + _AT_ONCE and me.given < behind.given + lead else behind


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def as_text(state: LeaseState) -> str:
    """Return *state* as JSON."""
    holders = {name: _values(holder) for name, holder in state.holders.items()}
    whole = {"known": _values(state.known), "clock": state.clock, "server": state.server, "holders": holders}
    whole |= {"serial": state.serial, "closed_until": state.closed_until}
    return json.dumps(whole, separators=(",", ":"))


def of_text(text: str, policy: Policy) -> LeaseState:
    """Return the state that :func:`as_text` has written.

    Raises:
        ValueError, TypeError, KeyError: *text* is not a state.
    """
    whole = json.loads(text)
    holders = {name: Holder(**values) for name, values in whole["holders"].items()}
    known, clock, until = policy.loaded(whole["known"]), float(whole["clock"]), float(whole["closed_until"])
    return LeaseState(known, clock, whole["server"], holders, int(whole["serial"]), until)


def _values(state: Any) -> dict[str, Any]:
    """Return the JSON values of a state."""
    return {name: getattr(state, name) for name in state.__slots__}
