from __future__ import annotations

import json
from datetime import UTC, datetime

import aiohttp
import pytest

from lamella import NotFound, TransportError, maesn
from lamella.maesn.sandbox import Account, Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import Fault, VirtualClock


def connect(sandbox: Sandbox, **options: bool) -> aiohttp.ClientSession:
    return maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, **options)  # type: ignore[arg-type]


def page(number: int, total: int | None, *ids: str) -> Reply:
    pagination = {} if total is None else {"currentPage": number, "totalPages": total}
    body = {"meta": {"pagination": pagination}, "data": [{"invoiceId": each} for each in ids]}
    return Reply(body=json.dumps(body).encode())


async def test_pages_yields_all_pages_in_order(sandbox: Sandbox) -> None:
    async with connect(sandbox) as session:
        found = [found async for found in maesn.pages(session, "invoices", limit=100)]
        assert [each async for each in maesn.records(session, "invoices", limit=50)] == sandbox.records("invoices")
    assert [(each.number, each.total_pages, len(each.records)) for each in found] == [
        (1, 3, 100),
        (2, 3, 100),
        (3, 3, 50),
    ]


async def test_an_empty_list_is_one_empty_page(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(records=0)
    async with connect(sandbox) as session:
        assert [found.records async for found in maesn.pages(session, "bills")] == [[]]
        assert [found async for found in maesn.records(session, "bills")] == []


async def test_since_selects_changed_records(sandbox: Sandbox) -> None:
    changed = sorted(record["updatedDate"] for record in sandbox.records("invoices"))
    middle = datetime.fromisoformat(changed[125])
    if middle.tzinfo is None:
        middle = middle.replace(tzinfo=UTC)
    async with connect(sandbox) as session:
        since = [record async for record in maesn.records(session, "invoices", since=middle)]
        text = [record async for record in maesn.records(session, "invoices", since=middle.isoformat())]
    assert 0 < len(since) < 250
    assert since == text
    assert all(record["updatedDate"] >= changed[125] for record in since)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([page(1, 2, "a"), page(2, 3, "b"), page(3, 3, "c"), page(4, 3)], "abc"),  # it grows on the way
        ([page(1, 3, "a"), page(2, 2, "b"), page(3, 2)], "ab"),  # it shrinks
        ([page(1, 3, "a"), *[page(2, 1)] * 3], "a"),  # it shrinks below the page that is asked for
        ([page(1, None, "a"), page(2, None, "b"), *[page(3, None)] * 2, page(4, None)], "ab"),  # no count at all
    ],
)
async def test_a_changing_count_is_handled(
    sandbox: Sandbox, answers: list[Reply], expected: str, virtual_time: VirtualClock
) -> None:
    sandbox.script(*answers)
    async with connect(sandbox) as session:
        found = [record["invoiceId"] async for record in maesn.records(session, "invoices")]
    assert "".join(found) == expected
    assert sandbox.pending == 0
    assert len(sandbox.received) == len(answers)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("total", 0, 0),
        ("total", 2**53 - 1, 2**53 - 1),
        ("total", 2**53, None),
        ("total", -1, None),
        ("total", "7", 7),
        ("total", "-7", None),
        ("total", "seven", None),
        ("totalPages", 0, 0),
        ("totalPages", 1_000_000, 1_000_000),
        ("totalPages", 1_000_001, None),
    ],
)
async def test_a_plausible_count_is_reported(sandbox: Sandbox, name: str, said: object, told: object) -> None:
    body = {"meta": {"pagination": {name: said}}, "data": [{"invoiceId": "a"}]}
    sandbox.script(Reply(body=json.dumps(body).encode()))
    async with connect(sandbox) as session:
        found = await anext(maesn.pages(session, "invoices"))
    assert {"total": found.total, "totalPages": found.total_pages} == {"total": None, "totalPages": None, name: told}


async def test_arguments_unknown_to_the_api_are_rejected_at_the_call(sandbox: Sandbox) -> None:
    async with connect(sandbox) as session:
        for limit in (0, 1, 99, 101):
            with pytest.raises(ValueError, match=f"5, 10, 20, 50, 100, got {limit}"):
                maesn.pages(session, "invoices", limit=limit)
            with pytest.raises(ValueError, match="limit"):
                maesn.records(session, "invoices", limit=limit)
        for resource in (
            "",
            "in/voices",
            "../auth",
            "invoices?x=1",
            "invoices/../../auth",
            "invoices/{id}/lineItems",
            "profile",
            "invoices/1",
        ):
            with pytest.raises(ValueError, match="resource"):
                maesn.pages(session, resource)
        for since in ("yesterday", datetime(2026, 1, 1)):  # noqa: DTZ001
            with pytest.raises(ValueError, match="since"):
                maesn.pages(session, "invoices", since=since)
        with pytest.raises(ValueError, match="first"):
            maesn.pages(session, "invoices", first=0)
    assert not sandbox.received


async def test_failures_while_reading_are_retried_without_loss(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(200, Fault.CUT_BODY, 429, Fault.RESET_AFTER_HEADERS, 200)
    async with connect(sandbox) as session:
        assert [each async for each in maesn.records(session, "invoices")] == sandbox.records("invoices")


async def test_an_error_is_never_an_empty_list(sandbox: Sandbox) -> None:
    for raise_errors in (True, False):
        async with connect(sandbox, raise_errors=raise_errors) as session:
            with pytest.raises(NotFound):
                [each async for each in maesn.records(session, "unicorns")]
    for body in (b'{"data": null}', b"[]", b'{"data": {"a": 1}}'):
        sandbox.script(Reply(body=body))
        async with connect(sandbox) as session:
            with pytest.raises(ValueError, match="no list of records"):
                [each async for each in maesn.records(session, "invoices")]


async def test_the_account_applies_only_to_the_requests(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(accounts=[Account("first-account"), Account("second-account")])
    async with connect(sandbox) as session:
        async for _ in maesn.pages(session, "invoices", account="second-account"):
            await session.get("/accounting/items")
    assert [received.account for received in sandbox.received] == ["second-account", "first-account"] * 3


async def test_other_parameters_are_sent(sandbox: Sandbox) -> None:
    async with connect(sandbox) as session:
        async for _ in maesn.pages(session, "invoices", 5, company_id="c", environment_name="e", first=49):
            pass
    assert [dict(received.query) for received in sandbox.received] == [
        {"limit": "5", "page": number, "companyId": "c", "environmentName": "e"} for number in ("49", "50")
    ]


async def test_a_dead_server_is_a_transport_error(sandbox: Sandbox, no_waits: None) -> None:
    await sandbox.close()
    async with connect(sandbox) as session:
        with pytest.raises(TransportError):
            [each async for each in maesn.records(session, "invoices")]
