"""The command line as its users run it, and a small result of the demo."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider

from lamella.cli.demo import Result, run
from lamella.cli.plan import Settings

SMALL = Settings(calls=40, accounts=4, seed=3, scale=0.001)
"""Enough calls for one of each kind."""


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, also with `pytest -s` at another terminal, which rich asks even where it writes to a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


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
        timeout=60,
        check=False,
    )


def lamella_to_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        return subprocess.run(  # noqa: S603
            [sys.executable, "-m", "lamella", *arguments],
            env=environment(),
            stdout=gone,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
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


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command with its output in pipes."""
    with minding_ctrl_c():
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "lamella", *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )


@pytest.fixture(scope="session")
def result() -> Result:
    """A real run with one call of each kind at least."""
    return asyncio.run(run(SMALL, TracerProvider()))
