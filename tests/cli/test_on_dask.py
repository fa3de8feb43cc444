"""The live display of a sync on Dask: the workers' progress in one line. tests/dask runs the command itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lamella.cli import on_dask
from lamella.dataset import Count, DatasetProgress, Result

PROGRESS = DatasetProgress(
    run=3,
    shards=8,
    ended=2,
    counts={
        1: Count(1, parts=10, done=2, failed=1, pages=30, records=1_000),
        5: Count(5, parts=10, done=0, failed=0, pages=12, records=500),
    },
    result=Result(parts=20, done=19, pages=1_100, records=7),
)
LINE = "run 3: 2 of 8 shards ended, 2 running, 1,142 pages, 1,507 records, 2 failed"


def test_a_terminal_shows_the_progress_of_all_workers_in_one_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with on_dask._shown(console) as show:
        show(PROGRESS)
    assert isinstance(console.file, io.StringIO)
    assert LINE in console.file.getvalue()


def test_a_file_gets_a_line_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100)
    with on_dask._shown(console) as show:
        show(PROGRESS)
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue() == ""
        monkeypatch.setattr(on_dask, "_LINE_EVERY", 0.0)
        show(PROGRESS)
    assert console.file.getvalue() == f"{LINE}\n"
