"""The Maesn accounting API: its rules, by the vendor's error-handling guide, its credentials and its lists."""

from lamella.maesn.account import account
from lamella.maesn.pages import PAGE_LIMITS, Page, pages, records
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session

__all__ = ["BASE_URL", "PAGE_LIMITS", "RULES", "Page", "account", "layers", "pages", "records", "session"]
