"""The accounting API: a request in, a `Reply` out, without keys, limits, faults or sockets."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from lamella.maesn.sandbox.records import RESOURCES, Record, Table, id_field, milliseconds
from lamella.maesn.sandbox.replies import Reply, failure, success
from lamella.maesn.sandbox.requests import Received

PAGE_SIZES = (5, 10, 20, 50, 100)
_DEFAULT_PAGE_SIZE = 20
_MOST_DIGITS = 18

TARGET_SYSTEMS = (
    "bexio", "billomat", "businesscentral", "datev", "fortnox", "lexware-office", "microsoft-dynamics",
    "moneybird", "netsuite", "quickbooks", "sage", "sevdesk", "weclapp", "xero",
)  # fmt: skip

_LIST_METHODS = ("GET", "HEAD", "POST")
_RECORD_METHODS = ("GET", "HEAD", "PATCH", "PUT", "DELETE")
_READ_METHODS = ("GET", "HEAD")


def needs_account(path: str) -> bool:
    """Return whether a request to this path must name an account."""
    return _segments(path)[:1] != ["auth"]


class Api:
    """The resources of all accounts. `size` returns how many records of each an account has at first."""

    def __init__(self, *, seed: int, size: Callable[[str], int]) -> None:
        self.duplicates: int = 0
        self._seed = seed
        self._size = size
        self._tables: dict[tuple[str, str], Table] = {}
        self._creations: list[tuple[str, str, Record]] = []  # account, resource, record
        self._bodies: set[tuple[str, str, str]] = set()  # account, resource, body
        self._replays: dict[tuple[str, str, str], tuple[str, Reply]] = {}  # account, resource, key: body, reply

    def table(self, account: str, resource: str) -> Table:
        """Return the records of a resource (which must exist) of an account."""
        where = account, resource
        table = self._tables.get(where)
        if table is None:
            table = self._tables[where] = Table(resource, account, seed=self._seed, size=self._size(account))
        return table

    def created(self, resource: str, account: str | None = None) -> list[Record]:
        """Return the records that POSTs created, in order, as they were then; of one account or of all."""
        return [
            copy.deepcopy(record)
            for owner, kind, record in self._creations
            if kind == resource and (account is None or owner == account)
        ]

    def answer(self, received: Received) -> Reply:
        """Carry out a request, and return the answer."""
        match _segments(received.path):
            case ["auth", system]:
                return _authenticate(received, system)
            case ["accounting", resource] if resource in RESOURCES:
                return self._answer_for_list(received, resource)
            case ["accounting", resource, record_id] if resource in RESOURCES:
                return self._answer_for_record(received, resource, record_id)
            case ["accounting", resource, *_] if resource not in RESOURCES:
                reason = f"the resource {resource!r} is not supported by the target system"
                return failure(HTTPStatus.NOT_FOUND, downstream=[reason])
            case _:
                return failure(HTTPStatus.NOT_FOUND)

    def _answer_for_list(self, received: Received, resource: str) -> Reply:
        match received.method:
            case "GET" | "HEAD":
                return _list(self.table(received.account or "", resource), received.query)
            case "POST":
                return self._create(received, resource)
            case _:
                return _method_not_allowed(_LIST_METHODS)

    def _answer_for_record(self, received: Received, resource: str, record_id: str) -> Reply:
        table = self.table(received.account or "", resource)
        match received.method:
            case "GET" | "HEAD":
                return _found(table.get(record_id), resource, record_id)
            case "DELETE":
                deleted = {id_field(resource): record_id} if table.delete(record_id) else None
                return _found(deleted, resource, record_id)
            case "PATCH" | "PUT" as method:
                fields = _fields(received.body)
                if isinstance(fields, Reply):
                    return fields
                if method == "PATCH":
                    return _found(table.change(record_id, fields), resource, record_id)
                record, new = table.upsert(record_id, fields)
                return success(record, status=HTTPStatus.CREATED if new else HTTPStatus.OK)
            case _:
                return _method_not_allowed(_RECORD_METHODS)

    def _create(self, received: Received, resource: str) -> Reply:
        fields = _fields(received.body)
        if isinstance(fields, Reply):
            return fields
        body = json.dumps(fields, sort_keys=True)
        account = received.account or ""
        key = received.headers.get("Idempotency-Key")
        if key is not None and (account, resource, key) in self._replays:
            first_body, reply = self._replays[account, resource, key]
            if first_body == body:
                return reply
            reason = "has been used before, with another body"
            return failure(HTTPStatus.BAD_REQUEST, invalid=[("Idempotency-Key", reason)])

        if (account, resource, body) in self._bodies:
            self.duplicates += 1
        self._bodies.add((account, resource, body))
        table = self.table(account, resource)
        record = table.create(fields)
        self._creations.append((account, resource, record))
        reply = success(record, status=HTTPStatus.CREATED)
        if key is not None:
            self._replays[account, resource, key] = body, reply
        return reply


def _segments(path: str) -> list[str]:
    return path.strip("/").split("/")


def _authenticate(received: Received, system: str) -> Reply:
    if received.method not in _READ_METHODS:
        return _method_not_allowed(_READ_METHODS)
    if system not in TARGET_SYSTEMS:
        return _method_not_allowed((), f"There is no target system {system!r}.")
    return success({"url": f"https://login.example/{quote(system)}/authorize"})


def _list(table: Table, query: Mapping[str, str]) -> Reply:
    invalid: list[tuple[str, str]] = []
    limit = _whole(query.get("limit"), _DEFAULT_PAGE_SIZE)
    if limit not in PAGE_SIZES:
        invalid.append(("limit", f"must be one of {', '.join(map(str, PAGE_SIZES))}"))
    page = _whole(query.get("page"), 1)
    if page is None or page < 1:
        invalid.append(("page", "must be a whole number from 1"))
    since = None
    if (moment := query.get("lastModifiedAt")) is not None:
        since = _moment(moment)
        if since is None:
            invalid.append(("lastModifiedAt", "must be a date or a date and time by ISO 8601"))
    if invalid or limit is None or page is None:
        return failure(HTTPStatus.BAD_REQUEST, invalid=invalid)

    records, total = table.page(page, limit, since)
    pagination = {"total": total, "perPage": limit, "currentPage": page, "totalPages": -(-total // limit)}
    return success(records, pagination=pagination)


def _found(record: Record | None, resource: str, record_id: str) -> Reply:
    if record is None:
        return failure(HTTPStatus.NOT_FOUND, f"There is no record {record_id!r} among the {resource}.")
    return success(record)


def _method_not_allowed(allowed: tuple[str, ...], message: str | None = None) -> Reply:
    return failure(HTTPStatus.METHOD_NOT_ALLOWED, message, headers={"Allow": ", ".join(allowed)})


def _fields(body: bytes) -> dict[str, Any] | Reply:
    """Return the object in a body, or the answer to a body without one."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return failure(HTTPStatus.BAD_REQUEST, invalid=[("body", "must be JSON")])
    if not isinstance(fields, dict):
        return failure(HTTPStatus.BAD_REQUEST, invalid=[("body", "must be a JSON object")])
    return fields


def _whole(text: str | None, default: int) -> int | None:
    """Return a whole number, the default where there is no text, or None."""
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def _moment(text: str) -> int | None:
    """Return a moment in `milliseconds` (in UTC, if it names no zone), or None."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return milliseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
