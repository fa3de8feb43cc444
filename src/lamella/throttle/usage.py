"""Count attempts against the limits that the user states. Pure arithmetic on a state, without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lamella.throttle.estimate import Permit, Wait
from lamella.throttle.limit import Limit
from lamella.throttle.stated import StatedLimit

LONGEST_WAIT: Final = 3600.0  # seconds: maximum wait of a call for a stated limit
_ENTRIES: Final = 64  # maximum entries of a log
_SOON: Final = 1e-6  # the shortest wait, so that a rounding error cannot cause an endless loop
_ROUNDING: Final = 1e-9  # rounding error of a sum of points


@dataclass(repr=False, slots=True)
class Usage:
    """The points that attempts have used of their limits, in JSON values."""

    logs: dict[str, list[list[float]]] = field(default_factory=dict)
    """For each period, by its length in seconds: first time, last time, points. Times are by the store's clock."""


class InFlight(NamedTuple):
    """The attempts in flight that count against the limits."""

    number: int
    points: float


def wait_for(usage: Usage, now: float, in_flight: InFlight, limits: Sequence[Limit], cost: float) -> Wait | None:
    """Return the wait until a request of *cost* points may be sent. None: no wait.

    An attempt in flight counts until it is answered, so a stated limit is never exceeded. A request that costs more
    than a whole limit is sent when the limit is completely unused.
    """
    waits: list[float | None] = []
    for limit in limits:
        if limit.requests is not None and limit.per is not None:
            log = _log(usage, now, limit.per)
            missing = in_flight.points + _sum(log) + min(cost, limit.requests) - limit.requests
            waits.append(_until_free(log, now - limit.per, missing))
        elif limit.concurrent is not None and in_flight.number >= limit.concurrent:
            waits.append(None)
    longest = max((seconds for seconds in waits if seconds is not None), default=0.0)
    if longest > LONGEST_WAIT:
        return Wait(longest, blocked=True, too_long=True)
    if None in waits:
        return Wait(None, blocked=False)
    return Wait(longest, blocked=False) if longest else None


def take(usage: Usage, now: float, in_flight: InFlight, limits: Sequence[Limit], cost: float) -> Permit | Wait:
    """Return a permit, or the wait by :func:`wait_for`."""
    return wait_for(usage, now, in_flight, limits, cost) or Permit(0, now, in_flight.number + 1, cost)


def record(usage: Usage, now: float, limits: Sequence[Limit], points: float) -> None:
    """Record an attempt at its end: the server may have counted it at any time between its start and its answer."""
    periods = {limit.per for limit in limits if limit.per is not None}
    for per in periods:
        log = usage.logs.setdefault(str(float(per)), [])
        if log and now - log[-1][0] < per / _ENTRIES:
            log[-1][1] = max(log[-1][1], now)
            log[-1][2] += points
            continue
        log.append([now, now, points])
        while log[0][1] <= now - per:
            del log[0]


def earliest(usage: Usage, now: float, in_flight: InFlight, limits: Sequence[Limit], ahead: int) -> float:
    """Return after how many seconds at the earliest a call with *ahead* calls before it in the queue may be sent.

    Each of these calls counts one point.
    """
    longest = 0.0
    for limit in limits:
        if limit.requests is None or limit.per is None:
            continue
        rounds, place = divmod(ahead, limit.requests)
        log = _log(usage, now, limit.per)
        until = _until_free(log, now - limit.per, in_flight.points + _sum(log) + place + 1 - limit.requests)
        longest = max(longest, (limit.per if until is None else until) + rounds * limit.per)
    return longest


def uses(usage: Usage, now: float, in_flight: InFlight, limits: Sequence[Limit]) -> list[StatedLimit]:
    """Return what remains of each of *limits*."""
    shown = []
    for limit in limits:
        if limit.concurrent is not None:
            shown.append(StatedLimit(limit.concurrent - in_flight.number, limit.concurrent, name=repr(limit)))
        elif limit.requests is not None and limit.per is not None:
            log = _log(usage, now, limit.per)
            reset = log[-1][1] + limit.per - now if log else None
            left = max(limit.requests - in_flight.points - _sum(log), 0.0)
            shown.append(StatedLimit(left, limit.requests, reset, name=repr(limit)))
    return shown


def _log(usage: Usage, now: float, per: float) -> list[list[float]]:
    """Return the entries that still count."""
    return [entry for entry in usage.logs.get(str(float(per)), ()) if entry[1] > now - per]


def _sum(log: Sequence[Sequence[float]]) -> float:
    return sum(points for _, _, points in log)


def _until_free(log: Sequence[Sequence[float]], begins: float, missing: float) -> float | None:
    """Return the seconds until *missing* points are free. None: only after an attempt in flight is answered.

    *begins* is when the period that ends now began.
    """
    if missing <= _ROUNDING:
        return 0.0
    for _, last, points in log:
        missing -= points
        if missing <= _ROUNDING:
            return max(last - begins, _SOON)
    return None
