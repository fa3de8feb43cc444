"""Decide what a refusal is evidence of: a used-up account, too many attempts in flight, or chance.

A refusal closes the account at once where it was to be expected: as many have passed as the learned limit allows, or
nothing has passed. Any other one begins a trial: nothing is sent until the attempts in flight are answered, a round
trip. If most of those that were sent after the refused one pass, it was refused by chance. Otherwise one attempt goes
alone. If it is refused, the account is used up. If it passes, no window is: then there were too many in flight, or the
account has a bucket, which refuses again a few attempts later.
"""

from __future__ import annotations

from typing import Final

from lamella.throttle.estimate import Permit, RateEstimate

_OPEN: Final = 3  # so many passed for each refused one show that the account is open
_TOLERATED: Final = 2.0  # refusals close together that begin a trial where single ones are tolerated
_FADES: Final = 0.25  # of a refusal with each success
_LIKELY: Final = 0.75  # of the learned number: from there on a refusal is expected
_MEMORY: Final = 1 / 100  # weight of an attempt in the share that is refused by chance
_CHANCE: Final = 0.1  # that share after one refusal that meant nothing
_NO_CHANCE: Final = 0.002  # a smaller chance counts as zero
_TRIALS: Final = 3  # so many undecided trials in a row, ...
_APART: Final = 16  # ... with fewer than so many successes between them, are a rate that is exceeded
_SAME: Final = 0.7  # of the attempts in flight: a refusal at more than that is by the same limit
_FIRST_ROUNDS: Final = 4.0  # of as many attempts as may be in flight, before one more is tried: twice as many, ...
_FEW: Final = 4.0  # a limit below that is tried no more often than that one: each try is a refusal
_MOST_ROUNDS: Final = 64.0  # ... and twice as many again with each refusal


def closes(estimate: RateEstimate, permit: Permit, others: int) -> bool:
    """Return whether the refusal of an attempt shows that the account is used up. *others* are in flight still."""
    estimate.recent += 1.0
    among = max(permit.among, others + 1)  # one that was sent later may have overtaken it
    soon = estimate.since_trial < max(_APART, 2 * estimate.most)
    if estimate.trial_at >= 0:
        estimate.trial_at = min(estimate.trial_at, permit.at)
        estimate.trial_refused += 1
        estimate.trial_among = min(estimate.trial_among, permit.among)
        estimate.trial_probes += permit.at > estimate.trial_last
        # Where some are refused by chance, so may be the one that went alone.
        used_up = estimate.trial_probes > (1 if estimate.chance else 0) or not (estimate.passed or others)
    elif estimate.refusals or not (estimate.passed or others) or _is_expected(estimate, permit):
        used_up = True
    elif 0 < estimate.most < permit.among and estimate.recent < _TOLERATED:
        _too_many(estimate, estimate.most)
        return False
    elif estimate.chance and estimate.recent < _TOLERATED:
        estimate.chance += _MEMORY
        return False
    elif estimate.was_used_up and estimate.since_trial < _APART and not estimate.chance:
        used_up = True
    else:
        estimate.trials = estimate.trials + 1 if soon else 1
        used_up = estimate.trials >= _TRIALS or (soon and estimate.is_sure and among < _SAME * estimate.most)
        estimate.trial_at, estimate.trial_last, estimate.trial_among = permit.at, estimate.sent_at, permit.among
        estimate.trial_refused, estimate.trial_passed, estimate.trial_probes = 1, 0, 0
    if used_up:
        _end_trial(estimate, used_up=True)
    return used_up


def has_passed(estimate: RateEstimate, permit: Permit) -> None:
    """Take account of an attempt that has passed."""
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
    """Return whether a look for the limit has come to where it is believed to be."""
    looks = estimate.phase in {"spread", "edge"} or estimate.proven_at >= 0
    known = estimate.requests if estimate.phase == "spread" else estimate.good
    return looks and not estimate.chance and estimate.count(permit.at - estimate.period) >= _LIKELY * known - 1


def by_chance(estimate: RateEstimate) -> bool:
    """Return whether the attempts of a trial, all of them answered, show that it was chance, and end the trial then."""
    refused, passed = estimate.trial_refused, estimate.trial_passed
    if passed < _OPEN * refused:
        return False
    estimate.chance, estimate.trials = max(estimate.chance, refused / (refused + passed)), 0
    _end_trial(estimate, used_up=False)
    return True


def _weigh(estimate: RateEstimate, permit: Permit) -> None:
    """End the trial if the attempt that went alone has passed."""
    estimate.trial_passed += permit.at > estimate.trial_at
    if permit.at <= estimate.trial_last:
        return  # it may have overtaken the refused one
    refused, among = estimate.trial_refused, estimate.trial_among
    if (refused > 1 or estimate.is_sure) and among > _SAME * estimate.most > 0:
        _too_many(estimate, min(estimate.most, max(among - 1.0, 1.0)))
    elif estimate.requests:
        if estimate.spread > 1 and refused == 1 and estimate.requests >= _APART:
            estimate.chance = max(estimate.chance, _CHANCE)  # a window that is used up lets none pass
    elif not (estimate.chance and refused <= _TOLERATED):
        estimate.most_every = _FIRST_ROUNDS
        _too_many(estimate, max(among - 1.0, 1.0), is_sure=refused > 1)
        estimate.max_in_flight = 2.0
        if not estimate.is_sure:
            estimate.chance = _CHANCE
    _end_trial(estimate, used_up=False)


def _end_trial(estimate: RateEstimate, *, used_up: bool) -> None:
    estimate.trial_at, estimate.recent, estimate.since_trial, estimate.was_used_up = -1.0, 0.0, 0, used_up


def _too_many(estimate: RateEstimate, most: float, *, is_sure: bool = True) -> None:
    """Allow so many attempts in flight, and try more after twice as many rounds as the last time."""
    estimate.most = estimate.most_tried = most
    estimate.is_sure = is_sure
    estimate.most_every = min(estimate.most_every * 2, _MOST_ROUNDS)
    estimate.most_left = max(most, _FEW) * estimate.most_every
    estimate.max_in_flight = min(estimate.max_in_flight, most)


def _look_for_more_in_flight(estimate: RateEstimate, permit: Permit) -> None:
    """Try one more attempt in flight after some rounds without a refusal, then two more, and so on."""
    if not estimate.is_sure:
        if permit.among > estimate.most + 1:
            estimate.most = 0.0  # so many do pass
        return
    if permit.among < estimate.most:
        return
    estimate.most_left -= 1
    if estimate.most_left <= 0:
        step = max(2 * (estimate.most_tried - estimate.most), 1.0)
        estimate.most = estimate.most_tried
        estimate.most_tried += step
        estimate.most_every = _FIRST_ROUNDS
        estimate.most_left = 2 * estimate.most_tried
