"""Decide when an attempt may be sent, and evaluate its result. Pure arithmetic on a state, no clock.

A 429 is expensive: it blocks the account for the wait that the rule or ``Retry-After`` asks for (Maesn: a minute). So
Throttle measures the limit with as few refusals as possible, in phases:

1. ``burst``: the limit is unknown. Slow start: some attempts at once, and one more in flight for every second answer.
   If answers are slow, the number grows with time instead. N attempts pass before the first refusal.
2. ``spread``: N attempts over a quarter of the period, then one at a time. A window refuses at N again. A token bucket
   was refilled in the meantime, and the attempts that pass beyond N measure its rate. It also lets some attempts pass
   after the first refusal, so that a slow burst is recognized as that of a bucket. If N is below five, it is confirmed
   before: by a second ``burst``, or because the server itself stated a short wait.
3. ``steady``: no more than the measured number per period: for a window within a quarter of it, for a bucket evenly.
4. ``edge``, ``climb``: a test for a higher limit. ``edge`` sends one attempt at a time after a full window. ``climb``
   uses a higher rate, which also finds a period that is shorter than assumed. Each failed test delays the next one.

The period is the wait that the server or the rule asked for. A refusal in the steady phase lowers the number to the
attempts that passed. The third consecutive refusal starts a new measurement. :mod:`lamella.throttle.evidence` decides
what a refusal shows: a random refusal, or one caused by too many attempts in flight, is not part of this measurement.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import inf, nextafter
from typing import Final

from lamella.rules.backoff import Backoff
from lamella.rules.retry_after import LONGEST
from lamella.throttle.estimate import ONE, SPREAD, Asked, Permit, RateEstimate, Wait
from lamella.throttle.evidence import by_chance, closes, has_passed
from lamella.throttle.learning import BIG_STEP, is_wide, learn, look_for_more, settle
from lamella.throttle.stated import StatedLimit, hear, wait_for_stated

# In slow start, before the first refusal:
_GROWTH: Final = 0.5  # more attempts in flight for each answer
_REGROWTH: Final = 1.0  # the same after a refusal because of too many attempts in flight
_SHARE: Final = 25  # one in this many queued calls may be sent at once
_SLOW: Final = (0.21, 0.3)  # bounds in seconds of twice the time of the fastest answer. Longer attempts are slow
_LONG_POLL: Final = 4.0  # after this many times as long it is a long poll and says nothing about other calls
_ROOM: Final = 24  # more attempts for each slow one
_MOST_ROOM: Final = 100.0  # maximum when the first attempt becomes slow. It grows by a factor of four each time
_PATIENCE: Final = 0.7  # maximum wait of a call in seconds

_SLOW_LATER: Final = (1.0, 300.0)  # the same after the first refusal, for four times the fastest answer
_LATE: Final = 4.0  # multiple of the fastest answer after which an attempt is late
_BUSY: Final = (0.1, 1.0)  # periods, and at most seconds, for which a busy process may delay an attempt
_FORGET: Final = 1.001  # factor by which each answer increases the time of the fastest one
_SAVED: Final = 0.5  # share of the measured size of a bucket that is used at once after a pause
_FULL: Final = 0.95  # share of the number that uses up a period
_SOON: Final = 1e-6  # the shortest wait, so that a rounding error cannot cause an endless loop
_SAME_MOMENT: Final = 1e-3  # seconds within which no two permits have the same time
_HARDLY: Final = 0.25  # of the period that the server suggests. A shorter wait of the rule is not a period
_BRIEF: Final = 5.0  # a server that asks for at most so many seconds is believed at once ...
_FEW: Final = (2, 9)  # ... if so many attempts passed before. Fewer may show a maximum in flight
_DISPROVED: Final = 3  # if this many times as many pass after that wait, the number was not a limit
_LONGEST_WAIT: Final = 3600.0  # seconds, if no rule has a maximum


def next_permit(
    estimate: RateEstimate,
    now: float,
    in_flight: Sequence[float],
    period: float,
    asked: Asked = ONE,
) -> Permit | Wait:
    """Return a permit if an attempt may be sent now, or else the wait. A permit counts as used.

    *in_flight* is when each attempt in flight was sent, the oldest first. *period* is assumed until the real one is
    known.
    """
    if estimate.untouched and asked.learns and len(in_flight) < estimate.max_in_flight:
        estimate.period = estimate.period or period
    else:
        gap = _gap(estimate, now, in_flight, period, asked)
        if isinstance(gap, Wait):
            return gap
        if gap is not None:
            # A late timer must not lower the rate.
            estimate.next_at = max(estimate.next_at, now - gap * _saved(estimate, asked)) + gap if gap else now
    if estimate.began < 0:
        estimate.began = now
    at = now if not now <= estimate.sent_at < now + _SAME_MOMENT else nextafter(estimate.sent_at, inf)
    estimate.sent_at = at
    return Permit(estimate.generation, at, len(in_flight) + 1, asked.cost)


def may_send(
    estimate: RateEstimate,
    now: float,
    in_flight: Sequence[float],
    period: float,
    asked: Asked = ONE,
) -> Wait | None:
    """Return the wait that :func:`next_permit` would return. None: it would return a permit."""
    gap = _gap(estimate, now, in_flight, period, asked)
    return gap if isinstance(gap, Wait) else None


def _gap(
    estimate: RateEstimate, now: float, in_flight: Sequence[float], period: float, asked: Asked
) -> Wait | float | None:
    """Return the wait, or the time between this attempt and the next one. None: any time, since nothing is learned."""
    if now < estimate.blocked_until:
        return Wait(estimate.blocked_until - now, blocked=True, too_long=estimate.too_long)
    estimate.period = estimate.period or period
    if asked.learns and estimate.refused_at >= 0:
        learn(estimate, now)
    if estimate.refusals and (wait := _alone(estimate, now, in_flight)):
        return wait
    goes_alone = False
    if estimate.trial_at >= 0:
        if wait := _until_answered(in_flight, now, 1.0, _slow_after(estimate), blocked=True):
            return wait
        goes_alone = not by_chance(estimate)
    if estimate.stated:
        fast = in_flight[bisect_right(in_flight, now - _slow_after(estimate)) :]
        if wait := wait_for_stated(estimate, now, fast, _LONGEST_WAIT):
            return wait
    return None if goes_alone or not asked.learns else _by_estimate(estimate, now, in_flight, asked)


def _by_estimate(estimate: RateEstimate, now: float, in_flight: Sequence[float], asked: Asked) -> Wait | float:
    """Return the wait by the learned limit, or the time between this attempt and the next one."""
    if estimate.phase == "steady" or estimate.proven_at >= 0:
        look_for_more(estimate, now)
    gap = 0.0
    if estimate.is_sure and (wait := _until_answered(in_flight, now, estimate.most_tried, _slow_after(estimate))):
        return wait
    if estimate.requests:
        gap = asked.cost * estimate.period / (estimate.spread * estimate.requests)
        lasts = estimate.period + min(_counted_after(estimate), estimate.period)
        counted = len(in_flight) - bisect_right(in_flight, now - lasts)
        used = counted + asked.extra + estimate.count(now - estimate.period)
        if used > 0 and used + asked.cost - 1.0 >= estimate.requests:
            oldest = estimate.oldest(now - estimate.period)
            # Test the edge only while all attempts of this period are young: later, a new window may have begun.
            young = oldest is None or now - oldest < estimate.period / 2
            if not (estimate.phase == "spread" or (estimate.phase == "edge" and young)):
                ends = max(in_flight[-counted] + lasts - now, _SOON) if counted else None
                return _until_free(oldest, estimate.period, now, ends)
            if wait := _until_answered(in_flight, now, estimate.max_in_flight, _slow_after(estimate)):
                return wait
            gap = asked.cost * estimate.period / (SPREAD * used)
        elif estimate.spread > 1 and estimate.phase != "spread" and _is_idle(estimate, now, used, asked):
            return 0.0
    elif len(in_flight) >= estimate.max_in_flight and (wait := _slow_start(estimate, now, in_flight, asked)):
        return wait
    if now < estimate.next_at:
        return Wait(max(estimate.next_at - now, _SOON), blocked=False)
    return gap


def _is_idle(estimate: RateEstimate, now: float, used: float, asked: Asked) -> bool:
    """Return whether the calls have not used up the limit lately, and will not now, so they need not be spread."""
    if used + max(asked.waiting, 1) * asked.cost > min(estimate.burst, estimate.requests):
        return False
    lately = estimate.count(now - 2 * estimate.period) - estimate.count(now - estimate.period)
    return lately < _FULL * estimate.requests


def _saved(estimate: RateEstimate, asked: Asked) -> float:
    """Return how many attempts may be sent at once after a pause: a bucket that was not used has filled."""
    is_idle_bucket = estimate.spread <= 1 and estimate.phase == "steady" and asked.waiting <= 1
    return max(_SAVED * estimate.burst, 1.0) if is_idle_bucket else 1.0


def _until_free(oldest: float | None, period: float, now: float, ends: float | None) -> Wait:
    """Return the wait until an attempt of the period no longer counts. *ends*: the same for attempts in flight."""
    if oldest is None:
        return Wait(None, blocked=False, again=ends)
    free = max(oldest + period - now, _SOON)
    return Wait(free if ends is None else min(free, ends), blocked=False)


def _alone(estimate: RateEstimate, now: float, in_flight: Sequence[float]) -> Wait | None:
    """Return the wait while the first attempt after a refusal is in flight. None: an attempt may be sent."""
    if estimate.began < 0:
        return None
    # Attempts from before the wait do not show whether requests pass now.
    since = in_flight[bisect_left(in_flight, estimate.began) :]
    return _until_answered(since, now, 1.0, _slow_after(estimate), blocked=True)


def _slow_start(estimate: RateEstimate, now: float, in_flight: Sequence[float], asked: Asked) -> Wait | None:
    """Return the wait while too many attempts are in flight for an unknown limit. None: an attempt may be sent."""
    if estimate.generation or estimate.most:
        return _until_answered(in_flight, now, estimate.max_in_flight, _slow_after(estimate))
    patience = _PATIENCE - asked.waited
    if patience <= 0:
        return None
    room = max(estimate.max_in_flight, asked.waiting / _SHARE)
    shortest, longest = _SLOW
    slow_after = again = min(max(2 * estimate.fastest, shortest), longest)
    polls = bisect_right(in_flight, now - slow_after * _LONG_POLL)
    slow = bisect_right(in_flight, now - slow_after)
    if slow > polls:
        since = (now - in_flight[polls]) / slow_after - 1.0
        room += min(_ROOM * (slow - polls), _MOST_ROOM * 4.0**since)
        again = slow_after / 8  # the room grows with time
    return _until_answered(in_flight, now, room, slow_after, again=min(again, max(patience, _SOON)))


def _slow_after(estimate: RateEstimate) -> float:
    """Return after how many seconds an attempt is slow, once an attempt was refused."""
    shortest, longest = _SLOW_LATER
    return min(max(_LATE * estimate.fastest, shortest), longest)


def _until_answered(
    in_flight: Sequence[float], now: float, most: float, slow_after: float, *, blocked: bool = False, again: float = inf
) -> Wait | None:
    """Return a wait of at most *again* seconds while *most* attempts that are not slow are in flight, or None."""
    slow = bisect_right(in_flight, now - slow_after)
    if len(in_flight) - slow < most:
        return None
    # If a store has failed, these times may be of another clock than *now*.
    until_slow = min(max(in_flight[slow] + slow_after - now, _SOON), slow_after)
    return Wait(None, blocked, again=min(again, until_slow))


def _counted_after(estimate: RateEstimate) -> float:
    """Return how many seconds after its permit the server has surely counted an attempt.

    If it takes longer, it waits for something behind the limit.
    """
    share, most = _BUSY
    return max(_LATE * estimate.fastest, min(share * estimate.period, most))


def answered(  # noqa: PLR0917 - by a keyword it would take a third longer, once per good call
    estimate: RateEstimate,
    now: float,
    permit: Permit,
    in_flight: int,
    learns: bool = True,
    says: Sequence[StatedLimit] = (),
) -> bool:
    """Record an attempt that the limit let pass, whatever its status. Return whether it ends an episode.

    *in_flight* is the number of other attempts in flight. *learns* is whether the limit is learned. *says* are the
    limits that the answer states.
    """
    if says or estimate.stated:
        estimate.untouched = False
        hear(estimate, now, permit, says, passed=True)
    # The server counted the attempt between its start and its answer. Only the end is safe: with an earlier time, an
    # attempt that was slow to reach the server would make room too soon.
    took = now - permit.at
    fastest = estimate.fastest * _FORGET
    if took < fastest or not fastest:
        fastest = took
    estimate.fastest = fastest
    late = took > _LATE * fastest
    estimate.record(min(permit.at + _counted_after(estimate), now) if late else now, permit.cost)
    estimate.passed += permit.cost
    estimate.passed_end = max(estimate.passed_end, now)
    if estimate.untouched:
        estimate.since_trial += 1
        if learns:
            most = estimate.max_in_flight
            estimate.max_in_flight = (most if most > in_flight else in_flight) + _GROWTH
        return False
    has_passed(estimate, permit)
    if permit.generation != estimate.generation:
        return False
    refusals, estimate.refusals = estimate.refusals, 0
    too_long, estimate.too_long = estimate.too_long, False
    if not learns:
        return refusals > 0
    # The length of a quota does not show the period of the other limit.
    if not too_long and estimate.refused_began >= 0:
        since_began = now - estimate.refused_began
        if refusals > 1 and estimate.phase in {"burst", "spread"} and not estimate.chance:
            # Refused again after the wait: the period is longer than that wait. A known period has been proven by the
            # measurement, so the server refuses everything for a while.
            estimate.period = max(estimate.period, since_began)
        elif refusals and estimate.spread > 1 and estimate.asked <= since_began < estimate.period:
            # A used-up window lets nothing pass before its end, so it has ended by now.
            estimate.period, estimate.next_at = since_began, now  # the gap was one of the longer period
    if in_flight > estimate.max_in_flight and not (estimate.generation or estimate.most):
        estimate.max_in_flight = float(in_flight)  # this many attempts in flight were not too many
    # While a small number is measured again, one attempt at a time costs one refusal.
    is_again = estimate.phase == "burst" and estimate.passed <= estimate.burst
    may_grow = not (is_again or (estimate.phase == "spread" and is_wide(estimate)))
    if may_grow and (not estimate.requests or in_flight + estimate.count(now - estimate.period) >= estimate.requests):
        estimate.max_in_flight += _REGROWTH if estimate.max_in_flight < estimate.most else _GROWTH
        if estimate.is_sure:
            estimate.max_in_flight = min(estimate.max_in_flight, estimate.most_tried)
    if estimate.is_brief and estimate.passed > _DISPROVED * (estimate.burst + 1):
        estimate.phase, estimate.requests = "burst", 0.0
        estimate.is_brief = estimate.was_used_up = False
    if estimate.phase == "edge" and estimate.count(now - estimate.period / 2) > estimate.good * BIG_STEP:
        settle(estimate, now, estimate.good * BIG_STEP, on_trial=True)
    return refusals > 0


def refused(
    estimate: RateEstimate,
    now: float,
    permit: Permit,
    backoff: Backoff | None,
    retry_after: float | None,
    *,
    others: int = 0,
    says: Sequence[StatedLimit] = (),
) -> Wait | None:
    """Block the account after a refused attempt. Return the wait that begins. None: the refusal changes nothing.

    *backoff* is that of the rule, *retry_after* the seconds that the server asks for. If *retry_after* is longer than
    the rule allows, it belongs to another limit, such as a daily quota: no call waits for it, and nothing is learned
    from it. *others* is the number of attempts still in flight. *says* are the limits that the answer states. A refusal
    also changes nothing while it may be random.
    """
    if says or estimate.stated:
        hear(estimate, now, permit, says, passed=False)
    estimate.untouched = False
    longest = backoff.maximum if backoff else _LONGEST_WAIT
    if retry_after is not None and retry_after > longest:
        # A wait of more than a year is ignored: the next call after the rule's maximum tests the limit.
        return _block_for_quota(estimate, now, retry_after if retry_after < LONGEST else longest)
    if permit.generation != estimate.generation:
        return None
    if estimate.too_long:
        estimate.too_long, estimate.refusals = False, 0
    least = backoff.floor(estimate.refusals + 1) if backoff else 0.0
    wait = max(least, retry_after or 0.0)
    if wait <= 0:
        return None
    first = estimate.trial_at if estimate.trial_at >= 0 else permit.at
    until = max(estimate.trial_until, now + (retry_after or 0.0)) if estimate.trial_at >= 0 else now + wait
    if not estimate.generation and retry_after is not None:
        fewest, most = _FEW
        is_at_once = wait <= _BRIEF and now - estimate.began <= wait
        estimate.is_brief = is_at_once and fewest <= estimate.passed <= most - others
    if not estimate.refusals:  # processes do not report their refusals in order
        estimate.refused_end = min(estimate.refused_end, now) if estimate.trial_at >= 0 else now
    if not closes(estimate, permit, others):
        estimate.trial_until = until
        return None
    estimate.generation += 1
    estimate.blocked_until = until
    estimate.refusals += 1
    estimate.max_in_flight = 1.0
    if estimate.refusals == 1:
        estimate.refused_at = first
        estimate.refused_began = estimate.began if estimate.began >= 0 else first
        estimate.asked = _suggested_period(least, retry_after, first - estimate.refused_began)
    estimate.began = -1.0
    return Wait(max(until - now, 0.0), blocked=True)


def learned(estimate: RateEstimate, _now: float) -> tuple[float, float]:
    """Return the learned limit: the number of requests (0 if unknown) and the period in seconds."""
    return estimate.requests, estimate.period


def _block_for_quota(estimate: RateEstimate, now: float, seconds: float) -> Wait | None:
    if now + seconds <= estimate.blocked_until:
        return None
    estimate.generation += 1
    estimate.trial_at = -1.0
    estimate.blocked_until, estimate.too_long = now + seconds, True
    estimate.refusals = max(estimate.refusals, 1)  # so that one attempt is sent alone afterwards
    estimate.began = -1.0
    if estimate.refused_at < 0:
        estimate.passed = 0
    return Wait(seconds, blocked=True, too_long=True)


def _suggested_period(least: float, retry_after: float | None, elapsed: float) -> float:
    """Return the period of a window that was used up in *elapsed* seconds. *least* is the wait of the rule."""
    if retry_after is None:
        return least
    # Whole seconds are rounded up by at most one.
    slack = 1.0 if retry_after == int(retry_after) else 0.0
    whole = retry_after + (elapsed if elapsed <= retry_after else 0.0)
    return whole if least < max(whole - slack, whole * _HARDLY) else least
