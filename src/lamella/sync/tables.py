"""Typed columns of an output: a schema, and the conversion of a record to rows of its tables.

The values are exact: a decimal keeps each digit. A value that does not fit is null in its table and is reported. The
output also contains the record as it was sent.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from lamella.redaction import redact_text
from lamella.sync.decode import exact_int

_KINDS: Final = ("text", "integer", "decimal(18, 2)", "boolean", "date", "timestamp")
_DECIMAL: Final = re.compile(r"decimal\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)")
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_MOST_DIGITS: Final = 38
_MOST_TOLD: Final = 10
_FINER: Final = re.compile(r"[.,][0-9]{6}[0-9]*[1-9]")
"""A time with more digits than microseconds, which Python would cut off."""
_TWICE: Final = object()
"""In place of the values of a name that an object contains more than once. It fits no type."""
OWN: Final = ("account", "id", "position")
"""Columns of each table in addition to those of its schema. Only a child table has all of them."""


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a column."""

    kind: str
    digits: int = 0
    scale: int = 0

    def __str__(self) -> str:
        return f"decimal({self.digits}, {self.scale})" if self.kind == "decimal" else self.kind

    @classmethod
    def of(cls, text: str) -> Type:
        """Return the type with this name, or raise ValueError."""
        found = _DECIMAL.fullmatch(text.strip())
        if found is None:
            if text not in _KINDS or "(" in text:
                raise ValueError(f"the type of a column must be one of {', '.join(_KINDS)}, got {redact_text(text)!r}")
            return cls(text)
        digits, scale = int(found[1]), int(found[2])
        if not 1 <= digits <= _MOST_DIGITS or scale > digits:
            raise ValueError(
                f"a decimal must have 1 to {_MOST_DIGITS} digits, and no more behind the point, got {text!r}"
            )
        return cls("decimal", digits, scale)

    def value(self, found: Any) -> Any:
        """Return the value of a field for the table, or raise ValueError. None stands for null."""
        if found is None:
            return None
        if self.kind == "decimal":
            return self._decimal(found)
        if self.kind == "integer":
            is_number = isinstance(found, int | Decimal) and not isinstance(found, bool)
            if is_number and -(2**63) <= found < 2**63 and found == int(found):
                return int(found)
        elif self.kind == "boolean":
            if isinstance(found, bool):
                return found
        elif isinstance(found, str):
            if self.kind == "text":
                found.encode()  # a table cannot store a lone surrogate
                return found
            if self.kind == "date":
                return date.fromisoformat(found)
            if _FINER.search(found):
                raise ValueError
            moment = datetime.fromisoformat(found)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        raise ValueError

    def _decimal(self, found: Any) -> Decimal:
        if isinstance(found, str) and not _NUMBER.fullmatch(found):
            raise ValueError
        if isinstance(found, bool) or not isinstance(found, int | str | Decimal):
            raise ValueError  # noqa: TRY004 - the record is wrong, not an argument
        try:
            return Decimal(found).quantize(Decimal(1).scaleb(-self.scale), context=_exact(self.digits))
        except ArithmeticError:  # it has more digits
            raise ValueError from None


def _exact(digits: int) -> Context:
    return Context(prec=digits, traps=[Inexact, InvalidOperation, Overflow])


