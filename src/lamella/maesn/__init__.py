"""The Maesn accounting API: retry rules from the vendor's error-handling guide, credentials, lists, and a sync.

The names of lists, of the sync and of tasks are imported on first use: a service that makes calls needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lamella.maesn.account import Account, account, current_account
from lamella.maesn.guard import ErrorGuard, TooManyErrors
from lamella.maesn.limits import limits_of
from lamella.maesn.rules import RULES
from lamella.maesn.session import BASE_URL, layers, session

if TYPE_CHECKING:
    from lamella.maesn.lists import pages, plan, records
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

_LATER: Final = {
    "lists": "pages plan records",
    "sources": "PAGE_LIMITS source",
    "syncing": "sync",
    "tasks": "Task TaskFailed TaskUnfinished finished task",
}
_MODULES: Final = {name: f"lamella.maesn.{module}" for module, names in _LATER.items() for name in names.split()}

if not TYPE_CHECKING:  # type checkers must know exactly the names above

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
