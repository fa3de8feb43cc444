"""Tests of code that calls an API: faults and rate limits for a server, and a clock on which waits take no time.

The names are imported when they are first used: every pytest run loads the plugin in this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults import Fault
    from .limits import FixedWindow, Limit, Limiter, SlidingWindow, TokenBucket
    from .virtual_time import VirtualClock, VirtualTimeLoop, run_virtual, virtual_clock

__all__ = (
    "Fault",
    "FixedWindow",
    "Limit",
    "Limiter",
    "SlidingWindow",
    "TokenBucket",
    "VirtualClock",
    "VirtualTimeLoop",
    "run_virtual",
    "virtual_clock",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "faults" if name == "Fault" else "virtual_time" if "irtual" in name else "limits"
    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
