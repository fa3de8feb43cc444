"""The records of a sandbox: made up from a seed when they are read, and changed in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, TypeVar

Record = dict[str, Any]

_T = TypeVar("_T")

RESOURCES = (
    "accounts", "bills", "contacts", "customers", "expenses", "invoices", "items",
    "journalEntries", "offers", "payments", "projects", "suppliers", "taxRates", "transactions",
)  # fmt: skip

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = _EPOCH.replace(tzinfo=None)
_YEAR, _HALF_YEAR = 365 * 86_400, 180 * 86_400  # seconds

_NAMES = (
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel",
    "Ivy", "Juniper", "Larch", "Maple", "Oak", "Poplar", "Rowan", "Willow",
)  # fmt: skip
_TRADES = ("Bakery", "Books", "Design", "Logistics", "Machines", "Optics", "Software", "Tea")
_SERVICES = ("Consulting", "Hosting", "Installation", "Licence", "Maintenance", "Support", "Training", "Transport")
_CURRENCIES = ("EUR", "EUR", "EUR", "CHF", "GBP", "USD")
_STATUSES = ("DRAFT", "OPEN", "OPEN", "OVERDUE", "PAID", "PAID", "PAID", "VOIDED")
_TAX_PERCENTS = (0, 7, 19, 20)
_PAYMENT_DAYS = (7, 14, 30, 60)


def id_field(resource: str) -> str:
    """Return the name of the id field: "journalEntryId" for "journalEntries"."""
    singular = f"{resource[:-3]}y" if resource.endswith("ies") else resource.removesuffix("s")
    return f"{singular}Id"


def milliseconds(moment: datetime) -> int:
    """Return a moment with a time zone in milliseconds since the start of 2024."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _timestamp(moment: int) -> str:
    """Return a moment in `milliseconds` as the API writes it: in UTC by ISO 8601."""
    return f"{(_NAIVE_EPOCH + timedelta(milliseconds=moment)).isoformat(timespec='milliseconds')}Z"


