"""Compute the figures of the report from the server's records."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TypedDict

from benchmarks.crowd import Ended
from benchmarks.ideal import answers
from benchmarks.scenarios import Scenario
from benchmarks.server import Arrival

__all__ = ["BIN", "Figures", "OutageFigures", "Timeline", "figures", "of_account", "of_outage", "peak", "timeline"]

BIN = 0.1  # seconds
MARGIN = 0.1  # seconds


class Figures(TypedDict):
    """The figures of one contender in a storm, or for one account."""

    calls: int
    seconds: float
    """Seconds from the beginning of the first call to the last response."""
    ideal: float
    sends: int
    answered: int
    """Responses with 200. All figures except `lost` are counted by the server."""
    lost: int
    """Calls that failed or did not end, counted by the client."""
    limited: int
    """How many were answered with a 429."""
    failed: int
    """How many were answered with a 500."""
    peak: int
    """The maximum number of attempts in any second."""


class OutageFigures(TypedDict):
    """What happened around an outage."""

    calls: int
    """How many calls began while it lasted."""
    sends: int
    """How many requests arrived while it lasted."""
    lost_during: int
    """How many calls failed before the recovery could be noticed."""
    lost_after: int
    """How many failed later, though their deadline had not come."""
    first_success: float | None
    """Seconds from the recovery to the first 200."""


class Timeline(TypedDict):
    """Arrivals and 200 responses per tenth of a second from the first attempt."""

    sends: list[int]
    answered: list[int]


def figures(scenario: Scenario, arrivals: Sequence[Arrival], ended: Sequence[Ended]) -> Figures:
    """Return the figures of all accounts. The ideal is that of the slowest account."""
    accounts = [of_account(scenario, number, arrivals, ended) for number in range(len(scenario.crowds))]
    whole = _count(scenario.calls, scenario.latency, arrivals, ended)
    return {**whole, "ideal": max(account["ideal"] for account in accounts)}


def of_account(scenario: Scenario, number: int, arrivals: Iterable[Arrival], ended: Iterable[Ended]) -> Figures:
    """Return the figures of one account, from the beginning of its first call to its last response."""
    crowd = scenario.crowds[number]
    own = [arrival for arrival in arrivals if arrival.account == number]
    counted = _count(crowd.calls, scenario.latency, own, [call for call in ended if call.account == number])
    # The ideal client knows outages in advance, but not random errors.
    by_chance = counted["failed"] if scenario.errors else 0
    return {**counted, "ideal": answers(scenario, crowd, by_chance)[-1]}


def _count(calls: int, latency: float, arrivals: Sequence[Arrival], ended: Sequence[Ended]) -> Figures:
    statuses = Counter(arrival.status for arrival in arrivals)
    # Client and server share a clock. A client that connects 500 times before its first request takes that time.
    first = min([arrival.at for arrival in arrivals[:1]] + [call.began for call in ended], default=0.0)
    return {
        "calls": calls,
        "seconds": arrivals[-1].at + latency - first if arrivals else 0.0,
        "ideal": 0.0,
        "sends": len(arrivals),
        "answered": statuses[200],
        "lost": calls - sum(not call.error for call in ended),
        "limited": statuses[429],
        "failed": statuses[500],
        "peak": peak(arrival.at for arrival in arrivals),
    }


def peak(moments: Iterable[float], width: float = 1.0) -> int:
    """Return the maximum number of times (in order) within any `width` seconds, end excluded."""
    most = 0
    window: deque[float] = deque()
    for moment in moments:
        window.append(moment)
        while moment - window[0] >= width:
            window.popleft()
        most = max(most, len(window))
    return most


def of_outage(scenario: Scenario, arrivals: Sequence[Arrival], ended: Sequence[Ended]) -> OutageFigures | None:
    """Return the figures around the outage, if any. Client and server share a clock."""
    outage = scenario.outage
    if outage is None or not arrivals:
        return None
    first = arrivals[0].at
    recovery = first + outage.end
    # An answer that was given in the outage is read a little after it.
    noticed = recovery + scenario.latency + MARGIN
    deadline = scenario.deadline or float("inf")
    lost = [call for call in ended if call.error]
    successes = [arrival.at for arrival in arrivals if arrival.status == 200 and arrival.at >= recovery]
    return {
        "calls": sum(outage.covers(call.began - first) for call in ended),
        "sends": sum(outage.covers(arrival.at - first) for arrival in arrivals),
        "lost_during": sum(call.ended < noticed for call in lost),
        "lost_after": sum(noticed <= call.ended < call.began + deadline for call in lost),
        "first_success": min(successes) - recovery + scenario.latency if successes else None,
    }


def timeline(arrivals: Sequence[Arrival], latency: float) -> Timeline:
    """Return the arrivals per tenth of a second."""
    if not arrivals:
        return {"sends": [], "answered": []}
    first = arrivals[0].at
    sends = Counter(int((arrival.at - first) / BIN) for arrival in arrivals)
    answered = Counter(int((arrival.at + latency - first) / BIN) for arrival in arrivals if arrival.status == 200)
    bins = range(max([*sends, *answered]) + 1)
    return {"sends": [sends[number] for number in bins], "answered": [answered[number] for number in bins]}
