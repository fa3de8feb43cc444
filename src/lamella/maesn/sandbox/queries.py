"""Apply the query of a list: page, filters and order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from lamella.maesn.published.operations import Operation
from lamella.maesn.published.records import fields_of
from lamella.maesn.sandbox.choices import LONGEST_WITHOUT_PAGES, PAGE_SIZE
from lamella.maesn.sandbox.made import Record, milliseconds
from lamella.maesn.sandbox.records import Table
from lamella.maesn.sandbox.replies import Reply, failure, success

PAGE_SIZES: Final = (5, 10, 20, 50, 100)
_MOST_DIGITS: Final = 18

_Test = Callable[[Record], bool]


def listed(operation: Operation, table: Table, query: Mapping[str, str]) -> Reply:
    """Return the response to a request for a list."""
    invalid: list[tuple[str, str]] = []
    has_pages = "limit" in operation.query
    limit = _whole(query.get("limit"), PAGE_SIZE) if has_pages else LONGEST_WITHOUT_PAGES
    if has_pages and limit not in PAGE_SIZES:
        invalid.append(("limit", f"must be one of {', '.join(map(str, PAGE_SIZES))}"))
    page = _whole(query.get("page"), 1) if has_pages else 1
    if page is None or page < 1:
        invalid.append(("page", "must be a whole number, 1 or more"))
    since = None
    if "lastModifiedAt" in operation.query and (moment := query.get("lastModifiedAt")) is not None:
        since = _moment(moment)
        if since is None:
            invalid.append(("lastModifiedAt", "must be a date or a date and time in ISO 8601"))
    names = [field.name for field in fields_of(operation.data)]
    order = query.get("orderField") if "orderField" in operation.query else None
    if order is not None and order not in names:
        invalid.append(("orderField", "must be a field of the records"))
    direction = query.get("orderDir", "ASC") if "orderDir" in operation.query else "ASC"
    if direction not in {"ASC", "DESC"}:
        invalid.append(("orderDir", "must be ASC or DESC"))
    if invalid or limit is None or page is None:
        return failure(HTTPStatus.BAD_REQUEST, invalid=invalid)

    records, total = table.page(
        page,
        limit,
        # Records without a date always count as changed.
        since if {"updatedDate", "lastModifiedDate"} & set(names) else None,
        _filter(operation, query),
        None if order is None else lambda record: (record[order] is not None, str(record[order])),
        last_first=direction == "DESC",
    )
    if not has_pages:
        return success(records, meta=None)
    pagination = {"total": total, "perPage": limit, "currentPage": page, "totalPages": -(-total // limit)}
    return success(records, meta={"warnings": [], "pagination": pagination})


_TESTS: Final[dict[str, Callable[[Record, str], bool]]] = {
    "classFilter": lambda record, value: record.get("class") in value.split(","),
    "dueDateFrom": lambda record, value: str(record.get("dueDate") or "") >= value,
    "email": lambda record, value: value in [each["email"] for each in record["emailAddresses"] or ()],
    "invoiceId": lambda record, value: value in [each["invoiceId"] for each in record["paymentLines"] or ()],
    "isActive": lambda record, value: ("status" not in record) or (record["status"] == "ACTIVE") == (value == "true"),
    "name": lambda record, value: record.get("companyName") == value,
    "types": lambda record, value: str(record.get("type")) in value.split(","),
}
"""Filters whose name is not the name of a field."""


def _filter(operation: Operation, query: Mapping[str, str]) -> _Test | None:
    """Return the predicate of the filters; None if there are no filters."""
    names = {field.name for field in fields_of(operation.data)}
    tests = []
    for name in operation.query:
        value = query.get(name)
        if value is not None and (name in _TESTS or name in names):
            tests.append((_TESTS.get(name) or _equals(name), value))
    return (lambda record: all(test(record, value) for test, value in tests)) if tests else None


def _equals(name: str) -> Callable[[Record, str], Any]:
    return lambda record, value: str(record[name]) == value


def _whole(text: str | None, default: int) -> int | None:
    """Return the text as a whole number, the default if there is no text, or None if it is invalid."""
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def _moment(text: str) -> int | None:
    """Return a time in `milliseconds` (UTC if it names no zone), or None if it is invalid."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
