"""``Belief``: the estimated limits of an account, for inspection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lamella.throttle.estimate import RateEstimate
from lamella.throttle.limit import Limit
from lamella.throttle.stated import StatedLimit


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of the limits of an account."""

    kind: Literal["none", "stated", "window", "bucket"]
    """Of the rate limit. "none": none is known, or it is being measured."""
    requests: float
    """How many the rate limit lets pass in a period. 0.0: it is not known."""
    period: float
    """In seconds. 0.0: it is not known."""
    in_flight: int | None
    """How many attempts may be in flight at a time. None: no such limit is known. A small bucket looks like one."""
    by_chance: float
    """The share of the attempts that is refused by chance, of late. 0.0: none is."""
    stated: tuple[StatedLimit, ...] = ()
    """What is left of the limits that the user or the server states, in the user's case those of the last call."""


def believed(estimate: RateEstimate, limit: Limit | None, stated: Iterable[StatedLimit] = ()) -> Belief:
    """Return what *estimate* says. *limit* is a number of requests that the user has stated, or None."""
    left = tuple(stated)
    in_flight = int(estimate.most) if estimate.is_sure and estimate.most else None
    if limit is not None:
        return Belief("stated", float(limit.requests or 0), limit.per or 0.0, in_flight, estimate.chance, left)
    if not estimate.requests or estimate.phase == "spread":
        return Belief("none", 0.0, 0.0, in_flight, estimate.chance, left)
    looks = estimate.phase in {"edge", "climb"} or estimate.proven_at >= 0
    # While more is tried, the rate is even for a window as well.
    is_bucket = estimate.spread <= 1 and estimate.phase != "climb"
    requests = estimate.good if looks else estimate.requests
    return Belief("bucket" if is_bucket else "window", requests, estimate.period, in_flight, estimate.chance, left)
