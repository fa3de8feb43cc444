"""The published target systems and their limits."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

SOURCE: Final = "Maesn's public guide to rate limits, as of 2026"

Per: TypeAlias = Literal["account", "path", "integrator"]
"""The scope of a limit: one account, one path of an account, or the integrator."""


class Quota(NamedTuple):
    """A limit on requests: a number per period in seconds, or a number in flight."""

    requests: int
    seconds: float | None
    """In seconds. None: the limit is on requests in flight."""
    per: Per = "account"


class System(NamedTuple):
    """A target system."""

    names: tuple[str, ...]
    """Its names in URLs. Empty if none is known."""
    quotas: tuple[Quota, ...] = ()
    """All of them apply at the same time. Empty if none is published."""
    errors_an_hour: int | None = None
    """The system blocks the account after more errors (:data:`COUNTED_ERRORS`) than this on one path within an hour."""


COUNTED_ERRORS: Final = frozenset({400, 401, 403, 404})

SYSTEMS: Final[dict[str, System]] = {
    "abacus": System((), (Quota(200, 60), Quota(12_000, 3600), Quota(30_000, 86_400))),
    "buchhaltungsbutler": System((), (Quota(100, 60),)),
    # The limits of production. The sandbox of this system allows 300 a minute.
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
"""By our name for the system, which is the name in the URL if there is only one."""

NAMES: Final = tuple(sorted(name for system in SYSTEMS.values() for name in system.names))
"""All names that URLs may contain."""

REQUIRED: Final[dict[str, dict[str, str]]] = {
    "accounts": {"datev-rewe": "fiscalYearStartDate"},
    "openItems": {"datev-rewe": "fiscalYear"},
    "paymentTerms": {"datev-rewe": "fiscalYearStartDate"},
}
"""Parameters that some systems require, by list and system."""
