"""Read the tables of the published API, which are text files in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def rows(name: str) -> Iterator[str]:
    """Yield the lines of a table without comments and empty lines. Raises FileNotFoundError if there is none."""
    table = Path(__file__).with_name(name).read_text("utf-8")
    return (line for line in table.splitlines() if line.strip() and not line.startswith("#"))
