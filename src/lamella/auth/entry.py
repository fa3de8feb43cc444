"""What is known of one key: its token, the fetch under way, and when the endpoint may be asked again."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from math import inf
from typing import Final

from lamella.auth.token import Held

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds until an endpoint that failed is asked again: doubled for each failure in a row."""
_LONGEST_ASKED: Final = 300.0
"""No longer do calls wait because an endpoint asks for it."""


class Fetch:
    """One fetch of the token of one key."""

    __slots__ = ("after", "began", "ended", "given_up", "loop", "task", "waiters")

    task: asyncio.Task[Held]

    def __init__(self, loop: asyncio.AbstractEventLoop, after: Fetch | None) -> None:
        self.loop: Final[asyncio.AbstractEventLoop] = loop
        self.began: float = loop.time()
        self.after: Fetch | None = after
        """One that was given up, and has to end first."""
        self.ended: Future[Held | BaseException] = Future()
        self.ended.set_running_or_notify_cancel()  # a waiter that is cancelled must not cancel it
        self.given_up: bool = False
        """Whether it was cancelled, since no call waited for it any more."""
        self.waiters: float = 0.0
        """How many calls wait for it; infinity in the background."""

    def is_lost(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether it can make no progress while *loop* runs: it is in another one that does not."""
        return self.loop is not loop and not self.loop.is_running()

    def leave(self) -> bool:
        """Let a call wait for it no longer. Return whether it was the last one."""
        self.waiters -= 1
        self.given_up = not self.waiters and not self.ended.done()
        return self.given_up


class Entry:
    """What is known of one key."""

    __slots__ = ("ask_from", "failing_since", "failures", "fetch", "held")

    def __init__(self) -> None:
        self.held: Held | None = None
        self.fetch: Fetch | None = None
        """The fetch that is under way."""
        self.failures: int = 0
        """How many fetches have failed in a row."""
        self.failing_since: float = 0.0
        self.ask_from: float = -inf
        """From when on the endpoint may be asked."""

    def is_useful(self, now: float) -> bool:
        """Return whether something would be lost without it."""
        return self.fetch is not None or now < self.ask_from or (self.held is not None and now < self.held.expires)

    def keep(self, held: Held) -> None:
        """Take over what a fetch has brought."""
        self.failures, self.held = 0, held
        if held.expires <= held.fetched:
            self.refuse(held)

    def refuse(self, held: Held) -> None:
        """Drop *held*. A server that accepts no token must not make each call ask for another one."""
        self.held = None
        self.ask_from = held.fetched + _FIRST_PAUSE

    def fail(self, began: float, now: float, asked: float) -> None:
        """Note that a fetch, which *began* at that moment, has failed. The endpoint *asked* for so many seconds."""
        if not self.failures:
            self.failing_since = began
        self.failures += 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(self.failures - 1, 30), _LONGEST_PAUSE)
        self.ask_from = now + max(pause, min(asked, _LONGEST_ASKED))

    def give_up(self, began: float) -> None:
        """Note that a fetch, which *began* at that moment, was cancelled: nobody waited for it any more."""
        self.ask_from = max(self.ask_from, began + _FIRST_PAUSE)
