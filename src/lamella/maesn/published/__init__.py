"""Tables of the published Maesn API: operations, records, and target systems with their limits.

The profile, the sandbox and the documentation are built from these tables. Sources: the public API reference (version
0.6.1, with the changes of version 0.8.21 of 2026-09-22) and the public guides.
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
