"""The Maesn accounting API: its rules, by the vendor's error-handling guide, its credentials, its lists, and a sync."""

from lamella.maesn.account import Account, account, current_account
from lamella.maesn.lists import PAGE_LIMITS, pages, plan, records, source, sync
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session

__all__ = [
    "BASE_URL",
    "PAGE_LIMITS",
    "RULES",
    "Account",
    "account",
    "current_account",
    "layers",
    "pages",
    "plan",
    "records",
    "session",
    "source",
    "sync",
]
