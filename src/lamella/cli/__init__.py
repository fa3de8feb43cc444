"""The command line: ``lamella sync``, ``sandbox`` and ``explain``. It needs the extra ``cli``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """What the console script ``lamella`` runs."""
    try:
        _main()
    except KeyboardInterrupt:  # while it was being loaded: each command has its own words for later
        sys.exit(130)


def _main() -> None:
    try:
        from lamella.cli.app import app
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in {"rich", "typer"}:
            raise
        print(f"lamella: {missing} is missing: pip install 'lamella[cli]'", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # A pipe may have an encoding that lacks a character of ours.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    app(prog_name="lamella")
