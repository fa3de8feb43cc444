"""Each published operation, asked for at the sandbox, and compared with the tables."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import pytest
from tests.maesn.sandbox.conftest import MakeClient

from lamella.maesn.published.operations import Operation, at_path, lists, needs_account, operations
from lamella.maesn.published.records import KINDS, WITHOUT_NULLS, Field, fields_of
from lamella.maesn.published.systems import NAMES, REQUIRED, SYSTEMS
from lamella.maesn.sandbox import Sandbox
from lamella.maesn.sandbox.api import KINDS as LISTS
from lamella.maesn.sandbox.api import name_of
from lamella.pytest_maesn import MakeSandbox

ALL = pytest.mark.parametrize("operation", operations(), ids=lambda operation: f"{operation.method} {operation.path}")


def test_the_published_tables_are_consistent() -> None:
    assert len(operations()) == len({(operation.method, operation.path) for operation in operations()}) == 169
    for operation in operations():
        assert operation.status in {200, 201, 202}
        assert (operation.method in {"GET", "DELETE"}) <= (not operation.body)
        assert set(operation.required) <= set(operation.query)
        if operation.many or operation.data in {"text", "any", "html"} or not operation.envelope:
            assert not operation.many or operation.data in KINDS
        else:
            assert operation.data in KINDS
        found, values = at_path(re.sub(r"\{[^}]*\}", "x", operation.path))
        assert found[operation.method] is operation
        assert len(values) == operation.path.count("{")
    for kind in KINDS:
        for field in fields_of(kind):
            assert not field.of or field.of in KINDS
    for name, needs in REQUIRED.items():
        [operation] = [each for each in lists() if each.path == f"accounting/{name}"]
        assert set(needs) <= set(SYSTEMS)
        assert set(needs.values()) <= set(operation.query)
    assert {"exact-nl", "exact-de", "exact-gb", "datev-rewe", "datev-rewe-longtoken", "datev-rewe-export"} <= set(NAMES)


def test_operations_state_whether_they_need_an_account() -> None:
    without = {operation.path.partition("/")[0] for operation in operations() if not operation.needs_account}
    assert without == {"auth", "events", "health", "tenants", "webhooks"}
    assert needs_account("GET", "/auth/companies")
    assert needs_account("GET", "/accounting/something/new")
    assert not needs_account("GET", "/tenants/something-new")


def fits(field: Field, value: Any, *, may_be_null: bool) -> bool:
    match field.kind:
        case _ if value is None:
            return may_be_null
        case "amount" | "number" | "percent" | "month":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "flag":
            return isinstance(value, bool)
        case "choice":
            return value in field.choices
        case "record":
            return check(field.of, value)
        case "records":
            return all(check(field.of, each) for each in value)
        case "texts":
            return all(isinstance(each, str) for each in value)
        case "object":
            return isinstance(value, dict | list)
    return isinstance(value, str)


def check(kind: str, record: dict[str, Any]) -> bool:
    assert {field.name for field in fields_of(kind)} <= record.keys()
    for field in fields_of(kind):
        assert fits(field, record[field.name], may_be_null=kind not in WITHOUT_NULLS), (kind, field, record[field.name])
    return True


async def path_and_query(operation: Operation, sandbox: Sandbox) -> tuple[str, dict[str, str]]:
    """Return a path that exists, and the parameters that are needed."""
    names = re.findall(r"\{(.*?)\}", operation.path)
    path, account = operation.path, sandbox.account_key
    for name in names:
        value = NAMES[0]
        if name == "taskId":
            continue
        if name == "lineItemId":
            value = "1"
        elif name == "attachmentId":
            entry = sandbox.records("journalEntries")[0]["id"]
            value = sandbox._api.table(account, f"journalEntries/{entry}/Attachments", "journalEntry").all()[0]["id"]
        elif name.endswith("Id") and name_of(path) in LISTS:
            has_lines = "lineItems" in path
            value = next(each["id"] for each in sandbox.records(name_of(path)) if not has_lines or each["lineItems"])
        path = path.replace(f"{{{name}}}", value)
    return f"/{path}", dict.fromkeys(operation.required, "x")


@ALL
async def test_each_operation_responds_as_published(
    make_sandbox: MakeSandbox, make_client: MakeClient, operation: Operation
) -> None:
    sandbox = await make_sandbox(records=8)
    client = make_client(sandbox)
    path, query = await path_and_query(operation, sandbox)
    if "{taskId}" in path:
        begun = await client("POST", "/accounting/contacts/async", json={})
        path = path.replace("{taskId}", begun.data["taskId"])
    if "webhookId" in operation.path:
        where = f"/{operation.path.rpartition('/')[0]}"
        made = await client("POST", where, json={"callbackUrl": "https://example.com/"})
        path = f"{where}/{made.data['id']}"
    options: dict[str, Any] = {}
    if operation.body == "json":
        options["json"] = {"callbackUrl": "https://example.com/", "entries": [{"companyName": "one"}]}
    elif operation.body == "form":
        form = aiohttp.FormData()
        if operation.field:
            form.add_field(operation.field, json.dumps({"description": "made"}), content_type="application/json")
        form.add_field(operation.files, b"%PDF", filename="one.pdf")
        options["data"] = form
    keys = {"X-API-KEY": sandbox.api_key} | ({"X-ACCOUNT-KEY": sandbox.account_key} if operation.needs_account else {})
    answer = await client(operation.method, path, params=query, keys=keys, **options)
    assert answer.status == operation.status, answer.text
    if operation.data == "html":
        assert answer.headers["Content-Type"].startswith("text/html")
        return
    if not operation.envelope:
        assert isinstance(answer.payload, str) if operation.data == "text" else isinstance(answer.payload, dict)
        assert operation.data in {"text", "any"} or isinstance(answer.payload[operation.data], str)
        return
    assert answer.payload.keys() == {"meta", "data", "errors", "rawData"}
    has_pages = operation.is_list and "limit" in operation.query
    assert not has_pages or answer.payload["meta"]["pagination"].keys() == {
        *("total", "perPage", "currentPage", "totalPages")
    }
    if operation.data == "text":
        assert isinstance(answer.data, str)
    elif operation.many:
        assert answer.data or operation.path == "webhooks"
        assert all(check(operation.data, record) for record in answer.data)
    elif operation.data != "any":
        assert check(operation.data, answer.data)


@pytest.mark.slow
async def test_unpublished_paths_do_not_exist(make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
    client = make_client(await make_sandbox(records=1))
    paths = {operation.path for operation in operations()}
    for path in sorted(paths):
        found, _ = at_path(path)
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - found.keys():
            assert (await client(method, f"/{path}")).status == 405


@pytest.mark.parametrize("operation", [each for each in operations() if each.required], ids=lambda each: each.path)
async def test_a_missing_required_parameter_is_rejected(
    make_sandbox: MakeSandbox, make_client: MakeClient, operation: Operation
) -> None:
    path = operation.path.replace("{targetSystem}", NAMES[0])
    answer = await make_client(await make_sandbox())(operation.method, f"/{path}")
    assert answer.status == 400
    assert {each["field"] for each in answer.error["validationErrors"]} == set(operation.required)


@pytest.mark.parametrize("name", REQUIRED)
async def test_a_missing_parameter_of_a_system_is_rejected(
    make_sandbox: MakeSandbox, make_client: MakeClient, name: str
) -> None:
    [(system, parameter)] = REQUIRED[name].items()
    client = make_client(await make_sandbox(system=system))
    answer = await client("GET", f"/accounting/{name}")
    assert [each["field"] for each in answer.error["validationErrors"]] == [parameter]
    assert (await client("GET", f"/accounting/{name}", params={parameter: "2026"})).status == 200
    assert (await make_client(await make_sandbox(system="exact"))("GET", f"/accounting/{name}")).status == 200
