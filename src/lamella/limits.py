"""The time limits of the current attempt, for work with a limit of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

from lamella.call import Call, PerCall

ATTEMPT_END: Final = PerCall[float](lambda: inf)
"""When ``Timeout`` will end the attempt, by the loop's clock."""

_ENDS_ITSELF: Final = PerCall[bool](lambda: False)


def cancels(call: Call) -> bool:
    """Return whether an expired limit may cancel *call* now."""
    return _ENDS_ITSELF not in call.state


@contextmanager
def not_cancelled(call: Call) -> Iterator[float]:
    """Keep the limits of *call* from cancelling the block; yield the time by which it must end, by the loop's clock.

    The block has its own limit. If both cancelled it in one iteration of the loop, which happens when the loop was
    busy, the outer one would win and the result of the block would be lost. So a limit that expires meanwhile is
    ignored.
    """
    _ENDS_ITSELF.set(call, True)
    try:
        yield min(ATTEMPT_END.of(call), inf if call.deadline is None else call.deadline)
    finally:
        _ENDS_ITSELF.take(call)
