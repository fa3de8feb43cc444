"""The Maesn accounting API: its rules, by the vendor's error-handling guide, its credentials, its lists, and a sync."""

from lamella.maesn.account import Account, account, current_account
from lamella.maesn.export import export
from lamella.maesn.list_errors import AnswerFailed, EmptyPage, IncompleteList, RepeatedPage, UnsteadyList
from lamella.maesn.page import PAGE_LIMITS, Page
from lamella.maesn.pages import pages, records
from lamella.maesn.progress import Part, Progress, Report
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session
from lamella.maesn.sync import plan, sync

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