@dataclass(frozen=True, slots=True)
class Table:
    """The typed columns of a resource, and of the lists inside its records.

    Args:
        columns: The type of each column, by the place of its value in a record: names separated by points. Types:
            ``text``, ``integer``, ``decimal(18, 2)``, ``boolean``, ``date``, ``timestamp`` (in UTC).
        children: The columns of child tables, by the place of their list in a record, such as ``"lineItems"``.

    Raises:
        ValueError: A name or a type is not allowed.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    children: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    types: Mapping[str, Mapping[str, Type]] = field(init=False, repr=False)
    """The types of all tables. The empty name is the table of the resource itself."""

    def __post_init__(self) -> None:
        found = {}
        for name, columns in {"": self.columns, **self.children}.items():
            if name and not _WORD.fullmatch(name):
                raise ValueError(f"a child table must have a plain name such as lineItems, got {redact_text(name)!r}")
            seen = {each.casefold() for each in OWN}
            for column in columns:
                if not all(column.split(".")) or column.casefold() in seen or not column.isprintable() or '"' in column:
                    taken = ", ".join(OWN)
                    raise ValueError(f"a column must have a name of its own, not {taken}, got {redact_text(column)!r}")
                seen.add(column.casefold())
            found[name] = MappingProxyType({column: Type.of(text) for column, text in columns.items()})
        object.__setattr__(self, "types", MappingProxyType(found))

    def __reduce__(self) -> tuple[type[Table], tuple[dict[str, str], dict[str, dict[str, str]]]]:
        # For pickle, which does not support mapping views.
        return type(self), (dict(self.columns), {name: dict(each) for name, each in self.children.items()})


class Misfit(NamedTuple):
    """A value that does not fit its column."""

    resource: str
    account: str
    id: str
    column: str
    type: str

    def __str__(self) -> str:
        return f"{self.resource}.{self.column} of {self.account} {self.id} is not of type {self.type}"


@dataclass(slots=True)
class Misfits:
    """The number of values that do not fit, the first of them, and the names that may be wrong."""

    count: int = 0
    first: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    """The columns without a value in any record, although there are records, and the tables whose lists no run has
    read: their names may be wrong."""
    stale: tuple[str, ...] = ()
    """The files beside a Parquet output that only an earlier schema states. They are not written any more."""

    def take(self, misfit: Misfit) -> None:
        """Count a misfit."""
        self.count += 1
        if self.count <= _MOST_TOLD:
            self.first = (*self.first, str(misfit))


class Row(NamedTuple):
    """A row of a table of a resource."""

    child: str  # the name of the child table. Empty: the table of the resource itself
    values: tuple[Any, ...]  # account, id, the position from 1 (only in a child table), and the columns


NO_TABLES: Final[Mapping[str, Table]] = MappingProxyType({})


def check_tables(tables: Mapping[str, Table]) -> None:
    """Check the names of resources.

    Raises:
        ValueError: A name is not plain, or two names differ only in case.
    """
    seen = {"records"}
    for resource, table in tables.items():
        for name in (resource, *(f"{resource}_{child}" for child in table.children)):
            if not _WORD.fullmatch(resource) or name.casefold() in seen:
                raise ValueError(f"a table must have a plain name of its own, got {redact_text(name)!r}")
            seen.add(name.casefold())


def rows_of(table: Table, resource: str, account: str, name: str, record: str) -> Iterator[Row | Misfit]:
    """Yield the rows of a record and its misfits."""
    try:
        found = json.loads(record, parse_float=Decimal, parse_int=exact_int, object_pairs_hook=_members)
    except (ValueError, ArithmeticError, RecursionError):
        found = {}
        yield Misfit(resource, account, name, "*", "readable record")
    for child, types in table.types.items():
        items = [found] if not child else found.get(child)
        if items is None:
            continue
        if not isinstance(items, list):
            yield Misfit(resource, account, name, child, "list")
            continue
        for position, item in enumerate(items, 1):
            values = []
            for column, kind in types.items():
                try:
                    values.append(kind.value(_value_at(item, column)))
                except (ValueError, OverflowError):
                    values.append(None)
                    where = f"{child}[{position}].{column}" if child else column
                    yield Misfit(resource, account, name, where, str(kind))
            yield Row(child, (account, name, *((position,) if child else ()), *values))


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a record. A name that occurs more than once has no value that fits a column."""
    found = dict(pairs)
    if len(found) < len(pairs):
        found |= {name: _TWICE for name, times in Counter(name for name, _ in pairs).items() if times > 1}
    return found


def _value_at(item: Any, place: str) -> Any:
    """Return the value at a place. None: there is none. Raise ValueError if a value is where an object belongs."""
    for name in place.split("."):
        if item is None:
            return None
        if not isinstance(item, dict):
            raise ValueError("not an object")  # noqa: TRY004 - the record is wrong, not an argument
        item = item.get(name)
    return item
