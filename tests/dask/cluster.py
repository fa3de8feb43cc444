"""A Dask scheduler and workers, each a process of its own, which a test kills, freezes and thaws."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

__all__ = ["Cluster", "until"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_LONGEST: Final = 120.0  # seconds until a process is there, or gone
_LOOK_EVERY: Final = 0.01
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
# Else a worker imports it in its own loop, as the run begins: on a busy machine that takes longer than its time.
_PRELOAD: Final = [
    *("--preload", "lamella.dataset.on_dask"),
    *("--preload", "tests.dask.noting"),
    *("--preload", "tests.dask.hooks"),
]
_CONFIG: Final = {
    # However slow the machine is, no worker is taken for dead unless the test says so.
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1h",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h",  # no log lines about a slow machine
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",  # for so long a driver looks for a scheduler that was killed
}


class Cluster:
    """An async context manager.

    Args:
        folder: For the files of the processes, such as the journals of shards that are under way.
        environ: More of the environment of the workers.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.address = ""
        self._all: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._environ = {**os.environ, **_CONFIG, **environ, "PYTHONPATH": str(_ROOT), "TMPDIR": str(folder)}
        self._file = folder / "scheduler.json"

    async def __aenter__(self) -> Cluster:
        self._folder.mkdir()
        await self.start_scheduler()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._all:
            with suppress(ProcessLookupError):
                process.kill()  # also one that is frozen
        for process in self._all:
            process.wait(_LONGEST)

    async def start_scheduler(self) -> None:
        """Start a scheduler, also in the place of one that was killed."""
        self._file.unlink(missing_ok=True)
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(self._file))
        await until(lambda: self._file.exists() and self._file.read_text().endswith("}"))
        self.address = json.loads(self._file.read_text())["address"]

    def add(self, count: int = 1) -> list[subprocess.Popen[bytes]]:
        """Start so many workers and return them. They join when they are ready."""
        arguments = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", *_PRELOAD)
        return [self._start("worker", self.address, *arguments) for _ in range(count)]

    def set(self, name: str, value: str) -> None:
        """Set a variable of the processes that are started from now on."""
        self._environ[name] = value

    def run(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a module that finds the scheduler's address in its environment."""
        return self._popen("driver", ["-m", module, *arguments], {"LAMELLA_TEST_SCHEDULER": self.address})

    async def ended(self, process: subprocess.Popen[bytes], longest: float = _LONGEST) -> int:
        """Wait until a process has ended; return its exit code."""
        await until(lambda: process.poll() is not None, longest)
        return process.returncode

    @staticmethod
    def freeze(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)

    @staticmethod
    def thaw(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """Return what all processes have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        return self._popen(kind, ["-m", "dask", kind, *arguments, "--no-dashboard", "--host", "127.0.0.1"])

    def _popen(self, kind: str, arguments: list[str], environ: Mapping[str, str] = NOTHING) -> subprocess.Popen[bytes]:
        number = len(list(self._folder.glob("*.log")))
        with (self._folder / f"{number}-{kind}.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, *arguments],
                stdout=log,
                stderr=log,
                env={**self._environ, **environ},
                cwd=self._folder,
            )
        self._all.append(process)
        return process


async def until(condition: Callable[[], object], longest: float = _LONGEST) -> None:
    """Wait until the condition holds, which depends on other processes: it is looked at now and then."""
    async with asyncio.timeout(longest):
        while not condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(_LOOK_EVERY)
