"""What is published about the Maesn API, as tables: operations, records, and target systems with their limits.

The profile, the sandbox and the documentation are made of these tables. They hold facts of the public reference
(version 0.6.1, and what version 0.8.21 of 2026-09-22 changes) and of the public guides.
"""

from lamella.maesn.published.operations import Operation, at_path, lists, needs_account, operations, template_of
from lamella.maesn.published.records import KINDS, WITHOUT_NULLS, Field, fields_of
from lamella.maesn.published.systems import COUNTED_ERRORS, NAMES, REQUIRED, SYSTEMS, Quota, System

__all__ = [
    "COUNTED_ERRORS",
    "KINDS",
    "NAMES",
    "REQUIRED",
    "SYSTEMS",
    "WITHOUT_NULLS",
    "Field",
    "Operation",
    "Quota",
    "System",
    "at_path",
    "fields_of",
    "lists",
    "needs_account",
    "operations",
    "template_of",
]
