"""The Maesn accounting API: its rules, by the vendor's error-handling guide, its credentials, its lists, and a sync."""

from lamella.maesn.account import Account, account, current_account
from lamella.maesn.export import export
from lamella.maesn.list_errors import AnswerFailed, EmptyPage, IncompleteList, RepeatedPage, UnsteadyList
from lamella.maesn.pages import PAGE_LIMITS, Page, pages, records
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session
from lamella.maesn.sync import Part, Progress, Report, plan, sync

__all__ = [
    "BASE_URL",
    "PAGE_LIMITS",
    "RULES",
    "Account",
    "AnswerFailed",
    "EmptyPage",
    "IncompleteList",
    "Page",
    "Part",
    "Progress",
    "RepeatedPage",
    "Report",
    "UnsteadyList",
    "account",
    "current_account",
    "export",
    "layers",
    "pages",
    "plan",
    "records",
    "session",
    "sync",
]
