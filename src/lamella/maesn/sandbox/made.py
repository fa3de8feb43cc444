"""Generate records: the same ones for the same key, with values that programs often get wrong."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from hashlib import blake2b
from random import Random
from typing import Any, Final

from lamella.maesn.published.records import WITHOUT_NULLS, Field, fields_of

Record = dict[str, Any]

EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = EPOCH.replace(tzinfo=None)
_YEAR, _HALF_YEAR = 365 * 86_400, 180 * 86_400  # seconds
_DAY: Final = 86_400_000  # milliseconds

LONG_NUMBERS: Final = {
    "1.0836427193846572": "1.08364271938465724185930581437",
    "99999999999999.98": "99999999999999.98000000000000001",
    "1.2345678901234568e-07": "0.00000012345678901234567890123",
}
"""Numbers with more digits than a float keeps, keyed by the float; the sandbox sends the long form."""
_LONG: Final = tuple(map(float, LONG_NUMBERS))

_WORDS: Final = (
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Juniper", "Larch", "Maple", "Rowan",
    "Ärger & Söhne", "O'Neill \"Tools\"", "Łódź",
    "株式会社 銀杏", "شركة البلوط", "Crew 👩\u200d🔧", "a\u2028b", "back\\slash",
)  # fmt: skip
_TRADES: Final = ("Bakery", "Books", "Design", "Logistics", "Machines", "Optics", "Software", "Tea")
_SERVICES: Final = ("Consulting", "Hosting", "Installation", "Licence", "Maintenance", "Support", "Training")
_CURRENCIES: Final = ("EUR", "EUR", "EUR", "CHF", "GBP", "USD")
_COUNTRIES: Final = ("DE", "AT", "CH", "NL", "GB", "FR")
_PERCENTS: Final = (0, 7, 8.1, 19, 20)
_NULL: Final = 0.1
"""The probability that a nullable value is null."""
_NEVER_NULL: Final = frozenset({"createdDate", "updatedDate", "lastModifiedDate", "name", "companyName",
    "invoiceNumber", "contactId", "currency", "invoiceDate", "dueDate", "status", "dimension"})  # fmt: skip

_LISTS: Final = {
    "accountId": "accounts", "assetAccountId": "accounts", "billingContactId": "contacts", "contactId": "contacts",
    "customerId": "customers", "expenseAccountId": "accounts", "incomeAccountId": "accounts", "invoiceId": "invoices",
    "itemId": "items", "parentAccountId": "accounts", "paymentTermId": "paymentTerms", "projectId": "projects",
    "purchaseOrderId": "purchaseOrders", "shippingContactId": "contacts", "supplierId": "suppliers",
}  # fmt: skip
"""The list that an id in a record refers to."""


def milliseconds(moment: datetime) -> int:
    """Return an aware datetime in milliseconds since the start of 2024."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def timestamp(moment: int) -> str:
    """Return a time in `milliseconds` as the API writes it: UTC in ISO 8601."""
    days, rest = divmod(moment, _DAY)
    minutes, rest = divmod(rest, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{_date(days)}T{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}Z"


@lru_cache(maxsize=2048)
def _date(days: int) -> str:
    return (_NAIVE_EPOCH + timedelta(days=days)).date().isoformat()


def dates(key: str) -> tuple[int, int]:
    """Return when the record with this key was created and last changed. Drawn separately, because filters need only
    these."""
    pool = int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "big")
    pool, created = divmod(pool, _YEAR)
    return 1000 * created, 1000 * (created + pool % _HALF_YEAR)


@cache
def ids_of(kind: str) -> tuple[str, ...]:
    """Return the fields that hold the id of a kind of record."""
    return tuple(field.name for field in fields_of(kind)[:2] if field.name in {"id", "invoiceId", "lineItemId"})


def make(kind: str, key: str, record_id: str, place: int, refer: Callable[[str, int], str]) -> Record:
    """Return a record.

    Args:
        kind: A kind of published record.
        key: Determines all values.
        record_id: Its id.
        place: Its position in the list, from 0.
        refer: Returns an id of another list, given the list and any number.
    """
    created, updated = dates(key)
    maker = _Maker(Random(key), refer, created)
    record = maker.record(kind)
    record |= dict.fromkeys(ids_of(kind), record_id)
    for name, moment in (("createdDate", created), ("updatedDate", updated), ("lastModifiedDate", updated)):
        if name in record:
            record[name] = timestamp(moment)
    if kind == "invoice":
        maker.add_up(record, place)
    return record


def complete(kind: str, given: dict[str, Any], number: str = "1") -> Record:
    """Return a record that a client wrote, with the missing fields of its kind as null.

    Nested records are completed in the same way and get an id.
    """
    record: Record = {}
    for field in fields_of(kind):
        value = given.get(field.name)
        if field.kind == "records" and isinstance(value, list):
            value = [complete(field.of, _as_record(field.of, each), f"{n}") for n, each in enumerate(value, 1)]
        elif field.kind == "record" and isinstance(value, dict):
            value = complete(field.of, value)
        elif field.kind == "number" and isinstance(value, str):
            value = _number(value)  # clients write the exchange rate of a line as text and read it as a number
        elif value is None and (kind in WITHOUT_NULLS or (kind, field.name) == ("contactAddress", "type")):
            value = _plain(field)
        record[field.name] = value
    for name in ids_of(kind):
        record[name] = record[name] or number
    return {**record, **{name: value for name, value in given.items() if name not in record}}


