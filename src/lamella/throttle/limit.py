"""``Limit``: a limit that the user states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import aiohttp

from lamella.checks import check_kind, check_number, check_seconds, check_whole
from lamella.throttle.stated import StatedLimit

Limits: TypeAlias = "Limit | ReadLimits | Iterable[Limit | ReadLimits]"
"""The argument ``limits``: limits that the user states, and functions that read the limits that the server states."""
ReadLimits: TypeAlias = Callable[[Mapping[str, str]], Sequence[StatedLimit]]
"""Reads the limits that the headers of an answer state."""
Of: TypeAlias = Callable[[aiohttp.ClientRequest], str | None]
Cost: TypeAlias = Callable[[aiohttp.ClientRequest], float]


@dataclass(frozen=True, slots=True)
class Limit:
    """A known limit of an account: *requests* in any *per* seconds, or *concurrent* attempts in flight.

    Pass several limits as several values::

        [Limit(60, per=60), Limit(5000, per=86_400), Limit(concurrent=5), Limit(2, per=1, scope=path_of)]

    Args:
        requests: The number of requests that pass, or of points if *cost* is given.
        per: The period in seconds. The limit holds for a fixed window, a sliding window and a bucket that is full.
        concurrent: The maximum number of attempts in flight, in place of *requests* and *per*.
        key: Returns the owner of the limit, for a limit that does not belong to the account, such as that of an
            integrator. A *key* that returns None means one limit for all calls to the origin. None, the default, means
            the account.
        scope: Returns the name of the limit that a request counts against, for example if each path has its own. A
            *scope* that returns None means that the request counts against no limit. None, the default, means one limit
            for all.
        cost: Returns the points that a request uses, 0 or more. None, the default, means what ``Throttle(cost=)``
            returns, or else 1.

    Raises:
        ValueError: *requests* or *concurrent* is not a whole number, 1 or more, or *per* is not a finite number greater
            than 0; or a limit is stated in both ways, or in neither.
    """

    requests: int | None = None
    per: float | None = None
    concurrent: int | None = field(default=None, kw_only=True)
    key: Of | None = field(default=None, kw_only=True)
    scope: Of | None = field(default=None, kw_only=True)
    cost: Cost | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.concurrent is None:
            if self.requests is None and self.per is None:
                raise ValueError("a Limit needs requests and per, or concurrent, got none of them")
            check_whole("requests", self.requests)
            check_seconds("per", self.per)
        elif self.requests is not None or self.per is not None or self.cost is not None:
            raise ValueError(
                f"a Limit has either requests and per, or concurrent, got {self!r}: state two limits by two values"
            )
        else:
            check_whole("concurrent", self.concurrent)

    def __repr__(self) -> str:
        if self.concurrent is not None:
            shown = f"concurrent={self.concurrent!r}"
        else:
            shown = f"{self.requests!r}, per={self.per!r}"
        functions = (("key", self.key), ("scope", self.scope), ("cost", self.cost))
        return f"Limit({', '.join([shown, *(f'{name}=...' for name, given in functions if given is not None)])})"


def cost_of(request: aiohttp.ClientRequest, cost: Cost | None) -> float:
    """Return the points that *request* uses, or raise ValueError if *cost* returns no finite number, 0 or more."""
    if cost is None:
        return 1.0
    points = cost(request)
    check_number("cost", points, 0)
    return float(points)


def separated(limits: Limits | None) -> tuple[tuple[Limit, ...], tuple[ReadLimits, ...]]:
    """Return the limits that the user states and the functions that read the server's limits, or raise ValueError."""
    given = () if limits is None else tuple(limits) if isinstance(limits, Iterable) else (limits,)
    for each in given:
        kind = Limit if isinstance(each, type) else (Limit, Callable)  # a class is not a function that reads headers
        check_kind("limits", each, kind, "a Limit or a function of the headers of an answer, or several")
    stated = tuple(each for each in given if isinstance(each, Limit))
    return stated, tuple(each for each in given if not isinstance(each, Limit))
