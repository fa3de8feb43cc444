"""What the page says of a run, and whether it reaches the goals."""

from __future__ import annotations

import pytest
from benchmarks.figures import Figures, OutageFigures
from benchmarks.report import Document, missed, page
from benchmarks.run import Run


def figures(*, seconds: float = 10.0, sends: int = 100, lost: int = 0) -> Figures:
    return {
        "calls": 100,
        "seconds": seconds,
        "ideal": 10.0,
        "sends": sends,
        "answered": 100 - lost,
        "lost": lost,
        "limited": sends - 100,
        "failed": 0,
        "peak": 50,
    }


def a_run(whole: Figures, *accounts: Figures, outage: OutageFigures | None = None, fault: str = "") -> Run:
    return {
        "scenario": "one",
        "contender": "lamella",
        "fault": fault,
        "whole": whole,
        "accounts": list(accounts),
        "outage": outage,
        "errors": {},
        "cpu": 1.0,
        "timeline": {"sends": [], "answered": []},
    }


@pytest.mark.parametrize(
    ("whole", "faults"),
    [
        (figures(seconds=11.5, sends=110), []),
        (figures(seconds=11.6), ["time 1.160"]),
        (figures(sends=111), ["sends 1.110"]),
        (figures(lost=1), ["1 lost"]),
    ],
)
def test_the_report_checks_the_goals_under_a_limit(whole: Figures, faults: list[str]) -> None:
    assert missed(a_run(whole), limited=True) == faults
    assert missed(a_run(whole), limited=False) == []


def test_each_account_has_to_reach_the_goals_by_itself() -> None:
    run = a_run(figures(), figures(), figures(seconds=12.0), figures(lost=1))
    assert missed(run, limited=True) == ["2 of 3 accounts by themselves"]


@pytest.mark.parametrize(
    ("sends", "first", "lost_after", "faults"),
    [
        (125, 1.0, 0, []),
        (126, 1.1, 2, ["sends while down 1.260", "first success after 1.10 s", "2 lost after it"]),
        (100, None, 0, ["no success after it"]),
    ],
)
def test_the_report_checks_the_goals_in_an_outage(
    sends: int, first: float | None, lost_after: int, faults: list[str]
) -> None:
    outage: OutageFigures = {
        "calls": 100,
        "sends": sends,
        "lost_during": 7,
        "lost_after": lost_after,
        "first_success": first,
    }
    assert missed(a_run(figures(lost=7), outage=outage), limited=False) == faults


def test_a_failed_run_reaches_no_goal() -> None:
    assert missed(a_run(figures(), fault="the client crashed"), limited=False) == ["the client crashed"]


def test_the_page_shows_everything_in_the_document() -> None:
    document: Document = {
        "made": {"date": "2026-01-01"},
        "scenarios": [{"name": "one", "title": "One storm", "about": "It is small.", "limited": True, "ideal": []}],
        "contenders": [{"name": "lamella", "versions": {"lamella": "0.1.0"}, "configuration": "def lamella(): ...\n"}],
        "runs": [a_run(figures(seconds=12.0, sends=1250, lost=3), figures(), figures(sends=120), fault="it hung")],
    }
    text = page(document)
    for part in (
        "## One storm\n\nIt is small.\n",
        "| lamella | 1.20 | 12.50 | 3 | 1,150 | 50 |",
        "| lamella | 1.00 | 1.20 | 0 | 1 of 2 |",
        "- lamella: not a whole run: it hung",
        "| One storm | it hung; time 1.200; sends 12.500; 3 lost; 1 of 2 accounts by themselves |",
        "lamella 0.1.0:\n\n```python\ndef lamella(): ...\n```",
        "- date: 2026-01-01",
    ):
        assert part in text
