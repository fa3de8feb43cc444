"""The target systems that are named in public, and the limits that they set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

SOURCE: Final = "Maesn's public guide to rate limits, as of 2026"

Per: TypeAlias = Literal["account", "path", "integrator"]
"""What a limit counts: the requests of one account, those of one account to one path, or those of the integrator."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of requests: so many in so many seconds, or so many at a time."""

    requests: int
    seconds: float | None
    """None: so many at a time."""
    per: Per = "account"


@dataclass(frozen=True, slots=True)
class System:
    """A target system."""

    names: tuple[str, ...]
    """Its names in a URL. Empty: none is known."""
    quotas: tuple[Quota, ...] = ()
    """All of them hold at the same time. Empty: none is published."""
    errors_an_hour: int | None = None
    """After more than so many errors (:data:`COUNTED_ERRORS`) of one path within an hour it blocks the account."""


COUNTED_ERRORS: Final = frozenset({400, 401, 403, 404})

SYSTEMS: Final[dict[str, System]] = {
    "abacus": System((), (Quota(200, 60), Quota(12_000, 3600), Quota(30_000, 86_400))),
    "buchhaltungsbutler": System((), (Quota(100, 60),)),
    # In production; its sandbox allows 300 a minute.
    "businesscentral": System(("businesscentral",), (Quota(5, None), Quota(600, 60))),
    "datev-rewe": System(("datev-rewe", "datev-rewe-longtoken", "datev-rewe-export"), (Quota(100, 5),)),
    "exact": System(("exact-nl", "exact-de", "exact-gb"), (Quota(60, 60), Quota(5_000, 86_400)), errors_an_hour=10),
    "freshbooks": System(("freshbooks",)),
    "lexware-office": System(("lexware-office",), (Quota(2, 1, "path"), Quota(5, 1, "integrator"))),
    "moneybird": System(("moneybird",)),
    "qonto": System(("qonto",)),
    "quickbooks": System(("quickbooks",), (Quota(10, None), Quota(500, 60))),
    "sage-active": System((), (Quota(3_000, 60, "integrator"),)),
    "sevdesk": System(("sevdesk",)),
    "weclapp": System(("weclapp",)),
    "xentral": System(("xentral",), (Quota(100, 60),)),
    "xero": System(("xero",)),
}
"""By a name of ours, which is the one in a URL where there is only one."""

NAMES: Final = tuple(sorted(name for system in SYSTEMS.values() for name in system.names))
"""The names that a URL may have."""

REQUIRED: Final[dict[str, dict[str, str]]] = {
    "accounts": {"datev-rewe": "fiscalYearStartDate"},
    "openItems": {"datev-rewe": "fiscalYear"},
    "paymentTerms": {"datev-rewe": "fiscalYearStartDate"},
}
"""Parameters that a list needs at some systems, by the list and the system."""
