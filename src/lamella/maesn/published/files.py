"""Read the tables of the published API, which are text files in this folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator


def rows(name: str) -> Iterator[str]:
    """Yield the lines of a table without comments and empty lines."""
    table = pkgutil.get_data(__name__, name) or b""
    return (line for line in table.decode().splitlines() if line.strip() and not line.startswith("#"))
