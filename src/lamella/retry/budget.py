"""Limit the load that retries add: a token bucket as arithmetic on a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lamella.checks import check_number


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """The retry budget of all calls of a session.

    Every call adds *ratio* to the budget and each retry takes 1. The budget holds at most *capacity*, which is also its
    initial value. So in an outage retries add at most *ratio* to the load, whatever single calls would try. gRPC's
    retry throttling and the retry quota of the AWS SDKs work in the same way.

    Two kinds of retries are free: after a rate limit (429, or 503 with ``Retry-After``), and the immediate retry on a
    connection that was closed while idle.

    Raises:
        ValueError: *ratio* is below 0 or not finite, or *capacity* is below 1 or not finite.
    """

    ratio: float = 0.2
    capacity: float = 50.0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0)
        check_number("capacity", self.capacity, 1)


DEFAULT_BUDGET: Final = RetryBudget()
"""The default budget of a stack."""


@dataclass(repr=False, slots=True)
class Spent:
    """The amount missing from the full capacity, as a JSON value for stores."""

    missing: float = 0.0


def take(spent: Spent, _now: float, budget: RetryBudget, calls: int, wanted: int = 1) -> int:
    """Return how many retries may be made, up to *wanted*; *calls* is the number of calls since the last question."""
    spent.missing = max(spent.missing - budget.ratio * calls, 0.0)
    # A rounding error in sums of fractions must not cost a whole retry.
    taken = min(int(budget.capacity - spent.missing + 1e-9), wanted)
    spent.missing += taken
    return taken
