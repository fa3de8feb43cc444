"""What --verbose adds: a line for each failed attempt."""

from __future__ import annotations

import aiohttp

from lamella.attempt_record import AttemptRecord
from lamella.cli.terminal import duration, warn
from lamella.errors import LamellaError
from lamella.pipeline import Result
from lamella.redaction import redact_url


def say_failed(request: aiohttp.ClientRequest, result: Result, record: AttemptRecord) -> None:
    """Print on stderr what came back for an attempt that failed, and what follows."""
    if not isinstance(result, LamellaError):
        return
    stopped = result.stopped
    follows = f"next attempt in {duration(record.waited)}" if stopped is None else f"stopped: {stopped.phrase}"
    warn(f"{request.method} {redact_url(request.url)}: {record.status or record.exception}; {follows}")
