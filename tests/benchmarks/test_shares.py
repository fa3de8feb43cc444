"""Whose work a frame is, and the table of the shares."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.shares import owner_of, table

from lamella import Answer, Rule, RuleBook

ROOT = Path(__file__).parents[2]


def test_cpu_time_of_the_standard_library_counts_for_its_caller() -> None:
    owners: list[str] = []

    def hook(pairs: list[tuple[str, object]]) -> dict[str, object]:
        owners.append(owner_of(sys._getframe()))
        return dict(pairs)

    def by_rule(answer: Answer) -> bool:
        json.loads('{"a": 1}', object_pairs_hook=hook)
        return False

    json.loads('{"a": 1}', object_pairs_hook=hook)
    RuleBook(Rule(404, when=by_rule)).judge(Answer(404), lambda *_: None)
    assert owners == ["aiohttp, asyncio, sockets", "lamella: rules"]


def test_the_parts_of_lamella_are_shown_from_one_percent_on() -> None:
    good = Counter({"aiohttp, asyncio, sockets": 900, "lamella: throttle": 60, "lamella: auth": 40, "lamella: call": 0})
    failing = Counter({"aiohttp, asyncio, sockets": 500, "stamina and tenacity": 300, "lamella: throttle": 200})
    assert list(table({"good": good, "failing": failing, "never": Counter[str]()})) == [
        "| | good | failing | never |",
        "|---|--:|--:|--:|",
        "| aiohttp, asyncio, sockets | 90% | 50% |  |",
        "| OpenTelemetry |  |  |  |",
        "| stamina and tenacity |  | 30% |  |",
        "| lamella | 10% | 20% |  |",
        "| lamella: throttle | 6% | 20% |  |",
        "| lamella: auth | 4% |  |  |",
    ]


@pytest.mark.slow
def test_calls_are_made_and_sampled() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "shares.py"), "--seconds", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)  # noqa: S603
    lines = done.stdout.splitlines()
    assert lines[0] == "| | succeeds, no SDK | succeeds, recorded | two retries, no SDK |"
    rows = {line.split("|")[1].strip(): [share.strip() for share in line.split("|")[2:5]] for line in lines[2:6]}
    assert all(rows["aiohttp, asyncio, sockets"])
    assert all(rows["lamella"])
    assert rows["stamina and tenacity"][2]
