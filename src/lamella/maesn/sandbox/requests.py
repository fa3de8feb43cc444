"""Received requests, and how they end: by a script or by chance."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus

from multidict import MultiMapping

from lamella.checks import check_number
from lamella.maesn.sandbox.replies import Reply
from lamella.testing.faults import Fault

Step = int | Fault | Reply
"""One step of a script: 200 to respond as usual, an error status, a Fault, or a Reply."""


@dataclass(slots=True, repr=False)
class Received:
    """A received request. `at` is the loop's time in seconds, `account` the account key in its header.

    `outcome` is the status or the Fault of the response; None before it is sent, or if the client disconnected first.
    """

    number: int
    at: float
    method: str
    path: str
    query: MultiMapping[str]
    headers: MultiMapping[str]
    account: str | None
    body: bytes = b""
    outcome: int | Fault | None = None

    def __repr__(self) -> str:
        return f"<Received {self.number}: {self.method} {self.path} at {self.at:.3f} s: {self.outcome!r}>"


@dataclass(slots=True)
class Script:
    """Steps for the next matching requests. None matches anything."""

    steps: list[Step]
    method: str | None
    path: str | None
    account: str | None

    def matches(self, received: Received) -> bool:
        """Return whether the script applies to this request."""
        return (
            self.method in {None, received.method}
            and (self.path is None or fnmatchcase(received.path, self.path))
            and self.account in {None, received.account}
        )


class Chances:
    """The probability of each outcome. Raises ValueError for an invalid probability or a sum above 1."""

    def __init__(self, chances: Mapping[int | Fault, float], seed: int) -> None:
        for outcome, chance in chances.items():
            if not isinstance(outcome, Fault):
                _check_error_status("an outcome in chances", outcome)
            check_number(f"the chance of {outcome!r}", chance, 0)
        if math.fsum(chances.values()) > 1:
            raise ValueError(f"the sum of chances must be at most 1, got {dict(chances)!r}")
        self._chances = dict(chances)
        self._seed = seed

    def draw(self, number: int) -> int | Fault | None:
        """Return the outcome of request *number*, which depends only on that number. None: respond as usual."""
        if not self._chances:
            return None
        drawn = random.Random(f"{self._seed}/{number}").random()
        for outcome, chance in self._chances.items():
            if drawn < chance:
                return outcome
            drawn -= chance
        return None


def check_step(name: str, step: object) -> None:
    """Raise ValueError unless *step* is a Step."""
    if isinstance(step, bool) or not isinstance(step, int | Fault | Reply):
        raise ValueError(f"{name} must be a status, a Fault or a Reply, got {step!r}")  # noqa: TRY004
    if isinstance(step, int) and step != HTTPStatus.OK:
        _check_error_status(name, step)


def _check_error_status(name: str, status: object) -> None:
    if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599:
        raise ValueError(f"{name} must be a status from 400 to 599, got {status!r}")
