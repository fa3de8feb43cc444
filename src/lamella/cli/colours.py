"""The colours of the terminal, by meaning. The page of the report, the plots and the site have the same ones."""

from __future__ import annotations

from typing import Final

PASSED: Final = "green"
RUNNING: Final = "cyan"
QUEUED: Final = "yellow"
FAILED: Final = "red"
MINOR: Final = "dim"
