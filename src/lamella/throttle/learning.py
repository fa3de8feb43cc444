"""Learn the rate limit of an account from its refusals, and test from time to time whether it has risen.

A window (fixed or sliding) counts the requests of a period. A token bucket admits a burst, and then requests at its
refill rate.
"""

from __future__ import annotations

from typing import Final

from lamella.throttle.estimate import LOOK_EVERY, SLOW_START, SPREAD, RateEstimate

BIG_STEP: Final = 1.5  # maximum growth of the number by one test at the edge of a window
_STEP: Final = 1.25  # growth of the rate in each step of a climb
_MORE: Final = 1.1  # a test at the edge of a window has found a higher number if more than this has passed
_TRIAL: Final = 3.0  # periods until a higher number is proven
_CLIMB: Final = 1.1  # the same for each step of a climb
_BUSY: Final = 0.5  # share of the number that must have passed for a test to show something
_LONGEST_LOOK_EVERY: Final = 128.0
_FIRST_LOOK: Final = 4 * LOOK_EVERY  # periods until the first test of a number below _ENOUGH. It costs a refusal
_EVEN: Final = 3.0  # a test with evenly spaced attempts costs a whole period, so it is this many times less frequent
_ENOUGH: Final = 5  # attempts that must have passed before a single refusal says something about the limit
_SURPRISES: Final = 2
_FEW: Final = 0.75  # a refusal after less than this share of the burst contradicts the burst
_PROVEN: Final = 2.0  # periods at the known rate that prove the period
_MANY: Final = 20  # attempts that must have passed to measure the size of a bucket
_FIRST: Final = 1.0  # round trips after the first refusal in which attempts still pass, so that it is probably a bucket
_SECOND: Final = 0.25  # the same, if two measurements agree on its size
_WIDE: Final = 1 / 8  # maximum attempts in flight beyond the size of a probable bucket, as a share of it
_ALIKE: Final = 0.05  # relative difference of numbers that count as equal; a difference of 1 always does
_SAME_SIZE: Final = 0.03  # the same for two measured sizes of a bucket: two for points of an unknown cost differ more


def learn(estimate: RateEstimate, now: float) -> None:
    """Update *estimate* by the last refusal. Called after its wait, when all attempts in flight have ended."""
    if not estimate.requests and not estimate.burst:
        estimate.period = estimate.asked
    is_proven = estimate.phase not in {"burst", "spread"} and estimate.passed > _PROVEN * estimate.requests
    before, estimate.size = estimate.size, _size(estimate)
    estimate.emptied_at = estimate.passed_end
    if estimate.phase == "burst":
        _end_burst(estimate)
    elif _is_bucket(estimate, before):
        _settle_bucket(estimate, now)
    elif estimate.phase == "spread":
        _end_spread(estimate, now)
    elif estimate.phase == "edge":
        passed = _passed_within(estimate, estimate.period / 2)
        if passed > estimate.good * _MORE + 1:
            settle(estimate, now, min(passed, estimate.good * _STEP), on_trial=True)
        else:
            settle(estimate, now, estimate.good, failed=True)
    elif estimate.proven_at >= 0:
        _back(estimate, now, failed=True)
    else:
        _lower(estimate, now)
    if is_proven:
        estimate.refused_began = -1.0
    estimate.refused_at, estimate.passed, estimate.next_at = -1.0, 0, now


def look_for_more(estimate: RateEstimate, now: float) -> None:
    """Accept a higher number that is now proven, and begin the next test when it is due.

    So few attempts that they never reach the number prove nothing.
    """
    if 0 <= estimate.proven_at <= now:
        if estimate.phase == "climb" and not _is_busy(estimate, estimate.proven_at - _CLIMB * estimate.period):
            _back(estimate, now)
            return
        since = estimate.proven_at - 2 * _CLIMB * estimate.period
        estimate.proven_at, estimate.look_every = -1.0, LOOK_EVERY
        if estimate.phase == "climb":
            # Accept the step before, if more has passed in both than a full bucket and the known rate allow.
            if estimate.count(since) > estimate.burst + estimate.good * 2 * _CLIMB:
                estimate.good = max(estimate.good, estimate.requests / _STEP)
            _climb(estimate, now)
        else:
            estimate.good, estimate.look_at = estimate.requests, now
            estimate.looks += 1  # the next test is then of the same kind
    is_due = estimate.phase == "steady" and estimate.proven_at < 0 and now >= estimate.look_at
    if is_due and _is_busy(estimate, now - estimate.period):
        estimate.looks += 1
        estimate.good = estimate.requests
        if estimate.spread > 1 and estimate.looks % 2:
            estimate.phase, estimate.max_in_flight = "edge", 1.0
        else:
            estimate.phase = "climb"
            _climb(estimate, now)


def is_wide(estimate: RateEstimate) -> bool:
    """Return whether enough attempts are in flight for the second measurement of a probable bucket."""
    return estimate.requests < estimate.burst and estimate.max_in_flight >= _WIDE * estimate.requests