class Table:
    """The records of one resource of one account, in the order in which they were created.

    The first `size` records are functions of seed, account, resource and place, made again each time they are read:
    only written records take memory. Every record that is returned is the caller's own.
    """

    def __init__(self, resource: str, account: str, *, seed: int, size: int) -> None:
        self.id_field: str = id_field(resource)
        self._resource = resource
        self._account = account
        self._seed = seed
        self._seeded = size
        self._places = size  # ever used: a deleted record leaves its place empty
        self._written: dict[int, Record] = {}
        self._deleted: set[int] = set()
        self._chosen_ids: dict[str, int] = {}  # ids that a client has chosen

    def page(self, page: int, per_page: int, since: int | None = None) -> tuple[list[Record], int]:
        """Return the records of one page (from 1) and their number on all pages, changed at or after `since`."""
        places = self._living(since)
        start = (page - 1) * per_page
        return [self._read(place) for place in places[start : start + per_page]], len(places)

    def all(self) -> list[Record]:
        """Return every record."""
        return [self._read(place) for place in self._living(None)]

    def get(self, record_id: str) -> Record | None:
        """Return the record with this id, or None."""
        place = self._place(record_id)
        return None if place is None else self._read(place)

    def create(self, fields: Mapping[str, Any]) -> Record:
        """Add a record under a new id."""
        return self._add(self._id(self._places), fields)

    def change(self, record_id: str, fields: Mapping[str, Any]) -> Record | None:
        """Change the given fields of a record; None if there is no such record."""
        place = self._place(record_id)
        if place is None:
            return None
        before = self._read(place)
        return self._write(place, {**before, **fields}, record_id, before["createdDate"])

    def upsert(self, record_id: str, fields: Mapping[str, Any]) -> tuple[Record, bool]:
        """Replace a record, or add it under this id, and return whether it is new."""
        place = self._place(record_id)
        if place is None:
            self._chosen_ids[record_id] = self._places
            return self._add(record_id, fields), True
        return self._write(place, fields, record_id, self._read(place)["createdDate"]), False

    def delete(self, record_id: str) -> bool:
        """Remove a record; False if there is no such record."""
        place = self._place(record_id)
        if place is None:
            return False
        self._deleted.add(place)
        self._written.pop(place, None)
        self._chosen_ids.pop(record_id, None)
        return True

    def _add(self, record_id: str, fields: Mapping[str, Any]) -> Record:
        place = self._places
        self._places += 1
        return self._write(place, fields, record_id, None)

    def _write(self, place: int, fields: Mapping[str, Any], record_id: str, created: str | None) -> Record:
        """Store `fields`, but for id and dates, which no client can choose. `created` None: now."""
        now = _timestamp(milliseconds(datetime.now(UTC)))
        own = {self.id_field: record_id, "createdDate": created or now, "updatedDate": now}
        # The id comes first, as in the records that were there before.
        record = {self.id_field: record_id, **copy.deepcopy(dict(fields)), **own}
        self._written[place] = record
        return copy.deepcopy(record)

    def _read(self, place: int) -> Record:
        written = self._written.get(place)
        return self._generate(place) if written is None else copy.deepcopy(written)

    def _place(self, record_id: str) -> int | None:
        place = self._chosen_ids.get(record_id)
        if place is None:
            try:
                place = int(record_id[:8], 16)  # where _id() has put it
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
            return _Chance(self._key(place)).dates()[1]
        return milliseconds(datetime.fromisoformat(written["updatedDate"]))

    def _key(self, place: int, resource: str | None = None) -> str:
        return f"{self._seed}/{self._account}/{resource or self._resource}/{place}"

    def _id(self, place: int, resource: str | None = None) -> str:
        """Return an id in the form of a UUID that holds its place, so that a look-up needs no index."""
        digest = blake2b(self._key(place, resource).encode(), digest_size=16).hexdigest()
        return f"{place:08x}-{digest[:4]}-4{digest[4:7]}-a{digest[7:10]}-{digest[10:22]}"

    def _generate(self, place: int) -> Record:
        chance = _Chance(self._key(place))
        created, updated = chance.dates()
        record = {self.id_field: self._id(place)}
        record |= self._invoice(place, created, chance) if self._resource == "invoices" else _named(chance)
        record |= {"createdDate": _timestamp(created), "updatedDate": _timestamp(updated)}
        return record

    def _invoice(self, place: int, created: int, chance: _Chance) -> Record:
        lines = [_line_item(number, chance) for number in range(1, chance.below(4) + 2)]
        # In cents: sums of prices must add up exactly.
        net = sum(cents for _, cents, _ in lines)
        tax = sum(cents for _, _, cents in lines)
        day = (_NAIVE_EPOCH + timedelta(milliseconds=created)).date()
        return {
            "invoiceNumber": f"INV-{day.year}-{place + 1:05d}",
            "contactId": self._id(chance.below(self._seeded), "contacts"),
            "currency": chance.one_of(_CURRENCIES),
            "invoiceDate": day.isoformat(),
            "dueDate": (day + timedelta(days=chance.one_of(_PAYMENT_DAYS))).isoformat(),
            "status": chance.one_of(_STATUSES),
            "sumNetAmount": net / 100,
            "totalTaxAmount": tax / 100,
            "totalAmount": (net + tax) / 100,
            "lineItems": [line for line, _, _ in lines],
        }


class _Chance:
    """Numbers drawn from a key. It starts ten times as fast as random.Random, and a record needs few numbers."""

    def __init__(self, key: str) -> None:
        self._pool = int.from_bytes(blake2b(key.encode(), digest_size=64).digest(), "big")

    def below(self, bound: int) -> int:
        self._pool, drawn = divmod(self._pool, bound)
        return drawn

    def one_of(self, choices: tuple[_T, ...]) -> _T:
        return choices[self.below(len(choices))]

    def dates(self) -> tuple[int, int]:
        """Return when a record was created and last changed. Drawn first: `_updated` needs nothing else."""
        created = 1000 * self.below(_YEAR)
        return created, created + 1000 * self.below(_HALF_YEAR)


def _named(chance: _Chance) -> Record:
    return {"name": f"{chance.one_of(_NAMES)} {chance.one_of(_TRADES)}"}


def _line_item(number: int, chance: _Chance) -> tuple[Record, int, int]:
    """Return a line of an invoice, its net amount and its tax, both in cents."""
    quantity = chance.below(9) + 1
    unit_cents = chance.below(50_000) + 100
    percent = chance.one_of(_TAX_PERCENTS)
    net = quantity * unit_cents
    tax = round(net * percent / 100)
    line = {
        "lineItemId": str(number),
        "description": chance.one_of(_SERVICES),
        "quantity": quantity,
        "unitPrice": unit_cents / 100,
        "taxRatePercentage": percent,
        "netAmount": net / 100,
        "totalAmount": (net + tax) / 100,
    }
    return line, net, tax
