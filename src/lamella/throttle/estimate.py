"""The rate estimate of one account, and the permits and waits that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

SPREAD: Final = 4.0  # the attempts of a period are sent this many times faster than at an even rate
SLOW_START: Final = 4.0  # attempts in flight while the limit is unknown
LOOK_EVERY: Final = 8.0  # periods between two tests for a higher limit

_ENTRIES: Final = 64  # maximum log entries per period
_MEMORY: Final = 3.0  # periods that the log covers: a refusal is evaluated one wait after it


@dataclass(repr=False, slots=True)  # creating it takes half the time of a named tuple
class Permit:
    """An attempt may be sent now. Its result is reported together with the permit."""

    generation: int  # the number of refusals that began a wait; a later refusal of an older permit is ignored
    at: float  # when it was issued. It differs between all permits of an account
    among: int = 1  # the attempts in flight at that time, including its own
    cost: float = 1.0  # the points of the limit that its attempt uses

    def at_time(self, at: float) -> Permit:
        """Return the permit with another time. (dataclasses.replace() takes six times as long.)"""
        return Permit(self.generation, at, self.among, self.cost)


class Wait(NamedTuple):
    """No attempt may be sent now."""

    seconds: float | None  # until an attempt may be sent at the earliest. None: unknown, the next answer may allow it
    blocked: bool  # whether the reason is a refusal, not the rate
    again: float | None = None  # seconds after which to ask again even without an answer. None: after *seconds*
    too_long: bool = False  # whether the server asks for a longer wait than the rule allows. If so, no call waits
    moved: bool = False  # whether the call now belongs to another queue, because parts were split or merged


class Asked(NamedTuple):
    """A request for a permit: its attempt and the calls queued behind it."""

    learns: bool = True  # whether the limit is learned. False: the user states it
    waiting: int = 0  # the number of queued calls
    waited: float = 0.0  # for how many seconds the first of them has waited
    extra: float = 0.0  # points that the attempts in flight use beyond one each
    cost: float = 1.0  # points that this attempt uses


ONE: Final = Asked()


@dataclass(eq=False, repr=False, slots=True)
class RateEstimate:
    """The rate estimate of an account, in JSON values.

    Times are in seconds of the store's clock. A negative time means none.
    """

    untouched: bool = True  # whether no attempt was refused and no answer stated a limit yet
    phase: str = "burst"  # see lamella.throttle.permits
    requests: float = 0.0  # requests allowed in a period. 0: not known yet
    period: float = 0.0
    spread: float = SPREAD  # 1 for a bucket that is refilled many times in a period
    max_in_flight: float = SLOW_START  # applies while the rate is unknown or being tested
    blocked_until: float = -1.0
    too_long: bool = False  # whether the block is longer than the rule's maximum. Reset by the next success
    generation: int = 0
    refusals: int = 0  # how many times the account was blocked since the last success
    began: float = -1.0  # when the first attempt since the last wait was sent
    passed: float = 0  # attempts, or points, that have passed since then
    passed_end: float = -1.0  # when the last of them was answered
    emptied_at: float = -1.0  # the value of *passed_end* at the last evaluated refusal
    next_at: float = -1.0  # when the rate allows the next attempt
    fastest: float = 0.0  # seconds of the fastest answer. It grows slowly, since the server may become slower
    log: list[list[float]] = field(default_factory=list)  # attempts that passed: first time, last time, number
    refused_at: float = -1.0  # when the refused attempt was sent. Reset when the refusal has been evaluated
    refused_end: float = -1.0  # when the first refusal was answered
    refused_began: float = -1.0  # the value of *began* at the refusal. -1: the period was proven before it
    asked: float = 0.0  # the period that the refusal suggests
    burst: float = 0.0  # attempts that passed in the burst
    burst_took: float = 0.0
    size: float = 0.0  # of a bucket refilled once in a period, if that explains the last measurement. 0: unknown
    is_bucket: bool = False  # whether two measurements agree on *size*
    good: float = 0.0  # the proven number of requests, while a higher number is tested
    proven_at: float = -1.0  # when the tested number will be proven
    look_at: float = -1.0  # when to test for a higher limit
    looks: int = 0
    look_every: float = LOOK_EVERY
    surprises: int = 0  # consecutive refusals at the steady rate
    sent_at: float = -1.0  # when the last permit was issued
    recent: float = 0.0  # recent refusals. Each success reduces it
    chance: float = 0.0  # the share of attempts that the server refuses at random
    most: float = 0.0  # the maximum number of attempts in flight. 0: no such limit is known
    most_tried: float = 0.0  # the higher maximum that is being tested
    is_sure: bool = False  # whether at least two refusals have shown *most*
    most_left: float = 0.0  # successes until a higher maximum is tested
    most_refused: float = 0.0  # the share of refused attempts with *most* in flight
    most_every: float = 0.0  # rounds of *most* attempts between two tests
    trial_at: float = -1.0  # when the first refused attempt of the current trial was sent. Negative: no trial
    trial_last: float = -1.0  # when the last attempt before that refusal was sent
    trial_until: float = -1.0  # until when to block the account if its limit is used up
    trial_refused: int = 0
    trial_passed: int = 0  # attempts sent after the first refused one that passed
    trial_probes: int = 0  # attempts sent alone after the first refusal that were refused
    trial_first: int = 0  # the smallest number of attempts in flight when a refused one was sent
    trial_size: int = 0  # the largest number of attempts in flight with a refused one
    trials: int = 0  # consecutive undecided trials
    since_trial: int = 0  # successes since the end of the last trial, or since the limit was last used up
    was_used_up: bool = False  # whether the last trial showed that the limit was used up
    stated: dict[str, list[float]] = field(default_factory=dict)  # limits by their names, see lamella.throttle.stated
    is_brief: bool = False  # whether the server stated a short wait after a few attempts. Until the limit is proven
    doubt: float = 0.0  # attempts that passed before the last refusal, if that contradicts the estimate. Otherwise 0

    def record(self, now: float, points: float = 1.0) -> None:
        """Record an attempt of *points* points that the server may have counted."""
        log = self.log
        if log and now - (last := log[-1])[0] < self.period / _ENTRIES:
            if now > last[1]:  # noqa: PLR1730 - max() takes twice as long
                last[1] = now
            last[2] += points
            return
        log.append([now, now, points])
        while log[0][1] < now - _MEMORY * self.period:
            del log[0]
        if len(log) > 2 * _ENTRIES:
            del log[: _ENTRIES // 2]

    def count(self, since: float) -> float:
        """Return the number of attempts that passed after *since*, or their points."""
        total = 0.0
        for _, last, number in reversed(self.log):
            if last <= since:
                break
            total += number
        return total

    def oldest(self, since: float) -> float | None:
        """Return when the first attempt after *since* passed. None: no attempt passed."""
        return next((last for _, last, _ in self.log if last > since), None)