def find_bucket(estimate: RateEstimate) -> bool:
    """Use the rate of a bucket if the last measurement and what has passed since show the same one. Return whether so.

    Called when some attempts were refused at the steady rate of a window, and others passed between them.
    """
    size = _size(estimate)
    if estimate.phase != "steady" or estimate.spread <= 1 or size > estimate.requests - 1:
        return False
    if not _alike(size, estimate.size, _SAME_SIZE):
        return False
    estimate.size, estimate.emptied_at, estimate.passed = size, estimate.passed_end, 0
    _settle_bucket(estimate, estimate.passed_end)
    return True


def settle(
    estimate: RateEstimate, now: float, requests: float, *, on_trial: bool = False, failed: bool = False
) -> None:
    """Send *requests* per period from now on. *failed*: a test found no higher limit, so the next one comes later."""
    estimate.phase, estimate.requests = "steady", max(requests, 1.0)
    estimate.proven_at = now + _TRIAL * estimate.period if on_trial else -1.0
    if failed:
        estimate.look_every = min(estimate.look_every * 2, _LONGEST_LOOK_EVERY)
    estimate.look_at = now + estimate.period * estimate.look_every * (1.0 if estimate.spread > 1 else _EVEN)


def _climb(estimate: RateEstimate, now: float) -> None:
    estimate.spread = 1.0
    estimate.requests = max(estimate.requests * _STEP, estimate.requests + 1)
    estimate.proven_at = now + _CLIMB * estimate.period


def _back(estimate: RateEstimate, now: float, *, failed: bool = False) -> None:
    """Return to the proven number."""
    if not estimate.is_bucket and estimate.burst * BIG_STEP >= estimate.good:
        estimate.spread = SPREAD  # the value before the climb
    settle(estimate, now, estimate.good, failed=failed)


def _is_busy(estimate: RateEstimate, since: float) -> bool:
    return estimate.count(since) >= _BUSY * estimate.requests


def _start_over(estimate: RateEstimate, max_in_flight: float) -> None:
    estimate.phase, estimate.requests, estimate.surprises, estimate.is_bucket = "burst", 0.0, 0, False
    estimate.max_in_flight, estimate.look_every = max_in_flight, LOOK_EVERY / 2


def _measure_again(estimate: RateEstimate, passed: float, *, doubt: float) -> None:
    estimate.burst = max(estimate.burst, passed)
    estimate.phase, estimate.requests, estimate.doubt = "spread", estimate.burst, doubt
    estimate.max_in_flight, estimate.look_every = 1.0, LOOK_EVERY / 4


def _end_burst(estimate: RateEstimate) -> None:
    took = _took(estimate)
    if took < estimate.period:
        # If the server did not count those without an answer, the next measurement shows it.
        passed = estimate.passed + min(_unanswered(estimate), estimate.passed * (1 / _FEW - 1))
    else:
        passed = _passed_within(estimate, estimate.period)
    confirmed = passed > 0 and (estimate.is_brief or passed == estimate.burst)
    estimate.burst, estimate.burst_took = float(passed), took
    if passed < _ENOUGH and not confirmed:
        _start_over(estimate, 1.0)  # other clients may have used up the limit
    else:
        estimate.phase, estimate.requests, estimate.spread = "spread", float(passed), SPREAD
        if estimate.size and _outlasts(estimate, _FIRST):
            estimate.requests = min(estimate.requests, estimate.size)  # probably a bucket
        if passed < _ENOUGH:
            estimate.look_every = LOOK_EVERY  # twice the same number: no other client explains it


def _end_spread(estimate: RateEstimate, now: float) -> None:
    period, burst, passed, took = estimate.period, estimate.burst, estimate.passed, _took(estimate)
    if passed < burst:
        passed = min(passed + _unanswered(estimate), burst)
    was_brief, estimate.is_brief = estimate.is_brief and burst < _ENOUGH, False
    if was_brief and passed != burst:
        # A bucket, or other clients have used some of the limit.
        estimate.burst = float(passed)
        if burst < passed < 2 * burst:
            estimate.requests, estimate.is_brief = estimate.burst, True
        else:
            _start_over(estimate, 1.0)
        return
    contradicts = passed < burst * _FEW or estimate.doubt > 0
    if contradicts and not _alike(passed, burst) and not _alike(passed, estimate.doubt):
        _measure_again(estimate, passed, doubt=passed)
        return
    estimate.doubt, estimate.surprises = 0.0, 0
    rate = _refill_rate(estimate, took)
    at_once = max(burst - rate * estimate.burst_took, 1.0)
    if rate * period > BIG_STEP * at_once:
        # A small bucket, refilled many times in a period.
        estimate.spread, estimate.burst = 1.0, at_once
        settle(estimate, now, rate * period)
    elif took >= period * 0.9:
        estimate.spread = 1.0
        settle(estimate, now, _passed_within(estimate, period) * 0.97)
    elif passed > burst * 1.03 + 1:
        # A bucket that is refilled completely in one period. Each of the two rounds measures its size. A fraction of a
        # token lets nothing pass: on average, another half token was in the bucket.
        first = (burst + 0.5) / (1 + estimate.burst_took / period)
        second = (passed + 0.5) / (1 + took / period)
        settle(estimate, now, max(first, second))
    else:
        settle(estimate, now, min(passed, burst))
        if was_brief:
            estimate.look_at = now + estimate.period * _FIRST_LOOK


