"""The calls of the demo, and what the sandbox does with each: all of it from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Final

from lamella.testing import Account, Fault, FixedWindow, Reply, Sandbox
from lamella.testing.sandbox import Step

__all__ = ["FEWEST_ACCOUNTS", "Planned", "Settings", "make_plan", "make_sandbox"]

FEWEST_ACCOUNTS: Final = 4
"""One that works, one that is rate-limited for hours, one that has expired and one that is inactive."""

_REQUESTS_A_MINUTE = 10
_RESOURCES = ("bills", "contacts", "customers", "invoices", "items", "payments")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo is asked for. ``scale`` is how many seconds a second of the rules takes."""

    calls: int
    accounts: int
    seed: int
    scale: float


@dataclass(frozen=True, slots=True)
class Planned:
    """One call. ``meets`` is what happens to its first sends; those after them are answered as usual."""

    number: int
    account: str
    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, Any] | None
    meets: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of call, and its share among all; of a share of 0 there is just one."""

    share: int
    method: str
    path: str
    meets: tuple[Step, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    state: str = "active"
    has_key: bool = False
    alone: bool = False
    """Whether it blocks its account for so long that it gets one of its own."""


_RECORD = "/accounting/invoices/{id}"
_KINDS = (
    _Kind(120, "GET", "/accounting/{resource}", params={"limit": "20"}),
    _Kind(60, "GET", _RECORD),
    _Kind(20, "POST", "/accounting/contacts"),
    # What goes away when one tries again.
    _Kind(16, "GET", _RECORD, (500,)),
    _Kind(6, "GET", _RECORD, (500, 503)),
    _Kind(6, "GET", _RECORD, (500, Fault.RESET_BEFORE_HEADERS, Fault.CUT_BODY)),
    _Kind(8, "GET", _RECORD, (Fault.RESET_BEFORE_HEADERS,)),
    _Kind(6, "GET", _RECORD, (Fault.RESET_AFTER_HEADERS,)),
    _Kind(8, "GET", _RECORD, (Fault.CUT_BODY,)),
    _Kind(6, "GET", _RECORD, (Fault.GARBAGE,)),
    _Kind(6, "GET", _RECORD, (Fault.SLOW_BODY,)),
    _Kind(2, "GET", _RECORD, (Fault.SILENCE,)),
    # A write that may have been carried out is sent again only where its key makes that harmless.
    _Kind(3, "POST", "/accounting/bills", (500,)),
    _Kind(3, "POST", "/accounting/expenses", (Fault.RESET_BEFORE_HEADERS,)),
    _Kind(3, "POST", "/accounting/offers", (Fault.RESET_BEFORE_HEADERS,), has_key=True),
    # What does not go away.
    _Kind(3, "GET", _RECORD, (500,) * 5),
    _Kind(0, "GET", _RECORD, (Reply(429, headers={"Retry-After": "7200"}),), alone=True),
    _Kind(4, "GET", "/accounting/invoices", params={"limit": "7", "page": "0"}),
    _Kind(4, "GET", "/accounting/invoices/no-such-invoice"),
    _Kind(2, "GET", "/accounting/unicorns"),
    _Kind(2, "GET", "/auth/abacus"),
    _Kind(4, "GET", "/accounting/invoices", state="expired"),
    _Kind(4, "GET", "/accounting/invoices", state="inactive"),
)


def make_sandbox(settings: Settings) -> Sandbox:
    """The server of the demo: the last of its accounts is inactive, the one before it has expired.

    The one before these is rate-limited for hours, as the scripts of its calls have it.

    Each has so many requests in a minute, which the scale shortens. The first account is told how long to wait, and
    that in whole seconds: the one wait that no scale shortens. The others are not told.
    """
    minute = 60 * settings.scale
    accounts = [Account(f"demo-account-key-{number}") for number in range(1, settings.accounts + 1)]
    accounts[0] = replace(accounts[0], limit=FixedWindow(_REQUESTS_A_MINUTE, minute))
    accounts[-2] = replace(accounts[-2], state="expired")
    accounts[-1] = replace(accounts[-1], state="inactive")
    limit = FixedWindow(_REQUESTS_A_MINUTE, minute, retry_after=False)
    return Sandbox(accounts=accounts, limit=limit, seed=settings.seed, pause=0.005)


def make_plan(settings: Settings, sandbox: Sandbox) -> tuple[Planned, ...]:
    """The calls, in the order in which they begin: one of each kind, the others by their shares."""
    rng = random.Random(settings.seed)
    kinds = list(_KINDS)[: settings.calls]
    kinds += rng.choices(_KINDS, [kind.share for kind in _KINDS], k=settings.calls - len(kinds))
    rng.shuffle(kinds)

    @cache
    def invoices(account: str) -> list[str]:
        return [record["invoiceId"] for record in sandbox.records("invoices", account)]

    return tuple(_planned(number, kind, sandbox, invoices, rng) for number, kind in enumerate(kinds, 1))


def _planned(
    number: int, kind: _Kind, sandbox: Sandbox, invoices: Callable[[str], list[str]], rng: random.Random
) -> Planned:
    *others, lonely = [account.key for account in sandbox.accounts if account.state == kind.state]
    account = rng.choice([lonely] if kind.alone or not others else others)
    ids = invoices(account)
    return Planned(
        number=number,
        account=account,
        method=kind.method,
        path=kind.path.format(resource=rng.choice(_RESOURCES), id=ids[number % len(ids)]),
        params=kind.params,
        headers={"Idempotency-Key": f"demo-{number}"} if kind.has_key else {},
        body={"name": f"Demo {number}"} if kind.method == "POST" else None,
        meets=kind.meets,
    )
