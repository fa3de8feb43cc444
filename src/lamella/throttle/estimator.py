"""When to send under a rate limit: stated, or learned from what comes back. Pure arithmetic on a state, no clock.

A refusal is dear. It closes the gate for the wait that the rule or ``Retry-After`` asks for, a minute at Maesn, while
the answer to a send is there in a fraction of a second. So the limit is not felt out by many refusals, as additive
increase and multiplicative decrease would do it, but *measured* with as few as possible:

1. ``burst``: nothing is known. Slow start: some sends at once, and one more in flight for every second answer. Where
   answers are slow it grows with time instead: before anything was refused, no call waits longer than 0.7 s for the
   answer to another. At the first refusal we know how many pass at once: N.
2. ``spread``: N sends again, over a quarter of the period; beyond N one at a time. A window (fixed or sliding) refuses
   at N again, since it counts and does not refill; so it lets N pass a period. A token bucket refills meanwhile: what
   passes beyond N, by the time that it took, is its rate.
3. ``steady``: no more than that in any period, over a quarter of it for a window (so a look beyond the limit costs
   little time), evenly for a bucket.
4. Now and then, and less often each time that it was in vain, a look whether there is more: at the ``edge`` of a
   window, one at a time, or by a ``climb`` of the rate, which also finds a period that is shorter than supposed.

The period is the wait that was asked for. What is refused in the steady state, unlooked for, lowers the number to what
did pass; at the third time in a row it is measured again, as at 2.

A server may refuse at random, too. One refusal that comes long before what had passed already tells nothing: that much
goes out again, and more. Only two in a row at the same number are a limit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Final, NamedTuple

from lamella.rules.backoff import Backoff
from lamella.rules.retry_after import LONGEST

__all__ = [
    "Hold",
    "Limit",
    "Pace",
    "Sent",
    "answered",
    "earliest",
    "is_too_long",
    "learned",
    "lost",
    "next_turn",
    "refused",
]


@dataclass(frozen=True, slots=True)
class Limit:
    """A rate limit that is known: at most *requests* in any *per* seconds.

    Raises:
        ValueError: *requests* is no whole number from 1, or *per* no finite number above 0.
    """

    requests: int
    per: float

    def __post_init__(self) -> None:
        requests: object = self.requests
        if not isinstance(requests, int) or isinstance(requests, bool) or requests < 1:
            raise ValueError(f"requests must be a whole number from 1, not {requests!r}")
        if not isfinite(self.per) or self.per <= 0:
            raise ValueError(f"per must be a finite number of seconds greater than 0, not {self.per!r}")


_SPREAD: Final = 4.0
_FIRST_REACH: Final = 4.0
_GROWTH: Final = 0.5
_SHARE: Final = 25
"""Before anything was refused, one in so many of the waiting calls may go at once: so few extra refusals do no harm."""
_SLOW: Final = (0.21, 0.3)
"""After how many seconds a send is slow in slow start: twice the fastest answer, within these bounds."""
_SLOWEST: Final = 4.0
"""After so many times as long it is a long poll, which says nothing of other calls."""
_ROOM: Final = 24
"""For each slow send so many others may go."""
_MOST_ROOM: Final = 100.0
"""But no more than that when the first one becomes slow, and four times as many each time that as long has passed."""
_PATIENCE: Final = 0.7
"""No call is held back for more seconds than that before anything was refused."""
_SLOW_KNOWN: Final = (1.0, 300.0)
"""Once something was refused: four times the fastest answer, within these bounds."""
_ENOUGH: Final = 5
"""From how many passed sends on a single refusal tells something of the limit."""
_STEP: Final = 1.25
"""A climb's."""
_LEAP: Final = 1.5
"""As much beyond the edge as is believed at once."""
_TRIAL: Final = 3.0
"""Periods after which more has proved right; for a climb it is just one."""
_HOLD: Final = 8.0
_LONGEST_HOLD: Final = 128.0
_EVEN_HOLD: Final = 3.0
"""How much longer the hold is where a refusal costs a whole period, since the sends are spread over all of it."""
_SURPRISES: Final = 2
_FEW: Final = 0.75
"""What is refused below so much of what had passed contradicts it."""
_ALIKE: Final = 0.05
"""By how much of itself, and always by one, a number may differ that is the same again."""
_HARDLY: Final = 0.25
_GRAIN: Final = 64
"""How finely a period is remembered."""
_MEMORY: Final = 3.0
"""For how many periods: what a refusal tells is learned a wait after it."""
_FORGET: Final = 1.001
_LATE: Final = 4.0
_SOON: Final = 1e-6
_LONGEST_WAIT: Final = 3600.0


