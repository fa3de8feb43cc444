"""One small storm for real, with its two processes; and what comes of a client that fails."""

from __future__ import annotations

import pytest
from benchmarks.report import line, missed
from benchmarks.run import run
from benchmarks.scenarios import Crowd, Outage, Scenario

from lamella.testing import FixedWindow

SMALL = Scenario("small", "Small", "", (Crowd(10, FixedWindow(10, 1.0)), Crowd(5)), latency=0.01)


@pytest.mark.slow
def test_lamella_completes_a_small_storm() -> None:
    one = run(SMALL, "lamella", seed=1)
    assert one["fault"] == ""
    assert one["whole"]["sends"] == one["whole"]["answered"] == one["whole"]["calls"] == 15
    assert one["whole"]["lost"] == one["whole"]["limited"] == 0
    assert [account["sends"] for account in one["accounts"]] == [10, 5]
    assert sum(one["timeline"]["answered"]) == 15
    assert "1.00 sends a call, 0 lost, 0 429s" in line(one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "calls", "answered"),
    [
        pytest.param({"states": True}, 20, 20, marks=pytest.mark.slow),
        ({"paths": True}, 8, 16),
        pytest.param({"points": True}, 8, 8, marks=pytest.mark.slow),
    ],
    ids=["states", "paths", "points"],
)
def test_lamella_respects_a_stated_limit(kind: dict[str, bool], calls: int, answered: int) -> None:
    crowds = (Crowd(calls, FixedWindow(10, 0.3)),) * (2 if "paths" in kind else 1)
    one = run(Scenario("small", "Small", "", crowds, latency=0.01, wait=0.3, **kind), "lamella", seed=1)  # type: ignore[arg-type]
    assert one["fault"] == ""
    assert one["whole"]["answered"] == one["whole"]["calls"] == answered
    assert one["whole"]["lost"] == 0


@pytest.mark.slow
def test_a_503_with_retry_after_counts_as_a_limit() -> None:
    scenario = Scenario("small", "Small", "", (Crowd(12, FixedWindow(10, 1.0)),), latency=0.01, refusal=503)
    one = run(scenario, "lamella", seed=1)
    assert (one["fault"], one["whole"]["lost"], one["whole"]["answered"]) == ("", 0, 12)


@pytest.mark.slow
def test_an_outage_begins_with_the_first_request() -> None:
    down = Scenario("down", "Down", "", (Crowd(4, rate=20),), outage=Outage(0.0, 3.0), deadline=5.0, latency=0.01)
    one = run(down, "lamella", seed=1)
    assert one["whole"]["failed"] >= 2
    assert one["outage"] is not None
    assert one["outage"]["calls"] >= 1


@pytest.mark.slow
def test_a_crashed_server_is_reported_in_its_row() -> None:
    one = run(Scenario("bad", "Bad", "", (Crowd(5),), latency=-1.0), "lamella", seed=1)
    assert one["fault"] == "the server crashed, exit code 1"
    assert (one["whole"]["sends"], one["whole"]["lost"]) == (0, 5)


@pytest.mark.slow
def test_a_crashed_client_is_reported_in_its_row() -> None:
    one = run(SMALL, "nobody", seed=1)
    assert one["fault"] == "the client crashed, exit code 1"
    assert one["whole"]["lost"] == 15
    assert missed(one, limited=True)
