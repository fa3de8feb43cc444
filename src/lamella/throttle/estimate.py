"""The rate estimate of one account, and the answers that are derived from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

SPREAD: Final = 4.0  # how many times faster than evenly the attempts of a period are sent: in a quarter of it
SLOW_START: Final = 4.0  # attempts in flight while nothing is known
LOOK_EVERY: Final = 8.0  # periods between two looks whether the limit allows more

_ENTRIES: Final = 64  # of the log, for each period
_MEMORY: Final = 3.0  # periods: a refusal is evaluated one wait after it


@dataclass(slots=True)  # it is made in half the time of a named tuple
class Permit:
    """An attempt may be sent now. Its result is reported together with the permit."""

    generation: int  # the number of refusals that began a wait; a later refusal of an older permit is ignored
    at: float  # when it was issued. No two of an account are equal
    among: int = 1  # the attempts in flight then, itself included
    cost: float = 1.0  # points of the limit that it takes


class Wait(NamedTuple):
    """No attempt may be sent now."""

    seconds: float | None  # until one may be sent at the earliest. None: unknown, the next answer may allow it
    blocked: bool  # whether a refusal is the reason, and not the rate
    again: float | None = None  # seconds after which to ask again, answer or not. None: after *seconds*
    too_long: bool = False  # whether the server asks for a longer wait than the rule allows: then no call waits for it


class Asked(NamedTuple):
    """The attempt that a permit is asked for, and the calls behind it."""

    learns: bool = True  # whether the limit is learned, or else stated by the user
    waiting: int = 0  # the number of queued calls
    waited: float = 0.0  # for how many seconds the first of them has waited
    extra: float = 0.0  # by how many points the attempts in flight take more than one each
    cost: float = 1.0  # points that this one takes


ONE: Final = Asked()


@dataclass(slots=True)
class RateEstimate:
    """What is known of the rate limit of an account, in JSON values.

    Moments are in seconds of the store's clock; below 0 means none.
    """

    untouched: bool = True  # whether no attempt was refused yet, and no answer has stated a limit
    phase: str = "burst"  # see lamella.throttle.permits
    requests: float = 0.0  # how many pass in a period. 0: not known yet
    period: float = 0.0
    spread: float = SPREAD  # 1 for a bucket that is refilled many times in a period
    max_in_flight: float = SLOW_START  # where the rate is not known, or is tried
    blocked_until: float = -1.0
    too_long: bool = False  # whether that is longer than the rule allows a call to wait. Set until the next success
    generation: int = 0
    refusals: int = 0  # how many times the account was blocked since the last success
    began: float = -1.0  # when the first attempt since the last wait was sent
    passed: float = 0  # how many have passed since then, or how many points
    next_at: float = -1.0  # when the rate allows the next attempt
    fastest: float = 0.0  # seconds of the fastest answer. Grows slowly: the server may have become slower
    log: list[list[float]] = field(default_factory=list)  # what passed: first moment, last moment, number
    refused_at: float = -1.0  # when the refused attempt was sent, until its lesson is learned
    refused_began: float = -1.0  # what *began* was then
    asked: float = 0.0  # the period that this refusal suggests
    burst: float = 0.0  # how many passed at once
    burst_took: float = 0.0
    good: float = 0.0  # the number that is proven, while more is tried
    proven_at: float = -1.0  # when the number that is tried will be proven
    look_at: float = -1.0  # when to look for more
    looks: int = 0
    look_every: float = LOOK_EVERY
    surprises: int = 0  # refusals of the steady rate in a row
    sent_at: float = -1.0  # when the last permit was issued
    recent: float = 0.0  # refusals of late. Fades with each success
    chance: float = 0.0  # the share that is refused by chance
    most: float = 0.0  # how many may be in flight. 0: no such limit is known
    most_tried: float = 0.0  # while more is tried, how many
    is_sure: bool = False  # whether two refusals or more have shown that
    most_left: float = 0.0  # successes until one more is tried
    most_every: float = 0.0  # rounds of as many as may be in flight between two tries
    trial_at: float = -1.0  # when the first refused attempt of a trial was sent, while it lasts
    trial_last: float = -1.0  # when the last one was sent before that refusal came
    trial_until: float = -1.0  # until when the account is blocked if it is used up
    trial_refused: int = 0
    trial_passed: int = 0  # of those that were sent after the first refused one
    trial_probes: int = 0  # refused ones of those that were sent alone after the first refusal
    trial_among: int = 0  # the fewest attempts in flight with a refused one
    trials: int = 0  # in a row
    since_trial: int = 0  # successes since the end of the last trial, or of the last time that the account was used up
    was_used_up: bool = False  # what that trial has shown
    stated: dict[str, list[float]] = field(default_factory=dict)  # limits by their names, see lamella.throttle.stated
    doubt: float = 0.0  # how many passed before the last refusal, where that contradicts the estimate, or 0

    def record(self, now: float, points: float = 1.0) -> None:
        """Record an attempt of so many points that the server may have counted."""
        log = self.log
        if log and now - (last := log[-1])[0] < self.period / _ENTRIES:
            last[1] = max(last[1], now)
            last[2] += points
            return
        log.append([now, now, points])
        while log[0][1] < now - _MEMORY * self.period:
            del log[0]
        if len(log) > 2 * _ENTRIES:
            del log[: _ENTRIES // 2]

    def count(self, since: float) -> float:
        """Return how many attempts have passed after *since*, or how many points they took."""
        total = 0.0
        for _, last, number in reversed(self.log):
            if last <= since:
                break
            total += number
        return total

    def oldest(self, since: float) -> float | None:
        """Return when the first attempt after *since* passed. None: none has."""
        return next((last for _, last, _ in self.log if last > since), None)
