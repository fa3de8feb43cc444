"""How many random examples a test of hypothesis takes."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

__all__ = ["examples"]

_THOROUGH = 100
"""As many as the thorough profile of conftest.py has; the quick one has 10."""


def examples(number: int, **more: Any) -> settings:
    """Return settings with *number* examples by the thorough profile, and a proportionate part by another one."""
    return settings(max_examples=max(1, number * settings().max_examples // _THOROUGH), **more)
