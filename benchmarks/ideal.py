"""Compute the shortest time for a storm: each attempt comes as soon as the limit admits it."""

from __future__ import annotations

from benchmarks.scenarios import Crowd, Scenario

__all__ = ["answers"]


def answers(scenario: Scenario, crowd: Crowd, failures: int = 0) -> list[float]:
    """When each answer would be there, in seconds from the first send, were it not for anything but the server.

    `failures` are the answers that were errors by chance: such a send is admitted, and has to be made again.
    """
    limiter = crowd.limit.limiter() if crowd.limit else None
    moments = []
    now = 0.0
    costs = scenario.costs()
    for number in range(crowd.calls + failures):
        now = max(now, crowd.arrival(min(number, crowd.calls - 1)))
        if scenario.outage and scenario.outage.covers(now):
            now = scenario.outage.end
        # With each of these limits, to come as soon as one is let in is the best that one can do.
        for _ in range(next(costs)):
            while limiter and (wait := limiter.allow(now)) > 0:
                now += wait
        moments.append(now + scenario.latency)
    return moments
