from __future__ import annotations

import asyncio

import aiohttp
import pytest
from yarl import URL

from lamella import (
    BadRequest,
    HeaderAuth,
    LamellaError,
    Limit,
    NotFound,
    RuleBook,
    StopReason,
    Throttle,
    TooManyRequests,
    Unauthorized,
    maesn,
    options,
)
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import FixedWindow, VirtualClock


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAESN_API_KEY", "MAESN_ACCOUNT_KEY", "MAESN_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


async def test_a_maesn_session_is_a_plain_aiohttp_session(sandbox: Sandbox) -> None:
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        assert type(session) is aiohttp.ClientSession
        assert session.timeout.total is None
        async with session.get("/accounting/invoices", params={"limit": 100}) as response:
            page = await response.json()
    assert page["data"] == sandbox.records("invoices")[:100]


async def test_settings_come_from_the_environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESN_API_KEY", sandbox.api_key)
    monkeypatch.setenv("MAESN_ACCOUNT_KEY", sandbox.account_key)
    monkeypatch.setenv("MAESN_BASE_URL", sandbox.url)
    async with maesn.session() as session, session.get("/accounting/items/") as response:
        assert response.status == 200


async def test_the_default_base_url_is_maesns(sandbox: Sandbox) -> None:
    async with maesn.session("key", "account") as session:
        assert session._base_url == URL("https://api.maesn.dev/")


async def test_a_missing_key_names_the_variable(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="MAESN_API_KEY"):
        maesn.session()
    async with maesn.session(sandbox.api_key, base_url=sandbox.url) as session:
        with pytest.raises(ValueError, match="MAESN_ACCOUNT_KEY") as caught:
            await session.get("/accounting/invoices")
        assert type(caught.value) is ValueError
        assert caught.value.__context__ is None
        assert not sandbox.received
        # Where an account begins there is none yet.
        async with session.get("/auth/xero") as response:
            assert response.status == 200
        assert "X-ACCOUNT-KEY" not in sandbox.received[0].headers
        with pytest.raises(ValueError, match="the request already has X-ACCOUNT-KEY"):
            await session.get("/auth/xero", headers={"x-account-key": "of-an-old-one"})
    assert len(sandbox.received) == 1


async def test_operations_without_account_need_no_account_key(sandbox: Sandbox) -> None:
    async with maesn.session(sandbox.api_key, base_url=sandbox.url) as session:
        for path in ("/health", "/tenants/get-end-user-list", "/auth/exact-nl"):
            async with session.get(path) as response:
                assert response.status == 200
        async with session.get("/auth/lexware-office") as response:
            assert response.content_type == "text/html"
            assert (await response.text()).startswith("https://")
        async with session.post("/auth/accounts/xero", json={"apiKey": "made-up"}) as response:
            assert response.status == 201
            key = (await response.json())["accountKey"]
        for path in ("/auth/companies", "/webhooks", "/accounting/bills"):
            with pytest.raises(ValueError, match="MAESN_ACCOUNT_KEY"):
                await session.get(path)
        with maesn.account(key):
            for path in ("/auth/companies", "/auth/environments", "/accounting/bills"):
                async with session.get(path) as response:
                    assert (await response.json())["data"]
    assert [received.account for received in sandbox.received] == [None] * 5 + [key] * 3


async def test_bad_session_arguments_raise_at_once() -> None:
    for bad in ({"attempts": 0}, {"deadline": -1}, {"attempt_timeout": 0}, {"middlewares": ()}):
        with pytest.raises(ValueError, match=r"0|-1|middlewares"):
            maesn.session("key", "account", **bad)
    with pytest.raises(ValueError, match="X-API-KEY") as caught:
        maesn.session("k\r\ney", "account")
    assert "ey" not in str(caught.value).replace("KEY", "")
    with pytest.raises(ValueError, match="http"):
        maesn.session("key", base_url="ftp://example.com")
    with pytest.raises(ValueError, match=r"base_url must be .*, got 'api.maesn.dev': write 'https://api.maesn.dev'"):
        maesn.session("key", base_url="api.maesn.dev")
    with pytest.raises(ValueError, match="account key is empty"), maesn.account(" "):
        pass


async def test_a_base_url_may_have_a_path(sandbox: Sandbox) -> None:
    async with maesn.session(sandbox.api_key, "key", f"{sandbox.url}/accounting") as session:
        assert str(session._base_url) == f"{sandbox.url}/accounting/"


@pytest.mark.slow
async def test_thousands_of_tasks_share_a_session_with_their_own_accounts(make_sandbox: MakeSandbox) -> None:
    keys = [f"account-key-{number}" for number in range(100)]
    sandbox = await make_sandbox(accounts=[Account(key) for key in keys], records=1)

    async def work(number: int) -> None:
        key = keys[number % len(keys)]
        with maesn.account(key):
            await asyncio.sleep(0)
            async with session.get(f"/accounting/invoices?task={number}") as response:
                assert response.status == 200
            await asyncio.create_task(inner(key, number))

    async def inner(key: str, number: int) -> None:
        with maesn.account(keys[number % 7]):
            pass
        async with session.get(f"/accounting/items?task={number}") as response:
            assert response.status == 200

    async with maesn.session(sandbox.api_key, "account-key-0", sandbox.url) as session:
        await asyncio.gather(*(work(number) for number in range(2000)))
        async with session.get("/accounting/invoices?task=0"):
            pass
    assert len(sandbox.received) == 4001
    for received in sandbox.received:
        assert received.account == keys[int(received.query["task"]) % len(keys)]


