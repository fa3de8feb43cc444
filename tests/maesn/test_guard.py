from __future__ import annotations

import asyncio

import pytest
from tests.sdk import Tracing

from lamella import LamellaError, NotFound, StopReason, maesn
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import VirtualClock


async def ask(session: object, path: str, key: str) -> LamellaError | int:
    with maesn.account(key):
        try:
            async with session.get(path) as response:  # type: ignore[attr-defined]
                return int(response.status)
        except LamellaError as exc:
            return exc


async def test_calls_stop_before_the_key_is_blocked(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(accounts=2, system="exact", quotas=[], records=20)
    one, other = (account.key for account in sandbox.accounts)
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, guard=maesn.ErrorGuard()) as session:
        results = [await ask(session, f"/accounting/invoices/{number}", one) for number in range(12)]
        assert [type(result) for result in results] == [NotFound] * 9 + [maesn.TooManyErrors] * 3
        assert isinstance(results[-1], maesn.TooManyErrors)
        assert results[-1].stopped is StopReason.TOO_MANY_ERRORS
        assert 3590 < (results[-1].retry_after or 0) <= 3600
        assert one not in str(results[-1])
        # Another path, another account, and an hour later the same one.
        assert await ask(session, "/accounting/invoices", one) == 200
        assert isinstance(await ask(session, "/accounting/invoices/x", other), NotFound)
        await asyncio.sleep(3600)
        assert isinstance(await ask(session, "/accounting/invoices/x", one), NotFound)
    assert sandbox.blocks == 0
    assert len(sandbox.received) == 12


@pytest.mark.slow
async def test_without_a_guard_the_sandbox_blocks_the_key(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(system="exact", quotas=[], records=20)
    async with maesn.session(sandbox.api_key, base_url=sandbox.url) as session:
        for number in range(12):
            await ask(session, f"/accounting/invoices/{number}", sandbox.account_key)
        invoice = sandbox.records("invoices")[0]["id"]
        result = await ask(session, f"/accounting/invoices/{invoice}", sandbox.account_key)
        assert "blocked" in str(result)
        await asyncio.sleep(3601)
        assert await ask(session, f"/accounting/invoices/{invoice}", sandbox.account_key) == 200
    assert sandbox.blocks == 1


async def test_concurrent_calls_never_exceed_the_errors_left(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(system="exact", quotas=[], records=1, latency=0.5, unsupported={"offers"})
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, guard=maesn.ErrorGuard()) as session:
        results = await asyncio.gather(*(ask(session, "/accounting/offers", sandbox.account_key) for _ in range(50)))
    assert sum(isinstance(result, NotFound) for result in results) == 9 == len(sandbox.received)
    assert sum(isinstance(result, maesn.TooManyErrors) for result in results) == 41
    assert sandbox.blocks == 0


async def test_a_working_path_is_not_delayed(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(records=1, latency=1.0)
    guard = maesn.ErrorGuard(most=2)
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, guard=guard, throttle=False) as session:
        assert await ask(session, "/accounting/items", sandbox.account_key) == 200
        began = virtual_time.now
        results = await asyncio.gather(*(ask(session, "/accounting/items", sandbox.account_key) for _ in range(50)))
    assert results == [200] * 50
    assert virtual_time.now - began < 1.5


async def test_a_waiting_call_can_be_cancelled(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(records=1, latency=10.0, unsupported={"offers"})
    guard = maesn.ErrorGuard(most=1)
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, guard=guard) as session:
        tasks = [asyncio.ensure_future(ask(session, "/accounting/offers", sandbox.account_key)) for _ in range(3)]
        await asyncio.sleep(1)
        tasks[1].cancel()
        tasks[0].cancel()  # its end lets the third one go
        result = await tasks[2]
        assert all(task.cancelled() for task in tasks[:2])
    assert isinstance(result, NotFound)


async def test_the_rejection_is_an_event_on_the_call_span(make_sandbox: MakeSandbox, tracing: Tracing) -> None:
    sandbox = await make_sandbox(unsupported={"offers"})
    guard = maesn.ErrorGuard(most=1)
    async with maesn.session(
        sandbox.api_key, base_url=sandbox.url, guard=guard, tracer_provider=tracing.provider
    ) as session:
        for _ in range(2):
            await ask(session, "/accounting/offers", sandbox.account_key)
    [*_, call] = [span for span in tracing.spans if span.parent is None]
    assert [event.name for event in call.events] == ["lamella.too_many_errors", "lamella.stop"]
    assert dict(call.attributes or {})["error.type"] == "TooManyErrors"
    assert dict(call.attributes or {})["lamella.stop_reason"] == "too_many_errors"


@pytest.mark.parametrize("options", [{"most": 0}, {"per": 0.0}, {"per": -1.0}])
def test_bad_arguments(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        maesn.ErrorGuard(**options)  # type: ignore[arg-type]
