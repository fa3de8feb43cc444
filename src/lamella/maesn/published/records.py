"""The fields of each kind of record, with the types of their values."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, NamedTuple

from lamella.maesn.published.files import rows


def _read() -> dict[str, list[str]]:
    """Return the fields of each kind, and of each group of fields, as written in the table."""
    found: dict[str, list[str]] = {}
    for line in rows("records.txt"):
        name, *fields = line.split()
        found[name] = [each for field in fields for each in (found[field] if field.startswith("$") else [field])]
    return found


_FIELDS: Final = _read()
KINDS: Final = tuple(name for name in _FIELDS if not name.startswith("$"))
"""The names of all kinds of record."""

WITHOUT_NULLS: Final = frozenset({"fiscalYear", "webhook"})
"""Kinds whose fields are never null. Any field of another kind may be null, including its id."""

_INFERRED: Final = (
    (re.compile(r".*Date"), "moment"),
    (re.compile(r"(.*A|a)mount2?"), "amount"),
    (re.compile(r"(.*P|p)ercentage2?"), "percent"),
    (re.compile(r"quantity.*"), "number"),
    (re.compile(r"currency"), "code"),
    (re.compile(r"is[A-Z].*"), "flag"),
)


class Field(NamedTuple):
    """A field of a record."""

    name: str
    kind: str
    """``text``, ``amount``, ``percent``, ``number``, ``month``, ``moment``, ``flag``, ``code`` (of a currency),
    ``country``, ``base64``, ``object``, ``choice``, ``record``, ``records`` or ``texts``."""
    choices: tuple[str, ...] = ()
    of: str = ""
    """The kind of the nested records."""


@cache
def fields_of(kind: str) -> tuple[Field, ...]:
    """Return the fields of a kind of record. Raises KeyError if the kind is unknown."""
    return tuple(map(_field, _FIELDS[kind]))


def _field(text: str) -> Field:
    name, _, said = text.partition(":")
    if not said:
        return Field(name, next((kind for shape, kind in _INFERRED if shape.fullmatch(name)), "text"))
    if said.startswith("@"):
        return Field(name, "record", of=said[1:])
    if said.startswith("["):
        return Field(name, "records" if said[1:-1] else "texts", of=said[1:-1])
    return Field(name, "choice", tuple(said.split("|"))) if "|" in said else Field(name, said)
