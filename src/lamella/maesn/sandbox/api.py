"""The API itself: it turns a request into a `Reply`, without keys, limits, faults or sockets. `published` says what
exists."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from lamella.maesn.published.operations import Operation, at_path, lists, operations
from lamella.maesn.published.systems import REQUIRED, SYSTEMS
from lamella.maesn.sandbox.choices import LONGEST_WITHOUT_PAGES
from lamella.maesn.sandbox.forms import fields_of_body
from lamella.maesn.sandbox.lines import answer_for_lines
from lamella.maesn.sandbox.made import Record, complete
from lamella.maesn.sandbox.others import answer_elsewhere
from lamella.maesn.sandbox.queries import listed
from lamella.maesn.sandbox.records import EVEN, Odd, Table
from lamella.maesn.sandbox.replies import Reply, failure, success
from lamella.maesn.sandbox.requests import Received
from lamella.maesn.sandbox.tasks import Tasks

_ALIASES: Final = {"v2/contacts": "contacts", "vendorCredit": "vendorCredits"}
"""Paths that return the records of another path."""
_FOLDER: Final = "accounting/"
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def name_of(path: str) -> str:
    """Return the name of the list that a path belongs to: ``invoices`` for ``accounting/invoices/{id}``."""
    name = path.removeprefix(_FOLDER).partition("/{")[0]
    for ending in ("/async", "/bulk"):
        name = name.removesuffix(ending)
    return _ALIASES.get(name, name.removeprefix("batch/"))


KINDS: Final = {
    name_of(operation.path): operation.data
    for operation in (*operations(), *lists())
    if operation.path.startswith(_FOLDER) and "{" not in operation.path and operation.data not in {"any", "taskId"}
}
"""The kind of the records of each list, by its name."""
RESOURCES: Final = tuple(sorted(KINDS.keys() - {"files/documentExtensions"}))


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties of a sandbox's API."""

    seed: int = 0
    odd: Odd = EVEN
    system: str | None = None
    """The target system, a key of `published.SYSTEMS`. None: a system that supports everything and sets no limits."""
    unsupported: frozenset[str] = frozenset()
    """Lists that the target system does not have."""
    later: frozenset[str] = frozenset()
    """Paths that answer with a task where the API allows it: ``journalEntries``, ``contacts/bulk``."""
    idempotency_keys: bool = False
    """Whether an Idempotency-Key is honoured."""


