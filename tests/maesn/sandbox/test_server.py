"""The sandbox behind a real socket: keys, limits, scripts, chances, and how it ends."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from lamella.maesn.sandbox import Account, Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import Fault, FixedWindow, Limit, SlidingWindow, TokenBucket, VirtualClock, VirtualTimeLoop

if TYPE_CHECKING:
    from tests.maesn.sandbox.conftest import Client, MakeClient

BILLS = "/accounting/bills"


def sockets_on(port: int) -> list[int]:
    """The sockets that this process has at a local port; none on a system that does not tell."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else ()):
        with suppress(OSError), socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as copy:
            name = copy.getsockname()
            if isinstance(name, tuple) and name[1] == port:
                found.append(descriptor)
    return found


async def statuses(client: Client, times: int, **options: Any) -> list[int]:
    return [(await client("GET", BILLS, **options)).status for _ in range(times)]


class TestKeys:
    async def test_a_request_without_api_key_is_rejected(self, client: Client, sandbox: Sandbox) -> None:
        answer = await client("GET", BILLS, keys={"X-ACCOUNT-KEY": sandbox.account_key})
        assert answer.status == 403
        assert answer.error["code"] == "FORBIDDEN"

    async def test_a_request_with_a_wrong_api_key_is_rejected(self, client: Client, sandbox: Sandbox) -> None:
        keys = {"X-API-KEY": "wrong", "X-ACCOUNT-KEY": sandbox.account_key}
        assert (await client("GET", BILLS, keys=keys)).status == 403

    async def test_a_request_without_account_key_is_rejected(self, client: Client, sandbox: Sandbox) -> None:
        answer = await client("GET", BILLS, keys={"X-API-KEY": sandbox.api_key})
        assert answer.status == 401
        assert answer.error["code"] == "UNAUTHORIZED"

    @pytest.mark.parametrize(("account", "status"), [("stranger", 401), ("old", 401), ("gone", 403), ("here", 200)])
    async def test_the_state_of_an_account_decides_about_access(
        self, make_sandbox: MakeSandbox, make_client: MakeClient, account: str, status: int
    ) -> None:
        sandbox = await make_sandbox(accounts=[Account("here"), Account("old", "expired"), Account("gone", "inactive")])
        assert (await make_client(sandbox)("GET", BILLS, account=account)).status == status

    async def test_login_needs_only_the_api_key(self, client: Client, sandbox: Sandbox) -> None:
        answer = await client("GET", "/auth/xero", keys={"X-API-KEY": sandbox.api_key})
        assert answer.status == 200
        assert answer.text.startswith("https://")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert (await client("GET", "/auth/xero", keys={})).status == 403

    async def test_login_to_an_unknown_system(self, client: Client) -> None:
        answer = await client("GET", "/auth/abacus-of-old")
        assert answer.status == 405
        assert answer.headers["Allow"] == ""

    async def test_the_sandbox_accepts_custom_keys(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        sandbox = await make_sandbox(api_key="mine", accounts=2)
        assert sandbox.account_key == sandbox.accounts[0].key
        assert sandbox.accounts[0].key != sandbox.accounts[1].key
        assert (await make_client(sandbox)("GET", BILLS, account=sandbox.accounts[1].key)).status == 200


class TestRecords:
    async def test_a_whole_sync_reads_all_records(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        sandbox = await make_sandbox(records=23)
        client = make_client(sandbox)
        records: list[Any] = []
        for page in (1, 2, 3):
            answer = await client("GET", "/accounting/invoices", params={"limit": 10, "page": page})
            assert answer.payload["meta"]["pagination"]["totalPages"] == 3
            records += answer.data
        assert records == sandbox.records("invoices")

    async def test_writes_are_seen_by_reads(self, client: Client, sandbox: Sandbox) -> None:
        since = datetime.now(UTC).isoformat()
        created = await client("POST", BILLS, json={"name": "one"})
        assert created.status == 201
        [record] = sandbox.created("bills")
        assert created.data == record
        path = f"{BILLS}/{record['id']}"
        assert (await client("PUT", path, json={"name": "two"})).status == 200
        assert (await client("GET", path)).data["name"] == "two"
        assert [record["name"] for record in (await client("GET", BILLS, params={"lastModifiedAt": since})).data] == [
            "two"
        ]
        assert (await client("DELETE", path)).status == 200
        assert (await client("GET", path)).status == 404
        assert sandbox.created("bills") == [record]

    async def test_duplicate_posts_are_counted(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        sandbox = await make_sandbox(idempotency_keys=True)
        client = make_client(sandbox)
        for key in ("one", "one", "two"):
            await client("POST", BILLS, json={}, headers={"Idempotency-Key": key})
        assert sandbox.duplicates == 1
        assert len(sandbox.created("bills", sandbox.accounts[0])) == 2

    async def test_each_account_may_have_its_own_number_of_records(self, make_sandbox: MakeSandbox) -> None:
        sandbox = await make_sandbox(accounts=[Account("a"), Account("b", records=0)], records=7)
        assert [len(sandbox.records("items", key)) for key in "ab"] == [7, 0]

    async def test_bad_parameters(self, client: Client) -> None:
        answer = await client("GET", BILLS, params={"limit": "7", "page": "0"})
        assert answer.status == 400
        assert [error["field"] for error in answer.error["validationErrors"]] == ["limit", "page"]

    async def test_method_not_allowed(self, client: Client) -> None:
        answer = await client("DELETE", BILLS)
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD, POST"

    async def test_head_returns_headers_without_a_body(self, client: Client) -> None:
        answer = await client("HEAD", BILLS)
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 0
        assert answer.text == ""

    async def test_a_large_body_is_accepted(self, client: Client, sandbox: Sandbox) -> None:
        body = io.BytesIO(b'{"text": "%s"}' % (b"x" * (4 << 20)))
        assert (await client("POST", BILLS, data=body)).status == 201
        assert len(sandbox.received[0].body) > 4 << 20

    @pytest.mark.parametrize("expect", [True, False])
    async def test_expect_100_continue_is_supported(self, client: Client, expect: bool) -> None:
        assert (await client("POST", BILLS, json={}, expect100=expect)).status == 201

    async def test_unknown_names_raise(self, sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match=r"unknown resource 'dreams'; expected one of: accounts, bankAccounts, "):
            sandbox.records("dreams")
        with pytest.raises(ValueError, match="unknown resource 'dreams'; expected one of: "):
            sandbox.created("dreams")
        with pytest.raises(
            ValueError, match="account must be one of the 1 accounts of this sandbox or its key, got 'other'"
        ):
            sandbox.records("bills", "other")


class TestLimits:
    @pytest.mark.parametrize(
        "limit",
        [FixedWindow(3, 60), SlidingWindow(3, 60), TokenBucket(1 / 60, 3)],
        ids=lambda limit: type(limit).__name__,
    )
    async def test_the_limit_admits_again_after_its_retry_after(
        self, make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock, limit: Limit
    ) -> None:
        client = make_client(await make_sandbox(limit=limit))
        start = virtual_time.now
        assert await statuses(client, 3) == [200] * 3
        answer = await client("GET", BILLS)
        assert answer.status == 429
        assert answer.error["code"] == "TOO_MANY_REQUESTS"
        assert answer.headers["Retry-After"] == "60"
        await asyncio.sleep(start + 59.999 - virtual_time.now)
        answer = await client("GET", BILLS)
        assert answer.status == 429
        assert answer.headers["Retry-After"] == "1"
        await asyncio.sleep(start + 60 - virtual_time.now)
        assert (await client("GET", BILLS)).status == 200

    def test_a_rounding_error_adds_no_second_to_retry_after(self) -> None:
        async def main() -> None:
            async with Sandbox(limit=FixedWindow(1, 60)) as sandbox:
                keys = {"X-API-KEY": sandbox.api_key, "X-ACCOUNT-KEY": sandbox.account_key}
                async with aiohttp.ClientSession(sandbox.url, headers=keys) as session:
                    await session.get(BILLS)
                    response = await session.get(BILLS)
                    assert response.headers["Retry-After"] == "60"

        # (58.9 + 60) - 58.9 is a little more than 60.
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(VirtualClock(58.9))) as runner:
            runner.run(main())

    async def test_accounts_do_not_share_a_limit(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        accounts = [Account("a"), Account("b"), Account("c", limit=FixedWindow(4, 60))]
        client = make_client(await make_sandbox(accounts=accounts, limit=FixedWindow(2, 60)))
        assert [(await statuses(client, 5, account=account)).count(200) for account in "abc"] == [2, 2, 4]

    async def test_login_does_not_count(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        client = make_client(await make_sandbox(limit=FixedWindow(1, 60)))
        assert {(await client("GET", "/auth/xero")).status for _ in range(3)} == {200}
        assert await statuses(client, 2) == [200, 429]

    async def test_refused_keys_do_not_count(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        sandbox = await make_sandbox(limit=FixedWindow(1, 60))
        client = make_client(sandbox)
        await client("GET", BILLS, keys={"X-ACCOUNT-KEY": sandbox.account_key})
        assert await statuses(client, 2) == [200, 429]

    async def test_retry_after_can_be_a_date(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        client = make_client(await make_sandbox(limit=FixedWindow(1, 100, retry_after="date")))
        await client("GET", BILLS)
        before = time.time()
        named = parsedate_to_datetime((await client("GET", BILLS)).headers["Retry-After"]).timestamp()
        assert before + 99 <= named <= time.time() + 101

    async def test_retry_after_can_be_left_out(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        client = make_client(await make_sandbox(limit=FixedWindow(1, 100, retry_after=False)))
        await client("GET", BILLS)
        assert "Retry-After" not in (await client("GET", BILLS)).headers

    async def test_a_limit_can_be_changed_in_the_middle(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        sandbox = await make_sandbox(accounts=2, limit=FixedWindow(1, 60))
        client = make_client(sandbox)
        other = sandbox.accounts[1]
        assert await statuses(client, 2) == [200, 429]
        sandbox.set_limit(FixedWindow(2, 60), sandbox.account_key)
        assert await statuses(client, 3) == [200, 200, 429]
        assert await statuses(client, 2, account=other.key) == [200, 429]
        sandbox.set_limit(None)
        assert await statuses(client, 3) == [200] * 3
        assert await statuses(client, 3, account=other.key) == [200] * 3

    async def test_rejects_an_invalid_limit(self, sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match="limit must be a FixedWindow, SlidingWindow, TokenBucket or None, got 5"):
            sandbox.set_limit(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="account must be one of the 1 "):
            sandbox.set_limit(None, Account("other"))


class TestScripts:
    async def test_a_script_has_one_step_per_request(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.script(500, 200, 429, 200)
        assert sandbox.pending == 4
        assert await statuses(client, 5) == [500, 200, 429, 200, 200]
        assert sandbox.pending == 0

    async def test_a_scripted_error_looks_like_the_apis(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.script(500)
        answer = await client("GET", BILLS)
        assert answer.error["code"] == "INTERNAL_SERVER_ERROR"
        assert answer.payload["data"] is None

    async def test_a_script_can_contain_a_reply(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.script(
            Reply(503, {"Retry-After": "7", "content-type": "text/plain"}, "later"), Reply(204), Reply(body={})
        )
        answer = await client("GET", BILLS)
        assert (answer.status, answer.text) == (503, "later")
        assert answer.headers["Retry-After"] == "7"
        assert answer.headers.getall("Content-Type") == ["text/plain"]
        assert (await client("GET", BILLS)).status == 204
        answer = await client("GET", BILLS)
        assert answer.payload == {}
        assert answer.headers["Content-Type"].startswith("application/json")

    async def test_a_reply_can_be_delayed(self, client: Client, sandbox: Sandbox, virtual_time: VirtualClock) -> None:
        sandbox.script(Reply(delay=90))
        await client("GET", BILLS)
        assert virtual_time.elapsed == pytest.approx(90)

    async def test_a_script_can_be_limited_to_some_requests(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        sandbox = await make_sandbox(accounts=2)
        client = make_client(sandbox)
        sandbox.script(501, method="post")
        sandbox.script(502, path="/accounting/i*")
        sandbox.script(503, account=sandbox.accounts[1])
        assert await statuses(client, 1) == [200]
        assert (await client("GET", "/accounting/items")).status == 502
        assert (await client("GET", BILLS, account=sandbox.accounts[1].key)).status == 503
        assert (await client("POST", BILLS, json={})).status == 501
        assert sandbox.pending == 0

    async def test_the_first_of_several_matching_scripts_applies(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.script(500, 500, path=BILLS)
        sandbox.script(503)
        assert await statuses(client, 4) == [500, 500, 503, 200]

    async def test_scripts_come_before_keys_and_limits(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        client = make_client(sandbox := await make_sandbox(limit=FixedWindow(1, 60)))
        sandbox.script(500, 500, 500)
        assert await statuses(client, 1, keys={}) == [500]
        assert await statuses(client, 4) == [500, 500, 200, 429]

    async def test_step_200_includes_keys_and_limits(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        client = make_client(sandbox := await make_sandbox(limit=FixedWindow(1, 60)))
        sandbox.script(200, 200, 200)
        assert await statuses(client, 1, keys={}) == [403]
        assert await statuses(client, 2) == [200, 429]

    async def test_step_200_is_exempt_from_chances(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        client = make_client(sandbox := await make_sandbox(chances={500: 1.0}))
        sandbox.script(200)
        assert await statuses(client, 2) == [200, 500]

    @pytest.mark.parametrize("step", [500, Reply(500)])
    async def test_a_scripted_error_carries_nothing_out(
        self, client: Client, sandbox: Sandbox, step: int | Reply
    ) -> None:
        sandbox.script(step)
        await client("POST", BILLS, json={})
        assert sandbox.created("bills") == []

    @pytest.mark.parametrize("fault", [Fault.RESET_BEFORE_HEADERS, Fault.CUT_BODY])
    async def test_a_fault_breaks_the_response_of_an_executed_request(
        self, client: Client, sandbox: Sandbox, fault: Fault
    ) -> None:
        sandbox.script(fault)
        with pytest.raises(aiohttp.ClientError):
            await client("POST", BILLS, json={})
        await client("POST", BILLS, json={})
        assert len(sandbox.created("bills")) == 2
        assert sandbox.duplicates == 1

    async def test_a_fault_does_not_bypass_the_check_of_keys(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.script(Fault.CUT_BODY)
        with pytest.raises(aiohttp.ClientPayloadError):
            await client("POST", BILLS, json={}, keys={})
        assert sandbox.created("bills") == []

    @pytest.mark.parametrize("step", [201, 302, 399, 600, True, "500", None, 0])
    def test_rejects_a_step(self, step: Any) -> None:
        with pytest.raises(ValueError, match=f"a step must be a status.*, got {step!r}"):
            Sandbox().script(200, step)

    def test_rejects_no_step(self) -> None:
        with pytest.raises(ValueError, match="steps must contain at least one step"):
            Sandbox().script()

    def test_rejects_an_account(self) -> None:
        with pytest.raises(ValueError, match="account must be one of the 1 "):
            Sandbox().script(500, account="other")


class TestOutages:
    async def test_an_outage_affects_all_requests_until_it_ends(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        sandbox = await make_sandbox(accounts=2, limit=FixedWindow(1, 60), chances={502: 1.0})
        client = make_client(sandbox)
        sandbox.script(404, 200)
        sandbox.set_outage(503)
        assert await statuses(client, 2) == [503] * 2
        assert (await client("POST", BILLS, json={}, account=sandbox.accounts[1].key)).status == 503
        assert (await client("GET", "/auth/xero", keys={})).status == 503
        sandbox.set_outage(Reply(500, {"Retry-After": "7"}, "down"))
        answer = await client("GET", BILLS)
        assert (answer.status, answer.text, answer.headers["Retry-After"]) == (500, "down", "7")
        assert sandbox.created("bills") == []
        assert sandbox.pending == 2
        # Neither the scripts nor the limit have noticed.
        sandbox.set_outage(None)
        assert await statuses(client, 3) == [404, 200, 429]

    async def test_a_fault_outage_executes_requests_without_a_response(self, client: Client, sandbox: Sandbox) -> None:
        sandbox.set_outage(Fault.RESET_BEFORE_HEADERS)
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await client("POST", BILLS, json={})
        sandbox.set_outage(None)
        assert (await client("POST", BILLS, json={})).status == 201
        assert sandbox.duplicates == 2

    async def test_requests_before_an_outage_end_as_usual(
        self, make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
    ) -> None:
        sandbox = await make_sandbox(latency=10.0)
        before = asyncio.ensure_future(make_client(sandbox)("GET", BILLS))
        while not sandbox.received:  # noqa: ASYNC110  nothing tells when
            await asyncio.sleep(0.001)
        sandbox.set_outage(500)
        assert (await before).status == 200
        assert (await make_client(sandbox)("GET", BILLS)).status == 500

    @pytest.mark.parametrize("step", [200, 201, 302, 399, 600, True, "500", 0])
    async def test_rejects_a_step(self, client: Client, sandbox: Sandbox, step: Any) -> None:
        with pytest.raises(ValueError, match=f"the step of an outage must be .*, got {step!r}"):
            sandbox.set_outage(step)
        assert await statuses(client, 1) == [200]


class TestChances:
    async def outcomes(self, sandbox: Sandbox, client: Client, times: int) -> list[int | Fault | None]:
        for _ in range(times):
            with suppress(aiohttp.ClientError):
                await client("POST", BILLS, json={})
        return [received.outcome for received in sandbox.received]

    async def test_the_same_seed_gives_the_same_faults(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        chances = {500: 0.2, 503: 0.1, Fault.CUT_BODY: 0.2}
        runs = []
        for seed in (1, 1, 2):
            sandbox = await make_sandbox(chances=chances, seed=seed)
            runs.append(await self.outcomes(sandbox, make_client(sandbox), 60))
        assert runs[0] == runs[1] != runs[2]
        assert set(runs[0]) == {201, 500, 503, Fault.CUT_BODY}

    async def test_a_chance_of_one_always_applies(self, make_sandbox: MakeSandbox, make_client: MakeClient) -> None:
        sandbox = await make_sandbox(chances={500: 0.5, Fault.GARBAGE: 0.5})
        assert set(await self.outcomes(sandbox, make_client(sandbox), 20)) == {500, Fault.GARBAGE}

    async def test_chances_do_not_apply_without_access(
        self, make_sandbox: MakeSandbox, make_client: MakeClient
    ) -> None:
        client = make_client(await make_sandbox(chances={500: 1.0}, limit=FixedWindow(1, 60)))
        assert await statuses(client, 1, keys={}) == [403]
        assert await statuses(client, 2) == [500, 429]


class TestReceived:
    async def test_reports_the_received_request(self, client: Client, sandbox: Sandbox) -> None:
        before = asyncio.get_running_loop().time()
        await client("POST", BILLS, json={"a": 1}, params={"x": "y"}, headers={"Idempotency-Key": "one"})
        await client("GET", "/auth/xero", keys={})
        first, second = sandbox.received
        assert (first.number, first.method, first.path, first.body) == (1, "POST", BILLS, b'{"a": 1}')
        assert before <= first.at <= second.at <= asyncio.get_running_loop().time()
        assert dict(first.query) == {"x": "y"}
        assert first.headers["idempotency-key"] == "one"
        assert first.account == sandbox.account_key
        assert first.outcome == 201
        assert (second.number, second.account, second.outcome) == (2, None, 403)

    async def test_received_requests_show_no_key(self, client: Client, sandbox: Sandbox) -> None:
        await client("GET", BILLS)
        shown = f"{sandbox.received!r} {sandbox!r} {sandbox.accounts!r}"
        assert sandbox.api_key not in shown
        assert sandbox.account_key not in shown
        assert f"GET {BILLS}" in shown

    async def test_a_request_has_no_outcome_if_the_client_disconnects(
        self, make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
    ) -> None:
        sandbox = await make_sandbox(latency=60.0)
        with pytest.raises(TimeoutError):
            await make_client(sandbox)("GET", BILLS, timeout=aiohttp.ClientTimeout(total=1))
        await asyncio.sleep(100)
        assert sandbox.received[0].outcome is None
        assert virtual_time.elapsed < 110

    async def test_numbers_continue_when_the_list_is_emptied(self, client: Client, sandbox: Sandbox) -> None:
        await client("GET", BILLS)
        sandbox.received.clear()
        await client("GET", BILLS)
        assert [received.number for received in sandbox.received] == [2]


async def test_latency_delays_each_response(
    make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
) -> None:
    await make_client(await make_sandbox(latency=0.25))("GET", BILLS)
    assert virtual_time.elapsed == pytest.approx(0.25)


class TestLife:
    async def test_a_restarted_sandbox_has_the_same_port(self, make_client: MakeClient) -> None:
        sandbox = Sandbox()
        client = make_client(sandbox)
        async with sandbox:
            url = sandbox.url
            await client("POST", BILLS, json={"name": "one"})
        assert sandbox.url == url
        with pytest.raises(aiohttp.ClientConnectorError):
            await client("GET", BILLS)
        async with sandbox:
            assert sandbox.url == url
            assert (await client("GET", BILLS)).status == 200
        assert len(sandbox.created("bills")) == 1

    async def test_a_sandbox_has_no_url_before_the_first_start(self) -> None:
        with pytest.raises(RuntimeError, match="no URL before its first start"):
            _ = Sandbox().url
        assert repr(Sandbox()) == "<Sandbox closed, accounts: 1, requests: 0>"
        assert Sandbox(port=8080).url == "http://127.0.0.1:8080"
        assert Sandbox(port=8080, host="::1").url == "http://[::1]:8080"

    async def test_a_sandbox_starts_only_once(self, sandbox: Sandbox) -> None:
        with pytest.raises(RuntimeError, match="already started"):
            await sandbox.start()

    async def test_closing_an_unstarted_sandbox_does_nothing(self) -> None:
        sandbox = Sandbox()
        await sandbox.close()
        await sandbox.start()
        await sandbox.close()
        await sandbox.close()

    async def test_a_port_in_use_raises(self, sandbox: Sandbox) -> None:
        other = Sandbox(port=int(sandbox.url.rsplit(":", 1)[1]))
        with pytest.raises(OSError, match="in use"):
            await other.start()
        await other.close()

    async def test_failed_start_leaves_nothing_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(_: object) -> None:
            raise OSError("no more files")

        sandbox = Sandbox(port=0)
        with monkeypatch.context() as patch:
            patch.setattr(web.SockSite, "start", fail)
            with pytest.raises(OSError, match="no more files"):
                await sandbox.start()
        async with sandbox:
            assert sandbox.url

    async def test_a_closed_sandbox_leaves_nothing_behind(self, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever the handlers are at: answers that never end, idle connections, requests that are half there."""
        problems: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        caplog.set_level(logging.INFO)

        sandbox = Sandbox(latency=0.001)
        await sandbox.start()
        tasks = asyncio.all_tasks()
        async with aiohttp.ClientSession(sandbox.url, headers={"X-API-KEY": sandbox.api_key}) as session:
            async with session.get("/auth/xero") as response:
                await response.read()
            sandbox.script(Fault.SILENCE, Fault.SLOW_BODY, Reply(delay=1000), Fault.SILENCE)
            requests = [asyncio.ensure_future(session.get("/auth/xero")) for _ in range(4)]
            host, port = sandbox.url.removeprefix("http://").split(":")
            streams = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
            streams[0][1].write(b"POST /auth/xero HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            while len(sandbox.received) < 6:  # noqa: ASYNC110  nothing tells when
                await asyncio.sleep(0.001)
            streams.append(await asyncio.open_connection(host, int(port)))  # perhaps not accepted yet
            assert len(sockets_on(int(port))) >= 7
            began = time.perf_counter()
            await sandbox.close()
            assert time.perf_counter() - began < 30
            assert asyncio.all_tasks() - tasks - set(requests) == set()
            assert sockets_on(int(port)) == []
            await asyncio.gather(*requests, return_exceptions=True)
            for _, writer in streams:
                writer.transport.abort()
        await asyncio.sleep(0)
        assert problems == []
        assert [record for record in caplog.records if record.name.startswith(("aiohttp", "asyncio"))] == []

    async def test_lost_clients_are_not_logged(
        self, client: Client, sandbox: Sandbox, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        for fault in Fault:
            sandbox.script(fault)
            with pytest.raises((aiohttp.ClientError, TimeoutError)):
                await client("POST", BILLS, json={}, timeout=aiohttp.ClientTimeout(total=5))
        await asyncio.sleep(1)
        assert virtual_time.elapsed > 0
        assert [record.getMessage() for record in caplog.records if record.name != "lamella"] == []

    async def test_half_requests_are_not_logged(self, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        host, port = sandbox.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /auth/xero HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        while not sandbox.received:  # noqa: ASYNC110  nothing tells when
            await asyncio.sleep(0.001)
        writer.transport.abort()
        await asyncio.sleep(0.01)
        assert sandbox.received[0].outcome is None
        assert caplog.records == []

    async def test_the_sandbox_closes_in_a_cancelled_scope(self) -> None:
        sandbox = Sandbox()
        with anyio.CancelScope() as scope:
            async with sandbox:
                scope.cancel()
                await anyio.sleep_forever()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", int(sandbox.url.rsplit(":", 1)[1]))

    @pytest.mark.slow
    async def test_the_sandbox_accepts_many_connections_at_once(self, make_sandbox: MakeSandbox) -> None:
        sandbox = await make_sandbox(accounts=300)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers={"X-API-KEY": sandbox.api_key}) as session:

            async def read(account: Account) -> int:
                url = f"{sandbox.url}/accounting/journalEntries?limit=5"
                async with session.get(url, headers={"X-ACCOUNT-KEY": account.key}) as response:
                    return len((await response.json())["data"])

            assert set(await asyncio.gather(*map(read, sandbox.accounts))) == {5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accounts": 0}, "accounts must be a whole number, 1 or more, got 0"),
        ({"accounts": True}, "accounts must be a whole number, 1 or more, got True"),
        ({"accounts": []}, r"accounts must be a whole number, 1 or more, or at least one Account, got \(\)"),
        ({"accounts": ["key"]}, r"accounts must be a whole number, 1 or more, or at least one Account, got \('key',\)"),
        ({"accounts": [Account("a"), Account("a")]}, "accounts must have different keys, got "),
        ({"api_key": ""}, "api_key must be a non-empty line of text, got ''"),
        ({"api_key": "a\nb"}, "api_key must be a non-empty line of text, got "),
        ({"records": -1}, "records must be a whole number, 0 or more, got -1"),
        ({"records": 1.5}, "records must be a whole number, 0 or more, got 1.5"),
        ({"limit": 5}, "limit must be a FixedWindow, SlidingWindow, TokenBucket or None, got 5"),
        ({"limit": FixedWindow}, "limit must be a FixedWindow, SlidingWindow, TokenBucket or None, got <class"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"host": ""}, "host must be a non-empty line of text, got ''"),
        ({"port": 70000}, "port must be a whole number from 0 to 65535, got 70000"),
        ({"latency": -1}, "latency must be a finite number of seconds, 0 or more, got -1"),
        ({"latency": math.nan}, "latency must be a finite number of seconds, 0 or more, got nan"),
        ({"pause": math.inf}, "pause must be a finite number of seconds, 0 or more, got inf"),
        ({"chances": {200: 0.5}}, "an outcome in chances must be a status from 400 to 599, got 200"),
        ({"chances": {"500": 0.5}}, "an outcome in chances must be a status from 400 to 599, got '500'"),
        ({"chances": {500: 1.5}}, "the sum of chances must be at most 1, got {500: 1.5}"),
        ({"chances": {Fault.CUT_BODY: -1}}, "the chance of Fault.CUT_BODY must be a finite number, 0 or more, got -1"),
        ({"chances": {500: 0.7, 503: 0.7}}, "the sum of chances must be at most 1, got "),
    ],
    ids=repr,
)
def test_the_sandbox_rejects_invalid_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sandbox(**options)


def test_accepts_chances_that_sum_to_one() -> None:
    Sandbox(chances=dict.fromkeys(range(500, 510), 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": ""}, "key must be printable ASCII without surrounding spaces, got ''"),
        ({"key": "a\n"}, "key must be printable ASCII "),
        ({"key": "é"}, "key must be printable ASCII "),
        ({"key": "a", "state": "dead"}, "state must be one of .*, got 'dead'"),
        ({"key": "a", "records": -1}, "records must be a whole number, 0 or more, got -1"),
        ({"key": "a", "limit": 5}, "limit must be a FixedWindow, SlidingWindow, TokenBucket or None, got 5"),
    ],
    ids=repr,
)
def test_rejects_an_account(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Account(**options)


async def test_a_path_with_a_line_break_is_received(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{sandbox.url}/accounting/a%0Ab") as response:
        assert response.status == 403
    assert [received.path for received in sandbox.received] == ["/accounting/a\nb"]
