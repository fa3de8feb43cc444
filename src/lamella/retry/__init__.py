"""``Retry``: ask the rules, wait, send again; and the budget that bounds how much that adds."""

from lamella.retry.layer import Retry

__all__ = ["Retry"]
