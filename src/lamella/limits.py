"""The limits of the current attempt, for work that ends in time by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

from lamella.call import Call, PerCall

ATTEMPT_END: Final = PerCall[float](lambda: inf)
"""When ``Timeout`` ends the attempt, by the loop's clock."""

_ENDS_ITSELF: Final = PerCall[bool](lambda: False)


def cancels(call: Call) -> bool:
    """Return whether a limit that falls due may cancel *call* now."""
    return _ENDS_ITSELF not in call.state


@contextmanager
def not_cancelled(call: Call) -> Iterator[float]:
    """Keep the limits of *call* from cancelling the block; yield when it must have ended, by the loop's clock.

    The block has a limit of its own. Were both to cancel it in one turn of the loop, as they do when the loop was
    busy, the outer one would count, and the result of the block would be lost. A limit that falls due meanwhile is
    passed over: the result of the block counts.
    """
    _ENDS_ITSELF.set(call, True)
    try:
        yield min(ATTEMPT_END.of(call), inf if call.deadline is None else call.deadline)
    finally:
        _ENDS_ITSELF.take(call)
