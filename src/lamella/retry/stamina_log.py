"""Reduce stamina's log lines: by default it logs a warning for each retry, thousands in a storm."""

from __future__ import annotations

import logging

NAME = "lamella.Retry"
"""The name that stamina's hooks get for a retry by lamella."""


def _quieten(record: logging.LogRecord) -> bool:
    """Lower stamina's default log line for a lamella retry to DEBUG."""
    ours = getattr(record, "stamina.callable", "") == NAME
    if ours and record.levelno == logging.WARNING:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)
    return True


logging.getLogger("stamina").addFilter(_quieten)
