"""stamina writes a warning for each retry by default: in a storm there are thousands."""

from __future__ import annotations

import logging

NAME = "lamella.Retry"
"""The name by which stamina's hooks see a retry of lamella's."""


def _quieten(record: logging.LogRecord) -> bool:
    """Let stamina's default line for a retry of lamella's through at DEBUG only."""
    ours = getattr(record, "stamina.callable", "") == NAME
    if ours and record.levelno == logging.WARNING:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    return True


logging.getLogger("stamina").addFilter(_quieten)
