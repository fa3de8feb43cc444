"""Tools show more of an error than its message: the locals of each frame, and the repr of what aiohttp raised."""

from __future__ import annotations

import asyncio
import io
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console
from rich.traceback import Traceback
from tests.security.shown import leaks, links

from lamella import Forbidden, HeaderAuth, deadline, maesn
from lamella.batch import Batch, Journal
from lamella.maesn.sandbox import Account, Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import Fault

API_KEY, ACCOUNT_KEY = "zq-api-key-4711", "zq-account-key-0815"
KEYS = (API_KEY, ACCOUNT_KEY)
RULES = maesn.RULES.scaled(1e-5)


async def get(session: aiohttp.ClientSession) -> None:
    with maesn.account(ACCOUNT_KEY):
        async with session.get("/accounting/invoices") as response:
            await response.json()


async def get_unclassified(session: aiohttp.ClientSession) -> None:
    with maesn.account(ACCOUNT_KEY):
        async with session.get("/accounting/invoices") as response:
            response.raise_for_status()
            await response.json()


async def read(session: aiohttp.ClientSession) -> None:
    async for _ in maesn.records(session, "invoices", account=ACCOUNT_KEY):
        pass


async def in_time(session: aiohttp.ClientSession) -> None:
    with deadline(0.02):
        await get(session)


async def not_long(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(0.02):
        await read(session)


async def websocket(session: aiohttp.ClientSession) -> None:
    with maesn.account(ACCOUNT_KEY):
        async with session.ws_connect("/accounting/invoices"):
            pass


WAYS = (get, get_unclassified, read, in_time, not_long, websocket)
ENDINGS = (
    *Fault,
    401,
    403,
    429,
    500,
    503,
    Reply(200, {"Content-Type": "text/html"}, b"<html>Log in, please</html>"),
    Reply(200, {}, b'{"data": ['),
    Reply(200, {}, {"data": 5}),
    Reply(200, {"Content-Encoding": "gzip"}, b"not gzip"),
    Reply(302, {"Location": "/elsewhere"}),
    Reply(302, {"Location": "file:///etc/passwd"}),
    Reply(302, {"Location": "http://[broken"}),
)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_neither_locals_nor_reprs_show_a_key(
    way: Callable[[aiohttp.ClientSession], Awaitable[None]], make_sandbox: MakeSandbox
) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)], pause=0.001)
    failed = 0
    found = {}
    async with maesn.session(
        API_KEY,
        None,
        sandbox.url,
        rules=RULES,
        attempts=2,
        attempt_timeout=0.2,
        retry_budget=None,
        raise_errors=way is not get_unclassified,
    ) as session:
        for ending in ENDINGS:
            sandbox.set_outage(ending)
            try:
                await way(session)
            except Exception as exc:  # noqa: BLE001 - whatever it is
                failed += 1
                if leaked := leaks(exc, *KEYS, apart_from=__file__):
                    found[f"{ending!r:.60}: {type(exc).__name__}"] = leaked
    assert not found
    assert failed >= len(ENDINGS) - 2  # what is slow may be in time, and any JSON is an answer to `get`


async def test_errors_in_batch_and_sync_show_no_credential(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY, state="expired")])
    async with maesn.session(API_KEY, None, sandbox.url, rules=RULES) as session:

        async def call(item: int) -> None:
            await get(session)

        async with Batch(call, range(3), at_once=2) as batch:
            errors = [outcome.error async for outcome in batch]
        async with Journal.open(tmp_path / "journal", batch="b") as journal:
            report = await maesn.sync(session, {"north": ACCOUNT_KEY}, ["invoices"], journal=journal)
    errors += [part.error for part in report.failed]
    assert len(errors) == 4
    for error in errors:
        assert error is not None
        assert not leaks(error, *KEYS, apart_from=__file__)


async def test_messages_of_aiohttp_about_a_response_contain_no_key(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)])
    async with maesn.session(API_KEY, ACCOUNT_KEY, sandbox.url) as session:
        for _ in range(2):  # on the second send they are there again
            async with session.get("/accounting/invoices") as response:
                assert not any(key in repr(response.request_info) for key in KEYS)
                assert "X-API-KEY" not in response.request_info.headers
    for received in sandbox.received:
        assert (received.headers["X-API-KEY"], received.headers["X-ACCOUNT-KEY"]) == KEYS


async def test_an_error_made_from_this_response_still_hides_secrets(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)])
    sandbox.script(Reply(403, {}, {"errors": {"message": f"{API_KEY} may not see {ACCOUNT_KEY}"}}))
    async with maesn.session(API_KEY, ACCOUNT_KEY, sandbox.url, raise_errors=False) as session:
        with pytest.raises(Forbidden) as caught:
            await read(session)
    assert caught.value.details == ("REDACTED may not see REDACTED",)
    assert not leaks(caught.value, *KEYS, apart_from=__file__)


async def test_a_rejected_value_of_a_function_is_not_shown(sandbox: Sandbox) -> None:
    async def ask() -> str:
        return f"{API_KEY}\r\nX-Injected: yes"

    async with aiohttp.ClientSession(sandbox.url, middlewares=(HeaderAuth({"X-API-KEY": ask}),)) as session:
        with pytest.raises(ValueError, match="X-API-KEY") as caught:
            await session.get("/")
    for link in links(caught.value):
        assert API_KEY not in f"{link!s}{link!r}"
    assert not sandbox.received


@pytest.mark.sampled(1)
@pytest.mark.parametrize("ending", [401, Fault.RESET_BEFORE_HEADERS, Reply(200, {"Content-Type": "text/html"}, b"?")])
async def test_tracebacks_of_common_tools_show_no_key(ending: int | Fault | Reply, make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox(api_key=API_KEY, accounts=[Account(ACCOUNT_KEY)])
    sandbox.set_outage(ending)
    async with maesn.session(API_KEY, ACCOUNT_KEY, sandbox.url, rules=RULES, attempts=2) as session:
        with pytest.raises(aiohttp.ClientError) as caught:
            async with session.get("/accounting/invoices") as response:
                await response.json()
    error = caught.value
    written = io.StringIO()
    shown = Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True, locals_max_length=1000, locals_max_string=100_000
    )
    Console(file=written, width=200).print(shown)
    captured = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    for text in (written.getvalue(), captured):
        assert "request" in text  # it does show locals
        assert not any(key in text for key in KEYS)
