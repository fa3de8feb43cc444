"""Read the accounts of a sync from a file: CSV or TOML.

Messages name the line and never show its content, since a key may be where a name belongs.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lamella.maesn.account import Account
from lamella.maesn.params import params_of_lists
from lamella.maesn.sources import checked_resource

_NEEDED: Final = ("name", "key")
_FIELDS: Final = (*_NEEDED, "company_id", "environment_name", "without", "params")
NOT_A_HEADER: Final = "must be printable ASCII, because it is sent in a header"
"""The complaint about a key that is not allowed in a header."""
_WHERE: Final = re.compile(r"\(at (?:line (\d+)|(end of document))")
_NO_PARAMS: Final[dict[str, dict[str, str]]] = {}
_Row = tuple[str, dict[str, str]]  # its position, such as "line 3", and its fields
_TABLE: Final = re.compile(r"""\s*(\[\[|\[)\s*["']?accounts["']?\s*(?:\]\]|\])\s*(?:#.*)?""")


def accounts_in(path: Path) -> tuple[Account, ...]:
    """Return the accounts of a file: TOML if its name ends in ``.toml``, else CSV.

    CSV has a header, ``name,key[,company_id,environment_name,without,params]``, with commas or semicolons. TOML has a
    table ``[[accounts]]`` with these fields for each account, or one table ``[accounts]`` of names with their keys.
    ``without`` names the lists that the account's system does not have, separated by spaces. ``params`` holds required
    query parameters: ``openItems:fiscalYear=2026``. In TOML it may be a table per list.

    Raises:
        ValueError: The file cannot be read or is invalid; the message names file, line and problem.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read: {exc.strerror or type(exc).__name__}") from None
    except UnicodeDecodeError as exc:
        line = bytes(exc.object[: exc.start]).count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8: save the file as UTF-8") from None
    try:
        return tuple(_accounts(_toml(text) if path.suffix.lower() == ".toml" else _csv(text)))
    except _Fault as fault:
        raise ValueError(f"{path}: {fault}") from None


class _Fault(Exception):
    """A problem and its position."""


def _accounts(rows: Iterator[_Row]) -> Iterator[Account]:
    names: dict[str, str] = {}
    used: dict[tuple[str, str | None, str | None], str] = {}
    for where, fields in rows:
        for field in _NEEDED:
            if not fields.get(field):
                raise _Fault(f"{where}: no {field}")
        name, key = fields["name"], fields["key"]
        company, environment = fields.get("company_id") or None, fields.get("environment_name") or None
        if not name.isprintable():
            raise _Fault(f"{where}: the name must be a line of text")
        if not fits_header(key):
            raise _Fault(f"{where}: the key {NOT_A_HEADER}")
        if name == key:
            raise _Fault(f"{where}: the name is the key, and names are shown")
        if first := names.get(name):
            raise _Fault(f"{where}: the same name as in {first}")
        if first := used.get((key, company, environment)):
            raise _Fault(f"{where}: the same key as in {first}")
        names[name] = used[key, company, environment] = where
        lists, params = _lists(where, fields.get("without", "")), _params(where, fields.get("params", ""))
        yield Account(name, key, company, environment, lists, params or _NO_PARAMS)
    if not names:
        raise _Fault("no accounts in it")


def _lists(where: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(map(checked_resource, re.split(r"[\s,;]+", text.strip()) if text.strip() else ()))
    except ValueError:  # its message shows the value
        raise _Fault(f"{where}: without must name lists such as offers, separated by spaces") from None


def _params(where: str, text: str) -> dict[str, dict[str, str]]:
    try:
        return params_of_lists(shlex.split(text))
    except ValueError:  # its message shows the value
        raise _Fault(f"{where}: params must be like openItems:fiscalYear=2026, separated by spaces") from None


def fits_header(key: str) -> bool:
    """Return whether a header can contain the key."""
    return key.isascii() and key.isprintable()


def _csv(text: str) -> Iterator[_Row]:
    first = text.partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    lines = _records(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True))
    line, header = next(lines, (1, []))
    header = [column.lower() for column in header]
    if set(_NEEDED) - set(header) or set(header) - set(_FIELDS) or len(set(header)) < len(header):
        allowed = "name,key and optionally company_id, environment_name, without and params, each once"
        raise _Fault(f"line {line}: must be the header: {allowed}")
    for line, values in lines:
        if len(values) != len(header):
            raise _Fault(f"line {line}: {len(values)} values, and the header has {len(header)}")
        yield f"line {line}", dict(zip(header, values, strict=True))


def _records(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-empty records, each with the number of its first line."""
    line = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:  # its message may show the value
            raise _Fault(f"line {line}: is not valid CSV: check its quotes") from None
        values = [value.strip() for value in values]
        if any(values):
            yield line, values
        line = reader.line_num + 1  # type: ignore[attr-defined]


def _toml(text: str) -> Iterator[_Row]:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:  # its message may show the value
        place = _WHERE.search(str(exc))
        line = place[1] if place and place[1] else text.count("\n") + 1
        raise _Fault(f"line {line}: is not valid TOML") from None
    accounts = found.pop("accounts", None)
    if found or not isinstance(accounts, list | dict):
        raise _Fault("must hold accounts and nothing else: a table [[accounts]] for each, or one table [accounts]")
    if isinstance(accounts, dict):
        for where, (name, key) in zip(_places(text, "[", len(accounts)), accounts.items(), strict=True):
            yield where, {"name": name.strip(), "key": _string(where, "key", key)}
        return
    for where, table in zip(_places(text, "[[", len(accounts)), accounts, strict=True):
        if not isinstance(table, dict):
            raise _Fault(f"{where}: must be a table")
        if set(table) - set(_FIELDS):
            raise _Fault(f"{where}: unknown field; expected one of {', '.join(_FIELDS)}")
        if isinstance(table.get("without"), list):
            table["without"] = " ".join(map(str, table["without"])) or " "
        if isinstance(table.get("params"), dict):
            table["params"] = _joined(where, table["params"])
        yield where, {field: _string(where, field, value) for field, value in table.items()}


def _joined(where: str, params: dict[str, object]) -> str:
    """Return the tables of parameters as one text."""
    found = []
    for of, each in params.items():
        if not isinstance(each, dict):
            raise _Fault(f"{where}: params must have a table for each list")
        found += [f"{of}:{name}={value}" for name, value in each.items()]
    return shlex.join(found) or " "


def _string(where: str, field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Fault(f"{where}: the {field} must be a non-empty text")
    return value.strip()


def _places(text: str, bracket: str, many: int) -> list[str]:
    """Return the position of each account. The parser does not report it, so lines that look like accounts are
    counted."""
    lines = list(enumerate(text.split("\n"), 1))
    heads = [number for number, line in lines if (table := _TABLE.fullmatch(line)) and table[1] == bracket]
    if bracket == "[" and heads:
        heads = [number for number, line in lines[heads[0] :] if line.strip() and not line.lstrip().startswith("#")]
    if len(heads) == many:
        return [f"line {number}" for number in heads]
    return [f"account {number}" for number in range(1, many + 1)]
