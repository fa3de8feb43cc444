"""How much retries may add to the load: a token bucket, as arithmetic on a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lamella.checks import check_number


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """What all calls of a session together may spend on retries.

    Every call brings in *ratio* of a retry, and each retry takes a whole one; what is left over is kept, up to
    *capacity*, with which a session begins. So in an outage no more than *ratio* is added to the load, whatever each
    call by itself would try. gRPC's retry throttling and the retry quota of the AWS SDKs do the same.

    Two kinds of retries are free: after a rate limit (429, or 503 with ``Retry-After``), which says when to come back,
    and the immediate one on a connection that was closed while idle.

    Raises:
        ValueError: *ratio* is below 0 or not finite, or *capacity* is below 1 or not finite.
    """

    ratio: float = 0.2
    capacity: float = 50.0

    def __post_init__(self) -> None:
        check_number("ratio", self.ratio, 0)
        check_number("capacity", self.capacity, 1)


DEFAULT_BUDGET: Final = RetryBudget()
"""What a stack has unless it is told otherwise."""


@dataclass(slots=True)
class Spent:
    """How much is missing from a full capacity. A JSON value, as stores need it."""

    missing: float = 0.0


def take(spent: Spent, _now: float, budget: RetryBudget, calls: int) -> bool:
    """Whether one more retry may be made; *calls* is how many calls have been made since it was asked last."""
    spent.missing = max(spent.missing - budget.ratio * calls, 0.0)
    # In sums of shares, a rounding error must not cost a whole retry.
    if spent.missing + 1 > budget.capacity + 1e-9:
        return False
    spent.missing += 1
    return True
