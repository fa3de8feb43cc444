"""Child processes and the pipes to them. It must not import lamella: a child chooses which checkout's it imports."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["GRACE", "child", "readable", "receive"]

GRACE = 30.0  # seconds for a process to start, or to report that it is done


@contextmanager
def child(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[SpawnProcess, Connection]]:
    """Run *target* in a fresh process, with the arguments and one end of a pipe; kill it when the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), daemon=True)
    try:
        process.start()
        theirs.close()  # otherwise neither process notices that the other is gone
        yield process, ours
    finally:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()


def receive(process: BaseProcess, pipe: Connection, limit: float) -> Any:
    """Return what a child sends. Raises RuntimeError if it ends, or sends nothing for *limit* seconds."""
    if not pipe.poll(limit):
        raise RuntimeError(f"sent nothing for {limit:.0f} s")
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join(GRACE)
        raise RuntimeError(f"crashed, exit code {process.exitcode}") from None


async def readable(pipe: Connection) -> None:
    """Wait until there is something to read in the pipe, or its other end is closed."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(pipe.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(pipe.fileno())
