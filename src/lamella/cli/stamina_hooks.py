"""What stamina says of each retry, where our own display says it better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

__all__ = ["no_stamina_hooks"]


@contextmanager
def no_stamina_hooks() -> Iterator[None]:
    """Without stamina's line for each retry: where structlog is installed, there would be hundreds, on stdout."""
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([])
    try:
        yield
    finally:
        set_on_retry_hooks(hooks)