async def test_an_expired_account_fails_alone(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(accounts=[Account("good-account"), Account("old-account", state="expired")])
    async with maesn.session(sandbox.api_key, "good-account", sandbox.url) as session:
        with maesn.account("old-account"), pytest.raises(Unauthorized) as caught:
            await session.get("/accounting/invoices")
        assert "old-account" not in str(caught.value)
        async with session.get("/accounting/invoices") as response:
            assert response.status == 200


async def test_validation_and_downstream_errors_are_on_the_error(sandbox: Sandbox) -> None:
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        with pytest.raises(BadRequest) as bad:
            await session.get("/accounting/invoices", params={"limit": 7, "page": 0})
        with pytest.raises(NotFound) as missing:
            await session.get("/accounting/unicorns")
    assert [text.split(":")[0] for text in bad.value.validation_errors] == ["limit", "page"]
    assert bad.value.validation_errors[0] in str(bad.value)
    assert missing.value.downstream_errors
    assert missing.value.payload["errors"]


async def test_a_possibly_executed_write_is_not_repeated(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    record = {"invoiceNumber": "R-1", "contactId": "1"}
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        sandbox.script(500, method="POST")
        with pytest.raises(LamellaError):
            await session.post("/accounting/invoices", json=record)
        assert len(sandbox.received) == 1
        sandbox.script(429, method="POST")
        async with session.post("/accounting/invoices", json=record) as response:
            assert response.status == 201
        # Nothing published says that Maesn knows a write by its key.
        sandbox.script(500, method="POST")
        with pytest.raises(LamellaError) as caught:
            await session.post("/accounting/invoices", json=record, headers={"Idempotency-Key": "once"})
        assert caught.value.stopped is StopReason.UNSAFE_METHOD
        with options(rules=RuleBook(*maesn.RULES)):  # of an API that does
            sandbox.script(500, method="POST")
            async with session.post(
                "/accounting/invoices", json={**record, "invoiceNumber": "R-2"}, headers={"Idempotency-Key": "once"}
            ) as response:
                assert response.status == 201
    assert sandbox.duplicates == 0
    assert len(sandbox.created("invoices")) == 2


async def test_raise_errors_false_returns_the_response(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(*[429] * 5)
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, raise_errors=False) as session:
        async with session.get("/accounting/invoices") as response:
            assert response.status == 429
            assert (await response.json())["errors"]
    assert len(sandbox.received) == 5


async def test_layers_work_in_a_custom_session(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    layers = maesn.layers(sandbox.api_key, sandbox.account_key, sandbox.url, attempts=2)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        sandbox.script(429, 429)
        with pytest.raises(TooManyRequests):
            await session.get(f"{sandbox.url}/accounting/invoices")
    assert len(sandbox.received) == 2


async def test_a_custom_throttle_replaces_the_default_one(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    throttle = Throttle(maesn.RULES, key=lambda _: maesn.current_account())
    sandbox = await make_sandbox(accounts=2, limit=FixedWindow(1, 60))
    url, [limited, other] = URL(sandbox.url), [account.key for account in sandbox.accounts]
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, throttle=throttle) as session:

        async def read() -> int:
            with maesn.account(limited):
                return (await session.get("/accounting/items")).status

        tasks = [asyncio.ensure_future(read()) for _ in range(2)]
        await asyncio.sleep(1)
        tasks.append(asyncio.ensure_future(read()))  # goes alone, and shows that the account is used up
        await asyncio.sleep(1)
        assert 0 < throttle.blocked_for(url, limited) <= 66
        assert throttle.blocked_for(url, other) == 0
        assert await asyncio.gather(*tasks) == [200] * 3
    with pytest.raises(ValueError, match="limits= has no effect on a Throttle made by hand"):
        maesn.layers("key", throttle=throttle, limits=Limit(1, 60))


async def test_maesn_session_accepts_the_options_of_the_stack(sandbox: Sandbox) -> None:
    keys = sandbox.api_key, sandbox.account_key, sandbox.url
    more = HeaderAuth({"X-More": "value"}, origin=sandbox.url)
    async with maesn.session(*keys, auth=more, throttle=False, spans=False, buffer=None) as session:
        async with session.get("/accounting/items/") as response:
            assert response.status == 200
    [received] = sandbox.received
    assert received.headers["X-More"] == "value"
    assert received.headers["X-ACCOUNT-KEY"] == sandbox.account_key


async def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="attempt_limit"):
        maesn.session("key", "account", attempt_limit=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="attempt_limit"):
        maesn.layers("key", "account", attempt_limit=5)  # type: ignore[call-arg]
