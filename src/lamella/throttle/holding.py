"""The permits that one holder has leased, used or not yet reported. Pure arithmetic, no clock."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf, nextafter
from operator import attrgetter
from typing import Final

from lamella.rules.backoff import Backoff
from lamella.throttle.estimate import Permit, Wait
from lamella.throttle.lease import Grant, LeaseState, Report, permits_of
from lamella.throttle.lease_policy import Outcome
from lamella.throttle.stated import StatedLimit

_EARLY: Final = 0.0005  # a permit may be used this many seconds early: less than the error of the clock
_TICK: Final = 0.002  # minimum seconds between two exchanges that are not urgent
_TURN: Final = 0.005  # minimum seconds between two exchanges of all holders, on average
_POLL: Final = 0.25  # maximum seconds until a holder that waits for an answer asks without a message
_LEAD: Final = 0.5  # horizons before the next permit within which all holders exchange
_OFTEN: Final = 0.05  # horizons between two exchanges of a holder, times the number of holders; at most _LEAD
_SOON: Final = 1e-6
_IDLE: Final = 0.1  # seconds after which an unused permit is released
_KEEP: Final = 0.5  # seconds between two exchanges while there are calls, so that this holder is not considered lost
_REPORT: Final = 0.25  # seconds within which a holder reports, even if others have issued permits to it
_FLUSH: Final = (0.05, 0.25)  # bounds in seconds of the horizon within which results are reported
_MOST_SPARE: Final = 500
_DONE: Final = 2000  # maximum number of outcomes kept to report again if the store loses them

_at: Final = attrgetter("at")


@dataclass(eq=False, slots=True)
class Holding:
    """The permits of a holder. Times are by the clock of the state."""

    name: str
    pool: list[Permit] = field(default_factory=list)  # leased and unused permits, ordered by time
    used: dict[float, Permit] = field(default_factory=dict)  # used permits as they were leased, by the time of use
    outcomes: list[Outcome] = field(default_factory=list)  # outcomes not yet reported
    wait: Wait | None = None  # the wait for another permit, as of *asked_at*
    asked_at: float = -inf
    reported_at: float = -inf
    due: float = -inf  # when the next exchange is due
    grant: Grant | None = None
    last: float = -inf  # the last time at which a permit was used
    done: dict[float, Outcome] = field(default_factory=dict)  # the outcomes reported most recently
    spent: int = 0  # permits used since the last exchange
    sent: dict[float, float] = field(default_factory=dict)  # of the permits in use that `move` has moved
    awaited: bool = False  # whether another holder waits for an answer: results are reported at once

    def take(self, now: float, cost: float = 1.0) -> Permit | Wait | None:
        """Return a permit to use now, or the wait for one. None: an exchange is needed to know."""
        while self.pool and self.pool[0].at <= now + _EARLY:
            leased = self.pool.pop(0)
            if leased.cost != cost:  # it was for another call
                self._give_back(leased, now)
                continue
            at = max(leased.at, now)
            self.last = at = at if at > self.last else nextafter(self.last, inf)
            self.used[at] = leased
            self.spent += 1
            return leased.at_time(at)
        if now >= self.due:
            return None
        return self.until(now)

    def may(self, now: float, cost: float = 1.0) -> Wait | bool:
        """Return whether :meth:`take` would return a permit or a wait. False: it would return None."""
        if self.pool and self.pool[0].at <= now + _EARLY and self.pool[0].cost == cost:
            return True
        return False if now >= self.due else self.until(now)

    def until(self, now: float) -> Wait:
        """Return the wait for the next permit, as far as this process knows."""
        again = max(self.due - now, _SOON)
        if self.pool:
            return Wait(max(self.pool[0].at - now, _SOON), blocked=False)
        if self.wait is None:
            return Wait(None, blocked=False, again=again)
        # The store is not asked before an exchange is due.
        seconds = None if self.wait.seconds is None else max(self.asked_at + self.wait.seconds - now, again)
        return self.wait._replace(seconds=seconds, again=again)

    @property
    def waits(self) -> bool:
        """Whether the next permit depends on the answer to an attempt, perhaps of another holder."""
        return self.wait is not None and self.wait.seconds is None

    def wake(self, now: float) -> None:
        """Exchange at once if this holder waits for an answer. Otherwise, report results at once: another one waits."""
        self.awaited = True
        if self.waits:
            self.due = now

    def ended(
        self,
        permit: Permit,
        now: float,
        *,
        passed: bool | None,
        backoff: Backoff | None = None,
        retry_after: float | None = None,
        says: Sequence[StatedLimit] = (),
    ) -> None:
        """Record the result of an attempt. *passed* None: it is unknown whether the server counted it."""
        leased = self.used.pop(permit.at, None)
        if leased is None:
            return
        kind = "passed" if passed else "unknown" if passed is None else "refused"
        sent = self.sent.pop(permit.at, permit.at)
        self.outcomes.append(Outcome(leased, sent, now, kind, backoff, retry_after, says))  # type: ignore[arg-type]
        if passed is False:
            self.release(now)
            self.due = now
        elif self.awaited or self.waits:
            self.due = min(self.due, max(now, self.asked_at + self._turn))  # this result may allow another attempt

    def unused(self, permit: Permit, now: float) -> None:
        """Release the permit of an attempt that the server cannot have counted, unless its result was reported."""
        leased = self.used.pop(permit.at, None)
        self.sent.pop(permit.at, None)
        if leased is not None:
            self._give_back(leased, now)

    def release(self, now: float) -> None:
        """Release the permits that are not in use."""
        for each in self.pool:
            self._give_back(each, now)
        self.pool.clear()

    def move(self, seconds: float) -> None:
        """Take all moments for so much later: the state has another clock than before."""
        self.pool = [each.at_time(each.at + seconds) for each in self.pool]
        # The keys stay: the calls know them.
        self.sent = {at: self.sent.get(at, at) + seconds for at in self.used}
        self.used = {at: each.at_time(each.at + seconds) for at, each in self.used.items()}
        self.outcomes = moved(self.outcomes, seconds)
        self.done = {each.permit.at: each for each in moved(self.done.values(), seconds)}
        self.asked_at += seconds
        self.reported_at += seconds
        self.due += seconds
        self.last += seconds

    def _give_back(self, leased: Permit, now: float) -> None:
        self.outcomes.append(Outcome(leased, now, now, "unused"))

    def report(self, now: float, waiting: int, waited: float = 0.0, cost: float = 1.0) -> Report:
        """Return the report for the next exchange. *waiting* is the number of waiting calls."""
        if not waiting:
            until = inf if self.awaited else now - _IDLE
            for each in [each for each in self.pool if each.at < until]:
                self.pool.remove(each)
                self._give_back(each, now)
        # Twice as many as since the last exchange: without a limit a horizon ends before they are used.
        spare = min(2 * self.spent, _MOST_SPARE) if cost == 1.0 else 0
        wanting = max(waiting - len(self.pool), 0) if cost == 1.0 else min(waiting, 1)
        holds = (*self.used.values(), *self.pool)
        return Report(self.name, tuple(self.outcomes), wanting, spare, waited, cost, holds)

    def granted(self, grant: Grant, reported: Report, now: float) -> None:
        """Store the result of an exchange."""
        self.done.update({outcome.permit.at: outcome for outcome in reported.outcomes})
        for at in list(islice(self.done, max(len(self.done) - _DONE, 0))):
            del self.done[at]
        del self.outcomes[: len(reported.outcomes)]
        known = self._known()
        there = {each.at for each in grant.permits}
        self.pool = [each for each in self.pool if each.at in there]
        for each in grant.permits:
            if each.at in self.done and each.at not in known:
                self.outcomes.append(self.done.pop(each.at))  # the store has lost this outcome
            elif each.at not in known:
                insort(self.pool, each, key=_at)
        for each in [each for each in self.pool if each.generation != grant.generation]:
            self.pool.remove(each)
            self._give_back(each, now)
        self.grant, self.wait, self.asked_at, self.spent = grant, grant.wait, now, 0
        self.awaited = grant.awaited
        self.due = self._due(grant, now)

    def may_report_later(self, now: float) -> bool:
        """Return whether no outcome is urgent, and this holder has reported lately."""
        return now < self.reported_at + _REPORT and all(each.kind != "refused" for each in self.outcomes)

    def pick_up(self, state: LeaseState | None, now: float, waiting: int) -> bool:
        """Take permits for *waiting* calls that exchanges of other holders have issued. Return whether there are any.

        Then this holder need not make an exchange now, which could overtake those of others.
        """
        me, grant = None if state is None else state.holders.get(self.name), self.grant
        if state is None or me is None or grant is None or not self.may_report_later(now):
            return False
        if self.waits:
            return False  # the next permit may depend on the report
        if getattr(state.known, "generation", 0) != grant.generation:
            return False
        known = self._known()
        new = [each for each in permits_of(me) if each.at not in known and each.at not in self.done]
        if not new or len(self.pool) + len(new) < waiting:
            return False
        for each in new:
            insort(self.pool, each, key=_at)
        self.wait, self.asked_at = None, now
        self.due = min(max(self.pool[-1].at, now), now + grant.horizon)
        return True

    def _known(self) -> set[float]:
        """Return the times of the permits that this holder has."""
        return {each.at for each in (*self.pool, *self.used.values(), *(each.permit for each in self.outcomes))}

    def _due(self, grant: Grant, now: float) -> float:
        wait, horizon = grant.wait, grant.horizon
        if wait is None:
            return min(max(self.pool[-1].at, now), now + horizon) if self.pool else now
        if wait.seconds is None:
            return now + max(_POLL if wait.again is None else min(wait.again, _POLL), self._turn)
        # All holders exchange before that time, one after another, and no more often than they get permits.
        lead = _LEAD * horizon * (grant.rank + 1) / (grant.holders + 1)
        gap = self._turn if grant.holders == 1 else max(horizon * min(_OFTEN * grant.holders, _LEAD), self._turn)
        due = now + max(wait.seconds - lead, gap)
        return due if wait.again is None else min(due, now + max(wait.again, _TICK))

    @property
    def _turn(self) -> float:
        """The minimum seconds between two exchanges that are not urgent."""
        return _TICK if self.grant is None else max(_TICK, _TURN * (self.grant.holders - 1))

    def flush_at(self, now: float, waiting: int = 0) -> float | None:
        """Return when to exchange even if no call asks for a permit. None: there is nothing to report."""
        if self.outcomes or (self.pool and not waiting):
            horizon = 0.0 if self.grant is None else self.grant.horizon
            soon = self._turn if self.awaited else min(max(horizon, _FLUSH[0]), _FLUSH[1])
            return max(now, self.asked_at + soon)
        if self.waits and not waiting:
            return max(now, self.due)  # so that no permit is issued to it
        return max(now, self.asked_at + _KEEP) if self.used or self.pool or waiting else None


def moved(outcomes: Iterable[Outcome], seconds: float) -> list[Outcome]:
    """Return *outcomes*, so much later."""
    return [
        each._replace(
            permit=each.permit.at_time(each.permit.at + seconds),
            sent=each.sent + seconds,
            ended=each.ended + seconds,
        )
        for each in outcomes
    ]
