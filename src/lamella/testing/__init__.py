"""Tools to test code that calls an API: server faults, rate limits, and a virtual clock.

Names are imported on first use, because every pytest run loads the plugin in this package.
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
