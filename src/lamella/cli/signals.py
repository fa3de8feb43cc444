"""Call a function on SIGINT and SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


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
