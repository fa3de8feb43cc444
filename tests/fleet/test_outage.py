"""A fleet of processes that call a service which goes down, with a real store between them."""

from __future__ import annotations

from benchmarks.outage import measure
from tests.fleet.places import Place

from lamella import RetryBudget


async def test_eight_processes_stop_together_and_share_the_retry_budget(place: Place) -> None:
    # With this patience it does not matter whether eight processes keep the machine busy for longer than a second.
    outage = await measure(place.url, 8, 80, RetryBudget(0.2, 20), patience=30.0)
    assert outage.opened == 1
    assert outage.stopped <= 0.5 + outage.late
    assert outage.attempts <= 1.25
