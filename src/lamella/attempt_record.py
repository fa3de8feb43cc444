"""``AttemptRecord``: what happened in one attempt of a call."""

from __future__ import annotations

from typing import NamedTuple

from lamella.rules import WaitSource

__all__ = ["AttemptRecord"]


class AttemptRecord(NamedTuple):
    """One attempt of a call. ``status`` or ``exception`` (the name of its class) is None; times are in seconds."""

    number: int
    status: int | None
    exception: str | None
    took: float
    waited: float = 0.0
    """How long the call waited after it; 0.0 after the last one."""
    rule: str | None = None
    """The title of the rule that applied. None: the attempt did not fail."""
    wait_source: WaitSource | None = None
    """Where the length of the wait came from. None: there was none."""
    attempts_left: int | None = None
    """How many attempts were left after it. None: there is no limit."""
    deadline_left: float | None = None
    """How many seconds were left until the deadline. None: there is no deadline."""
    queued: float = 0.0
    """How long it was in the queue of its account before it was sent; not a part of ``took``."""
