"""The records of one list of a sandbox, generated from a seed when they are read and changed in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from lamella.maesn.sandbox.made import Record, complete, dates, ids_of, make, milliseconds, timestamp

__all__ = ["EVEN", "Odd", "Record", "Table"]

_CHANGES = ("updatedDate", "lastModifiedDate")
"""The fields that hold the time of the last change."""


class Odd(NamedTuple):
    """Which records of a list are malformed. 0: none; 10: every tenth."""

    nameless: int = 0
    """The id is null."""
    double: int = 0
    """The id is that of the record before it; the content differs."""


EVEN: Final = Odd()


@lru_cache(maxsize=4096)
def _generated(kind: str, prefix: str, name: str, place: int, size: int) -> str:
    """Return a record as JSON: parsing that takes a fraction of the time of generating it."""

    def refer(other: str, number: int) -> str:
        # All lists have the same size, except those without pages, which no record refers to.
        return _id(f"{prefix}/{other}", number % max(size, 1))

    where = f"{prefix}/{name}"
    return json.dumps(make(kind, f"{where}/{place}", _id(where, place), place, refer))


def _id(where: str, place: int) -> str:
    """Return a UUID-like id that encodes the position in a list, so that a look-up needs no index."""
    digest = blake2b(f"{where}/{place}".encode(), digest_size=16).hexdigest()
    return f"{place:08x}-{digest[:4]}-4{digest[4:7]}-a{digest[7:10]}-{digest[10:22]}"


class Table:
    """The records of one list of one account, in the order in which they were created.

    The first `size` records are functions of seed, account, list and position, generated when they are read, so that
    only written records take memory, and those that were read last. Returned records are copies.
    """

    def __init__(self, kind: str, name: str, account: str, *, seed: int, size: int, odd: Odd = EVEN) -> None:
        self.kind: str = kind
        self._name = name
        self._prefix = f"{seed}/{account}"
        self._odd = odd
        self.seeded: int = size
        self._places = size  # positions ever used; a deleted record leaves its position empty
        self._written: dict[int, Record] = {}
        self._deleted: set[int] = set()

    def page(
        self,
        page: int,
        per_page: int,
        since: int | None = None,
        where: Callable[[Record], bool] | None = None,
        order: Callable[[Record], Any] | None = None,
        *,
        last_first: bool = False,
    ) -> tuple[list[Record], int]:
        """Return the records of one page (from 1) and the total number of records.

        Args:
            page: From 1.
            per_page: How many records a page holds.
            since: Only records changed at or after this time. None: all.
            where: Only records for which it returns true. None: all.
            order: The sort key. None: order of creation.
            last_first: Whether the order is reversed.
        """
        places, start = self._living(since), (page - 1) * per_page
        if where is None and order is None:
            chosen = places[::-1] if last_first else places
            return [self._read(place) for place in chosen[start : start + per_page]], len(places)
        found = [record for record in map(self._read, places) if where is None or where(record)]
        if order is not None:
            found.sort(key=order, reverse=last_first)
        return found[start : start + per_page], len(found)

    def all(self) -> list[Record]:
        """Return every record."""
        return [self._read(place) for place in self._living(None)]

    def get(self, record_id: str) -> Record | None:
        """Return the record with this id, or None."""
        place = self._place(record_id)
        return None if place is None else self._read(place)

    def create(self, fields: Mapping[str, Any]) -> Record:
        """Add a record under a new id."""
        place = self._places
        self._places += 1
        return self._write(place, fields, None)

    def change(self, record_id: str, fields: Mapping[str, Any]) -> Record | None:
        """Change the given fields of a record; return None if it does not exist."""
        before = self.get(record_id)
        return None if before is None else self.replace(record_id, {**before, **fields})

    def replace(self, record_id: str, fields: Mapping[str, Any]) -> Record | None:
        """Replace a record by one with these fields; return None if it does not exist."""
        place = self._place(record_id)
        if place is None:
            return None
        return self._write(place, fields, self._read(place).get("createdDate"))

    def delete(self, record_id: str) -> bool:
        """Remove a record; return False if it does not exist."""
        place = self._place(record_id)
        if place is None:
            return False
        self._deleted.add(place)
        self._written.pop(place, None)
        return True

    def id_at(self, number: int) -> str:
        """Return the id of one of the initial records; every number maps to one."""
        return self._id(number % self.seeded if self.seeded else 0)

    def _write(self, place: int, fields: Mapping[str, Any], created: str | None) -> Record:
        """Store `fields` except ids and dates, which no client can choose. `created` None: now."""
        now = timestamp(milliseconds(datetime.now(UTC)))
        record = complete(self.kind, copy.deepcopy(dict(fields)))
        record |= dict.fromkeys(ids_of(self.kind), self._id(place))
        for name in ("createdDate", *_CHANGES):
            if name in record:
                record[name] = (created or now) if name == "createdDate" else now
        self._written[place] = record
        return copy.deepcopy(record)

    def _read(self, place: int) -> Record:
        written = self._written.get(place)
        if written is not None:
            return copy.deepcopy(written)
        record: Record = json.loads(_generated(self.kind, self._prefix, self._name, place, self.seeded))
        number = place + 1
        if self._odd.nameless and number % self._odd.nameless == 0:
            record |= dict.fromkeys(ids_of(self.kind))
        elif self._odd.double and number % self._odd.double == 0:
            record |= dict.fromkeys(ids_of(self.kind), self._id(place - 1))
        return record

    def _place(self, record_id: str) -> int | None:
        try:
            place = int(record_id[:8], 16)  # the position that _id() encoded
        except ValueError:
            return None
        if not 0 <= place < self._places or self._id(place) != record_id:
            return None
        return None if place in self._deleted else place

    def _living(self, since: int | None) -> range | list[int]:
        if since is None and not self._deleted:
            return range(self._places)
        places = (place for place in range(self._places) if place not in self._deleted)
        return [place for place in places if since is None or self._updated(place) >= since]

    def _updated(self, place: int) -> int:
        written = self._written.get(place)
        if written is None:
            return dates(f"{self._prefix}/{self._name}/{place}")[1]
        changed = next((written[name] for name in _CHANGES if written.get(name)), None)
        return 0 if changed is None else milliseconds(datetime.fromisoformat(changed))

    def _id(self, place: int) -> str:
        return _id(f"{self._prefix}/{self._name}", place)
