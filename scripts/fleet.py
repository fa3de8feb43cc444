"""Start a real Redis and a real PostgreSQL, run a command against them, and stop them again.

    python -m scripts.fleet -- python -m pytest tests/fleet

The command finds their addresses in LAMELLA_REDIS_URL and LAMELLA_POSTGRES_URL, and PostgreSQL's log in
LAMELLA_POSTGRES_LOG. Both come from Debian's packages if they are not there. Each has a free port and a temporary
folder, and ends with the command, however it ends.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from scripts.backends import (
    BACKEND_STOP_SECONDS,
    COMMAND_SECONDS,
    COMMAND_STOP_SECONDS,
    LOOK_EVERY,
    BackendError,
    Process,
    Signals,
    exit_status,
    free_ports,
    install,
)

READY_SECONDS: Final = 30.0
PASSWORD: Final = "zq-pa55word"  # noqa: S105 - of a server that ends with us
USER: Final = "lamella"


class Server(ABC):
    """A server that can be frozen, killed and started again. It ends with the ``with`` block, or with this process."""

    name: str

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._process: Process | None = None
        self.folder = Path()
        self.port = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Its address, with a password if it has one."""

    @property
    def log(self) -> Path:
        """The file of its log."""
        return self.folder / "log"

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command that starts it."""

    @abstractmethod
    def answers(self) -> bool:
        """Return whether it is ready."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what has to be done once."""

    def __enter__(self) -> Server:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"lamella-{self.name}-")))
        self._stack.callback(self.kill)
        [self.port] = free_ports(1)
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, signals: Signals | None = None) -> None:
        """Start it and wait until it is ready."""
        ends = time.monotonic() + READY_SECONDS
        while self._process is None or not self.answers():
            if signals is not None:
                signals.check()
            if time.monotonic() > ends:
                raise BackendError(f"{self.name} is not ready;{self._process.tail() if self._process else ''}")
            if self._process is None or self._process.status is not None:
                # Once more: processes of the one that was killed may still end.
                self._process = Process(self.name, self.command(), env=os.environ, log=self.log)
            time.sleep(LOOK_EVERY)

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            self._process.stop(signal.SIGINT, BACKEND_STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """Kill it with all its processes, frozen or not."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.stop(signal.SIGKILL, BACKEND_STOP_SECONDS)
            self._process = None

    def freeze(self) -> None:
        """Stop all its processes until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            for pid in (self._process.pid, *_children(self._process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Redis(Server):
    """A Redis that keeps nothing on its disk."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        install("redis-server", "Redis", ("redis-server",))

    def command(self) -> list[str]:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return ["redis-server", *place, "--save", ""]

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        return False


class Postgres(Server):
    """A PostgreSQL that another user runs if we are root, which it refuses."""

    name = "postgres"

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def prepare(self) -> None:
        self._programs = _postgres_programs()
        (self.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            for path in (self.folder, self.folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        make = ["-D", str(self.folder / "data"), "-U", USER, "-E", "UTF8", "--no-locale", "--no-sync"]
        make += ["--auth=scram-sha-256", f"--pwfile={self.folder / 'password'}"]
        done = subprocess.run(  # noqa: S603
            [*self._as_user(), str(self._programs / "initdb"), *make], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BackendError(f"initdb failed: {done.stdout}{done.stderr}")

    def _as_user(self) -> list[str]:
        # With the signal once more: it is lost with the change of the user.
        change = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "KILL"]
        return change if os.geteuid() == 0 else []

    def command(self) -> list[str]:
        settings = ["unix_socket_directories=", "listen_addresses=127.0.0.1", "fsync=off", "max_connections=100"]
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        return [*self._as_user(), *command, *(part for setting in settings for part in ("-c", setting))]

    def answers(self) -> bool:
        status = subprocess.run(  # noqa: S603
            [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return status.returncode == 0


def _postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs. Debian does not have it in PATH."""

    def found() -> Path | None:
        if (there := shutil.which("initdb")) is not None:
            return Path(there).resolve().parent
        folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
        return max((each.parent for each in folders), key=lambda each: int(each.parent.name), default=None)

    folder = found()
    if folder is None:
        install("postgresql", "PostgreSQL", ("initdb",))
        folder = found()
    if folder is None:
        raise BackendError("initdb not found in /usr/lib/postgresql. Install PostgreSQL by hand, and run this again")
    return folder


def run(command: Sequence[str], signals: Signals, seconds: float) -> int:
    """Start the servers, run the command, stop all; the command's exit status."""
    with ExitStack() as stack:
        redis, postgres = stack.enter_context(Redis()), stack.enter_context(Postgres())
        env = os.environ | {
            "LAMELLA_REDIS_URL": redis.url,
            "LAMELLA_POSTGRES_URL": postgres.url,
            "LAMELLA_POSTGRES_LOG": str(postgres.log),
        }
        process = Process(command[0], command, env=env, log=None)
        # SIGINT, on which pytest still tears its fixtures down.
        stack.callback(process.stop, signal.SIGINT, COMMAND_STOP_SECONDS)
        return process.wait(signals, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command against a real Redis and a real PostgreSQL.")
    parser.add_argument("--seconds", type=float, default=COMMAND_SECONDS, help="how long the command may take")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    arguments = parser.parse_args()
    return exit_status(lambda signals: run(arguments.command, signals, arguments.seconds))


if __name__ == "__main__":
    sys.exit(main())
