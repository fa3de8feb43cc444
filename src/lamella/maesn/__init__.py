"""The Maesn accounting API: retry rules from the vendor's error-handling guide, credentials, lists, and a sync."""

from lamella.maesn.account import Account, account, current_account
from lamella.maesn.guard import ErrorGuard, TooManyErrors
from lamella.maesn.limits import limits_of
from lamella.maesn.lists import pages, plan, records
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session
from lamella.maesn.sources import PAGE_LIMITS, source
from lamella.maesn.syncing import sync
from lamella.maesn.tasks import Task, TaskFailed, TaskUnfinished, finished, task

__all__ = [
    "BASE_URL",
    "PAGE_LIMITS",
    "RULES",
    "Account",
    "ErrorGuard",
    "Task",
    "TaskFailed",
    "TaskUnfinished",
    "TooManyErrors",
    "account",
    "current_account",
    "finished",
    "layers",
    "limits_of",
    "pages",
    "plan",
    "records",
    "session",
    "source",
    "sync",
    "task",
]
