"""Run a fresh server and a fresh client, each in its own process, and collect their reports."""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

from benchmarks.crowd import Report, patience, ride
from benchmarks.figures import Figures, OutageFigures, Timeline, figures, of_account, of_outage, timeline
from benchmarks.processes import GRACE, child, receive
from benchmarks.scenarios import Scenario
from benchmarks.server import Arrival, serve

__all__ = ["Run", "run"]


class Run(TypedDict):
    """One contender in one scenario. `fault`: why its figures are not those of a whole run, or ""."""

    scenario: str
    contender: str
    fault: str
    whole: Figures
    accounts: list[Figures]
    outage: OutageFigures | None
    errors: dict[str, int]
    """What the lost calls ended with."""
    cpu: float
    """The seconds of CPU of the client."""
    timeline: Timeline


def run(scenario: Scenario, contender: str, seed: int) -> Run:
    """Run a contender in a scenario. An error becomes its `fault`, so that the other runs are not lost."""
    limit = patience(scenario)
    report, fault = Report([], 0.0), ""
    arrivals: list[Arrival] = []
    with child(serve, scenario, seed) as (server, at_server):
        try:
            url = receive(server, at_server, GRACE)
            with child(ride, scenario, contender, url, seed) as (client, at_client):
                try:
                    report = receive(client, at_client, limit + GRACE)
                except RuntimeError as error:
                    fault = f"the client {error}"
            at_server.send("stop")
            arrivals = receive(server, at_server, GRACE)
        except (RuntimeError, BrokenPipeError) as error:
            fault = f"the server {error}"

    whole = figures(scenario, arrivals, report.ended)
    if not fault and len(report.ended) < scenario.calls:
        fault = f"{scenario.calls - len(report.ended)} calls had not ended after {limit:.0f} s"
    return {
        "scenario": scenario.name,
        "contender": contender,
        "fault": fault,
        "whole": whole,
        "accounts": [
            of_account(scenario, number, arrivals, report.ended)
            for number in range(len(scenario.crowds))
            if len(scenario.crowds) > 1
        ],
        "outage": of_outage(scenario, arrivals, report.ended),
        "errors": dict(Counter(call.error for call in report.ended if call.error).most_common()),
        "cpu": report.cpu,
        "timeline": timeline(arrivals, scenario.latency),
    }