class Api:
    """The records of all accounts. `size` returns how many records of each list an account starts with."""

    def __init__(self, traits: Traits, *, size: Callable[[str], int], new_account: Callable[[], str]) -> None:
        self.duplicates: int = 0
        self.traits: Traits = traits
        self.new_account: Callable[[], str] = new_account
        self._size = size
        self._tables: dict[tuple[str, str], Table] = {}
        self._creations: list[tuple[str, str, Record]] = []  # account, list, record
        self._bodies: set[tuple[str, str, str]] = set()  # account, list, body
        self._replays: dict[tuple[str, str, str], tuple[str, Reply]] = {}  # account, list, key: body, reply
        self._tasks = Tasks()

    def table(self, account: str, name: str, kind: str = "") -> Table:
        """Return the records of a list of an account. `kind` is required for a list that is not in `KINDS`."""
        where = account, name
        table = self._tables.get(where)
        if table is None:
            kind, size = kind or KINDS[name], self._size(account)
            if not _HAS_PAGES.get(name, True) or "/" in name:
                size = min(size, LONGEST_WITHOUT_PAGES)
            table = Table(kind, name, account, seed=self.traits.seed, size=size, odd=self.traits.odd)
            self._tables[where] = table
        return table

    def created(self, name: str, account: str | None = None) -> list[Record]:
        """Return the records that POSTs created, in order and as they were created, of one account or of all."""
        return [
            copy.deepcopy(record)
            for owner, kind, record in self._creations
            if kind == name and (account is None or owner == account)
        ]

    def answer(self, received: Received) -> Reply:
        """Carry out a request and return the response."""
        found, values = at_path(received.path)
        name = name_of(received.path.strip("/"))
        first = name.partition("/")[0]
        is_accounting = received.path.startswith(f"/{_FOLDER}")
        if is_accounting and (first in self.traits.unsupported or (not found and first not in _FIRST)):
            return failure(HTTPStatus.NOT_FOUND, downstream=[f"the target system does not support {first!r}"])
        if not found:
            return failure(HTTPStatus.NOT_FOUND)
        operation = found.get("GET" if received.method == "HEAD" else received.method)
        if operation is None:
            there = found.keys() | ({"HEAD"} if "GET" in found else set())
            headers = {"Allow": ", ".join(method for method in _METHODS if method in there)}
            return failure(HTTPStatus.METHOD_NOT_ALLOWED, headers=headers)
        needed = {*operation.required}
        if self.traits.system is not None and operation.is_list and (by := REQUIRED.get(name, {})):
            needed |= {parameter for system, parameter in by.items() if system == self.traits.system}
        missing = [(parameter, "is required") for parameter in sorted(needed) if not received.query.get(parameter)]
        if missing:
            return failure(HTTPStatus.BAD_REQUEST, invalid=missing)
        if not is_accounting:
            return answer_elsewhere(self, operation, values, received)
        return self._answer(operation, values, received)

    def _answer(self, operation: Operation, values: tuple[str, ...], received: Received) -> Reply:
        account = received.account or ""
        if operation.data == "task":
            return self._tasks.answer(account, "".join(values), received.query)
        fields = {}
        if operation.body:
            given = fields_of_body(operation, received.body, received.headers.get("Content-Type", ""))
            if isinstance(given, Reply):
                return given
            fields = given
        if operation.method == "POST" and (replay := self._replayed(operation, values, fields, received)):
            return replay
        path = operation.path.removeprefix(_FOLDER)
        is_later = operation.status == HTTPStatus.ACCEPTED or (operation.may_be_later and path in self.traits.later)
        if is_later and operation.method == "GET":
            table = self.table(account, path, operation.data)
            return self._tasks.begin(account, lambda query: listed(operation, table, {**received.query, **query}))
        reply = self._carry_out(operation, values, fields, received)
        if not is_later or reply.status >= HTTPStatus.BAD_REQUEST:
            return reply
        return self._tasks.begin(account, lambda _: reply)

    def _carry_out(
        self, operation: Operation, values: tuple[str, ...], fields: dict[str, Any], received: Received
    ) -> Reply:
        account, name = received.account or "", name_of(operation.path)
        if operation.data == "any":
            return success(dict(fields), status=operation.status)
        if operation.data == "documentExtensions":
            return success({"allowed_file_extensions": ["pdf", "png", "jpg"]}, meta=None)
        if operation.path.endswith("/document"):
            record = self.table(account, name).get(values[0])
            return _found(record and self.table(account, "files").get(self.table(account, "files").id_at(0)), values[0])
        if len(values) > 0 and operation.path.split("/")[-1 if len(values) == 1 else -2] == "lineItems":
            return answer_for_lines(operation, self.table(account, name), values, fields, received.query)
        if "/Attachments" in operation.path or operation.path.startswith("accounting/v2/dimensions/"):
            inner = received.path.strip("/").removeprefix(_FOLDER).split("/")
            name = "/".join(inner[:3] if "/Attachments" in operation.path else inner)
        if operation.method == "POST":
            return self._create(operation, name, fields, received)
        table = self.table(account, name, operation.data)
        if operation.is_list:
            return listed(operation, table, received.query)
        return _changed(operation, table, next(reversed(values)), fields)

    def _create(self, operation: Operation, name: str, fields: dict[str, Any], received: Received) -> Reply:
        account = received.account or ""
        if operation.data in {"contactBatch", "journalBatch"}:
            made = [self._add(account, name, KINDS[name], each) for each in fields.get("entries") or ()]
            whole = self.table(account, f"{name}/batches", operation.data).create({**fields, "entries": made})
            return success(whole, status=operation.status)
        kind = KINDS.get(name, operation.data)
        return success(self._add(account, name, kind, fields), status=operation.status)

    def _add(self, account: str, name: str, kind: str, fields: dict[str, Any]) -> Record:
        record = self.table(account, name, kind).create(fields)
        self._creations.append((account, name, record))
        return record

    def _replayed(
        self, operation: Operation, values: tuple[str, ...], fields: dict[str, Any], received: Received
    ) -> Reply | None:
        """Count a POST that repeats an earlier one, and return the earlier response if its Idempotency-Key is known."""
        name, body = received.path.strip("/"), json.dumps(fields, sort_keys=True)
        account = received.account or ""
        key = received.headers.get("Idempotency-Key") if self.traits.idempotency_keys else None
        if key is not None:
            first_body, reply = self._replays.get((account, name, key), (None, None))
            if reply is not None and first_body == body:
                return reply
            if reply is not None:
                reason = "has been used before with another body"
                return failure(HTTPStatus.BAD_REQUEST, invalid=[("Idempotency-Key", reason)])
        if (account, name, body) in self._bodies:
            self.duplicates += 1
        self._bodies.add((account, name, body))
        if key is None:
            return None
        reply = self._carry_out(operation, values, fields, received)
        self._replays[account, name, key] = body, reply
        return reply


_HAS_PAGES: Final = {
    name_of(operation.path): "limit" in operation.query for operation in lists() if "{" not in operation.path
}
_FIRST: Final = {name.partition("/")[0] for name in KINDS} | {
    operation.path.split("/")[1] for operation in operations() if operation.path.startswith(_FOLDER)
}


def check_traits(traits: Traits) -> None:
    """Raise ValueError if the system or a path does not exist."""
    if traits.system is not None and traits.system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}, or None, got {traits.system!r}")
    paths = {operation.path.removeprefix(_FOLDER) for operation in operations() if operation.may_be_later}
    _check_names("later", traits.later, paths)
    _check_names("unsupported", traits.unsupported, _FIRST)


def _check_names(what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(names) - set(known)):
        raise ValueError(f"{what} must be one of {', '.join(sorted(known))}, got {name!r}")


def _changed(operation: Operation, table: Table, record_id: str, fields: dict[str, Any]) -> Reply:
    match operation.method:
        case "DELETE":
            return _found(record_id if table.delete(record_id) else None, record_id)
        case "PUT":
            record = table.replace(record_id, fields)
            # The API returns a vendor credit as a bill.
            return _found(
                record and (record if operation.data == table.kind else complete(operation.data, record)), record_id
            )
        case "PATCH":
            return _found(table.change(record_id, fields), record_id)
    record = table.get(record_id)
    return _found([record] if record is not None and operation.many else record, record_id)


def _found(data: object, record_id: str) -> Reply:
    return failure(HTTPStatus.NOT_FOUND, f"Record {record_id!r} does not exist.") if data is None else success(data)
