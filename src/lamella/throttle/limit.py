"""``Limit``: a rate limit that the user states."""

from __future__ import annotations

from dataclasses import dataclass

from lamella.checks import check_seconds, check_whole
from lamella.throttle.estimate import RateEstimate


@dataclass(frozen=True, slots=True)
class Limit:
    """A known rate limit: at most *requests* in any *per* seconds.

    Raises:
        ValueError: *requests* is not a whole number, 1 or more, or *per* is not a finite number greater than 0.
    """

    requests: int
    per: float

    def __post_init__(self) -> None:
        check_whole("requests", self.requests)
        check_seconds("per", self.per)


def earliest(estimate: RateEstimate, now: float, in_flight: int, ahead: int, limit: Limit) -> float:
    """Return in how many seconds at the earliest a call with *ahead* others before it in the queue may be sent."""
    blocked = max(estimate.blocked_until - now, 0.0)
    rounds, place = divmod(ahead, limit.requests)
    free = limit.requests - in_flight - estimate.count(now - limit.per)
    if place < free:
        return blocked + rounds * limit.per
    missing = place - free + 1
    for _, last, number in estimate.log:
        if last > now - limit.per:
            missing -= int(number)
            if missing <= 0:
                return max(blocked, last + limit.per - now) + rounds * limit.per
    return max(blocked, limit.per) + rounds * limit.per
