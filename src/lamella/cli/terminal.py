"""What all commands write with."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console, RenderableType

from lamella.cli.words import plain

__all__ = ["console", "fail", "show", "warn"]


def console(*, stderr: bool = False) -> Console:
    """A console that shows a text from elsewhere as what it is: without markup, emoji or highlighting."""
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr)


def show(console: Console, *parts: RenderableType) -> None:
    """Print *parts*; into a pipe without the spaces that rich fills each line of a table with."""
    for part in parts:
        if console.is_terminal:
            console.print(part)
            continue
        with console.capture() as captured:
            console.print(part)
        typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), err=console.stderr)


def warn(message: str) -> None:
    """Tell something in one line, beside what is asked for."""
    typer.echo(f"lamella: {plain(message)}", err=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Tell in one line why the command ends here."""
    warn(message)
    raise typer.Exit(code)
