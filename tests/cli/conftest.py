"""The command line as its users run it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import pytest
from tests.cli.serving import API_KEY
from tests.environment import HANGS
from typer.main import get_command

from lamella import maesn
from lamella.cli import options, sandboxed
from lamella.testing import VirtualClock, VirtualTimeLoop


@pytest.fixture(scope="session", autouse=True)
def _one_command() -> Iterator[None]:
    """Build the commands once: a runner of typer does so at each call, which takes 20 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, also with `pytest -s` at another terminal, which rich asks even where it writes to a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


@pytest.fixture
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with an API key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAESN_API_KEY", API_KEY)
    for name in ("MAESN_ACCOUNT_KEY", "MAESN_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the waits of the rules."""
    monkeypatch.setattr(options, "Settings", partial(options.Settings, rules=maesn.RULES.scaled(0.001)))


def environment(**variables: str) -> dict[str, str]:
    """The environment of the tests, which tests/environment.py has cleaned, with some *variables* more."""
    return dict(os.environ) | variables


def lamella(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in pipes."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "lamella", *arguments],
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=HANGS,
        check=False,
    )


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where *module* is not installed."""
    code = f"import sys; sys.modules[{module!r}] = None; from lamella.cli import main; main()"
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=HANGS,
        check=False,
    )


def lamella_to_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        return _lamella_into(gone, *arguments)


def lamella_to_a_full_disk(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a file that cannot be written."""
    with open("/dev/full", "wb") as full:
        return _lamella_into(full, *arguments)


def _lamella_into(stdout: IO[bytes], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "lamella", *arguments],
        env=environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=HANGS,
        check=False,
    )


@contextmanager
def minding_ctrl_c() -> Iterator[None]:
    """A process that is started inside ends by Ctrl-C: in the background of a shell that is ignored, and inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def start(*arguments: str, changes: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start the command with its output in pipes; kill it at the end, also if the test fails before that.

    *changes* is code that runs before the command.
    """
    program = ["-m", "lamella"] if changes is None else ["-c", f"{changes}\nfrom lamella.cli import main\nmain()"]
    with minding_ctrl_c():
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *program, *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """Run commands of this process on virtual time, and return its clock: waits count, the speed of the machine not."""
    clock = VirtualClock()

    def run(main: Coroutine[Any, Any, object]) -> object:
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
            return runner.run(main)

    monkeypatch.setattr(asyncio, "run", run)
    return clock


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox's sync with shorter waits."""
    monkeypatch.setattr(sandboxed, "SCALE", 1 / 400)
    monkeypatch.setattr(sandboxed, "_OUTAGE", 0.3)
