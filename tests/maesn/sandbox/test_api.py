"""The routes, without a socket; `test_server.py` has them with one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict, MultiDict

from lamella.maesn.published.operations import lists, needs_account
from lamella.maesn.published.systems import NAMES
from lamella.maesn.sandbox import Odd, Received
from lamella.maesn.sandbox.api import Api, Traits
from lamella.maesn.sandbox.queries import PAGE_SIZES
from lamella.maesn.sandbox.records import EVEN
from lamella.maesn.sandbox.replies import Reply

PAGED = [
    operation.path.removeprefix("accounting/")
    for operation in lists()
    if "limit" in operation.query and "{" not in operation.path
]


def make_api(size: int = 45, *, odd: Odd = EVEN, later: str = "", idempotency_keys: bool = False) -> Api:
    traits = Traits(0, odd, later=frozenset(later.split()), idempotency_keys=idempotency_keys)
    return Api(traits, size=lambda _: size, new_account=lambda: "a-new-key")


@pytest.fixture
def api() -> Api:
    return make_api()


def ask(
    api: Api,
    method: str,
    path: str,
    body: object = None,
    *,
    account: str = "a",
    headers: dict[str, str] | None = None,
    **query: str,
) -> Reply:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api.answer(Received(1, 0.0, method, path, MultiDict(query), CIMultiDict(headers or {}), account, encoded))


def payload(reply: Reply) -> Any:
    return json.loads(reply.encoded())


def invalid_fields(reply: Reply) -> list[str]:
    assert reply.status == 400
    return [error["field"] for error in payload(reply)["errors"]["validationErrors"]]


class TestLists:
    def test_a_list_has_a_default_page(self, api: Api) -> None:
        reply = payload(ask(api, "GET", "/accounting/invoices"))
        assert reply["meta"]["pagination"] == {"total": 45, "perPage": 20, "currentPage": 1, "totalPages": 3}
        assert reply["data"] == api.table("a", "invoices").all()[:20]

    @pytest.mark.sampled(8)
    @pytest.mark.parametrize("resource", PAGED)
    @pytest.mark.parametrize("limit", PAGE_SIZES)
    def test_pages_add_up_to_all_records(self, api: Api, resource: str, limit: int) -> None:
        records: list[object] = []
        page = pages = 1
        while page <= pages:
            reply = payload(ask(api, "GET", f"/accounting/{resource}", limit=str(limit), page=str(page)))
            records += reply["data"]
            pages = reply["meta"]["pagination"]["totalPages"]
            page += 1
        assert records == api.table("a", "contacts" if resource == "v2/contacts" else resource).all()

    def test_a_page_beyond_the_last_is_empty(self, api: Api) -> None:
        reply = payload(ask(api, "GET", "/accounting/bills", page="99999999999999999"))
        assert reply["data"] == []
        assert reply["meta"]["pagination"]["totalPages"] == 3

    def test_an_empty_list_has_no_pages(self) -> None:
        reply = payload(ask(make_api(0), "GET", "/accounting/bills"))
        assert reply["data"] == []
        assert reply["meta"]["pagination"]["totalPages"] == 0

    @pytest.mark.parametrize("limit", ["0", "7", "-5", "five", "", "5.0", "1000", "9" * 5000])
    def test_a_bad_limit_is_rejected(self, api: Api, limit: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", limit=limit)) == ["limit"]

    @pytest.mark.parametrize("page", ["0", "-1", "one", "", "1.5", "٣", "9" * 5000])
    def test_a_bad_page_is_rejected(self, api: Api, page: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", page=page)) == ["page"]

    @pytest.mark.parametrize("moment", ["yesterday", "", "2024-13-01", "1718000000", "2024-06-01T00:00:00 00:00"])
    def test_a_bad_time_is_rejected(self, api: Api, moment: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", lastModifiedAt=moment)) == ["lastModifiedAt"]

    def test_all_bad_parameters_are_reported_together(self, api: Api) -> None:
        reply = ask(api, "GET", "/accounting/bills", limit="1", page="0", lastModifiedAt="?")
        assert invalid_fields(reply) == ["limit", "page", "lastModifiedAt"]

    @pytest.mark.parametrize("moment", ["2024-06-01", "2024-06-01T00:00:00Z", "2024-06-01T02:00:00+02:00"])
    def test_a_list_is_filtered_by_the_last_change(self, api: Api, moment: str) -> None:
        expected = [
            record for record in api.table("a", "bills").all() if record["updatedDate"] >= "2024-06-01T00:00:00.000Z"
        ]
        assert 0 < len(expected) < 45
        reply = payload(ask(api, "GET", "/accounting/bills", lastModifiedAt=moment, limit="100"))
        assert reply["data"] == expected
        assert reply["meta"]["pagination"]["total"] == len(expected)

    def test_each_account_has_its_own_records(self, api: Api) -> None:
        mine, others = (payload(ask(api, "GET", "/accounting/bills", account=account))["data"] for account in "ab")
        assert mine != others


class TestFilters:
    def test_a_list_is_filtered_by_a_field(self, api: Api) -> None:
        found = payload(ask(api, "GET", "/accounting/bills", status="PAID", limit="100"))["data"]
        assert found == [record for record in api.table("a", "bills").all() if record["status"] == "PAID"] != []

    def test_a_list_is_filtered_by_a_due_date(self, api: Api) -> None:
        found = payload(ask(api, "GET", "/accounting/invoices", dueDateFrom="2024-09-01", limit="100"))
        assert 0 < found["meta"]["pagination"]["total"] == len(found["data"]) < 45
        assert all(record["dueDate"] >= "2024-09-01" for record in found["data"])

    def test_a_list_can_be_sorted(self, api: Api) -> None:
        up, down = (
            payload(ask(api, "GET", "/accounting/bills", orderDir=direction, orderField="billNumber", limit="100"))[
                "data"
            ]
            for direction in ("ASC", "DESC")
        )
        numbers = [record["billNumber"] or "" for record in up]
        assert numbers == sorted(numbers)
        assert [record["billNumber"] or "" for record in down] == numbers[::-1]

    def test_a_list_without_pages_has_no_meta_and_takes_no_page(self, api: Api) -> None:
        pages = [payload(ask(api, "GET", "/accounting/fiscalYears", page=page, limit="7")) for page in ("1", "2")]
        assert pages[0] == pages[1]
        assert pages[0]["meta"] is None
        assert 0 < len(pages[0]["data"]) <= 10


class TestRecords:
    def test_read(self, api: Api) -> None:
        record = api.table("a", "items").all()[7]
        assert payload(ask(api, "GET", f"/accounting/items/{record['id']}"))["data"] == [record]
        bill = api.table("a", "bills").all()[7]
        assert payload(ask(api, "GET", f"/accounting/bills/{bill['id']}"))["data"] == bill

    def test_a_record_can_be_created_changed_replaced_and_deleted(self, api: Api) -> None:
        created = ask(api, "POST", "/accounting/items", {"name": "one", "stockCount": 1})
        assert created.status == 201
        record = payload(created)["data"]
        path = f"/accounting/items/{record['id']}"

        changed = ask(api, "PATCH", path, {"name": "two"})
        assert changed.status == 200
        later = changed.body["data"]["lastModifiedDate"]
        assert payload(changed)["data"] == record | {"name": "two", "lastModifiedDate": later}

        replaced = ask(api, "PUT", path, {"name": "three"})
        assert replaced.status == 200
        assert payload(ask(api, "GET", path))["data"][0]["stockCount"] is None

        assert payload(ask(api, "DELETE", path))["data"] == record["id"]
        assert [ask(api, method, path, {}).status for method in ("GET", "PATCH", "PUT", "DELETE")] == [404] * 4

    def test_lines_are_those_of_the_record(self, api: Api) -> None:
        invoice = api.table("a", "invoices").all()[3]
        path = f"/accounting/invoices/{invoice['invoiceId']}/lineItems"
        assert payload(ask(api, "GET", path))["data"] == invoice["lineItems"]
        made = payload(ask(api, "POST", path, {"name": "one more", "lineItemId": "mine"}))["data"]
        assert made["lineItemId"] == str(len(invoice["lineItems"]) + 1)
        changed = payload(ask(api, "PATCH", f"{path}/{made['lineItemId']}", {"quantity": 3}))["data"]
        assert changed == made | {"quantity": 3}
        assert payload(ask(api, "GET", path, limit="100"))["data"] == [*invoice["lineItems"], changed]
        assert ask(api, "GET", f"{path}/unknown").status == ask(api, "GET", path.replace("/00", "/01")).status == 404

    def test_a_list_can_contain_odd_records(self) -> None:
        odd = make_api(odd=Odd(nameless=10, double=7)).table("a", "bills").all()
        assert [place for place, record in enumerate(odd, 1) if record["id"] is None] == [10, 20, 30, 40]
        assert odd[6]["id"] == odd[5]["id"]
        assert odd[6] != odd[5]


class TestTasks:
    def ended(self, api: Api, reply: Reply, **query: Any) -> Any:
        assert reply.status == 202
        path = f"/accounting/asyncTask/{payload(reply)['data']['taskId']}"
        states = [payload(ask(api, "GET", path, **query)) for _ in range(3)]
        assert [state["data"]["status"] for state in states] == ["IN_PROGRESS", "IN_PROGRESS", "FINISHED"]
        assert ask(api, "GET", path, account="b").status == 404
        return states[-1]

    def test_write(self, api: Api) -> None:
        state = self.ended(api, ask(api, "POST", "/accounting/contacts/async", {"companyName": "one"}))
        assert [state["data"]["responseData"]] == api.created("contacts")

    def test_read(self) -> None:
        api = make_api(later="journalEntries")
        state = self.ended(api, ask(api, "GET", "/accounting/journalEntries"), page="3", limit="20")
        assert state["data"]["responseData"] == api.table("a", "journalEntries").all()[40:]
        assert state["meta"]["pagination"]["totalPages"] == 3

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'"text"', b"null"])
    @pytest.mark.parametrize(("method", "path"), [("POST", "items"), ("PUT", "items/x"), ("PATCH", "items/x")])
    def test_bad_body(self, api: Api, method: str, path: str, body: bytes) -> None:
        assert invalid_fields(ask(api, method, f"/accounting/{path}", body)) == ["body"]


class TestCreation:
    def test_a_created_record_is_kept_unchanged(self, api: Api) -> None:
        record = payload(ask(api, "POST", "/accounting/items", {"name": "one"}))["data"]
        ask(api, "DELETE", f"/accounting/items/{record['id']}")
        assert api.created("items") == api.created("items", "a") == [record]
        assert api.created("items", "b") == api.created("bills") == []

    def test_an_equal_body_is_a_duplicate(self, api: Api) -> None:
        ask(api, "POST", "/accounting/items", b'{"name": "one", "price": 1}')
        assert api.duplicates == 0
        ask(api, "POST", "/accounting/items", b'{"price":1,"name":"one"}')
        ask(api, "POST", "/accounting/items", b'{"price":1,"name":"one"}')
        assert api.duplicates == 2
        assert len(api.created("items")) == 3

    def test_equal_bodies_of_other_resources_or_accounts_are_no_duplicates(self, api: Api) -> None:
        ask(api, "POST", "/accounting/items", {})
        ask(api, "POST", "/accounting/bills", {})
        ask(api, "POST", "/accounting/items", {}, account="b")
        assert api.duplicates == 0

    def test_an_idempotency_key_is_ignored(self, api: Api) -> None:
        for _ in range(2):
            ask(api, "POST", "/accounting/items", {"name": "one"}, headers={"Idempotency-Key": "one"})
        assert (api.duplicates, len(api.created("items"))) == (1, 2)

    def test_an_idempotency_key_that_is_honoured_returns_the_first_record(self) -> None:
        api = make_api(idempotency_keys=True)
        key = {"Idempotency-Key": "one"}
        first, again = (ask(api, "POST", "/accounting/items", {"name": "one"}, headers=key) for _ in range(2))
        assert first == again
        assert api.duplicates == 0
        assert len(api.created("items")) == 1

    def test_an_equal_body_with_another_key_is_a_duplicate(self) -> None:
        api = make_api(idempotency_keys=True)
        for key in ("one", "two"):
            ask(api, "POST", "/accounting/items", {}, headers={"Idempotency-Key": key})
        assert api.duplicates == 1

    def test_an_idempotency_key_belongs_to_its_account(self) -> None:
        api = make_api(idempotency_keys=True)
        for account in ("a", "b"):
            ask(api, "POST", "/accounting/items", {}, account=account, headers={"Idempotency-Key": "one"})
        assert len(api.created("items")) == 2

    def test_an_idempotency_key_with_another_body_is_rejected(self) -> None:
        api = make_api(idempotency_keys=True)
        key = {"Idempotency-Key": "one"}
        ask(api, "POST", "/accounting/items", {"name": "one"}, headers=key)
        reply = ask(api, "POST", "/accounting/items", {"name": "two"}, headers=key)
        assert invalid_fields(reply) == ["Idempotency-Key"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/accounting/bills", "GET, HEAD, POST"),
        ("PATCH", "/accounting/bills/1", "GET, HEAD, PUT, DELETE"),
        ("GET", "/accounting/transactions", "POST"),
        ("PUT", "/accounting/invoices/1", "GET, HEAD, PATCH"),
        ("POST", "/auth/xero", "GET, HEAD"),
        ("GET", "/auth/abacus-of-old", ""),
    ],
)
def test_an_unsupported_method_gets_405(api: Api, method: str, path: str, allowed: str) -> None:
    reply = ask(api, method, path, {})
    assert reply.status == 405
    assert reply.headers.get("Allow", "") == allowed


@pytest.mark.parametrize("path", ["/", "/accounting", "/auth", "/accounting/bills/1/2", "/v2/accounting/bills"])
def test_an_unknown_path_gets_404(api: Api, path: str) -> None:
    reply = ask(api, "GET", path)
    assert reply.status == 404
    assert "downstreamErrors" not in payload(reply)["errors"]


@pytest.mark.parametrize("path", ["/accounting/dreams", "/accounting/dreams/1"])
def test_an_unsupported_resource_is_rejected(api: Api, path: str) -> None:
    reply = ask(api, "GET", path)
    assert reply.status == 404
    [error] = payload(reply)["errors"]["downstreamErrors"]
    assert "does not support" in error["message"]


def test_login_returns_a_url(api: Api) -> None:
    for system in NAMES:
        reply = ask(api, "GET", f"/auth/{system}")
        assert reply.headers["Content-Type"].startswith("text/html")
        assert reply.encoded().startswith(b"https://")


def test_login_returns_an_account_key(api: Api) -> None:
    reply = ask(api, "POST", "/auth/accounts/xero", {"apiKey": "made-up"})
    assert (reply.status, payload(reply)) == (201, {"accountKey": "a-new-key"})


def test_some_operations_need_no_account() -> None:
    needed = [
        needs_account("GET", path)
        for path in ("/auth/xero", "/auth/companies", "/health", "/tenants/x", "/authors", "/accounting/bills", "/")
    ]
    assert needed == [False, True, False, False, True, True, True]
    assert not needs_account("POST", "/auth/accounts/xero")


def test_a_webhook_can_be_created_and_deleted(api: Api) -> None:
    made = payload(ask(api, "POST", "/webhooks", {"callbackUrl": "https://example.com/", "resource": "INVOICE"}))[
        "data"
    ]
    assert payload(ask(api, "GET", "/webhooks"))["data"] == [made]
    assert payload(ask(api, "GET", "/webhooks", account="b"))["data"] == []
    assert ask(api, "DELETE", f"/webhooks/{made['id']}").status == 200
    assert ask(api, "DELETE", f"/webhooks/{made['id']}").status == 404
