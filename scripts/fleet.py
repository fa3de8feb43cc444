"""Start a real Redis, run a command against it, and stop it again.

    python -m scripts.fleet -- python -m pytest tests/fleet

The command finds its address in LAMELLA_REDIS_URL. Redis comes from Debian's packages if it is not there. It has a free
port and a temporary folder, and ends with the command, however it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

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

REDIS_SECONDS = 30.0


def start_redis(folder: Path, signals: Signals, stack: ExitStack) -> str:
    """Start Redis without a file of its own, and return its URL."""
    install("redis-server", "Redis", ("redis-server",))
    [port] = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = Process("Redis", command, env=os.environ, log=folder / "redis.log")
    stack.callback(process.stop, signal.SIGTERM, BACKEND_STOP_SECONDS)
    ends = time.monotonic() + REDIS_SECONDS
    while not _answers(port):
        signals.check()
        if process.status is not None or time.monotonic() > ends:
            raise BackendError(f"Redis is not ready, status {process.status};{process.tail()}")
        time.sleep(LOOK_EVERY)
    return f"redis://127.0.0.1:{port}"


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def run(command: Sequence[str], signals: Signals) -> int:
    """Start Redis, run the command, stop both; the command's exit status."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-fleet-")))
        env = os.environ | {"LAMELLA_REDIS_URL": start_redis(folder, signals, stack)}
        process = Process(command[0], command, env=env, log=None)
        # SIGINT, on which pytest still tears its fixtures down.
        stack.callback(process.stop, signal.SIGINT, COMMAND_STOP_SECONDS)
        return process.wait(signals, COMMAND_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command against a real Redis.")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    arguments = parser.parse_args()
    return exit_status(lambda signals: run(arguments.command, signals))


if __name__ == "__main__":
    sys.exit(main())
