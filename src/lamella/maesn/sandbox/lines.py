"""Read and change the lines of a record at their own path. They are stored in the record."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from lamella.maesn.published.operations import Operation
from lamella.maesn.sandbox.choices import PAGE_SIZE
from lamella.maesn.sandbox.made import complete, ids_of
from lamella.maesn.sandbox.queries import PAGE_SIZES
from lamella.maesn.sandbox.records import Table
from lamella.maesn.sandbox.replies import Reply, failure, success

_LINES: Final = "lineItems"


def answer_for_lines(
    operation: Operation, table: Table, values: tuple[str, ...], fields: dict[str, Any], query: Mapping[str, str]
) -> Reply:
    """Read or change the lines of a record of `table`; `values` holds the id of the record and, for one line, its
    id."""
    record = table.get(values[0])
    if record is None:
        return failure(HTTPStatus.NOT_FOUND, f"Record {values[0]!r} does not exist.")
    lines = record[_LINES] or []
    kind, names = operation.data, ids_of(operation.data)
    if len(values) == 1:
        if operation.method == "GET":
            return _page(operation, lines, query)
        line = complete(kind, {**fields, **dict.fromkeys(names)}, str(len(lines) + 1))
        table.change(values[0], {_LINES: [*lines, line]})
        return success([*lines, line] if operation.many else line, status=operation.status)
    place = next((place for place, line in enumerate(lines) if values[1] in [line[name] for name in names]), None)
    if place is None:
        return failure(HTTPStatus.NOT_FOUND, f"Line {values[1]!r} does not exist.")
    if operation.method != "GET":
        own = dict.fromkeys(names, values[1])
        lines[place] = complete(kind, {**(lines[place] if operation.method == "PATCH" else {}), **fields, **own})
        table.change(values[0], {_LINES: lines})
    return success(lines if operation.many else lines[place], status=operation.status)


def _page(operation: Operation, lines: list[dict[str, Any]], query: Mapping[str, str]) -> Reply:
    if "limit" not in operation.query:
        return success(lines, meta=None)
    try:
        limit, page = int(query.get("limit", PAGE_SIZE)), int(query.get("page", 1))
    except ValueError:
        limit = page = 0
    if limit not in PAGE_SIZES or page < 1:
        return failure(HTTPStatus.BAD_REQUEST, invalid=[("page", "and limit must be numbers that are allowed")])
    total = len(lines)
    pagination = {"total": total, "perPage": limit, "currentPage": page, "totalPages": -(-total // limit)}
    shown = lines[(page - 1) * limit : page * limit]
    return success(shown, meta={"warnings": [], "pagination": pagination})
