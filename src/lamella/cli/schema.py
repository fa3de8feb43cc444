"""Read a schema, the typed columns of an output, from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lamella.redaction import redact_text
from lamella.sync import Table
from lamella.sync.tables import check_tables


def tables_in(path: Path) -> dict[str, Table]:
    """Return the tables of a file: a table for each resource, with the type of each column.

    A nested table is a child table: ``[invoices.lineItems]``. Raises ValueError that names the file and the fault.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read: {exc.strerror or type(exc).__name__}") from None
    except ValueError as exc:
        raise ValueError(f"{path}: is not valid TOML: {redact_text(str(exc))}") from None
    try:
        tables = {resource: _table(resource, columns) for resource, columns in found.items()}
        check_tables(tables)
    except ValueError as exc:
        raise ValueError(f"{path}: {exc}") from None
    if not tables:
        raise ValueError(f"{path}: contains no tables: write [invoices] and the type of each column")
    return tables


def _table(resource: str, columns: object) -> Table:
    if not isinstance(columns, dict):
        raise ValueError(f"{resource} must be a table of columns")  # noqa: TRY004 - the file is wrong
    children = {name: types for name, types in columns.items() if isinstance(types, dict)}
    own = {name: kind for name, kind in columns.items() if name not in children}
    for name, types in {resource: own, **children}.items():
        if not all(isinstance(kind, str) for kind in types.values()):
            raise ValueError(f"{name} must contain the types of its columns as strings")
    return Table(own, children)