def _lower(estimate: RateEstimate, now: float) -> None:
    """Lower a steady rate: the limit was lowered, other clients use it, or a bucket's rate was overestimated."""
    is_window, in_a_row, took = estimate.spread > 1, estimate.surprises, _took(estimate)
    # The rate of a bucket is best measured over a long time, without its initial burst.
    rate = (estimate.passed - estimate.burst) / took * estimate.period if took > estimate.period else 0.0
    if in_a_row >= _SURPRISES or not (is_window or rate > 0.7 * estimate.requests):
        if is_window:
            _measure_again(estimate, 0.0, doubt=0.0)
        else:
            _start_over(estimate, SLOW_START)
        return
    estimate.surprises += 1
    if not is_window:
        settle(estimate, now, min(estimate.requests * 0.97, rate * 0.98))
        return
    if not in_a_row:
        estimate.burst, estimate.burst_took = estimate.requests, estimate.period / estimate.spread
    estimate.look_every = LOOK_EVERY
    passed, lower = _passed_within(estimate, estimate.period / 2), estimate.requests * 0.95
    # A refusal at the beginning of a period probably means that an attempt was slightly too early.
    settle(estimate, now, min(passed, lower) if passed >= estimate.requests / 2 else lower)


def _is_bucket(estimate: RateEstimate, before: float) -> bool:
    """Return whether a bucket that is refilled once in a period explains this measurement and the one *before*.

    A bucket lets some attempts pass after the first refusal, and more of them if the measurement takes longer.
    """
    if estimate.spread <= 1 or not _outlasts(estimate, _SECOND) or not _alike(estimate.size, before, _SAME_SIZE):
        return False
    if estimate.phase == "spread":
        return estimate.requests < estimate.burst or abs(estimate.passed - estimate.burst) > 1
    return estimate.phase != "edge" or _passed_within(estimate, estimate.period / 2) > estimate.good * _MORE + 1


def _settle_bucket(estimate: RateEstimate, now: float) -> None:
    estimate.is_bucket, estimate.doubt, estimate.surprises = True, 0.0, 0
    estimate.spread, estimate.burst = 1.0, estimate.size
    settle(estimate, now, estimate.size)


def _size(estimate: RateEstimate) -> float:
    """Return the size of a bucket that is refilled once in a period, if one has refused. 0: too few attempts passed."""
    if estimate.passed < _MANY or estimate.passed_end <= estimate.emptied_at:
        return 0.0
    # After a wait one attempt is sent alone, and the bucket stays full until it is answered.
    idle = estimate.fastest * (1 if estimate.phase == "burst" else 2)
    lasted = max(estimate.passed_end - estimate.refused_began - idle, 0.0)
    filled = estimate.period + lasted
    if estimate.emptied_at >= 0:
        filled = min(filled, estimate.passed_end - estimate.emptied_at)
    # A fraction of a token lets nothing pass: on average, another half token was in the bucket.
    return (estimate.passed + 0.5) * estimate.period / filled


def _outlasts(estimate: RateEstimate, round_trips: float) -> bool:
    """Return whether attempts passed for that many round trips after the first refusal: a window lets none pass."""
    return estimate.passed_end - estimate.refused_end > round_trips * estimate.fastest


def _took(estimate: RateEstimate) -> float:
    """Return the seconds from the end of the previous wait to the refused attempt."""
    return estimate.refused_at - estimate.refused_began


def _passed_within(estimate: RateEstimate, seconds: float) -> float:
    """Return the number of attempts that passed in the *seconds* before the refused one."""
    return estimate.count(estimate.refused_at - seconds)


def _unanswered(estimate: RateEstimate) -> float:
    """Return the number of attempts without an answer since the last wait: the server may have counted them."""
    return max(estimate.count(estimate.refused_began) - estimate.passed, 0.0)


def _alike(passed: float, before: float, most: float = _ALIKE) -> bool:
    return before > 0 and abs(passed - before) <= max(before * most, 1.0)


def _refill_rate(estimate: RateEstimate, took: float) -> float:
    """Return the attempts per second that passed beyond the burst: the rate of a bucket, about 0 for a window.

    It is the highest rate of any interval that ends at the refusal: a tiny bucket overflows until attempts are sent as
    fast as it is refilled. The next refusal corrects a rate that is too high.
    """
    rate, number = 0.0, 0.0
    # Shorter intervals, or fewer than 4 attempts, would be noise.
    shortest = max(estimate.period / 10, min(estimate.period / 4, (took - estimate.burst_took) * 0.8))
    for first, _, entry in reversed(estimate.log):
        if first < estimate.refused_began:
            break
        number += entry
        seconds = estimate.refused_at - first - estimate.burst_took
        if seconds >= shortest and number - estimate.burst >= 4:
            rate = max(rate, (number - estimate.burst - 1) / seconds)
    return rate
