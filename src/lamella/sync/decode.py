"""An answer's JSON: the records as they were sent, and of each its id and when it was last changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count
from typing import Any, Final, NamedTuple, NoReturn

from lamella.sync.source import Source, at

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
_EARLIEST: Final = 300 * 1_000_000
"""Some systems send 0001-01-01, or 0, for a missing date."""
_MILLISECONDS: Final = 10**11
"""A greater number of seconds since 1970 is taken for milliseconds: they are the year 5138."""
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

ParseNumber = Callable[[str], Any] | None
"""Makes a value of a number's text. None means int or float."""


class Record(NamedTuple):
    """A record to be stored."""

    id: str
    updated: int | None
    """When it was last changed, in microseconds since 1970. None: it does not say."""
    text: str
    """Its JSON as it was sent, without the white space between its tokens."""
    position: int = 1
    """Which one it is on its page, from 1."""
    nameless: bool = False
    """Whether it has no id, so that `id` is made of its content."""


def check_msgspec() -> None:
    """Raise ModuleNotFoundError unless msgspec is installed."""
    if find_spec("msgspec") is None:
        raise ModuleNotFoundError("msgspec is missing: pip install 'lamella[sync]'", name="msgspec")


def loads(body: bytes, parse_float: ParseNumber = None, parse_int: ParseNumber = None) -> Any:
    """Return the value of JSON.

    Raises:
        ValueError: It is not JSON. Python's decoder would accept NaN and the infinities.
    """
    return json.loads(body, parse_float=parse_float, parse_int=parse_int, parse_constant=_refuse_constant)


def _exact(body: bytes) -> Any:
    return loads(body, parse_int=exact_int)


def split(body: bytes, place: str, *, compact: bool = False) -> tuple[Any, list[bytes] | None]:
    """Return an answer without its records, and the JSON of each record as it was sent.

    With *compact* without the white space between its tokens. None: there is no list of records at that place.

    Raises:
        ValueError: It is not JSON.
    """
    import msgspec

    names = place.split(".") if place else []
    mark, halves = b"", [found for found in _ESCAPE.finditer(body) if found["half"]] if b"\\u" in body else []
    if halves:
        # msgspec refuses an escape of half a character, as in "\ud800", which JSON allows: hide it.
        mark = next(mark for number in count() if (mark := b"<%d>" % number) not in body)
        body = _ESCAPE.sub(lambda found: mark + found["half"] if found["half"] else found[0], body)
    answer, records = _split(body, names)
    if records is not None and compact:
        records = [msgspec.json.format(record, indent=-1) for record in records]
    return answer, [record.replace(mark, b"\\") for record in records] if mark and records else records


def _split(body: bytes, names: list[str]) -> tuple[Any, list[bytes] | None]:
    import msgspec

    if not body.lstrip(b" \t\r\n").startswith(b"{" if names else b"["):
        return _exact(body), None
    if not names:
        return None, [bytes(record) for record in _decoder(list[msgspec.Raw]).decode(body)]
    members = _decoder(dict[str, msgspec.Raw]).decode(body)
    inner = members.pop(names[0], None)
    answer = {name: _exact(bytes(member)) for name, member in members.items()}
    if inner is None:
        return answer, None
    answer[names[0]], records = _split(bytes(inner), names[1:])
    return answer, records


def record_of(raw: bytes, source: Source, position: int = 1) -> Record:
    """Return a record to be stored.

    Raises:
        ValueError: It is not an object, has no id, or is not UTF-8.
    """
    import msgspec

    try:
        found = _fields((*source.ids, *source.dates))(raw)
    except msgspec.DecodeError:  # not an object, or has half a character
        value = _exact(raw)
        if not isinstance(value, dict):
            raise ValueError("is not an object") from None  # noqa: TRY004 - the record is wrong, not an argument
        found = [at(value, place) for place in (*source.ids, *source.dates)]
    ids, dates = found[: len(source.ids)], found[len(source.ids) :]
    name = next(filter(None, map(_id, ids)), None)
    if name is None and source.may_lack_id and all(value is None or value == "" for value in ids):
        return Record(content_id(raw), _updated(dates), raw.decode(), position, nameless=True)
    if name is None:
        names = " nor ".join(map(repr, source.ids))
        raise ValueError(f"has {'neither' if len(ids) > 1 else 'no'} {names}, so it cannot be identified")
    return Record(name, _updated(dates), raw.decode(), position)


def content_id(raw: bytes) -> str:
    """Return the identity of a record without an id: a hash of its content."""
    return f"content:{blake2b(raw, digest_size=16).hexdigest()}"


def id_of(record: object, source: Source) -> str | None:
    """Return the id of a record that is decoded, or None where it has none."""
    return next(filter(None, (_id(at(record, name)) for name in source.ids)), None)


def updated_of(record: object, source: Source) -> int | None:
    """Return when a record that is decoded was last changed, as :attr:`Record.updated`."""
    return _updated([at(record, name) for name in source.dates])


def microseconds(value: object) -> int | None:
    """Return a moment in microseconds since 1970: ISO 8601 (UTC if it has no zone), or seconds. None: it is neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
        if isinstance(value, int | float) and not isinstance(value, bool):
            found = int(value * (1_000 if value > _MILLISECONDS else 1_000_000))
            return found if found < 2**62 else None
    except (ValueError, OverflowError):
        pass
    return None


def text_of(moment: int) -> str:
    """Return a moment in microseconds since 1970 as ISO 8601, in UTC."""
    return (EPOCH + moment * MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _updated(values: Iterable[object]) -> int | None:
    return next((found for found in map(microseconds, values) if found is not None and found >= _EARLIEST), None)


def _id(value: object) -> str | None:
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool) and value != "":
        return str(value).encode("utf-8", "backslashreplace").decode()
    return None


@lru_cache(maxsize=64)
def _fields(names: tuple[str, ...]) -> Callable[[bytes], list[Any]]:
    """Return a function that decodes these fields of a record, and nothing else of it."""
    import msgspec

    places = [place.partition(".")[::2] for place in names]
    names = tuple(dict.fromkeys(name for name, _ in places))
    nothing = msgspec.Raw(b"null")
    kind = msgspec.defstruct(
        "Fields",
        [(f"f{n}", msgspec.Raw, msgspec.field(default=nothing, name=name)) for n, name in enumerate(names)],
    )
    decoder = msgspec.json.Decoder(kind)
    where = [(f"f{names.index(name)}", rest) for name, rest in places]

    def fields(raw: bytes) -> list[Any]:
        found = decoder.decode(raw)
        return [_value(bytes(getattr(found, name)), rest) for name, rest in where]

    return fields


def _value(raw: bytes, place: str) -> Any:
    if raw[:1] == b'"' and b"\\" not in raw:
        return None if place else raw[1:-1].decode()  # what most are
    return None if raw == b"null" else at(_exact(raw), place)


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> Any:
    import msgspec

    return msgspec.json.Decoder(kind)


def exact_int(literal: str) -> int | Decimal:
    """Return the value of an integer's text, as a Decimal where it has more digits than Python lets an int have."""
    try:
        return int(literal)
    except ValueError:
        return Decimal(literal)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON compliant")
