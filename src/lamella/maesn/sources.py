"""Make a source of a list of the Maesn API, with assumptions for lists that are not published."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

from lamella.maesn.account import Account, account
from lamella.maesn.published.operations import Operation, at_path, lists
from lamella.maesn.published.records import fields_of
from lamella.maesn.rules import RULES
from lamella.maesn.tasks import fetch
from lamella.sync import Numbered, Pagination, Source

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API accepts."""
OWN_PARAMETERS: Final = ("page", "limit", "lastModifiedAt", "companyId", "environmentName")
"""Parameters that lamella sets itself."""
PARAMETERS: Final = tuple(sorted({name for each in lists() for name in each.query} - set(OWN_PARAMETERS)))
"""Other parameters of lists."""

_VERSIONED: Final = re.compile(r"(?:v[0-9]+/)?[A-Za-z][A-Za-z0-9]*")
_SEGMENT: Final = re.compile(r"[^/?#{}\s]+")
_IDS: Final = ("id", "invoiceId", "lineItemId")
_DATES: Final = ("updatedDate", "lastModifiedDate")


@dataclass(frozen=True, slots=True)
class Caller:
    """The account for which a single list is read. It holds the key so that no local variable shows it in a
    traceback."""

    key: str | None = field(repr=False)
    company_id: str | None
    environment_name: str | None
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def source(resource: str, limit: int = 100, params: Mapping[str, str] | None = None) -> Source:
    """Return the source of a list, such as ``"invoices"``, for accounts of type :class:`lamella.maesn.Account`.

    Args:
        resource: Its path below ``accounting/``: ``"invoices"``, ``"v2/contacts"``, ``"invoices/4711/lineItems"``.
        limit: The number of records per page: 5, 10, 20, 50 or 100.
        params: Further query parameters, such as ``{"fiscalYear": "2026"}``. Those of an account take precedence.

    Raises:
        ValueError: *resource* is not a list, the API does not accept *limit*, or a parameter is unknown.
    """
    found = operation_of(checked_resource(resource))
    if limit not in PAGE_LIMITS:
        raise ValueError(f"limit must be one of {', '.join(map(str, PAGE_LIMITS))}, got {limit!r}")
    given = checked_params(params or {})

    def of_list(caller: Caller | Account) -> dict[str, str]:
        return {**given, **caller.params.get(resource, {})}

    def query(caller: Caller | Account) -> dict[str, str | None]:
        return {"companyId": caller.company_id, "environmentName": caller.environment_name, **of_list(caller)}

    def variant(caller: Caller | Account) -> str:
        return json.dumps(sorted(of_list(caller).items())) if of_list(caller) else ""

    return Source(
        f"accounting/{resource}",
        Numbered(page_size=limit) if found is None or "limit" in found.query else Pagination(size=None),
        id=(*ids_of(resource), None),
        changed=dates_of(found),
        since="lastModifiedAt" if is_incremental(found) else None,
        total="meta.pagination.total",
        total_pages="meta.pagination.totalPages",
        warnings="meta.warnings",
        params=query,
        within=_within,
        variant=variant,
        fetch=fetch,
        rules=RULES,
        name=resource,
    )


def checked_resource(resource: str) -> str:
    """Return *resource*, or raise ValueError."""
    parts = resource.split("/")
    is_path = all(_SEGMENT.fullmatch(part) and part not in {".", ".."} for part in parts)
    # A nested list must be published, since its path could lead anywhere.
    if not is_path or not (_VERSIONED.fullmatch(resource) or at_path(f"accounting/{resource}")[0]):
        raise ValueError(
            f"resource must be a list such as 'invoices', 'v2/contacts' or 'invoices/4711/lineItems', got {resource!r}"
        )
    operation_of(resource)
    return resource


def operation_of(resource: str) -> Operation | None:
    """Return the published operation that reads a list; None for an unpublished list, which may be newer.

    Raises ValueError if the operation is published and does not read a list.
    """
    found, _ = at_path(f"accounting/{resource}")
    operation = found.get("GET")
    if found and (operation is None or not operation.is_list):
        raise ValueError(f"resource must be a list; the published operation {resource!r} is not one")
    return operation


def ids_of(resource: str) -> tuple[str, ...]:
    """Return the fields that may hold the id of a record. The first one present is used.

    Before version 0.8 an invoice had only ``invoiceId``, so other lists may use this form of name as well.
    """
    operation = operation_of(resource)
    published = [] if operation is None else [each.name for each in fields_of(operation.data) if each.name in _IDS]
    if resource == "v2/dimensions":
        published = ["dimension"]  # the path of its values has it
    name = resource.rpartition("/")[2]
    singular = f"{name[:-3]}y" if name.endswith("ies") else name.removesuffix("s")
    return tuple(dict.fromkeys((*published, f"{singular}Id", "id")))


def dates_of(operation: Operation | None) -> tuple[str, ...] | None:
    """Return the fields that may hold the time of the last change; None if there are none."""
    if operation is None:
        return _DATES
    return tuple(each.name for each in fields_of(operation.data) if each.name in _DATES) or None


def is_incremental(operation: Operation | None) -> bool:
    """Return whether a list can be filtered by change time and its records carry one."""
    if operation is None:
        return True
    names = {field.name for field in fields_of(operation.data)}
    return "lastModifiedAt" in operation.query and dates_of(operation) is not None and bool(names & set(_IDS))


def checked_params(params: Mapping[str, str]) -> dict[str, str]:
    """Return *params*, or raise ValueError."""
    for name, value in params.items():
        if name in OWN_PARAMETERS:
            raise ValueError(f"params must not contain {name!r}, which lamella sets itself")
        if name not in PARAMETERS:
            raise ValueError(f"unknown parameter {name!r}; expected one of: {', '.join(PARAMETERS)}")
        if not f"{value}".strip() or not f"{value}".isprintable():
            raise ValueError(f"parameter {name!r} must be a non-empty line of text, got {value!r}")
    return dict(params)


def _within(caller: Caller | Account) -> AbstractContextManager[object]:
    return nullcontext() if caller.key is None else account(caller.key)
