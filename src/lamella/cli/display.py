"""What is to be seen of a sync while it goes on: live on a terminal, else in lines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import typer
from rich.console import Console

from lamella.cli.lines import Lines
from lamella.cli.live import on_screen
from lamella.cli.overview import Overview

__all__ = ["Display", "Look", "display_on"]

Look = Callable[[], Overview | None]
"""How a sync stands. None: it has not begun."""


class Display(Protocol):
    """It is drawn every so many seconds."""

    @property
    def every(self) -> float:
        """Seconds."""
        ...

    def draw(self) -> None:
        """Show how it stands now."""
        ...

    def note(self, text: str) -> None:
        """Show this, too."""
        ...


def display_on(console: Console) -> Callable[[Look], AbstractContextManager[Display]]:
    """What suits *console*, for the length of a context."""
    # Not console.is_terminal: FORCE_COLOR makes that true of a pipe.
    if console.file.isatty() and console.is_interactive:
        return lambda look: on_screen(console, look)
    return lambda look: nullcontext(Lines(look, lambda line: typer.echo(line, err=console.stderr)))
