"""The command line: ``lamella sync``, ``sandbox``, ``explain`` and more. It needs the extra ``cli``."""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the console script ``lamella``."""
    try:
        _main()
    except KeyboardInterrupt:  # interrupted while loading; later each command prints its own message
        sys.exit(130)
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        print(f"lamella: {exc.filename or 'stdout'} cannot be written: {exc.strerror}", file=sys.stderr)
        sys.exit(1)
    finally:
        _drop_unwritten()


def _drop_unwritten() -> None:
    """Drop what stdout cannot take: Python would try to write it again at its exit, and end with the code 120."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
