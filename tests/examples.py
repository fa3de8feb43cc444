"""How many random examples a test of hypothesis takes, and of which characters its texts are."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

__all__ = ["CHARACTERS", "examples"]

_THOROUGH = 100
"""As many as the thorough profile of conftest.py has; the quick one has 10."""

CHARACTERS = st.characters(exclude_categories=["Cs"])
"""All that UTF-8 can encode. In a fresh clone, hypothesis takes three seconds to find the same ones by their codec."""


def examples(number: int, **more: Any) -> settings:
    """Return settings with *number* examples by the thorough profile, and a proportionate part by another one."""
    return settings(max_examples=max(1, number * settings().max_examples // _THOROUGH), **more)
