"""When to send under a rate limit: stated, or learned from what comes back. Pure arithmetic on a state, no clock.

A refusal is dear. It closes the queue for the wait that the rule or ``Retry-After`` asks for, a minute at Maesn, while
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
from typing import Final, NamedTuple

from lamella.checks import check_seconds, check_whole
from lamella.rules.backoff import Backoff
from lamella.rules.retry_after import LONGEST

__all__ = [
    "Hold",
    "Limit",
    "Permit",
    "RateEstimate",
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
        check_whole("requests", self.requests)
        check_seconds("per", self.per)


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


class Permit(NamedTuple):
    """A send that may go now. Its result is reported with this."""

    generation: int
    """How many episodes there had been: a refusal of an earlier generation is no news."""
    at: float


class Hold(NamedTuple):
    """No send may go now."""

    seconds: float | None
    """In how many seconds a send may go at the earliest. None: unknown, an answer to another send may let it go."""
    closed: bool
    """Whether it is for a refusal, and not for the rate."""
    again: float | None = None
    """In how many seconds to ask again, answer or not. None: after *seconds*."""
    too_long: bool = False
    """Whether the server asks for a longer wait than the rule allows, so that the call is not to wait for it."""


@dataclass(slots=True)
class RateEstimate:
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
    """How many times the queue was closed since something last passed."""
    began: float = -1.0
    """The first send since the queue opened. Below 0: there was none."""
    passed: int = 0
    """How many have passed since."""
    next_at: float = -1.0
    fastest: float = 0.0
    """How long the fastest answer took. It is forgotten slowly: it may have become impossible."""
    log: list[list[float]] = field(default_factory=list)
    """What has passed lately: first moment, last moment, number; the oldest first."""
    refused_at: float = -1.0
    """When the send was made whose refusal closed the queue. Below 0: what it tells is learned already."""
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
    estimate: RateEstimate,
    now: float,
    in_flight: Sequence[float],
    period: float,
    limit: Limit | None,
    *,
    waiting: int = 0,
    waited: float = 0.0,
) -> Permit | Hold:
    """Return whether a send may go now; if so, it is recorded as gone.

    Args:
        estimate: What is known of the limit.
        now: The time in seconds.
        in_flight: When each of the other sends under way was made, the oldest first.
        period: The period in seconds that is assumed as long as nothing is known.
        limit: The limit, if it is stated. None means that it is learned.
        waiting: How many calls wait for their turn.
        waited: For how many seconds the first of them has.
    """
    if now < estimate.closed_until:
        return Hold(estimate.closed_until - now, closed=True, too_long=estimate.too_long)
    if not estimate.period:
        estimate.period = period
    if limit is not None:
        return _within(limit, estimate, now, in_flight)
    if estimate.refused_at >= 0:
        _learn(estimate, now)
    if estimate.refusals and (hold := _alone(estimate, now, in_flight)):
        return hold
    if estimate.phase == "steady" or estimate.proven_at >= 0:
        _look_around(estimate, now)
    gap = 0.0
    if estimate.requests:
        gap = estimate.period / (estimate.spread * estimate.requests)
        # The server counted a send when it was made, or a little later, as `answered` has it.
        lasts = estimate.period + min(_LATE * estimate.fastest, estimate.period)
        counted = len(in_flight) - bisect_right(in_flight, now - lasts)
        used = counted + _count(estimate, now - estimate.period)
        if used >= estimate.requests:
            oldest = _oldest(estimate, now - estimate.period)
            # At an edge only while none of this period's sends is old: a window may have begun anew since.
            young = oldest is None or now - oldest < estimate.period / 2
            if estimate.phase == "spread" or (estimate.phase == "edge" and young):
                if hold := _while_in_flight(estimate, now, in_flight, estimate.reach):
                    return hold
                gap = estimate.period / (_SPREAD * used)
            else:
                ends = max(in_flight[-counted] + lasts - now, _SOON) if counted else None
                return _until_free(oldest, estimate.period, now, ends)
    elif len(in_flight) >= estimate.reach and (hold := _slow_start(estimate, now, in_flight, waiting, waited)):
        return hold
    if now < estimate.next_at:
        return Hold(max(estimate.next_at - now, _SOON), closed=False)
    # A timer that is late must not slow the rate down.
    estimate.next_at = max(estimate.next_at, now - gap) + gap if gap else now
    return _go(estimate, now)


def answered(estimate: RateEstimate, now: float, sent: Permit, in_flight: int, limit: Limit | None) -> bool:
    """Record that a send has passed the limit, whatever its status. Returns whether that ends an episode.

    *in_flight* is how many others are under way.
    """
    # The server counted it at some moment between its sending and its answer. Only the end is safe: by a guess in the
    # middle, one that was slow on its way there makes room for the next period's first too soon. But what took more
    # than four times as long as the fastest has waited for us, who are busy, or for what is behind the limit.
    took = now - sent.at
    fastest = estimate.fastest * _FORGET
    if took < fastest or not fastest:
        fastest = took
    estimate.fastest = fastest
    late = took > _LATE * fastest and limit is None
    _note(estimate, sent.at + _LATE * fastest if late else now)
    estimate.passed += 1
    if sent.generation != estimate.generation:
        return False
    ends, estimate.refusals = estimate.refusals, 0
    quota, estimate.too_long = estimate.too_long, False
    if limit is not None:
        return ends > 0
    if quota:
        pass  # how long a limit of hours lasted tells nothing of the period of the other one
    elif ends > 1:
        # Refused again when it opened: the period is longer than was asked for.
        estimate.period = max(estimate.period, now - estimate.refused_began)
    elif ends and estimate.spread > 1 and estimate.asked <= now - estimate.refused_began < estimate.period:
        # A window that is used up lets nothing pass before its end: it had not been refused again for that.
        estimate.period = now - estimate.refused_began
    if in_flight > estimate.reach and not estimate.generation:
        estimate.reach = float(in_flight)  # so many at a time were not too many
    if not estimate.requests or in_flight + _count(estimate, now - estimate.period) >= estimate.requests:
        estimate.reach += _GROWTH
    if estimate.phase == "edge" and _count(estimate, now - estimate.period / 2) > estimate.good * _LEAP:
        _settle(estimate, now, estimate.good * _LEAP, tried=True)
    return ends > 0


def lost(estimate: RateEstimate, now: float) -> None:
    """Record a send whose end is unknown: the server may have counted it."""
    _note(estimate, now)


def refused(
    estimate: RateEstimate, now: float, sent: Permit, backoff: Backoff | None, retry_after: float | None
) -> float | None:
    """Close the queue, since a send was refused. Returns for how many seconds; None: it adds nothing to what was known.

    Where the server asks for longer than the rule allows, no call waits for that: it is another limit, of hours
    perhaps, and nothing is learned from it.

    Args:
        estimate: What is known of the limit.
        now: The time in seconds.
        sent: The send that was refused.
        backoff: The rule's. None means that it has none.
        retry_after: For how many seconds the server asks. None means that it does not.
    """
    if retry_after is not None and is_too_long(backoff, retry_after):
        # A year and more is no statement: then the next call after the rule's maximum finds out.
        return _shut(estimate, now, retry_after if retry_after < LONGEST else _longest(backoff))
    if sent.generation != estimate.generation:
        return None
    if estimate.too_long:
        estimate.too_long, estimate.refusals = False, 0
    least = backoff.floor(estimate.refusals + 1) if backoff else 0.0
    wait = max(least, retry_after or 0.0)
    if wait <= 0:
        return None
    estimate.generation += 1
    estimate.closed_until = now + wait
    estimate.refusals += 1
    estimate.reach = 1.0
    if estimate.refusals == 1:
        estimate.refused_at, estimate.refused_began = sent.at, estimate.began if estimate.began >= 0 else sent.at
        estimate.asked = _suggested(least, retry_after, sent.at - estimate.refused_began)
    estimate.began = -1.0
    return wait


def is_too_long(backoff: Backoff | None, retry_after: float | None) -> bool:
    """Return whether the server asks for a longer wait than the rule allows. None for *backoff*: the rule has none."""
    return retry_after is not None and retry_after > _longest(backoff)


def _longest(backoff: Backoff | None) -> float:
    return backoff.maximum if backoff else _LONGEST_WAIT


def earliest(estimate: RateEstimate, now: float, in_flight: int, ahead: int, limit: Limit) -> float:
    """In how many seconds at the soonest a send may go that has *ahead* others before it in the queue."""
    opens = max(estimate.closed_until - now, 0.0)
    rounds, place = divmod(ahead, limit.requests)
    free = limit.requests - in_flight - _count(estimate, now - limit.per)
    if place < free:
        return opens + rounds * limit.per
    short = place - free + 1
    for _, last, number in estimate.log:
        if last > now - limit.per:
            short -= int(number)
            if short <= 0:
                return max(opens, last + limit.per - now) + rounds * limit.per
    return max(opens, limit.per) + rounds * limit.per


def learned(estimate: RateEstimate, _now: float) -> tuple[float, float]:
    """How many pass in how many seconds, as far as is known. 0 for how many: nobody knows."""
    return estimate.requests, estimate.period


def _shut(estimate: RateEstimate, now: float, seconds: float) -> float | None:
    """Close the queue for longer than a call may wait."""
    if now + seconds <= estimate.closed_until:
        return None
    estimate.generation += 1
    estimate.closed_until, estimate.too_long = now + seconds, True
    estimate.refusals = max(estimate.refusals, 1)  # when it opens, one goes alone
    estimate.began = -1.0
    if estimate.refused_at < 0:
        estimate.passed = 0
    return seconds


def _alone(estimate: RateEstimate, now: float, in_flight: Sequence[float]) -> Hold | None:
    """Hold all but one back after a refusal, until something passes. None: a send may go."""
    if estimate.began < 0:
        return None
    # What was sent before the queue opened tells nothing of whether it is open now.
    since = in_flight[bisect_left(in_flight, estimate.began) :]
    hold = _while_in_flight(estimate, now, since, 1.0)
    return None if hold is None else hold._replace(closed=True)


def _while_in_flight(estimate: RateEstimate, now: float, in_flight: Sequence[float], most: float) -> Hold | None:
    """Hold a send back while *most* are in flight that may be answered any moment. None: it may go."""
    least, longest = _SLOW_KNOWN
    slow_after = min(max(_LATE * estimate.fastest, least), longest)
    slow = bisect_right(in_flight, now - slow_after)
    if len(in_flight) - slow < most:
        return None
    return Hold(None, closed=False, again=_until(in_flight[slow], slow_after, now))


def _slow_start(
    estimate: RateEstimate, now: float, in_flight: Sequence[float], waiting: int, waited: float
) -> Hold | None:
    """Hold a send back while too many are in flight for what little is known. None: it may go."""
    if estimate.generation:
        return _while_in_flight(estimate, now, in_flight, estimate.reach)
    patience = _PATIENCE - waited
    if patience <= 0:
        return None
    room = max(estimate.reach, waiting / _SHARE)
    least, most = _SLOW
    slow_after = min(max(2 * estimate.fastest, least), most)
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


def _within(limit: Limit, estimate: RateEstimate, now: float, in_flight: Sequence[float]) -> Permit | Hold:
    estimate.period = limit.per
    if estimate.refusals and (hold := _alone(estimate, now, in_flight)):
        return hold
    # Here a send counts until it is answered, however long that takes: a stated limit is never exceeded.
    if len(in_flight) + _count(estimate, now - limit.per) >= limit.requests:
        return _until_free(_oldest(estimate, now - limit.per), limit.per, now, None)
    return _go(estimate, now)


def _go(estimate: RateEstimate, now: float) -> Permit:
    if estimate.began < 0:
        estimate.began = now
    return Permit(estimate.generation, now)


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


def _note(estimate: RateEstimate, moment: float) -> None:
    log = estimate.log
    if log and moment - (last := log[-1])[0] < estimate.period / _GRAIN:
        last[1] = max(last[1], moment)
        last[2] += 1
        return
    log.append([moment, moment, 1])
    while log[0][1] < moment - _MEMORY * estimate.period:
        del log[0]
    if len(log) > 2 * _GRAIN:
        del log[: _GRAIN // 2]


def _count(estimate: RateEstimate, since: float) -> int:
    """How many have passed after *since*."""
    total = 0.0
    for _, last, number in reversed(estimate.log):
        if last <= since:
            break
        total += number
    return int(total)


def _oldest(estimate: RateEstimate, since: float) -> float | None:
    return next((last for _, last, _ in estimate.log if last > since), None)


def _look_around(estimate: RateEstimate, now: float) -> None:
    """Take what has proved right for good, and begin to look for more when it is time."""
    if 0 <= estimate.proven_at <= now:
        estimate.proven_at = -1.0
        estimate.hold = _HOLD
        if estimate.phase == "climb":
            estimate.good = max(
                estimate.good, estimate.requests / _STEP
            )  # a step behind: a bucket's reserve may have helped
            _climb(estimate, now)
        else:
            estimate.good = estimate.requests
            estimate.look_at = now
            estimate.looks += 1  # the same kind of look again: it was not in vain
    if estimate.phase == "steady" and estimate.proven_at < 0 and now >= estimate.look_at:
        estimate.looks += 1
        estimate.good = estimate.requests
        if estimate.spread > 1 and estimate.looks % 2:
            estimate.phase, estimate.reach = "edge", 1.0
        else:
            estimate.phase = "climb"
            _climb(estimate, now)


def _climb(estimate: RateEstimate, now: float) -> None:
    estimate.spread = 1.0
    estimate.requests = max(estimate.requests * _STEP, estimate.requests + 1)
    estimate.proven_at = now + estimate.period * 1.1


def _settle(estimate: RateEstimate, now: float, requests: float, *, tried: bool = False, vain: bool = False) -> None:
    estimate.phase = "steady"
    estimate.requests = max(requests, 1.0)
    estimate.proven_at = now + _TRIAL * estimate.period if tried else -1.0
    if vain:
        estimate.hold = min(estimate.hold * 2, _LONGEST_HOLD)
    estimate.look_at = now + estimate.period * estimate.hold * (1.0 if estimate.spread > 1 else _EVEN_HOLD)


def _begin_anew(estimate: RateEstimate, reach: float) -> None:
    estimate.phase, estimate.requests, estimate.reach, estimate.surprises, estimate.hold = (
        "burst",
        0.0,
        reach,
        0,
        _HOLD / 2,
    )


def _learn(estimate: RateEstimate, now: float) -> None:
    """What the last refusal tells; asked when the queue opens, since by then all that was under way has come back."""
    if not estimate.requests and not estimate.burst:
        estimate.period = estimate.asked
    period, at = estimate.period, estimate.refused_at
    told = _Lesson(
        estimate.passed, at - estimate.refused_began, _count(estimate, at - period), _count(estimate, at - period / 2)
    )
    if estimate.phase == "burst":
        _learn_burst(estimate, told)
    elif estimate.phase == "spread":
        _learn_spread(estimate, now, told)
    elif estimate.phase == "edge":
        more = told.this_round > estimate.good * 1.1 + 1
        _settle(
            estimate,
            now,
            min(told.this_round, estimate.good * _STEP) if more else estimate.good,
            tried=more,
            vain=not more,
        )
    elif estimate.proven_at >= 0:
        if estimate.burst * _LEAP >= estimate.good:
            estimate.spread = _SPREAD  # as it was, but for a climb
        _settle(estimate, now, estimate.good, vain=True)
    else:
        _learn_surprise(estimate, now, told)
    estimate.refused_at, estimate.passed, estimate.next_at = -1.0, 0, now


class _Lesson(NamedTuple):
    passed: int
    """How many had passed since the queue opened, when a send was refused."""
    took: float
    """For how many seconds it had been open."""
    lately: int
    """How many had passed within a period."""
    this_round: int
    """How many had passed within half a period."""


def _learn_surprise(estimate: RateEstimate, now: float, told: _Lesson) -> None:
    """The limit is lower than it was, or somebody else has a share in it, or a bucket's rate was taken too high."""
    # So long a time tells a bucket's rate best: all that has passed, but for what was in it.
    rate = (told.passed - estimate.burst) / told.took * estimate.period if told.took > estimate.period else 0.0
    if estimate.spread == 1 and rate > 0.7 * estimate.requests and estimate.surprises < _SURPRISES:
        estimate.surprises += 1
        _settle(estimate, now, min(estimate.requests * 0.97, rate * 0.98))
    elif estimate.spread > 1 and estimate.surprises < _SURPRISES:
        if not estimate.surprises:
            estimate.burst, estimate.burst_took = estimate.requests, estimate.period / estimate.spread
        estimate.surprises += 1
        estimate.hold = _HOLD / 4
        # At the beginning of a round it was rather a send that came a little too soon.
        lower = estimate.requests * 0.95
        _settle(estimate, now, min(told.this_round, lower) if told.this_round >= estimate.requests / 2 else lower)
    elif estimate.spread > 1:
        _measure_again(estimate, 0.0, doubt=0.0)
    else:
        _begin_anew(estimate, _FIRST_REACH)


