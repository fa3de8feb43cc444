"""What is killed is gone, and what was not killed as it should have been is told."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from tests.killing import Main, completed, killed


def begin(path: Path) -> None:
    path.write_text(str(os.getpid()))


async def waits(path: Path) -> None:
    begin(path)
    await asyncio.Event().wait()


async def fails(path: Path) -> None:
    begin(path)
    raise LookupError("not there")


async def ends(path: Path) -> None:
    begin(path)


def has_begun(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


def is_gone(path: Path) -> bool:
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
async def test_a_killed_process_is_gone_when_kill_returns(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    asked = 0

    def begun() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1 and has_begun(path)

    await killed(waits, path, when=begun, turns=3)
    assert asked > 1
    assert int(path.read_text()) != os.getpid()
    assert is_gone(path)


@pytest.mark.slow
@pytest.mark.parametrize(("main", "told"), [(fails, "LookupError: not there"), (ends, "it has ended, exit code 0")])
async def test_a_process_that_ends_normally_was_not_killed(tmp_path: Path, main: Main, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        await killed(main, tmp_path / "pid", when=lambda: False)
    assert is_gone(tmp_path / "pid")


@pytest.mark.slow
async def test_a_process_that_ends_normally_succeeded(tmp_path: Path) -> None:
    await completed(ends, tmp_path / "pid")
    assert is_gone(tmp_path / "pid")
    with pytest.raises(AssertionError, match=re.compile(r"exit code 1:.*in fails.*LookupError: not there", re.DOTALL)):
        await completed(fails, tmp_path / "pid")


async def test_a_cancelled_caller_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    task = asyncio.create_task(completed(waits, path))
    while not has_begun(path):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(path)
