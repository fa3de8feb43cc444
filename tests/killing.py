"""An async main in a process of its own, which is killed by SIGKILL at a moment that one picks, or runs to its end.

    await killed(main, url, path, when=lambda: len(sandbox.received) >= 7, turns=3)
    await completed(main, url, path)

The process is a fork of one that has imported lamella already: it is there after some milliseconds. *main* is a
function of a module, and its arguments can be pickled. What it talks to (a ``Sandbox``, say) may run on the loop of the
caller, which goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
import sys
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any, Final

import anyio

__all__ = ["Main", "completed", "killed"]

Main = Callable[..., Coroutine[Any, Any, object]]

_WARM: Final = {"aiohttp", "anyio", "lamella", "pytest"}
_ORPHANED: Final = 120  # seconds after which it ends by itself: whoever should kill it may have been killed, too


async def killed(main: Main, *args: object, when: Callable[[], bool], turns: int = 0) -> None:
    """Run *main* until *when* returns True, and for so many more *turns* of this loop; then kill it, and reap it.

    *when* is asked once a turn. So the moment depends on what the others have seen of it, and on no clock.

    Raises:
        AssertionError: It has ended by itself; how is in the message.
    """
    async with _process(main, args) as (process, problem):
        while not when():
            await _turn(process, problem)
        for _ in range(turns):
            await _turn(process, problem)
        process.kill()
        await anyio.wait_readable(process.sentinel)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{main.__name__} has ended before it was killed"


async def completed(main: Main, *args: object) -> None:
    """Run *main* to its end.

    Raises:
        AssertionError: It ended in an error, whose traceback is in the message.
    """
    async with _process(main, args) as (process, problem):
        await anyio.wait_readable(process.sentinel)
        process.join()
        assert process.exitcode == 0, _told(process, problem)


async def _turn(process: ForkServerProcess, problem: Connection) -> None:
    await asyncio.sleep(0)
    assert process.exitcode is None, _told(process, problem)


def _told(process: ForkServerProcess, problem: Connection) -> str:
    try:
        return f"exit code {process.exitcode}:\n{problem.recv()}"
    except EOFError:
        return f"it has ended, exit code {process.exitcode}"


@asynccontextmanager
async def _process(main: Main, args: tuple[object, ...]) -> AsyncIterator[tuple[ForkServerProcess, Connection]]:
    """A process that has begun, and what it may have to tell; it does not outlive the block."""
    context = multiprocessing.get_context("forkserver")
    # By the time of the first one: what was imported here is not to be imported in each of them.
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] in _WARM])
    ours, theirs = context.Pipe(duplex=False)
    with ours:
        with theirs:
            process = context.Process(target=_run, args=(main, args, theirs))
            process.start()
        try:
            yield process, ours
        finally:
            process.kill()
            process.join()
            process.close()


def _run(main: Main, args: tuple[object, ...], problem: Connection) -> None:
    signal.alarm(_ORPHANED)
    random.seed()  # a fork has the numbers of the process that it is of, and so had each other one
    warnings.simplefilter("error")
    try:
        asyncio.run(main(*args))
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        problem.send(traceback.format_exc())
        raise SystemExit(1) from None