def _measure_again(estimate: RateEstimate, passed: float, *, doubt: float) -> None:
    estimate.burst = max(estimate.burst, passed)
    estimate.phase, estimate.requests, estimate.reach, estimate.hold, estimate.doubt = (
        "spread",
        estimate.burst,
        1.0,
        _HOLD / 4,
        doubt,
    )


def _learn_burst(estimate: RateEstimate, told: _Lesson) -> None:
    passed = told.passed if told.took < estimate.period else told.lately
    agreed = passed > 0 and passed == estimate.burst
    estimate.burst, estimate.burst_took = float(passed), told.took
    if passed < _ENOUGH and not agreed:
        # Somebody else may have used it up before.
        _begin_anew(estimate, 1.0)
        return
    estimate.phase, estimate.requests, estimate.spread = "spread", float(passed), _SPREAD


def _learn_spread(estimate: RateEstimate, now: float, told: _Lesson) -> None:
    period, burst = estimate.period, estimate.burst
    few = told.passed < burst * _FEW
    if (few or estimate.doubt) and not any(_alike(told.passed, before) for before in (burst, estimate.doubt)):
        _measure_again(estimate, told.passed, doubt=told.passed)
        return
    estimate.doubt = 0.0
    rate = _refill(estimate, told)
    at_once = max(burst - rate * estimate.burst_took, 1.0)
    estimate.surprises = 0
    if rate * period > _LEAP * at_once:
        # A small bucket, refilled many times in a period.
        estimate.spread, estimate.burst = 1.0, at_once
        _settle(estimate, now, rate * period)
    elif told.took >= period * 0.9:
        estimate.spread = 1.0
        _settle(estimate, now, told.lately * 0.97)
    elif told.passed > burst * 1.03 + 1:
        # A bucket that holds what a period refills: each of the two lessons tells how much that is.
        # A part of a token does not pass, so half of one more was there on average.
        first, second = (
            (burst + 0.5) / (1 + estimate.burst_took / period),
            (told.passed + 0.5) / (1 + told.took / period),
        )
        _settle(estimate, now, max(first, second))
    else:
        _settle(estimate, now, min(told.passed, burst))


def _alike(passed: float, before: float) -> bool:
    return before > 0 and abs(passed - before) <= max(before * _ALIKE, 1.0)


def _refill(estimate: RateEstimate, told: _Lesson) -> float:
    """How many a second have passed beyond what passed at once: the rate of a bucket, and 0 for a window.

    The most that any stretch up to the refusal tells, since a very small bucket overflows until the sends come as fast
    as it is refilled. Rather too much than too little: too much is refused once, and then known exactly.
    """
    rate, number = 0.0, 0.0
    longest = told.took - estimate.burst_took
    # What is shorter, or fewer than 4, would be noise.
    shortest = max(estimate.period / 10, min(estimate.period / 4, longest * 0.8))
    for first, _, entry in reversed(estimate.log):
        if first < estimate.refused_began:
            break
        number += entry
        seconds = estimate.refused_at - first - estimate.burst_took
        if seconds >= shortest and number - estimate.burst >= 4:
            rate = max(rate, (number - estimate.burst - 1) / seconds)
    return rate
