"""Decide what a refusal shows: a used-up limit, too many attempts in flight, or a random refusal.

An expected refusal blocks the account at once. A refusal is expected if as many attempts have passed as the learned
limit allows, if none has passed, or if the server states a short wait after the first few attempts. Any other refusal
begins a trial: Throttle sends nothing until the attempts in flight are answered. If most attempts sent after the
refused one pass, the refusal was random. Otherwise Throttle sends one attempt alone. If it is refused, the limit is
used up. If it passes, no window is used up: either too many attempts were in flight, or the account has a bucket, which
refuses again a few attempts later. A bucket also refuses an attempt that is alone in flight.

The maximum in flight is the number that passed at once in the trial. From then on the share of refused attempts
decides: if it is above one in 20, the maximum is lowered by one. After some rounds a higher one is tested.
"""

from __future__ import annotations

from typing import Final

from lamella.throttle.estimate import Permit, RateEstimate
from lamella.throttle.learning import find_bucket

_OPEN: Final = 3  # if this many attempts pass per refused one, the limit is not used up
_TOLERATED: Final = 2.0  # refusals in quick succession that begin a trial where single refusals are tolerated
_FADES: Final = 0.25  # each success reduces the count of recent refusals by this much
_LIKELY: Final = 0.75  # share of the learned number from which on a refusal is expected
_MEMORY: Final = 1 / 100  # weight of an attempt in the share of random refusals
_CHANCE: Final = 0.1  # that share after one random refusal
_NO_CHANCE: Final = 0.002  # a smaller share counts as zero
_TRIALS: Final = 3  # this many consecutive undecided trials ...
_APART: Final = 16  # ... with fewer successes than this between them mean that the rate was exceeded
_SAME: Final = 0.7  # a refusal at more than this share of the known maximum in flight is by the same limit
_OFTEN: Final = 0.05  # share of refused attempts above which the maximum in flight is lowered
_FIRST_ROUNDS: Final = 4.0  # rounds of *most* attempts before a higher maximum is tested. Doubled ...
_FEW: Final = 4.0  # a smaller maximum is tested no more often than this one, since each test costs a refusal
_MOST_ROUNDS: Final = 64.0  # ... with each refusal, up to this many rounds


def closes(estimate: RateEstimate, permit: Permit, others: int) -> bool:
    """Return whether a refusal shows that the limit is used up. *others* is the number of other attempts in flight."""
    estimate.recent += 1.0
    among = max(permit.among, others + 1)  # an attempt sent later may have been answered first
    alone = among == 1 and permit.at == estimate.sent_at
    soon = estimate.since_trial < max(_APART, 2 * estimate.most if estimate.is_sure else 0)
    # No attempt was sent later, so none can contradict the wait that the server states.
    is_last = estimate.is_brief and permit.at == estimate.sent_at
    if estimate.trial_at >= 0:
        estimate.trial_at = min(estimate.trial_at, permit.at)
        estimate.trial_refused += 1
        estimate.trial_size = max(estimate.trial_size, among)
        estimate.trial_first = min(estimate.trial_first, permit.among)
        estimate.trial_probes += permit.at > estimate.trial_last
        # If the server refuses at random, it may also have refused the attempt that was sent alone.
        used_up = estimate.trial_probes > (1 if estimate.chance else 0) or not (estimate.passed or others)
        used_up = used_up or (is_last and not estimate.trial_passed)
    elif estimate.refusals or not (estimate.passed or others) or is_last or _is_expected(estimate, permit):
        used_up = True
    elif estimate.recent < _TOLERATED and _needs_no_trial(estimate, permit, alone=alone):
        return False
    elif (
        estimate.was_used_up and estimate.since_trial < _APART and not (estimate.chance or _has_room(estimate, permit))
    ):
        used_up = True
    else:
        estimate.trials = estimate.trials + 1 if soon else 1
        used_up = estimate.trials >= _TRIALS or (soon and estimate.is_sure and among < _SAME * estimate.most)
        used_up = used_up and not _has_room(estimate, permit)
        if soon and alone and estimate.is_sure and not estimate.requests:
            # No maximum in flight refuses an attempt that is alone.
            used_up, estimate.most, estimate.is_sure = True, 0.0, False
        estimate.trial_at, estimate.trial_last = permit.at, estimate.sent_at
        estimate.trial_first, estimate.trial_size = permit.among, among
        estimate.trial_refused, estimate.trial_passed, estimate.trial_probes = 1, 0, 0
    if used_up:
        estimate.trials = 0
        _end_trial(estimate, used_up=True)
    return used_up


def _needs_no_trial(estimate: RateEstimate, permit: Permit, *, alone: bool) -> bool:
    """Count a single refusal that a known maximum in flight, or known random refusals, explain. False: none does."""
    if 0 < estimate.most < permit.among:  # a higher maximum was tested
        _too_many(estimate, estimate.most)
    elif estimate.is_sure and not alone and permit.among > _SAME * estimate.most:
        estimate.most_refused += _MEMORY
        if estimate.most_refused > _OFTEN:
            _too_many(estimate, max(estimate.most - 1.0, 1.0))
    elif estimate.chance:
        estimate.chance += _MEMORY
    else:
        return False
    return True