class Sent(NamedTuple):
    """A send that may go now. Its result is reported with this."""

    generation: int
    """How many episodes there had been: a refusal of an earlier generation is no news."""
    at: float


class Hold(NamedTuple):
    """No send may go now."""

    seconds: float | None
    """In how many seconds a send may go at the earliest. None: unknown, an answer to another send may let it go."""
    closed: bool
    """Whether it is for a refusal, and not for the pace."""
    again: float | None = None
    """In how many seconds to ask again, answer or not. None: after *seconds*."""
    too_long: bool = False
    """Whether the server asks for a longer wait than the rule allows, so that the call is not to wait for it."""


@dataclass(slots=True)
class Pace:
    """What is known of one limit. Times are in seconds by the clock of the store; each field is a JSON value."""

    phase: str = "burst"
    requests: float = 0.0
    """How many pass in a period. 0: nobody knows."""
    period: float = 0.0
    spread: float = _SPREAD
    """By how much faster than evenly the sends of a period may go."""
    reach: float = _FIRST_REACH
    """How many may be in flight where nothing is known."""
    closed_until: float = -1.0
    too_long: bool = False
    """Whether that is longer than the rule allows a call to wait. It holds until something passes."""
    generation: int = 0
    refusals: int = 0
    """How many times the gate was closed since something last passed."""
    began: float = -1.0
    """The first send since the gate opened. Below 0: there was none."""
    passed: int = 0
    """How many have passed since."""
    next_at: float = -1.0
    fastest: float = 0.0
    """How long the fastest answer took. It is forgotten slowly: it may have become impossible."""
    log: list[list[float]] = field(default_factory=list)
    """What has passed lately: first moment, last moment, number; the oldest first."""
    refused_at: float = -1.0
    """When the send was made whose refusal closed the gate. Below 0: what it tells is learned already."""
    refused_began: float = -1.0
    asked: float = 0.0
    """The period that it suggests."""
    burst: float = 0.0
    """How many passed at once."""
    burst_took: float = 0.0
    good: float = 0.0
    """What has proved right, while more is tried."""
    proven_at: float = -1.0
    """When what is tried now will have proved right. Below 0: nothing is tried."""
    look_at: float = -1.0
    """When to look for more."""
    looks: int = 0
    hold: float = _HOLD
    """How many periods to wait with it."""
    surprises: int = 0
    doubt: float = 0.0
    """How many had passed at the last refusal, where that contradicts what had passed before. 0: nothing does."""


def next_turn(
    pace: Pace,
    now: float,
    in_flight: Sequence[float],
    period: float,
    limit: Limit | None,
    *,
    waiting: int = 0,
    waited: float = 0.0,
) -> Sent | Hold:
    """Return whether a send may go now; if so, it is recorded as gone.

    Args:
        pace: What is known of the limit.
        now: The time in seconds.
        in_flight: When each of the other sends under way was made, the oldest first.
        period: The period in seconds that is assumed as long as nothing is known.
        limit: The limit, if it is stated. None means that it is learned.
        waiting: How many calls wait for their turn.
        waited: For how many seconds the first of them has.
    """
    if now < pace.closed_until:
        return Hold(pace.closed_until - now, closed=True, too_long=pace.too_long)
    if not pace.period:
        pace.period = period
    if limit is not None:
        return _within(limit, pace, now, in_flight)
    if pace.refused_at >= 0:
        _learn(pace, now)
    if pace.refusals and (hold := _alone(pace, now, in_flight)):
        return hold
    if pace.phase == "steady" or pace.proven_at >= 0:
        _look_around(pace, now)
    gap = 0.0
    if pace.requests:
        gap = pace.period / (pace.spread * pace.requests)
        # The server counted a send when it was made, or a little later, as `answered` has it.
        lasts = pace.period + min(_LATE * pace.fastest, pace.period)
        counted = len(in_flight) - bisect_right(in_flight, now - lasts)
        used = counted + _count(pace, now - pace.period)
        if used >= pace.requests:
            oldest = _oldest(pace, now - pace.period)
            # At an edge only while none of this period's sends is old: a window may have begun anew since.
            young = oldest is None or now - oldest < pace.period / 2
            if pace.phase == "spread" or (pace.phase == "edge" and young):
                if hold := _while_in_flight(pace, now, in_flight, pace.reach):
                    return hold
                gap = pace.period / (_SPREAD * used)
            else:
                ends = max(in_flight[-counted] + lasts - now, _SOON) if counted else None
                return _until_free(oldest, pace.period, now, ends)
    elif len(in_flight) >= pace.reach and (hold := _slow_start(pace, now, in_flight, waiting, waited)):
        return hold
    if now < pace.next_at:
        return Hold(max(pace.next_at - now, _SOON), closed=False)
    # A timer that is late must not slow the pace down.
    pace.next_at = max(pace.next_at, now - gap) + gap if gap else now
    return _go(pace, now)


