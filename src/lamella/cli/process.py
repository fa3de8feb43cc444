"""Settings and limits of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

_MOST_CONNECTIONS: Final = 500


def connections() -> int:
    """Return the maximum number of connections: half of the files that the process may open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(min(files // 2, _MOST_CONNECTIONS), 1)


@contextmanager
def without_stamina_hooks() -> Iterator[None]:
    """Switch off stamina's log line per retry: with structlog installed, hundreds of them would go to stdout."""
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)