def _as_record(kind: str, value: Any) -> dict[str, Any]:
    """Return a record; a client may give only its main field, such as the address of an e-mail."""
    fields = fields_of(kind)
    return value if isinstance(value, dict) else {fields[0].name: value} if fields else {}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(field: Field) -> Any:
    match field.kind:
        case "moment":
            return timestamp(0)
        case "choice":
            return field.choices[0]
        case "number":
            return 4
    return f"made-up-{field.name}"


class _Maker:
    def __init__(self, random: Random, refer: Callable[[str, int], str], created: int) -> None:
        self.draw: Callable[[], float] = random.random  # much faster than randrange and choice
        self.refer = refer
        self.created = created

    def below(self, bound: int) -> int:
        return int(self.draw() * bound)

    def one_of(self, choices: tuple[Any, ...]) -> Any:
        return choices[int(self.draw() * len(choices))]

    def record(self, kind: str, depth: int = 0) -> Record:
        draw = self.draw
        return {
            name: None if may_be_null and draw() < _NULL else value(self, argument, depth)
            for name, may_be_null, value, argument in _recipe(kind)
        }

    def records(self, field: Field, depth: int) -> list[Record]:
        many = self.below(3 if depth == 0 else 2) + (field.name == "lineItems")
        found = [self.record(field.of, depth + 1) for _ in range(many)]
        for number, record in enumerate(found, 1):
            for name in ids_of(field.of):
                record[name] = str(number)
        return found

    def amount(self) -> float:
        return self.one_of(_LONG) if self.draw() < 0.05 else self.below(10_000_000) / 100

    def moment(self) -> str:
        return timestamp(self.created + _DAY * self.below(60))

    def words(self) -> str:
        return self.one_of(_SERVICES) if self.draw() < 0.7 else f"{self.one_of(_WORDS)} {self.below(100)}"

    def add_up(self, invoice: Record, place: int) -> None:
        """Make the amounts of an invoice add up and put its dates in order."""
        net = tax = 0
        lines = invoice["lineItems"] or [self.record("invoiceLine", 1)]
        for number, line in enumerate(lines, 1):
            quantity, cents, percent = self.below(9) + 1, self.below(50_000) + 100, self.one_of(_PERCENTS)
            of_line = round(quantity * cents * percent / 100)  # in cents, so that sums of prices are exact
            net, tax = net + quantity * cents, tax + of_line
            line |= {
                "lineItemId": str(number),
                "quantity": quantity,
                "unitAmount": cents / 100,
                "taxRatePercentage": percent,
                "itemsAmount": quantity * cents / 100,
                "grossAmount": (quantity * cents + of_line) / 100,
            }
        day = self.created - self.created % _DAY
        year = (_NAIVE_EPOCH + timedelta(milliseconds=day)).year
        invoice |= {
            "invoiceNumber": f"INV-{year}-{place + 1:05d}",
            "invoiceDate": timestamp(day),
            "dueDate": timestamp(day + _DAY * (7 + self.below(60))),
            "sumNetAmount": net / 100,
            "totalTaxAmount": tax / 100,
            "totalAmount": (net + tax) / 100,
            "lineItems": lines,
        }


_Value = Callable[[_Maker, Any, int], Any]

_VALUES: Final[dict[str, _Value]] = {
    "amount": lambda maker, _, __: maker.amount(),
    "base64": lambda _, __, ___: base64.b64encode(b"%PDF-1.4 made up").decode(),
    "choice": lambda maker, field, _: maker.one_of(field.choices),
    "code": lambda maker, _, __: maker.one_of(_CURRENCIES),
    "country": lambda maker, _, __: maker.one_of(_COUNTRIES),
    "flag": lambda maker, _, __: maker.draw() < 0.5,
    "moment": lambda maker, _, __: maker.moment(),
    "month": lambda maker, _, __: maker.below(12) + 1,
    "number": lambda maker, _, __: maker.below(90_000) + 10_000,
    "object": lambda _, __, ___: {},
    "percent": lambda maker, _, __: maker.one_of(_PERCENTS),
    "record": lambda maker, field, depth: maker.record(field.of, depth + 1),
    "records": lambda maker, field, depth: maker.records(field, depth),
    "texts": lambda maker, _, __: [f"file-{maker.below(1000)}.pdf" for _ in range(maker.below(3))],
}
_TEXTS: Final[tuple[tuple[re.Pattern[str], _Value], ...]] = (
    (re.compile("|".join(_LISTS)), lambda maker, field, _: maker.refer(_LISTS[field.name], maker.below(2**20))),
    (re.compile(r".*Id|id"), lambda maker, _, __: f"{maker.below(2**48):012x}"),
    (re.compile(r"(.*N|n)umber"), lambda maker, _, __: f"{maker.below(10**6):06}"),
    (
        re.compile(r".*[nN]ame|holder|contact|dimension"),
        lambda maker, _, __: f"{maker.one_of(_WORDS)} {maker.one_of(_TRADES)}",
    ),
    (re.compile(r"email"), lambda maker, _, __: f"mail@{maker.one_of(_TRADES).lower()}.example"),
    (re.compile(r"website|callbackUrl"), lambda maker, _, __: f"https://{maker.one_of(_TRADES).lower()}.example/"),
    (re.compile(r".*"), lambda maker, _, __: maker.words()),
)
"""Generators of text, by the name of the field."""


@cache
def _recipe(kind: str) -> tuple[tuple[str, bool, _Value, Field], ...]:
    """Return for each field its name, whether it may be null, and the function that generates its value."""
    return tuple(
        (
            field.name,
            number > 0 and kind not in WITHOUT_NULLS and field.name not in _NEVER_NULL,
            _VALUES.get(field.kind) or next(value for shape, value in _TEXTS if shape.fullmatch(field.name)),
            field,
        )
        for number, field in enumerate(fields_of(kind))
    )