def answered(pace: Pace, now: float, sent: Sent, in_flight: int, limit: Limit | None) -> bool:
    """Record that a send has passed the limit, whatever its status. Returns whether that ends an episode.

    *in_flight* is how many others are under way.
    """
    # The server counted it at some moment between its sending and its answer. Only the end is safe: by a guess in the
    # middle, one that was slow on its way there makes room for the next period's first too soon. But what took more
    # than four times as long as the fastest has waited for us, who are busy, or for what is behind the limit.
    took = now - sent.at
    fastest = pace.fastest * _FORGET
    if took < fastest or not fastest:
        fastest = took
    pace.fastest = fastest
    late = took > _LATE * fastest and limit is None
    _note(pace, sent.at + _LATE * fastest if late else now)
    pace.passed += 1
    if sent.generation != pace.generation:
        return False
    ends, pace.refusals = pace.refusals, 0
    quota, pace.too_long = pace.too_long, False
    if limit is not None:
        return ends > 0
    if quota:
        pass  # how long a limit of hours lasted tells nothing of the period of the other one
    elif ends > 1:
        # Refused again when it opened: the period is longer than was asked for.
        pace.period = max(pace.period, now - pace.refused_began)
    elif ends and pace.spread > 1 and pace.asked <= now - pace.refused_began < pace.period:
        # A window that is used up lets nothing pass before its end: it had not been refused again for that.
        pace.period = now - pace.refused_began
    if in_flight > pace.reach and not pace.generation:
        pace.reach = float(in_flight)  # so many at a time were not too many
    if not pace.requests or in_flight + _count(pace, now - pace.period) >= pace.requests:
        pace.reach += _GROWTH
    if pace.phase == "edge" and _count(pace, now - pace.period / 2) > pace.good * _LEAP:
        _settle(pace, now, pace.good * _LEAP, tried=True)
    return ends > 0


def lost(pace: Pace, now: float) -> None:
    """Record a send whose end is unknown: the server may have counted it."""
    _note(pace, now)


def refused(pace: Pace, now: float, sent: Sent, backoff: Backoff | None, retry_after: float | None) -> float | None:
    """Close the gate, since a send was refused. Returns for how many seconds; None: it adds nothing to what was known.

    Where the server asks for longer than the rule allows, no call waits for that: it is another limit, of hours
    perhaps, and nothing is learned from it.

    Args:
        pace: What is known of the limit.
        now: The time in seconds.
        sent: The send that was refused.
        backoff: The rule's. None means that it has none.
        retry_after: For how many seconds the server asks. None means that it does not.
    """
    if retry_after is not None and is_too_long(backoff, retry_after):
        # A year and more is no statement: then the next call after the rule's maximum finds out.
        return _shut(pace, now, retry_after if retry_after < LONGEST else _longest(backoff))
    if sent.generation != pace.generation:
        return None
    if pace.too_long:
        pace.too_long, pace.refusals = False, 0
    least = backoff.floor(pace.refusals + 1) if backoff else 0.0
    wait = max(least, retry_after or 0.0)
    if wait <= 0:
        return None
    pace.generation += 1
    pace.closed_until = now + wait
    pace.refusals += 1
    pace.reach = 1.0
    if pace.refusals == 1:
        pace.refused_at, pace.refused_began = sent.at, pace.began if pace.began >= 0 else sent.at
        pace.asked = _suggested(least, retry_after, sent.at - pace.refused_began)
    pace.began = -1.0
    return wait


def is_too_long(backoff: Backoff | None, retry_after: float | None) -> bool:
    """Return whether the server asks for a longer wait than the rule allows. None for *backoff*: the rule has none."""
    return retry_after is not None and retry_after > _longest(backoff)


