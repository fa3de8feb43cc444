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
    """The estimated limits of an account."""

    kind: Literal["none", "stated", "window", "bucket"]
    """The kind of the rate limit. "none": the limit is unknown, or is being measured."""
    requests: float
    """The number of requests that the rate limit allows in a period. 0.0: unknown."""
    period: float
    """The period in seconds. 0.0: unknown."""
    in_flight: int | None
    """The maximum number of attempts in flight. None: no limit is known. A small bucket looks like one."""
    by_chance: float
    """The share of recent attempts that the server refused at random. 0.0: none."""
    stated: tuple[StatedLimit, ...] = ()
    """What remains of the limits that the user or the server states. The user's limits are those of the last call."""
    parts: tuple[tuple[str, Belief], ...] = ()
    """The parts of the account with a learned limit of their own, such as ``GET /orders/*``, where ``*`` stands for any
    method or any path below. The other values are those of the rest."""

    @property
    def limits(self) -> tuple[str, float, float, int]:
        """Kind, requests, period and maximum in flight (0: none), as they are recorded."""
        return self.kind, float(self.requests), float(self.period), self.in_flight or 0


def believed(estimate: RateEstimate, limit: Limit | None, stated: Iterable[StatedLimit] = ()) -> Belief:
    """Return the belief in *estimate*. *limit* is a number of requests that the user has stated, or None."""
    left = tuple(stated)
    in_flight = int(estimate.most) if estimate.is_sure and estimate.most else None
    if limit is not None:
        return Belief("stated", float(limit.requests or 0), limit.per or 0.0, in_flight, estimate.chance, left)
    if not estimate.requests or estimate.phase == "spread":
        return Belief("none", 0.0, 0.0, in_flight, estimate.chance, left)
    looks = estimate.phase in {"edge", "climb"} or estimate.proven_at >= 0
    # While a higher rate is tried, attempts are evenly spaced for a window as well.
    is_bucket = estimate.spread <= 1 and estimate.phase != "climb"
    requests = estimate.good if looks else estimate.requests
    return Belief("bucket" if is_bucket else "window", requests, estimate.period, in_flight, estimate.chance, left)
