from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.maesn.published.records import KINDS, fields_of
from lamella.maesn.sandbox.made import ids_of, milliseconds
from lamella.maesn.sandbox.records import Table, _generated

_OF = {"invoices": "invoice", "offers": "offer", "contacts": "contact"}


def table(resource: str = "invoices", account: str = "a", seed: int = 0, size: int = 30) -> Table:
    return Table(_OF.get(resource, resource), resource, account, seed=seed, size=size)


def test_the_same_seed_gives_the_same_records() -> None:
    records = table().all()
    _generated.cache_clear()
    assert table().all() == records


@pytest.mark.parametrize("other", [table(seed=1), table(account="b"), table("offers")], ids=["seed", "account", "kind"])
def test_other_seeds_accounts_and_lists_give_other_records(other: Table) -> None:
    ids = {record["id"] for record in other.all()}
    assert ids.isdisjoint(record["id"] for record in table().all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_has_its_fields_and_an_id(kind: str) -> None:
    records = table(kind).all()
    for record in records:
        assert [field.name for field in fields_of(kind)] == list(record)
        if {"createdDate", "updatedDate"} <= record.keys():
            created, updated = (datetime.fromisoformat(record[name]) for name in ("createdDate", "updatedDate"))
            assert created <= updated < datetime.now(UTC)
    for name in ids_of(kind):
        assert len({record[name] for record in records}) == 30


def test_an_invoice_has_two_ids() -> None:
    assert ids_of("invoice") == ("invoiceId", "id")
    assert ids_of("invoiceLine") == ("lineItemId",)
    assert ids_of("trialBalance") == ()
    assert all(record["invoiceId"] == record["id"] for record in table().all())


def test_records_contain_values_that_programs_get_wrong() -> None:
    bills = Table("bill", "bills", "a", seed=0, size=300).all()
    amounts = {bill["totalNetAmount"] for bill in bills}
    assert 99999999999999.98 in amounts
    assert 1.0836427193846572 in amounts
    assert None in amounts
    names = "".join(bill["name"] for bill in bills)
    assert not names.isascii()
    assert "\u2028" in names


def test_the_amounts_of_an_invoice_add_up() -> None:
    contacts = {record["id"] for record in table("contacts").all()}
    for invoice in table().all():
        assert invoice["contactId"] in contacts
        assert invoice["invoiceDate"] < invoice["dueDate"]
        assert invoice["lineItems"]
        assert invoice["sumNetAmount"] == pytest.approx(sum(line["itemsAmount"] for line in invoice["lineItems"]))
        assert invoice["totalAmount"] == pytest.approx(sum(line["grossAmount"] for line in invoice["lineItems"]))
        assert invoice["totalAmount"] == pytest.approx(invoice["sumNetAmount"] + invoice["totalTaxAmount"])
        assert {"invoiceNumber", "currency", "status"} <= invoice.keys()


def test_reading_a_page_generates_no_record_of_another_page() -> None:
    endless = table(size=10**9)
    records, total = endless.page(10**7, 100)
    assert len(records) == 100
    assert total == 10**9
    assert endless.get(records[7]["invoiceId"]) == records[7]


@pytest.mark.parametrize("record_id", ["", "nothing", "00000000", "-1", "0000001d-0000-4000-a000-000000000000"])
def test_an_unknown_id_finds_no_record(record_id: str) -> None:
    assert table().get(record_id) is None


def test_a_new_record_comes_last() -> None:
    records = table()
    created = records.create({"name": "new", "invoiceId": "mine", "createdDate": "never", "updatedDate": "never"})
    assert created["invoiceId"] != "mine"
    assert created["createdDate"] == created["updatedDate"] != "never"
    assert records.all()[-1] == created == records.get(created["invoiceId"])


def test_changing_a_record_keeps_position_and_other_fields() -> None:
    records = table()
    before = records.all()[3]
    after = records.change(before["invoiceId"], {"status": "VOIDED", "invoiceId": "other"})
    assert after
    assert after == records.all()[3] == {**before, "status": "VOIDED", "updatedDate": after["updatedDate"]}
    assert after["updatedDate"] > before["updatedDate"]
    assert records.change("other", {}) is None


def test_replacing_a_record_keeps_only_its_id() -> None:
    records = table()
    before = records.all()[3]
    after = records.replace(before["invoiceId"], {"status": "VOIDED", "number": 7})
    assert after
    assert {name: value for name, value in after.items() if value is not None} == {
        "invoiceId": before["id"],
        "id": before["id"],
        "status": "VOIDED",
        "number": 7,
        "createdDate": before["createdDate"],
        "updatedDate": after["updatedDate"],
    }
    assert records.replace("mine", {}) is None


def test_deleting_a_record_leaves_no_gap() -> None:
    records = table(size=3)
    first, second, third = records.all()
    assert records.delete(second["invoiceId"])
    assert not records.delete(second["invoiceId"])
    assert records.get(second["invoiceId"]) is None
    assert records.page(1, 5) == ([first, third], 2)


def test_returned_records_are_copies() -> None:
    records = table()
    fields = {"lineItems": [{"quantity": 1}]}
    created = records.create(fields)
    fields["lineItems"][0]["quantity"] = 2
    created["lineItems"][0]["quantity"] = 3
    assert [line["quantity"] for line in records.all()[-1]["lineItems"]] == [1]
    records.all()[-1]["lineItems"].clear()
    assert [line["quantity"] for line in records.all()[-1]["lineItems"]] == [1]


@given(st.datetimes(datetime(2024, 1, 1), datetime(2025, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_records_are_filtered_by_the_last_change(since: datetime) -> None:
    records = table()
    found, total = records.page(1, 100, milliseconds(since))
    expected = [record for record in records.all() if datetime.fromisoformat(record["updatedDate"]) >= since]
    assert found == expected
    assert total == len(expected)


def test_the_filter_includes_changes_in_the_same_millisecond() -> None:
    records = table()
    since = milliseconds(datetime.now(UTC))
    changed = records.change(records.all()[3]["invoiceId"], {"status": "PAID"})
    created = records.create({})
    assert records.page(1, 100, since)[0] == [changed, created]
