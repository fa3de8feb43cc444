"""Decode the JSON of an answer: the records as they were sent, with the id and the last change of each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count
from operator import attrgetter
from typing import Any, Final, NamedTuple, NoReturn, cast, overload

from lamella.sync.source import Source, at

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
_EARLIEST: Final = 300 * 1_000_000
"""Some systems send 0001-01-01, or 0, for a missing date."""
_MILLISECONDS: Final = 10**11
"""Larger numbers are milliseconds, not seconds, since 1970. This many seconds are the year 5138."""
_EXACT: Final = 2**53
"""Larger whole numbers are not exact as a float."""
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

ParseNumber = Callable[[str], Any] | None
"""Converts the text of a number to a value. None means int or float."""


class Record(NamedTuple):
    """A record to be stored."""

    id: str
    updated: int | None
    """When it was last changed, in microseconds since 1970. None: unknown."""
    text: str
    """Its JSON as it was sent, without white space between the tokens."""
    position: int = 1
    """Its position on its page, from 1."""
    nameless: bool = False
    """Whether it has no id of its own, so that `id` is a hash of its content."""


class Records(Sequence[Record]):
    """The records of a page, in columns: the garbage collector would traverse a tuple for each record."""

    __slots__ = ("ids", "nameless", "positions", "texts", "updated")

    def __init__(
        self,
        ids: list[str],
        updated: list[int | None],
        texts: list[str],
        positions: Sequence[int] | None = None,
        nameless: Sequence[bool] = (),
    ) -> None:
        self.ids: list[str] = ids
        self.updated: list[int | None] = updated
        self.texts: list[str] = texts
        self.positions: Sequence[int] = range(1, len(ids) + 1) if positions is None else positions
        self.nameless: Sequence[bool] = nameless
        """Empty: no record is nameless."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """Return the same records in columns."""
        if isinstance(records, Records):
            return records
        columns = [list(column) for column in zip(*records, strict=True)] or [[]] * 5
        ids, updated, texts, positions, nameless = columns
        return cls(ids, updated, texts, positions, nameless if any(nameless) else ())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """The number of characters of their JSON."""
        return sum(map(len, self.texts))

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return list(self)[index]
        is_nameless = bool(self.nameless) and self.nameless[index]
        return Record(self.ids[index], self.updated[index], self.texts[index], self.positions[index], is_nameless)


def check_msgspec() -> None:
    """Raise ModuleNotFoundError unless msgspec is installed."""
    if find_spec("msgspec") is None:
        raise ModuleNotFoundError("msgspec is missing: pip install 'lamella[sync]'", name="msgspec")


def loads(body: bytes, parse_float: ParseNumber = None, parse_int: ParseNumber = None) -> Any:
    """Decode JSON, or raise ValueError if *body* is not JSON or contains NaN or an infinity."""
    return json.loads(body, parse_float=parse_float, parse_int=parse_int, parse_constant=_refuse_constant)


def _exact(body: bytes) -> Any:
    return loads(body, parse_int=exact_int)


class Cut(NamedTuple):
    """An answer, divided into its records and the rest."""

    answer: Any
    """The content of the answer without the records."""
    records: list[bytes] | None
    """The JSON of each record. None: there is no list of records at that place."""
    together: bytes = b""
    """The JSON of the whole list. Empty: it cannot be decoded as a whole."""
    repeats: bool = False
    """Whether an object around the records has a name twice. Then only its last value is here. Known if *compact*."""


def split(body: bytes, place: str, *, compact: bool = False) -> Cut:
    """Return an answer without its records, and the JSON of each record as it was sent.

    *compact* removes the white space between the tokens.

    Raises:
        ValueError: *body* is not JSON.
    """
    import msgspec

    names = place.split(".") if place else []
    mark, halves = b"", [found for found in _ESCAPE.finditer(body) if found["half"]] if b"\\u" in body else []
    if halves:
        # Hide escaped lone surrogates such as "\ud800": JSON allows them, but msgspec rejects them.
        mark = next(mark for number in count() if (mark := b"<%d>" % number) not in body)
        body = _ESCAPE.sub(lambda found: mark + found["half"] if found["half"] else found[0], body)
    cut = _split(msgspec.json.format(body, indent=-1) if compact else body, names, compact=compact)
    if not mark or not cut.records:
        return cut
    return cut._replace(records=[record.replace(mark, b"\\") for record in cut.records], together=b"")


def _split(body: bytes, names: list[str], *, compact: bool) -> Cut:
    import msgspec

    if not body.lstrip(b" \t\r\n").startswith(b"{" if names else b"["):
        return Cut(_exact(body), None)
    if not names:
        return Cut(None, [bytes(record) for record in _decoder(list[msgspec.Raw]).decode(body)], body)
    members = _decoder(dict[str, msgspec.Raw]).decode(body)
    repeats = compact and _repeats_name(body, members)
    inner = members.pop(names[0], None)
    answer = {name: _exact(bytes(member)) for name, member in members.items()}
    if inner is None:
        return Cut(answer, None, repeats=repeats)
    found = _split(bytes(inner), names[1:], compact=compact)
    answer[names[0]] = found.answer
    return found._replace(answer=answer, repeats=repeats or found.repeats)


def _repeats_name(body: bytes, members: Mapping[str, Any]) -> bool:
    """Return whether an object without white space has more members than names."""
    size = 1 + sum(len(name.encode()) + len(memoryview(value)) + len('"":,') for name, value in members.items())
    if size == len(body):
        return False
    # It may also contain escaped names.
    return len(json.loads(body, object_pairs_hook=list, parse_int=str)) > len(members)


def records_of(cut: Cut, source: Source) -> tuple[Records, list[tuple[int, ValueError]]]:
    """Return the records to be stored, and the position and the problem of each record that cannot be stored."""
    raws = cut.records or []
    known = _usual_records(raws, cut.together, source)
    if known is not None:
        return known, []
    found: list[Record] = []
    bad: list[tuple[int, ValueError]] = []
    for position, raw in enumerate(raws, 1):
        try:
            found.append(record_of(raw, source, position))
        except ValueError as exc:
            bad.append((position, exc))
    return Records.of(found), bad


def _usual_records(raws: list[bytes], together: bytes, source: Source) -> Records | None:
    """Return the records, decoded in one step. None: some of them do not have the usual form."""
    import msgspec

    names = (*source.ids, *source.dates)
    if not (together and source.ids) or len(set(names)) < len(names) or any("." in name for name in names):
        return None
    decoder, getters = _usual_fields(names)
    try:
        fields = decoder.decode(together)
        texts = [raw.decode() for raw in raws]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    columns = [[get(each) for each in fields] for get in getters]
    ids, *other_ids = columns[: len(source.ids)]
    if other_ids:
        ids = [next(filter(None, map(_id, values)), None) for values in zip(ids, *other_ids, strict=True)]
    elif not all(type(value) is str for value in ids):
        ids = [_id(value) for value in ids]
    dates = columns[len(source.ids) :]
    no_dates: list[int | None] = [None] * len(ids)
    updated = [_updated(values) for values in zip(*dates, strict=True)] if dates else no_dates
    return Records(cast("list[str]", ids), updated, texts) if all(ids) else None


@lru_cache(maxsize=64)
def _usual_fields(names: tuple[str, ...]) -> tuple[Any, list[Callable[[Any], Any]]]:
    """Return a decoder of records whose fields are texts, whole numbers or null, and a getter for each field."""
    import msgspec

    fields = [(f"f{n}", str | int | None, msgspec.field(default=None, name=name)) for n, name in enumerate(names)]
    kind = msgspec.defstruct("Fields", fields, gc=False)
    getters: list[Callable[[Any], Any]] = [attrgetter(name) for name, *_ in fields]
    return msgspec.json.Decoder(list[kind]), getters  # type: ignore[valid-type]


def record_of(raw: bytes, source: Source, position: int = 1) -> Record:
    """Return a record to be stored, or raise ValueError if it is not an object, has no id, or is not UTF-8."""
    import msgspec

    try:
        found = _fields((*source.ids, *source.dates))(raw)
    except msgspec.DecodeError:  # not an object, or it contains a lone surrogate
        value = _exact(raw)
        if not isinstance(value, dict):
            raise ValueError("is not an object") from None  # noqa: TRY004 - the record is wrong, not an argument
        found = [at(value, place) for place in (*source.ids, *source.dates)]
    ids, dates = found[: len(source.ids)], found[len(source.ids) :]
    name = next(filter(None, map(_id, ids)), None)
    if name is None and source.may_lack_id and all(value is None or value == "" for value in ids):
        return Record(content_id(raw), _updated(dates), raw.decode(), position, nameless=True)
    if name is None and (odd := next((each for each in zip(source.ids, ids, strict=True) if each[1]), None)):
        raise ValueError(f"has no usable {odd[0]!r}: it must be text or a whole number, got {type(odd[1]).__name__}")
    if name is None:
        names = " nor ".join(map(repr, source.ids))
        raise ValueError(f"has {'neither' if len(ids) > 1 else 'no'} {names}, so it cannot be identified")
    return Record(name, _updated(dates), raw.decode(), position)


def content_id(raw: bytes) -> str:
    """Return the id of a record without an own id: a hash of its content."""
    return f"content:{blake2b(raw, digest_size=16).hexdigest()}"


def id_of(record: object, source: Source) -> str | None:
    """Return the id of a decoded record. None: it has no id."""
    return next(filter(None, (_id(at(record, name)) for name in source.ids)), None)


def updated_of(record: object, source: Source) -> int | None:
    """Return when a decoded record was last changed, as in :attr:`Record.updated`."""
    return _updated([at(record, name) for name in source.dates])


def microseconds(value: object) -> int | None:
    """Convert ISO 8601 (UTC if it has no zone) or seconds to microseconds since 1970. None: *value* is neither."""
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
    """Convert microseconds since 1970 to ISO 8601 in UTC."""
    return (EPOCH + moment * MICROSECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _updated(values: Iterable[object]) -> int | None:
    return next((found for found in map(microseconds, values) if found is not None and found >= _EARLIEST), None)


def _id(value: object) -> str | None:
    if isinstance(value, float | Decimal) and -_EXACT < value < _EXACT and value == int(value):
        value = int(value)  # some serializers write 7.0 for 7
    if isinstance(value, str | int | Decimal) and not isinstance(value, bool) and value != "":
        return str(value).encode("utf-8", "backslashreplace").decode()
    return None


@lru_cache(maxsize=64)
def _fields(names: tuple[str, ...]) -> Callable[[bytes], list[Any]]:
    """Return a function that decodes only these fields of a record."""
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
        return None if place else raw[1:-1].decode()  # the fast path for most values
    return None if raw == b"null" else at(_exact(raw), place)


@lru_cache(maxsize=64)
def _decoder(kind: Any) -> Any:
    import msgspec

    return msgspec.json.Decoder(kind)


def exact_int(literal: str) -> int | Decimal:
    """Return the value of an integer's text, as a Decimal if it has more digits than Python allows in an int."""
    try:
        return int(literal)
    except ValueError:
        return Decimal(literal)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON compliant")
