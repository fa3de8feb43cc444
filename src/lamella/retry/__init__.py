"""``Retry``: ask the rules, wait, send again; and the budget that limits the added load."""

from lamella.retry.layer import Retry

__all__ = ["Retry"]
