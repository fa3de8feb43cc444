"""The routes, without a socket; `test_server.py` has them with one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict, MultiDict

from lamella.maesn.sandbox import Received
from lamella.maesn.sandbox.api import PAGE_SIZES, TARGET_SYSTEMS, Api, needs_account
from lamella.maesn.sandbox.records import RESOURCES
from lamella.maesn.sandbox.replies import Reply


@pytest.fixture
def api() -> Api:
    return Api(seed=0, size=lambda _: 45)


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
    def test_default_page(self, api: Api) -> None:
        reply = payload(ask(api, "GET", "/accounting/invoices"))
        assert reply["meta"]["pagination"] == {"total": 45, "perPage": 20, "currentPage": 1, "totalPages": 3}
        assert reply["data"] == api.table("a", "invoices").all()[:20]

    @pytest.mark.sampled
    @pytest.mark.parametrize("resource", RESOURCES)
    @pytest.mark.parametrize("limit", PAGE_SIZES)
    def test_pages_add_up_to_all_records(self, api: Api, resource: str, limit: int) -> None:
        records: list[object] = []
        page = pages = 1
        while page <= pages:
            reply = payload(ask(api, "GET", f"/accounting/{resource}", limit=str(limit), page=str(page)))
            records += reply["data"]
            pages = reply["meta"]["pagination"]["totalPages"]
            page += 1
        assert records == api.table("a", resource).all()

    def test_a_page_beyond_the_last_is_empty(self, api: Api) -> None:
        reply = payload(ask(api, "GET", "/accounting/bills", page="99999999999999999"))
        assert reply["data"] == []
        assert reply["meta"]["pagination"]["totalPages"] == 3

    def test_no_records_are_no_pages(self) -> None:
        reply = payload(ask(Api(seed=0, size=lambda _: 0), "GET", "/accounting/bills"))
        assert reply["data"] == []
        assert reply["meta"]["pagination"]["totalPages"] == 0

    @pytest.mark.parametrize("limit", ["0", "7", "-5", "five", "", "5.0", "1000", "9" * 5000])
    def test_bad_limit(self, api: Api, limit: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", limit=limit)) == ["limit"]

    @pytest.mark.parametrize("page", ["0", "-1", "one", "", "1.5", "٣", "9" * 5000])
    def test_bad_page(self, api: Api, page: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", page=page)) == ["page"]

    @pytest.mark.parametrize("moment", ["yesterday", "", "2024-13-01", "1718000000", "2024-06-01T00:00:00 00:00"])
    def test_bad_moment(self, api: Api, moment: str) -> None:
        assert invalid_fields(ask(api, "GET", "/accounting/bills", lastModifiedAt=moment)) == ["lastModifiedAt"]

    def test_all_that_is_bad_at_once(self, api: Api) -> None:
        reply = ask(api, "GET", "/accounting/bills", limit="1", page="0", lastModifiedAt="?")
        assert invalid_fields(reply) == ["limit", "page", "lastModifiedAt"]

    @pytest.mark.parametrize("moment", ["2024-06-01", "2024-06-01T00:00:00Z", "2024-06-01T02:00:00+02:00"])
    def test_filter_by_the_last_change(self, api: Api, moment: str) -> None:
        expected = [
            record for record in api.table("a", "bills").all() if record["updatedDate"] >= "2024-06-01T00:00:00.000Z"
        ]
        assert 0 < len(expected) < 45
        reply = payload(ask(api, "GET", "/accounting/bills", lastModifiedAt=moment, limit="100"))
        assert reply["data"] == expected
        assert reply["meta"]["pagination"]["total"] == len(expected)

    def test_accounts_have_records_of_their_own(self, api: Api) -> None:
        mine, others = (payload(ask(api, "GET", "/accounting/bills", account=account))["data"] for account in "ab")
        assert mine != others


class TestRecords:
    def test_read(self, api: Api) -> None:
        record = api.table("a", "items").all()[7]
        assert payload(ask(api, "GET", f"/accounting/items/{record['itemId']}"))["data"] == record

    def test_create_change_replace_delete(self, api: Api) -> None:
        created = ask(api, "POST", "/accounting/items", {"name": "one", "price": 1})
        assert created.status == 201
        record = payload(created)["data"]
        path = f"/accounting/items/{record['itemId']}"

        changed = ask(api, "PATCH", path, {"name": "two"})
        assert changed.status == 200
        assert payload(changed)["data"] == record | {"name": "two", "updatedDate": changed.body["data"]["updatedDate"]}

        replaced = ask(api, "PUT", path, {"name": "three"})
        assert replaced.status == 200
        assert "price" not in payload(ask(api, "GET", path))["data"]

        assert payload(ask(api, "DELETE", path))["data"] == {"itemId": record["itemId"]}
        assert [ask(api, method, path, {}).status for method in ("GET", "PATCH", "DELETE")] == [404, 404, 404]
        assert ask(api, "PUT", path, {"name": "four"}).status == 201
        assert payload(ask(api, "GET", path))["data"]["name"] == "four"

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'"text"', b"null"])
    @pytest.mark.parametrize(("method", "path"), [("POST", "items"), ("PUT", "items/x"), ("PATCH", "items/x")])
    def test_bad_body(self, api: Api, method: str, path: str, body: bytes) -> None:
        assert invalid_fields(ask(api, method, f"/accounting/{path}", body)) == ["body"]


class TestCreation:
    def test_is_kept_as_it_was(self, api: Api) -> None:
        record = payload(ask(api, "POST", "/accounting/items", {"name": "one"}))["data"]
        ask(api, "DELETE", f"/accounting/items/{record['itemId']}")
        assert api.created("items") == api.created("items", "a") == [record]
        assert api.created("items", "b") == api.created("bills") == []

    def test_an_equal_body_is_a_duplicate(self, api: Api) -> None:
        ask(api, "POST", "/accounting/items", b'{"name": "one", "price": 1}')
        assert api.duplicates == 0
        ask(api, "POST", "/accounting/items", b'{"price":1,"name":"one"}')
        ask(api, "POST", "/accounting/items", b'{"price":1,"name":"one"}')
        assert api.duplicates == 2
        assert len(api.created("items")) == 3

    def test_is_no_duplicate_of_another_resource_or_account(self, api: Api) -> None:
        ask(api, "POST", "/accounting/items", {})
        ask(api, "POST", "/accounting/bills", {})
        ask(api, "POST", "/accounting/items", {}, account="b")
        assert api.duplicates == 0

    def test_an_idempotency_key_returns_the_first_record(self, api: Api) -> None:
        key = {"Idempotency-Key": "one"}
        first, again = (ask(api, "POST", "/accounting/items", {"name": "one"}, headers=key) for _ in range(2))
        assert first == again
        assert api.duplicates == 0
        assert len(api.created("items")) == 1

    def test_another_key_is_a_duplicate(self, api: Api) -> None:
        for key in ("one", "two"):
            ask(api, "POST", "/accounting/items", {}, headers={"Idempotency-Key": key})
        assert api.duplicates == 1

    def test_a_key_belongs_to_its_account(self, api: Api) -> None:
        for account in ("a", "b"):
            ask(api, "POST", "/accounting/items", {}, account=account, headers={"Idempotency-Key": "one"})
        assert len(api.created("items")) == 2

    def test_a_key_with_another_body_is_refused(self, api: Api) -> None:
        key = {"Idempotency-Key": "one"}
        ask(api, "POST", "/accounting/items", {"name": "one"}, headers=key)
        reply = ask(api, "POST", "/accounting/items", {"name": "two"}, headers=key)
        assert invalid_fields(reply) == ["Idempotency-Key"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/accounting/bills", "GET, HEAD, POST"),
        ("PUT", "/accounting/bills", "GET, HEAD, POST"),
        ("POST", "/accounting/bills/1", "GET, HEAD, PATCH, PUT, DELETE"),
        ("POST", "/auth/xero", "GET, HEAD"),
        ("GET", "/auth/abacus-of-old", ""),
    ],
)
def test_method_not_allowed(api: Api, method: str, path: str, allowed: str) -> None:
    reply = ask(api, method, path, {})
    assert reply.status == 405
    assert reply.headers == {"Allow": allowed}


@pytest.mark.parametrize("path", ["/", "/accounting", "/auth", "/accounting/bills/1/2", "/v2/accounting/bills"])
def test_unknown_path(api: Api, path: str) -> None:
    reply = ask(api, "GET", path)
    assert reply.status == 404
    assert "downstreamErrors" not in payload(reply)["errors"]


@pytest.mark.parametrize("path", ["/accounting/dreams", "/accounting/dreams/1"])
def test_unsupported_resource(api: Api, path: str) -> None:
    reply = ask(api, "GET", path)
    assert reply.status == 404
    [error] = payload(reply)["errors"]["downstreamErrors"]
    assert "not supported by the target system" in error["message"]


def test_login_url(api: Api) -> None:
    for system in TARGET_SYSTEMS:
        assert payload(ask(api, "GET", f"/auth/{system}"))["data"]["url"].startswith("https://")


def test_only_login_needs_no_account() -> None:
    assert [needs_account(path) for path in ("/auth/xero", "/authors", "/accounting/bills", "/")] == [
        False,
        True,
        True,
        True,
    ]