def _longest(backoff: Backoff | None) -> float:
    return backoff.maximum if backoff else _LONGEST_WAIT


def earliest(pace: Pace, now: float, in_flight: int, ahead: int, limit: Limit) -> float:
    """In how many seconds at the soonest a send may go that has *ahead* others before it in the queue."""
    opens = max(pace.closed_until - now, 0.0)
    rounds, place = divmod(ahead, limit.requests)
    free = limit.requests - in_flight - _count(pace, now - limit.per)
    if place < free:
        return opens + rounds * limit.per
    short = place - free + 1
    for _, last, number in pace.log:
        if last > now - limit.per:
            short -= int(number)
            if short <= 0:
                return max(opens, last + limit.per - now) + rounds * limit.per
    return max(opens, limit.per) + rounds * limit.per


def learned(pace: Pace, _now: float) -> tuple[float, float]:
    """How many pass in how many seconds, as far as is known. 0 for how many: nobody knows."""
    return pace.requests, pace.period


def _shut(pace: Pace, now: float, seconds: float) -> float | None:
    """Close the gate for longer than a call may wait."""
    if now + seconds <= pace.closed_until:
        return None
    pace.generation += 1
    pace.closed_until, pace.too_long = now + seconds, True
    pace.refusals = max(pace.refusals, 1)  # when it opens, one goes alone
    pace.began = -1.0
    if pace.refused_at < 0:
        pace.passed = 0
    return seconds


def _alone(pace: Pace, now: float, in_flight: Sequence[float]) -> Hold | None:
    """Hold all but one back after a refusal, until something passes. None: a send may go."""
    if pace.began < 0:
        return None
    # What was sent before the gate opened tells nothing of whether it is open now.
    since = in_flight[bisect_left(in_flight, pace.began) :]
    hold = _while_in_flight(pace, now, since, 1.0)
    return None if hold is None else hold._replace(closed=True)


def _while_in_flight(pace: Pace, now: float, in_flight: Sequence[float], most: float) -> Hold | None:
    """Hold a send back while *most* are in flight that may be answered any moment. None: it may go."""
    least, longest = _SLOW_KNOWN
    slow_after = min(max(_LATE * pace.fastest, least), longest)
    slow = bisect_right(in_flight, now - slow_after)
    if len(in_flight) - slow < most:
        return None
    return Hold(None, closed=False, again=_until(in_flight[slow], slow_after, now))


def _slow_start(pace: Pace, now: float, in_flight: Sequence[float], waiting: int, waited: float) -> Hold | None:
    """Hold a send back while too many are in flight for what little is known. None: it may go."""
    if pace.generation:
        return _while_in_flight(pace, now, in_flight, pace.reach)
    patience = _PATIENCE - waited
    if patience <= 0:
        return None
    room = max(pace.reach, waiting / _SHARE)
    least, most = _SLOW
    slow_after = min(max(2 * pace.fastest, least), most)
    slowest = bisect_right(in_flight, now - slow_after * _SLOWEST)
    slow = bisect_right(in_flight, now - slow_after)
    again = slow_after
    if slow > slowest:
        since = (now - in_flight[slowest]) / slow_after - 1.0
        room += min(_ROOM * (slow - slowest), _MOST_ROOM * 4.0**since)
        again = slow_after / 8  # it makes more room as time passes
    if len(in_flight) - slow < room:
        return None
    again = min(again, max(patience, _SOON), _until(in_flight[slow], slow_after, now))
    return Hold(None, closed=False, again=again)


def _until(moment: float, after: float, now: float) -> float:
    """Return in how many seconds it is *after* seconds since *moment*. Those may be by different clocks."""
    return min(max(moment + after - now, _SOON), after)


def _within(limit: Limit, pace: Pace, now: float, in_flight: Sequence[float]) -> Sent | Hold:
    pace.period = limit.per
    if pace.refusals and (hold := _alone(pace, now, in_flight)):
        return hold
    # Here a send counts until it is answered, however long that takes: a stated limit is never exceeded.
    if len(in_flight) + _count(pace, now - limit.per) >= limit.requests:
        return _until_free(_oldest(pace, now - limit.per), limit.per, now, None)
    return _go(pace, now)


def _go(pace: Pace, now: float) -> Sent:
    if pace.began < 0:
        pace.began = now
    return Sent(pace.generation, now)


