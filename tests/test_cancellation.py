"""A call cancelled at every await there is, one after the other: found by stepping, not by guessing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import aiohttp
import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from tests.cancelling import T, cancelled_at

from lamella import HeaderAuth, maesn, stack
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.testing import Fault, VirtualClock


class Open(SpanProcessor):
    """The spans that have begun and not ended."""

    def __init__(self) -> None:
        self.spans: set[int] = set()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.spans.add(span.context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.discard(span.context.span_id)


async def _token() -> str:
    await asyncio.sleep(0.1)
    return "t0ken-value"


SCRIPTS = {
    "a wait and a second send": (429, 500, 200),
    "a connection that breaks": (Fault.RESET_BEFORE_HEADERS, Fault.RESET_AFTER_HEADERS, 200),
    "a body that is cut": (Fault.CUT_BODY, 200),
    "a slow body": (Fault.SLOW_BODY,),
    "a slow error body": (Reply(status=500, body=b"x" * 200_000, delay=1.0), 200),
    "not HTTP": (Fault.GARBAGE, 200),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("raise_errors", [True, False])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
async def test_a_cancelled_call_leaves_nothing_behind(
    virtual_time: VirtualClock, script: tuple[int | Fault | Reply, ...], raise_errors: bool
) -> None:
    step = 1
    while await _cancelled(step, script, raise_errors):
        step += 1
    assert step > 8, "a call waits more often than that"


async def _cancelled(step: int, script: tuple[int | Fault | Reply, ...], raise_errors: bool) -> bool:
    """Cancel a call at its *step*-th await; whether it has as many."""
    processor = Open()
    provider = TracerProvider()
    provider.add_span_processor(processor)
    async with Sandbox(records=1, pause=0) as sandbox:
        sandbox.script(*script, method="GET")
        layers = stack(
            maesn.RULES,
            auth=HeaderAuth(
                {"X-API-KEY": sandbox.api_key, "X-ACCOUNT-KEY": sandbox.account_key, "X-Token": _token},
                origin=sandbox.url,
            ),
            deadline=1000,
            raise_errors=raise_errors,
            tracer_provider=provider,
        )

        bill = sandbox.records("bills")[0]["id"]

        async def call() -> int:
            async with session.put(f"/accounting/bills/{bill}", data=b'{"a": 1}') as response:
                await response.read()
            async with session.get("/accounting/invoices") as response:
                return len(await response.read())

        connector = aiohttp.TCPConnector(limit=1)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            sandbox.url, connector=connector, timeout=timeout, middlewares=layers
        ) as session:
            before = asyncio.all_tasks()
            task = asyncio.ensure_future(_stepped(step, call()))
            await asyncio.wait([task])
            # aiohttp's own writer of a body, once cancelled, ends a moment later.
            for _ in range(3):
                await asyncio.sleep(0)
            assert not connector._acquired, f"a connection is held after the cancellation at step {step}"
            assert not processor.spans, f"a span is open after the cancellation at step {step}"
            left = {repr(other.get_coro()) for other in asyncio.all_tasks() - before}
            left = {other for other in left if "RequestHandler" not in other}  # the server's
            assert not left, f"a task is left after the cancellation at step {step}: {left}"
            if task.cancelled():
                return True
            reached, size = task.result()
            assert not reached, f"the cancellation at step {step} was swallowed"
            assert size
            return False


async def _stepped(step: int, work: Coroutine[Any, Any, T]) -> tuple[bool, T]:
    return await cancelled_at(step, work)


async def test_closing_the_session_during_a_wait_raises(virtual_time: VirtualClock) -> None:
    async with Sandbox(records=1) as sandbox:
        sandbox.script(*[429] * 5)
        session = maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url)
        # The first one waits for its next try, the others in the queue.
        calls = [asyncio.ensure_future(session.get("/accounting/invoices"))]
        await asyncio.sleep(1)
        calls += [asyncio.ensure_future(session.get("/accounting/invoices")) for _ in range(2)]
        await asyncio.sleep(1)
        await session.close()
        for call in calls:
            with pytest.raises(RuntimeError, match="Session is closed"):
                await call
