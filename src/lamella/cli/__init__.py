"""The command line: ``lamella sync``, ``sandbox``, ``explain`` and more. It needs the extra ``cli``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the console script ``lamella``."""
    try:
        _main()
    except KeyboardInterrupt:  # interrupted while loading; later each command prints its own message
        sys.exit(130)


def _main() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The encoding of a pipe may lack a character that we print.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    try:
        from lamella.cli.app import app

        app(prog_name="lamella")
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"rich", "typer"}:
            raise
        print(f"lamella: {missing} is missing: pip install 'lamella[cli]'", file=sys.stderr)
        sys.exit(2)
