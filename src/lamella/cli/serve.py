"""``lamella sandbox``: the server of the tests, for a terminal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress

from lamella.cli.words import plain
from lamella.maesn.sandbox import Received, Sandbox
from lamella.testing import Fault, FixedWindow

__all__ = ["line_for", "parse_chance", "parse_limit", "serve"]

_LOOK_EVERY = 0.1  # seconds
_SHOWN_OF_KEY = 6  # characters


def parse_limit(text: str) -> FixedWindow:
    """A limit from ``"100/60"``: 100 requests in 60 seconds.

    Raises:
        ValueError: It does not look like that.
    """
    requests, _, per = text.partition("/")
    try:
        return FixedWindow(int(requests), float(per))
    except ValueError:
        raise ValueError(f"{plain(repr(text))} is not like 100/60, requests/seconds") from None


def parse_chance(text: str) -> tuple[int | Fault, float]:
    """An outcome and its chance, from ``"500=0.05"`` or ``"cut_body=0.01"``.

    Raises:
        ValueError: It does not look like that, or there is no such fault.
    """
    name, _, chance = text.partition("=")
    name = name.strip()
    faults = {fault.name.lower(): fault for fault in Fault}
    try:
        outcome = int(name) if name.isdigit() else faults[name.lower().replace("-", "_")]
        return outcome, float(chance)
    except (KeyError, ValueError):
        names = "\n".join(f"  {name}" for name in faults)
        raise ValueError(f"{plain(repr(text))} is not like 500=0.05. In place of the 500, one of\n{names}") from None


async def serve(sandbox: Sandbox, on_start: Callable[[], object], on_request: Callable[[Received], object]) -> None:
    """Serve until SIGTERM or a cancellation. *on_request* gets each request once its end is settled.

    Raises:
        OSError: The address cannot be had.
    """
    terminated = asyncio.Event()
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    open_: list[Received] = []
    async with sandbox:
        on_start()
        try:
            while not terminated.is_set():
                await asyncio.sleep(_LOOK_EVERY)
                open_ = _report(sandbox, open_, on_request)
        finally:
            _report(sandbox, open_, on_request)


def _report(sandbox: Sandbox, open_: list[Received], on_request: Callable[[Received], object]) -> list[Received]:
    """Report what is settled, and return what is not. The sandbox forgets them: it may run for days."""
    seen = [*open_, *sandbox.received]
    sandbox.received.clear()
    for received in seen:
        if received.outcome is not None:
            on_request(received)
    return [received for received in seen if received.outcome is None]


def line_for(received: Received) -> str:
    """A request in a line. Of the account's key only the end: somebody may have sent a real one."""
    key = received.account
    account = "-" if key is None else f"…{key[-min(_SHOWN_OF_KEY, len(key) // 2) :]}"
    outcome = received.outcome.name.lower() if isinstance(received.outcome, Fault) else received.outcome
    return f"{outcome}  {received.method} {received.path}  {account}"
