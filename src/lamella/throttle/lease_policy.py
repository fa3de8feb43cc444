"""``Policy``: decides which permits the holders of a lease get, by the functions that decide in one process."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, Protocol

from lamella.rules.backoff import Backoff
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.limit import Limit
from lamella.throttle.permits import answered, next_permit, refused
from lamella.throttle.stated import StatedLimit
from lamella.throttle.usage import InFlight, Usage, record, take, uses


class Outcome(NamedTuple):
    """The result of a leased permit. Times are by the clock of the state."""

    permit: Permit
    """The permit as it was leased."""
    sent: float
    ended: float
    kind: Literal["passed", "refused", "unknown", "unused"]
    """"unknown": there was no answer, but the server may have counted the attempt."""
    backoff: Backoff | None = None
    retry_after: float | None = None
    says: Sequence[StatedLimit] = ()


class Policy(Protocol):
    """Decides who may send."""

    @property
    def limits_in_flight(self) -> bool:
        """Whether the attempts in flight have a stated limit, so that others wait for the results of a holder."""
        ...

    def new(self) -> Any:
        """Return an empty state."""
        ...

    def loaded(self, values: dict[str, Any]) -> Any:
        """Return a state from its JSON values."""
        ...

    def issue(self, known: Any, now: float, in_flight: Sequence[float], points: float, asked: Asked) -> Permit | Wait:
        """Return a permit of *asked.cost* points, or the wait for one. *points* is the total of *in_flight*."""
        ...

    def settle(self, known: Any, outcome: Outcome, others: int) -> Wait | None:
        """Record an outcome. Return the wait if it is a refusal that begins one."""
        ...

    def used(self, known: Any, now: float, points: float) -> None:
        """Record that somebody may have used *points*."""
        ...

    def period(self, known: Any) -> float:
        """Return the period of the shortest limit in seconds."""
        ...

    def is_free(self, known: Any) -> bool:
        """Return whether no limit is known."""
        ...

    def share(self, known: Any, holders: int, used_up_at: float | None = None) -> tuple[Any, Policy]:
        """Return the state and policy of one of *holders* that cannot reach the store.

        *used_up_at* is when the other holders may have used the rest of the limit. None: no holder waited for it.
        """
        ...


class Learned(NamedTuple):
    """Issues permits by the learned limit of an account."""

    assumed: float
    """The period in seconds to assume until the real one is known."""
    learns: bool = True

    @property
    def limits_in_flight(self) -> bool:
        """Return False: such a limit is not stated."""
        return False

    def new(self) -> RateEstimate:
        """Return an empty state."""
        return RateEstimate()

    def loaded(self, values: dict[str, Any]) -> RateEstimate:
        """Return a state from its JSON values."""
        return RateEstimate(**values)

    def issue(
        self, known: RateEstimate, now: float, in_flight: Sequence[float], points: float, asked: Asked
    ) -> Permit | Wait:
        """Return a permit, or the wait for one."""
        asked = Asked(self.learns, asked.waiting, asked.waited, points - len(in_flight), asked.cost)
        return next_permit(known, now, in_flight, self.assumed, asked)

    def settle(self, known: RateEstimate, outcome: Outcome, others: int) -> Wait | None:
        """Record an outcome. Return the wait that a refusal begins."""
        permit, now = outcome.permit.at_time(outcome.sent), outcome.ended
        if outcome.kind == "passed":
            answered(known, now, permit, others, self.learns, outcome.says)
        elif outcome.kind == "unknown":
            known.record(now, permit.cost)
        elif outcome.kind == "refused":
            asks = outcome.backoff, outcome.retry_after
            return refused(known, now, permit, *asks, others=others, says=outcome.says)
        return None

    def used(self, known: RateEstimate, now: float, points: float) -> None:
        """Record that somebody may have used *points*."""
        known.record(now, points)

    def period(self, known: RateEstimate) -> float:
        """Return the period in seconds."""
        return known.period or self.assumed

    def is_free(self, known: RateEstimate) -> bool:
        """Return whether no limit is known."""
        return known.untouched

    def share(self, known: RateEstimate, holders: int, used_up_at: float | None = None) -> tuple[RateEstimate, Learned]:
        """Return the state and policy of one of *holders* that cannot reach the store."""
        own = deepcopy(known)
        for name in ("requests", "good", "burst", "passed", "max_in_flight", "most", "most_tried"):
            number = getattr(own, name)
            setattr(own, name, max(number / holders, 1.0) if number else number)
        for entry in own.log:
            entry[2] /= holders
        if used_up_at is not None and (left := own.requests - own.count(used_up_at - own.period)) > 0:
            own.record(used_up_at, left)
        return own, self


class Stated(NamedTuple):
    """Issues permits by the limits that the user states."""

    limits: tuple[Limit, ...]

    @property
    def limits_in_flight(self) -> bool:
        """Return whether there is such a limit."""
        return any(limit.concurrent is not None for limit in self.limits)

    def new(self) -> Usage:
        """Return an empty state."""
        return Usage()

    def loaded(self, values: dict[str, Any]) -> Usage:
        """Return a state from its JSON values."""
        return Usage(**values)

    def issue(self, known: Usage, now: float, in_flight: Sequence[float], points: float, asked: Asked) -> Permit | Wait:
        """Return a permit, or the wait for one."""
        return take(known, now, InFlight(len(in_flight), points), self.limits, asked.cost)

    def settle(self, known: Usage, outcome: Outcome, others: int) -> Wait | None:
        """Record an outcome."""
        if outcome.kind in {"passed", "unknown"}:
            record(known, outcome.ended, self.limits, outcome.permit.cost)
        return None

    def used(self, known: Usage, now: float, points: float) -> None:
        """Record that somebody may have used *points*."""
        record(known, now, self.limits, points)

    def period(self, known: Usage) -> float:
        """Return the period of the shortest limit in seconds."""
        return min((limit.per for limit in self.limits if limit.per is not None), default=1.0)

    def is_free(self, known: Usage) -> bool:
        """Return False: a limit is known."""
        return False

    def share(self, known: Usage, holders: int, used_up_at: float | None = None) -> tuple[Usage, Stated]:
        """Return the state and policy of one of *holders* that cannot reach the store."""
        own = Usage({per: [[a, b, n / holders] for a, b, n in log] for per, log in known.logs.items()})
        limits = tuple(_share(limit, holders) for limit in self.limits)
        if used_up_at is not None:
            shown = uses(own, used_up_at, InFlight(0, 0.0), [limit for limit in limits if limit.per is not None])
            record(own, used_up_at, limits, min((each.remaining for each in shown), default=0.0))
        return own, Stated(limits)


def _share(limit: Limit, holders: int) -> Limit:
    if limit.concurrent is not None:
        return Limit(concurrent=max(limit.concurrent // holders, 1))
    return Limit(max((limit.requests or 0) // holders, 1), limit.per)