def has_passed(estimate: RateEstimate, permit: Permit) -> None:
    """Update the evidence after an attempt that has passed."""
    estimate.recent = max(estimate.recent - _FADES, 0.0)
    estimate.since_trial += 1
    estimate.chance *= 1 - _MEMORY
    if estimate.chance < _NO_CHANCE:
        estimate.chance = 0.0
    if estimate.trial_at >= 0:
        _weigh(estimate, permit)
    elif estimate.most:
        _look_for_more_in_flight(estimate, permit)


def _is_expected(estimate: RateEstimate, permit: Permit) -> bool:
    """Return whether a test for a higher limit has reached the learned limit."""
    looks = estimate.phase in {"spread", "edge"} or estimate.proven_at >= 0
    known = estimate.requests if estimate.phase == "spread" else estimate.good
    return looks and not estimate.chance and estimate.count(permit.at - estimate.period) >= _LIKELY * known - 1


def _has_room(estimate: RateEstimate, permit: Permit) -> bool:
    """Return whether the learned limit allows more attempts in the period of a refused one."""
    used = estimate.count(permit.at - estimate.period)
    return estimate.spread > 1 and estimate.requests >= _APART and used < _LIKELY * estimate.requests


def by_chance(estimate: RateEstimate) -> bool:
    """Return whether the answered attempts of a trial show a random refusal. If so, end the trial."""
    refused, passed = estimate.trial_refused, estimate.trial_passed
    if passed < _OPEN * refused:
        return False
    estimate.trials = 0
    if estimate.is_sure and estimate.trial_size > _SAME * estimate.most:
        _too_many(estimate, min(estimate.most, _passed_at_once(estimate)))
    else:
        _refuses_at_random(estimate, refused / (refused + passed))
    _end_trial(estimate, used_up=False)
    return True


def _weigh(estimate: RateEstimate, permit: Permit) -> None:
    """End the trial if the attempt that was sent alone has passed."""
    estimate.trial_passed += permit.at > estimate.trial_at
    if permit.at <= estimate.trial_last:
        return  # it was sent before that refusal came
    refused, passed = estimate.trial_refused, _passed_at_once(estimate)
    if refused > 1 and not estimate.chance and find_bucket(estimate):
        estimate.trials = 0  # a bucket lets attempts pass between refused ones
    elif (refused > 1 or estimate.is_sure) and estimate.trial_size > _SAME * estimate.most > 0:
        if passed < estimate.most:
            estimate.trials -= 1  # it was decided: the maximum is lower
        _too_many(estimate, min(estimate.most, passed))
    elif estimate.requests:
        if estimate.spread > 1 and refused == 1 and estimate.requests >= _APART:
            _refuses_at_random(estimate, _CHANCE)  # a used-up window lets no attempt pass
    elif not (estimate.chance and refused <= _TOLERATED):
        estimate.most_every = _FIRST_ROUNDS
        # The server may have received them in another order: then fewer than passed are safe.
        in_order = min(max(estimate.trial_first - 1.0, 1.0), passed)
        _too_many(estimate, (passed + in_order) // 2, is_sure=refused > 1)
        estimate.max_in_flight = 2.0
        if not estimate.is_sure:
            _refuses_at_random(estimate, _CHANCE)
    _end_trial(estimate, used_up=False)


def _refuses_at_random(estimate: RateEstimate, share: float) -> None:
    if not estimate.chance and estimate.period > estimate.asked > 0:
        # A random refusal after the wait did not show a longer period.
        estimate.period, estimate.next_at = estimate.asked, -1.0
    estimate.chance = max(estimate.chance, share)


def _passed_at_once(estimate: RateEstimate) -> float:
    """Return how many of the attempts in flight passed when a trial began."""
    return max(estimate.trial_size - estimate.trial_refused, 1.0)


def _end_trial(estimate: RateEstimate, *, used_up: bool) -> None:
    estimate.trial_at, estimate.recent, estimate.since_trial, estimate.was_used_up = -1.0, 0.0, 0, used_up


def _too_many(estimate: RateEstimate, most: float, *, is_sure: bool = True) -> None:
    """Allow *most* attempts in flight, and wait twice as many rounds as last time before testing more."""
    estimate.most = estimate.most_tried = most
    estimate.most_refused = 0.0
    estimate.is_sure = is_sure
    estimate.most_every = min(estimate.most_every * 2, _MOST_ROUNDS)
    estimate.most_left = max(most, _FEW) * estimate.most_every
    estimate.max_in_flight = min(estimate.max_in_flight, most)


def _look_for_more_in_flight(estimate: RateEstimate, permit: Permit) -> None:
    """Test one more attempt in flight after some rounds without a refusal, then two more, and so on."""
    if not estimate.is_sure:
        if permit.among > estimate.most + 1:
            estimate.most = 0.0  # this many attempts do pass
        return
    if permit.among < estimate.most:
        return
    estimate.most_refused *= 1 - _MEMORY
    estimate.most_left -= 1
    if estimate.most_left <= 0:
        step = max(2 * (estimate.most_tried - estimate.most), 1.0)
        estimate.most = estimate.most_tried
        estimate.most_tried += step
        estimate.most_left = 2 * estimate.most_tried
