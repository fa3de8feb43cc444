"""The tables of instructions, the counts that valgrind writes, and the message without valgrind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.costs.counted import ALONE, CASES, IN_PROCESS, LAMELLA, LOOPBACK, SDK, STAMINA, Case
from benchmarks.instructions import app, comparison, counts_in, parts
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
MISSING = "valgrind is not installed: apt-get install valgrind\n"


def _cases(kind: str) -> dict[str, Case]:
    return {f"{case.where}: {case.contender}": case for case in CASES if case.kind == kind}


def test_a_count_ends_at_every_second_mark(tmp_path: Path) -> None:
    for number, total in enumerate((900, 150, 20, 80, 7), start=1):
        (tmp_path / f"count.{number}").write_text(f"part: {number}\ntotals: {total}\n", "utf-8")
    (tmp_path / "count").write_text("totals: 5\n", "utf-8")  # the rest of the process
    assert counts_in(tmp_path) == [150, 80]


def test_every_call_is_compared_with_the_other_libraries_and_the_base() -> None:
    good, failing = _cases("succeeds"), _cases("two retries")
    ours = failing[f"{LOOPBACK}: {LAMELLA}"]
    counts = {
        good[f"{LOOPBACK}: aiohttp"]: 300.0,
        good[f"{LOOPBACK}: {LAMELLA}"]: 400.0,
        good[f"{LOOPBACK}: aiohttp-retry"]: 320.0,
        ours: 2400.0,
        failing[f"{LOOPBACK}: stamina as a middleware"]: 1900.0,
        failing[f"{IN_PROCESS}: {LAMELLA}"]: 1500.0,
        failing[f"{ALONE}: {STAMINA}"]: 950.0,
    }
    assert list(comparison(counts, {ours: 3000.0}))[2:] == [
        "| loopback: succeeds | 400 | aiohttp-retry | 320 | 1.250 | 5.00 |",
        "| loopback: two retries | 2,400 | stamina as a middleware | 1,900 | 1.263 | 1.50 |",
        "| loopback: two retries | 2,400 | base | 3,000 | 0.800 | 0.71 |",
        "| in one process: two retries | 1,500 |  |  |  |  |",
    ]
    assert list(parts(counts))[2:] == [
        "| succeeds | 400 | 300 |  |  | 100 |",
        "| two retries | 2,400 | 900 | 950 |  | 550 |",
    ]


def test_the_part_of_the_sdk_is_shown_where_it_is_counted() -> None:
    recorded, failing = _cases("succeeds, recorded"), _cases("two retries, recorded")
    counts = {
        _cases("succeeds")[f"{LOOPBACK}: aiohttp"]: 300.0,
        recorded[f"{LOOPBACK}: {LAMELLA}, recorded"]: 1000.0,
        recorded[f"{ALONE}: {SDK}"]: 400.0,
        failing[f"{LOOPBACK}: {LAMELLA}, recorded"]: 3800.0,
    }
    assert list(parts(counts))[2:] == ["| succeeds, recorded | 1,000 | 300 |  | 400 | 300 |"]
    assert list(parts({})) == []


def test_without_valgrind_there_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = CliRunner().invoke(app)
    assert (shown.exit_code, shown.stderr) == (2, MISSING)


@pytest.mark.slow
def test_the_script_without_valgrind_prints_the_message(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "instructions.py")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (2, MISSING)
