"""Every row of the guide, over a real socket and on its own schedule."""

from __future__ import annotations

from itertools import pairwise

import aiohttp
import pytest

from lamella import (
    ApiError,
    BadRequest,
    Forbidden,
    HeaderAuth,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    ServerStatusError,
    StopReason,
    Token,
    Tokens,
    TooManyRequests,
    Unauthorized,
    maesn,
)
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import FixedWindow, VirtualClock


def open_session(sandbox: Sandbox, attempts: int = 5) -> aiohttp.ClientSession:
    return maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, attempts=attempts)


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, BadRequest, "validation errors"),
        (401, Unauthorized, "authenticate again"),
        (403, Forbidden, "API key"),
        (404, NotFound, "target system supports"),
        (405, MethodNotAllowed, "list this operation"),
    ],
)
async def test_a_client_error_is_not_retried(
    sandbox: Sandbox, virtual_time: VirtualClock, status: int, kind: type[ApiError], hint: str
) -> None:
    sandbox.script(status)
    async with open_session(sandbox) as session:
        with pytest.raises(kind) as caught:
            await session.get("/accounting/invoices")
    assert len(sandbox.received) == 1
    assert virtual_time.elapsed < 1
    assert caught.value.stopped is StopReason.NOT_RETRYABLE
    assert hint in str(caught.value)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "made-up"}])
@pytest.mark.parametrize("options", [{}, {"retry_writes": True}, {"raise_errors": False}], ids=str)
async def test_an_expired_account_key_is_final_for_every_method(
    make_sandbox: MakeSandbox,
    virtual_time: VirtualClock,
    method: str,
    headers: dict[str, str],
    options: dict[str, bool],
) -> None:
    """Only the end user can renew it: no other key is fetched, and the request is not repeated."""
    account = Account("an-old-key", "expired")
    sandbox = await make_sandbox(accounts=[account])
    async with maesn.session(sandbox.api_key, account.key, sandbox.url, **options) as session:  # type: ignore[arg-type]
        for _ in range(2):
            if "raise_errors" in options:
                async with session.request(method, "/accounting/invoices", headers=headers) as response:
                    assert response.status == 401
                continue
            with pytest.raises(Unauthorized) as caught:
                await session.request(method, "/accounting/invoices", headers=headers)
            assert caught.value.stopped is StopReason.NOT_RETRYABLE
            assert [record.status for record in caught.value.attempts] == [401]
            assert "authenticate again" in str(caught.value)
            assert account.key not in f"{caught.value!r}{vars(caught.value)}"
    assert [received.method for received in sandbox.received] == [method] * 2
    assert virtual_time.elapsed < 1


@pytest.mark.parametrize("status", [401, 403])
async def test_an_extra_token_is_renewed_and_the_write_repeated_once(
    sandbox: Sandbox, virtual_time: VirtualClock, status: int
) -> None:
    """A gateway in front of the API may want one, and then it may be the token that was refused."""
    fetched: list[Token] = []

    async def fetch() -> Token:
        fetched.append(Token(f"Bearer {len(fetched)}"))
        return fetched[-1]

    auth = HeaderAuth({"Authorization": Tokens(fetch)}, origin=sandbox.url)
    sandbox.script(status, 200, status, status)
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, auth=auth) as session:
        if status == 401:
            async with session.post("/accounting/invoices", json={}) as response:
                assert response.status == 201
            with pytest.raises(Unauthorized):
                await session.post("/accounting/invoices", json={})
        else:
            with pytest.raises(Forbidden):
                await session.post("/accounting/invoices", json={})
    tokens = [received.headers["Authorization"] for received in sandbox.received]
    assert tokens == (["Bearer 0", "Bearer 1", "Bearer 1", "Bearer 2"] if status == 401 else ["Bearer 0"])


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("status", "kind", "low", "high"),
    [
        (429, TooManyRequests, 60, 66),
        (500, InternalServerError, 15, 30),
        (502, ServerStatusError, 15, 30),
        (503, ServerStatusError, 15, 30),
        (504, ServerStatusError, 15, 30),
    ],
)
@pytest.mark.parametrize("attempts", [5, 3])
async def test_a_server_error_is_retried_on_the_guides_schedule(
    sandbox: Sandbox,
    virtual_time: VirtualClock,
    status: int,
    kind: type[ApiError],
    low: float,
    high: float,
    attempts: int,
) -> None:
    sandbox.script(*[status] * attempts)
    async with open_session(sandbox, attempts=attempts) as session:
        with pytest.raises(kind) as caught:
            await session.get("/accounting/invoices")
    error = caught.value
    assert error.stopped is StopReason.ATTEMPTS_USED_UP
    assert [record.status for record in error.attempts] == [status] * attempts
    assert error.rule.hint in str(error)
    arrivals = [received.at for received in sandbox.received]
    waits = [after - before for before, after in pairwise(arrivals)]
    assert len(waits) == attempts - 1
    for number, wait in enumerate(waits):
        assert low * 2**number <= wait <= high * 2**number + 0.1


@pytest.mark.parametrize("status", [409, 418, 422, 451])
async def test_other_4xx_are_never_retried(sandbox: Sandbox, status: int) -> None:
    sandbox.script(status)
    async with open_session(sandbox) as session:
        with pytest.raises(ApiError) as caught:
            await session.get("/accounting/invoices")
    assert (caught.value.status, len(sandbox.received)) == (status, 1)


@pytest.mark.parametrize("status", [501, 505, 511])
async def test_other_5xx_are_never_retried(sandbox: Sandbox, status: int) -> None:
    sandbox.script(status)
    async with open_session(sandbox) as session:
        with pytest.raises(ServerStatusError) as caught:
            await session.get("/accounting/invoices")
    assert (caught.value.status, len(sandbox.received)) == (status, 1)


async def test_a_call_succeeds_when_the_server_recovers(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(429, 500, 429, 500)
    async with open_session(sandbox) as session, session.get("/accounting/invoices") as response:
        assert len((await response.json())["data"]) == 20
    assert 60 + 30 + 240 + 120 <= virtual_time.elapsed <= 66 + 60 + 264 + 240 + 1


async def test_a_real_rate_limit_is_waited_out(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(limit=FixedWindow(3, per=60))
    async with open_session(sandbox) as session:
        for _ in range(7):
            async with session.get("/accounting/invoices") as response:
                assert response.status == 200
    assert [received.outcome for received in sandbox.received].count(429) == 2
