"""Tests of code that calls the API: a server that fails on purpose, and a clock that waits for nothing.

Nothing here needs the rest of lamella. The names are imported when they are first used: the pytest plugin stands in
this package too, and every pytest run loads it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults import Fault
    from .limits import FixedWindow, Limit, Limiter, SlidingWindow, TokenBucket
    from .replies import Reply
    from .sandbox import Account, Received, Sandbox
    from .virtual_time import VirtualClock, VirtualTimeLoop, run_virtual, virtual_clock

__all__ = (
    "Account",
    "Fault",
    "FixedWindow",
    "Limit",
    "Limiter",
    "Received",
    "Reply",
    "Sandbox",
    "SlidingWindow",
    "TokenBucket",
    "VirtualClock",
    "VirtualTimeLoop",
    "run_virtual",
    "virtual_clock",
)

_MODULES = {
    "Account": "sandbox",
    "Fault": "faults",
    "FixedWindow": "limits",
    "Limit": "limits",
    "Limiter": "limits",
    "Received": "sandbox",
    "Reply": "replies",
    "Sandbox": "sandbox",
    "SlidingWindow": "limits",
    "TokenBucket": "limits",
    "VirtualClock": "virtual_time",
    "VirtualTimeLoop": "virtual_time",
    "run_virtual": "virtual_time",
    "virtual_clock": "virtual_time",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
