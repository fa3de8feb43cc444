"""A sync engine for any paginated source. It stores all records as the API sent them, and reports what may be
missing."""

from lamella.sync.errors import (
    AnswerFailed,
    BadRecord,
    EmptyPage,
    IncompleteList,
    RepeatedPage,
    SchemaMismatch,
    TooManyDeparted,
    UnsteadyList,
)
from lamella.sync.export import export
from lamella.sync.lists import pages, records
from lamella.sync.page import Page
from lamella.sync.progress import Part, Progress, Report
from lamella.sync.run import plan, run
from lamella.sync.source import Cursor, LinkHeader, NextUrl, Numbered, Offset, Pagination, Source
from lamella.sync.stated import failure_in
from lamella.sync.tables import Table

__all__ = [
    "AnswerFailed",
    "BadRecord",
    "Cursor",
    "EmptyPage",
    "IncompleteList",
    "LinkHeader",
    "NextUrl",
    "Numbered",
    "Offset",
    "Page",
    "Pagination",
    "Part",
    "Progress",
    "RepeatedPage",
    "Report",
    "SchemaMismatch",
    "Source",
    "Table",
    "TooManyDeparted",
    "UnsteadyList",
    "export",
    "failure_in",
    "pages",
    "plan",
    "records",
    "run",
]
