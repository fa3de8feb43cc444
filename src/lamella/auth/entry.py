"""The state of one key: its token, the running fetch, and when the endpoint may be called again."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from math import inf
from typing import Final

from lamella.auth.token import Held
from lamella.pipeline import runs_beside

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds until a failed endpoint is called again, doubled for each consecutive failure."""
_LONGEST_ASKED: Final = 300.0
"""The longest wait in seconds that an endpoint can request."""


class Fetch:
    """One fetch of the token of one key."""

    __slots__ = ("after", "began", "ended", "given_up", "loop", "task", "waiters")

    task: asyncio.Task[Held]

    def __init__(self, loop: asyncio.AbstractEventLoop, after: Fetch | None) -> None:
        self.loop: Final[asyncio.AbstractEventLoop] = loop
        self.began: float = loop.time()
        self.after: Fetch | None = after
        """An abandoned fetch that has to end first."""
        self.ended: Future[Held | BaseException] = Future()
        self.ended.set_running_or_notify_cancel()  # a cancelled waiter must not cancel the fetch
        self.given_up: bool = False
        """Whether it was cancelled because no call was waiting for it."""
        self.waiters: float = 0.0
        """The number of waiting calls; infinity for a background fetch."""

    def is_lost(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether the fetch belongs to another loop than *loop*, one that is not running in this process."""
        return self.loop is not loop and not runs_beside(self.loop, loop)

    def leave(self) -> bool:
        """Remove one waiting call. Return whether it was the last one."""
        self.waiters -= 1
        self.given_up = not self.waiters and not self.ended.done()
        return self.given_up


class Entry:
    """The state of one key."""

    __slots__ = ("ask_from", "failing_since", "failures", "fetch", "held")

    def __init__(self) -> None:
        self.held: Held | None = None
        self.fetch: Fetch | None = None
        """The running fetch."""
        self.failures: int = 0
        """The number of consecutive failed fetches."""
        self.failing_since: float = 0.0
        self.ask_from: float = -inf
        """When the endpoint may be called again."""

    def is_useful(self, now: float) -> bool:
        """Return whether dropping the entry would lose something."""
        return self.fetch is not None or now < self.ask_from or (self.held is not None and now < self.held.expires)

    def keep(self, held: Held) -> None:
        """Store the result of a fetch."""
        self.failures, self.held = 0, held
        if held.expires <= held.fetched:
            self.refuse(held)

    def refuse(self, held: Held) -> None:
        """Drop *held*. A server that accepts no token must not cause a fetch for every call."""
        self.held = None
        self.ask_from = held.fetched + _FIRST_PAUSE

    def fail(self, began: float, now: float, asked: float) -> None:
        """Record the failure of a fetch that *began* at that time. The endpoint *asked* for a wait of this many
        seconds."""
        if not self.failures:
            self.failing_since = began
        self.failures += 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(self.failures - 1, 30), _LONGEST_PAUSE)
        self.ask_from = now + max(pause, min(asked, _LONGEST_ASKED))

    def give_up(self, began: float) -> None:
        """Record that a fetch that *began* at that time was cancelled because no call was waiting for it."""
        self.ask_from = max(self.ask_from, began + _FIRST_PAUSE)
