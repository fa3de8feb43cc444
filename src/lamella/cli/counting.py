"""The numbers of a run, for whatever shows them: the screen and the page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Total"]


@dataclass(frozen=True, slots=True)
class Total:
    """A number with its name. ``nested``: it is a part of the one before it."""

    name: str
    value: str
    note: str = ""
    nested: bool = False
