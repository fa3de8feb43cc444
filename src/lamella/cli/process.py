"""Settings and limits of the whole process, and its signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

_MOST_CONNECTIONS: Final = 500


def connections() -> int:
    """Return the maximum number of connections: half of the files that the process may open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(min(files // 2, _MOST_CONNECTIONS), 1)


@contextmanager
def without_stamina_hooks() -> Iterator[None]:
    """Switch off stamina's log line per retry: with structlog installed, hundreds of them would go to stdout."""
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)


@contextmanager
def on_signals(interrupt: Callable[[], object], *, once: bool = False) -> Iterator[None]:
    """Call *interrupt* in the event loop on SIGINT and SIGTERM. With *once*, the second signal has its usual effect."""
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []

    def release() -> None:
        while taken:
            loop.remove_signal_handler(taken.pop())

    def handle() -> None:
        if once:
            release()
        interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal that is already ignored, as for a background job, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                loop.add_signal_handler(number, handle)
                taken.append(number)
    try:
        yield
    finally:
        release()


@contextmanager
def cancelled_by_signals(
    task: asyncio.Task[object], say: Callable[[], object], *, once: bool = False
) -> Iterator[None]:
    """Cancel *task* on SIGINT and SIGTERM, and call *say*. With *once*, the second signal has its usual effect."""

    def interrupt() -> None:
        task.cancel()
        say()

    with on_signals(interrupt, once=once):
        yield
