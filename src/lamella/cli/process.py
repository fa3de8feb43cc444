"""What the command sets for its whole process, or asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

_MOST_CONNECTIONS: Final = 500


def connections() -> int:
    """Return how many connections there may be: at most half of the files that a process may open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(min(files // 2, _MOST_CONNECTIONS), 1)


@contextmanager
def without_stamina_hooks() -> Iterator[None]:
    """Switch stamina's line for each retry off: where structlog is installed, there would be hundreds, on stdout."""
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)
