"""The logger of lamella."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any, Final


class _Logger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose filters and handlers cannot make the caller fail."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log like :meth:`logging.Logger.log`. Print an exception of a filter or handler, as a handler of Python
        does."""
        try:
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:  # noqa: BLE001 - of a filter or handler
            if logging.raiseExceptions and sys.stderr:
                with suppress(OSError, ValueError):  # stderr is closed
                    traceback.print_exc()


LOGGER: Final = _Logger(logging.getLogger("lamella"))
"""The logger has no handler, because the application decides where log lines go."""
LOGGER.logger.addHandler(logging.NullHandler())
