"""The operations of the Maesn API: path, status, body, response and parameters of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

from lamella.maesn.published.files import rows

_LONG: Final = {
    "page": ("page", "limit"),
    "since": ("lastModifiedAt",),
    "env": ("environmentName",),
    "co": ("companyId",),
    "raw": ("rawData",),
}
_OF_ACCOUNTS: Final = ("accounting", "user", "webhooks")
"""Prefixes of paths that concern one account, with the exceptions."""
_WITH_ACCOUNT: Final = frozenset({"auth/companies", "auth/companiesFlow", "auth/environments"})
_WITHOUT_ACCOUNT: Final = frozenset({"webhooks/config", "webhooks/tenant", "webhooks/tenant/{webhookId}"})


class Operation(NamedTuple):
    """One operation of the API."""

    method: str
    path: str
    """Without a leading slash: ``"accounting/invoices/{invoiceId}"``."""
    status: int
    """The status of a success."""
    may_be_later: bool
    """Whether the API may answer with a 202 and the id of a task instead."""
    body: str
    """``"json"``, ``"form"`` or empty."""
    field: str
    """For a form: the field that holds the record as JSON. Empty: each field of the record is a field of the form."""
    files: str
    """For a form: the field that holds the files."""
    data: str
    """The type of ``data`` in the response, or of the response itself: a kind of record, ``"text"``, ``"any"``,
    ``"html"``, or the name of an object's only field."""
    many: bool
    """Whether ``data`` is a list of records."""
    envelope: bool
    """Whether the response has ``meta``, ``data``, ``errors`` and ``rawData``."""
    query: tuple[str, ...]
    """Its parameters."""
    required: tuple[str, ...]
    """The required parameters."""

    @property
    def is_list(self) -> bool:
        """Whether the operation reads a list of records rather than a single one."""
        return self.many and self.method == "GET" and not self.path.endswith("Id}")

    @property
    def needs_account(self) -> bool:
        """Whether the operation concerns one account, and so needs an account key."""
        if self.path in _WITH_ACCOUNT:
            return True
        return self.path.partition("/")[0] in _OF_ACCOUNTS and self.path not in _WITHOUT_ACCOUNT


@cache
def operations() -> tuple[Operation, ...]:
    """Return all operations, in the order of the table."""
    return tuple(_operation(line.removeprefix("+").split()) for line in rows("operations.txt"))


def _operation(columns: Sequence[str]) -> Operation:
    method, path, status, body, data, *parameters = columns
    field, _, files = body.partition("+")
    names = [(name.rstrip("!"), name.endswith("!")) for name in parameters]
    return Operation(
        method,
        path,
        int(status.partition("|")[0]),
        "|" in status,
        "" if body == "-" else "json" if body == "json" else "form",
        field if files else "",
        files,
        data.strip("[]<>"),
        data.startswith("["),
        not data.startswith("<"),
        tuple(long for name, _ in names for long in _LONG.get(name, (name,))),
        tuple(long for name, needed in names if needed for long in _LONG.get(name, (name,))),
    )


class _Node:
    """A node in the tree of path segments."""

    __slots__ = ("found", "literal", "variable")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.variable: _Node | None = None
        self.found: dict[str, Operation] = {}
        """The operations of the path that ends here, by method."""


@cache
def _tree() -> _Node:
    root = _Node()
    for operation in operations():
        node = root
        for part in operation.path.split("/"):
            if part.startswith("{"):
                node.variable = node = node.variable or _Node()
            else:
                node = node.literal.setdefault(part, _Node())
        node.found[operation.method] = operation
    return root


def at_path(path: str) -> tuple[Mapping[str, Operation], tuple[str, ...]]:
    """Return the operations at a path by method, and the values of the path's parameters.

    Leading and trailing slashes are ignored. For an unknown path both are empty.
    """
    values: list[str] = []
    node = _tree()
    for part in path.strip("/").split("/"):
        following = node.literal.get(part)
        if following is None:
            following = node.variable
            if following is None:
                return {}, ()
            values.append(part)
        node = following
    return node.found, tuple(values) if node.found else ()


def template_of(path: str) -> str | None:
    """Return the template of a path, such as ``accounting/invoices/{invoiceId}``; None if the path is unknown."""
    found, _ = at_path(path)
    return next((operation.path for operation in found.values()), None)


def needs_account(method: str, path: str) -> bool:
    """Return whether a request needs an account key. A path outside the table needs one, except below three
    prefixes."""
    found, _ = at_path(path)
    operation = found.get(method) or next(iter(found.values()), None)
    if operation is not None:
        return operation.needs_account
    return path.strip("/").partition("/")[0] not in {"auth", "health", "tenants"}


def lists() -> Iterator[Operation]:
    """Yield the operations that return a list of records."""
    return (operation for operation in operations() if operation.is_list)
