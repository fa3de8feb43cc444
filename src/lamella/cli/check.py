"""What is checked at the end of a demonstration."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold. ``fault`` says in which way it does not; None: it holds."""

    what: str
    fault: str | None