def _until_free(oldest: float | None, period: float, now: float, ends: float | None) -> Hold:
    """Hold a send back until one of the period's no longer counts; *ends* is when the first in flight does not."""
    if oldest is None:
        return Hold(None, closed=False, again=ends)
    free = max(oldest + period - now, _SOON)
    return Hold(free if ends is None else min(free, ends), closed=False)


def _suggested(least: float, retry_after: float | None, elapsed: float) -> float:
    """The period of a window that was used up in *elapsed* seconds."""
    if retry_after is None:
        return least
    # Whole seconds are rounded up: up to one of them was not meant.
    slack = 1.0 if retry_after == int(retry_after) else 0.0
    whole = retry_after + (elapsed if elapsed <= retry_after else 0.0)
    # A rule that hardly waits, or not at all, knows nothing of a period.
    return whole if least < max(whole - slack, whole * _HARDLY) else least


def _note(pace: Pace, moment: float) -> None:
    log = pace.log
    if log and moment - (last := log[-1])[0] < pace.period / _GRAIN:
        last[1] = max(last[1], moment)
        last[2] += 1
        return
    log.append([moment, moment, 1])
    while log[0][1] < moment - _MEMORY * pace.period:
        del log[0]
    if len(log) > 2 * _GRAIN:
        del log[: _GRAIN // 2]


def _count(pace: Pace, since: float) -> int:
    """How many have passed after *since*."""
    total = 0.0
    for _, last, number in reversed(pace.log):
        if last <= since:
            break
        total += number
    return int(total)


def _oldest(pace: Pace, since: float) -> float | None:
    return next((last for _, last, _ in pace.log if last > since), None)


def _look_around(pace: Pace, now: float) -> None:
    """Take what has proved right for good, and begin to look for more when it is time."""
    if 0 <= pace.proven_at <= now:
        pace.proven_at = -1.0
        pace.hold = _HOLD
        if pace.phase == "climb":
            pace.good = max(pace.good, pace.requests / _STEP)  # a step behind: a bucket's reserve may have helped
            _climb(pace, now)
        else:
            pace.good = pace.requests
            pace.look_at = now
            pace.looks += 1  # the same kind of look again: it was not in vain
    if pace.phase == "steady" and pace.proven_at < 0 and now >= pace.look_at:
        pace.looks += 1
        pace.good = pace.requests
        if pace.spread > 1 and pace.looks % 2:
            pace.phase, pace.reach = "edge", 1.0
        else:
            pace.phase = "climb"
            _climb(pace, now)


def _climb(pace: Pace, now: float) -> None:
    pace.spread = 1.0
    pace.requests = max(pace.requests * _STEP, pace.requests + 1)
    pace.proven_at = now + pace.period * 1.1


def _settle(pace: Pace, now: float, requests: float, *, tried: bool = False, vain: bool = False) -> None:
    pace.phase = "steady"
    pace.requests = max(requests, 1.0)
    pace.proven_at = now + _TRIAL * pace.period if tried else -1.0
    if vain:
        pace.hold = min(pace.hold * 2, _LONGEST_HOLD)
    pace.look_at = now + pace.period * pace.hold * (1.0 if pace.spread > 1 else _EVEN_HOLD)


def _begin_anew(pace: Pace, reach: float) -> None:
    pace.phase, pace.requests, pace.reach, pace.surprises, pace.hold = "burst", 0.0, reach, 0, _HOLD / 2


def _learn(pace: Pace, now: float) -> None:
    """What the last refusal tells; asked when the gate opens, since by then all that was under way has come back."""
    if not pace.requests and not pace.burst:
        pace.period = pace.asked
    period, at = pace.period, pace.refused_at
    told = _Lesson(pace.passed, at - pace.refused_began, _count(pace, at - period), _count(pace, at - period / 2))
    if pace.phase == "burst":
        _learn_burst(pace, told)
    elif pace.phase == "spread":
        _learn_spread(pace, now, told)
    elif pace.phase == "edge":
        more = told.this_round > pace.good * 1.1 + 1
        _settle(pace, now, min(told.this_round, pace.good * _STEP) if more else pace.good, tried=more, vain=not more)
    elif pace.proven_at >= 0:
        if pace.burst * _LEAP >= pace.good:
            pace.spread = _SPREAD  # as it was, but for a climb
        _settle(pace, now, pace.good, vain=True)
    else:
        _learn_surprise(pace, now, told)
    pace.refused_at, pace.passed, pace.next_at = -1.0, 0, now


class _Lesson(NamedTuple):
    passed: int
    """How many had passed since the gate opened, when a send was refused."""
    took: float
    """For how many seconds it had been open."""
    lately: int
    """How many had passed within a period."""
    this_round: int
    """How many had passed within half a period."""


def _learn_surprise(pace: Pace, now: float, told: _Lesson) -> None:
    """The limit is lower than it was, or somebody else has a share in it, or a bucket's rate was taken too high."""
    # So long a time tells a bucket's rate best: all that has passed, but for what was in it.
    rate = (told.passed - pace.burst) / told.took * pace.period if told.took > pace.period else 0.0
    if pace.spread == 1 and rate > 0.7 * pace.requests and pace.surprises < _SURPRISES:
        pace.surprises += 1
        _settle(pace, now, min(pace.requests * 0.97, rate * 0.98))
    elif pace.spread > 1 and pace.surprises < _SURPRISES:
        if not pace.surprises:
            pace.burst, pace.burst_took = pace.requests, pace.period / pace.spread
        pace.surprises += 1
        pace.hold = _HOLD / 4
        # At the beginning of a round it was rather a send that came a little too soon.
        lower = pace.requests * 0.95
        _settle(pace, now, min(told.this_round, lower) if told.this_round >= pace.requests / 2 else lower)
    elif pace.spread > 1:
        _measure_again(pace, 0.0, doubt=0.0)
    else:
        _begin_anew(pace, _FIRST_REACH)


def _measure_again(pace: Pace, passed: float, *, doubt: float) -> None:
    pace.burst = max(pace.burst, passed)
    pace.phase, pace.requests, pace.reach, pace.hold, pace.doubt = "spread", pace.burst, 1.0, _HOLD / 4, doubt


def _learn_burst(pace: Pace, told: _Lesson) -> None:
    passed = told.passed if told.took < pace.period else told.lately
    agreed = passed > 0 and passed == pace.burst
    pace.burst, pace.burst_took = float(passed), told.took
    if passed < _ENOUGH and not agreed:
        # Somebody else may have used it up before.
        _begin_anew(pace, 1.0)
        return
    pace.phase, pace.requests, pace.spread = "spread", float(passed), _SPREAD


def _learn_spread(pace: Pace, now: float, told: _Lesson) -> None:
    period, burst = pace.period, pace.burst
    few = told.passed < burst * _FEW
    if (few or pace.doubt) and not any(_alike(told.passed, before) for before in (burst, pace.doubt)):
        _measure_again(pace, told.passed, doubt=told.passed)
        return
    pace.doubt = 0.0
    rate = _refill(pace, told)
    at_once = max(burst - rate * pace.burst_took, 1.0)
    pace.surprises = 0
    if rate * period > _LEAP * at_once:
        # A small bucket, refilled many times in a period.
        pace.spread, pace.burst = 1.0, at_once
        _settle(pace, now, rate * period)
    elif told.took >= period * 0.9:
        pace.spread = 1.0
        _settle(pace, now, told.lately * 0.97)
    elif told.passed > burst * 1.03 + 1:
        # A bucket that holds what a period refills: each of the two lessons tells how much that is.
        # A part of a token does not pass, so half of one more was there on average.
        first, second = (burst + 0.5) / (1 + pace.burst_took / period), (told.passed + 0.5) / (1 + told.took / period)
        _settle(pace, now, max(first, second))
    else:
        _settle(pace, now, min(told.passed, burst))


def _alike(passed: float, before: float) -> bool:
    return before > 0 and abs(passed - before) <= max(before * _ALIKE, 1.0)


def _refill(pace: Pace, told: _Lesson) -> float:
    """How many a second have passed beyond what passed at once: the rate of a bucket, and 0 for a window.

    The most that any stretch up to the refusal tells, since a very small bucket overflows until the sends come as fast
    as it is refilled. Rather too much than too little: too much is refused once, and then known exactly.
    """
    rate, number = 0.0, 0.0
    longest = told.took - pace.burst_took
    # What is shorter, or fewer than 4, would be noise.
    shortest = max(pace.period / 10, min(pace.period / 4, longest * 0.8))
    for first, _, entry in reversed(pace.log):
        if first < pace.refused_began:
            break
        number += entry
        seconds = pace.refused_at - first - pace.burst_took
        if seconds >= shortest and number - pace.burst >= 4:
            rate = max(rate, (number - pace.burst - 1) / seconds)
    return rate
