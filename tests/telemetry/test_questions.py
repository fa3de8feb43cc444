"""What an operator asks of a trace, answered by the trace alone."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan
from tests.sdk import Tracing, given

from lamella import LamellaError, maesn
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.testing import Fault, VirtualClock


def session(sandbox: Sandbox, tracing: Tracing, scale: float = 1, **options: Any) -> aiohttp.ClientSession:
    return maesn.session(
        sandbox.api_key,
        sandbox.account_key,
        sandbox.url,
        rules=maesn.RULES.scaled(scale),
        tracer_provider=tracing.provider,
        **options,
    )


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@pytest.mark.parametrize(("step", "came_back"), [(500, "500"), (Fault.RESET_BEFORE_HEADERS, "ConnectionLost")])
async def test_the_trace_says_why_a_post_was_not_retried(
    sandbox: Sandbox, tracing: Tracing, step: int | Fault, came_back: str
) -> None:
    sandbox.script(step)
    async with session(sandbox, tracing) as client:
        with pytest.raises(LamellaError):
            await client.post("/accounting/invoices", json={})
    call = given(tracing.call)
    assert call["http.request.method"] == "POST"
    assert (call["lamella.attempts"], call["lamella.stop_reason"]) == (1, "unsafe_method")
    assert call["lamella.outcome"] == "failure"
    assert "unsafe method" in str(tracing.call.status.description)
    [stop] = tracing.call.events
    assert stop.name == "lamella.stop"
    assert (
        given(stop).items()
        >= {
            "lamella.attempt": 1,
            "lamella.stop_reason": "unsafe_method",
            "error.type": came_back,
            "lamella.attempts_left": 4,
        }.items()
    )
    assert given(stop)["lamella.rule"]
    [send] = tracing.sends
    assert given(send)["error.type"] == came_back


async def test_the_trace_says_why_a_call_stopped_early(
    sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    sandbox.script(429, 429, 429)
    async with session(sandbox, tracing, deadline=100) as client:
        with pytest.raises(LamellaError) as caught:
            await client.get("/accounting/invoices")
    assert len(tracing.sends) == 2
    call = given(tracing.call)
    assert (call["lamella.attempts"], call["lamella.stop_reason"]) == (2, "deadline")
    retry, stop = tracing.call.events
    assert (retry.name, stop.name) == ("lamella.retry", "lamella.stop")
    waited = call["lamella.wait"]
    assert isinstance(waited, float)
    assert 60 <= waited <= 66
    assert (
        given(retry).items()
        >= {
            "lamella.attempt": 1,
            "lamella.attempts_left": 4,
            "lamella.wait_source": "rule",
            "lamella.wait": pytest.approx(waited),
            "lamella.deadline_left": pytest.approx(100, abs=0.1),
        }.items()
    )
    # Three sends were left, and not the two minutes that the guide asks for next.
    assert (
        given(stop).items()
        >= {
            "lamella.attempt": 2,
            "lamella.attempts_left": 3,
            "lamella.stop_reason": "deadline",
            "lamella.deadline_left": pytest.approx(100 - waited, abs=0.1),
        }.items()
    )
    # Code is told the same.
    assert [(record.number, record.status) for record in caught.value.attempts] == [(1, 429), (2, 429)]
    assert [record.waited for record in caught.value.attempts] == [pytest.approx(waited), 0]
    assert caught.value.stopped == "deadline"
    assert virtual_time.elapsed == pytest.approx(waited, abs=0.1)


async def test_the_trace_shows_whether_server_or_client_was_slow(sandbox: Sandbox, tracing: Tracing) -> None:
    sandbox.script(Reply(429, delay=0.02), Reply(429, delay=0.04), 200)
    async with session(sandbox, tracing, scale=0.0005) as client:
        await client.get("/accounting/invoices")
    call, waited = tracing.call, given(tracing.call)["lamella.wait"]
    server = sum(seconds(span) for span in tracing.sends)
    assert isinstance(waited, float)
    assert [seconds(send) >= least for send, least in zip(tracing.sends, (0.02, 0.04, 0), strict=True)] == [True] * 3
    decided = [given(event)["lamella.wait"] for event in call.events]
    assert decided == [pytest.approx(0.0315, abs=0.0016), pytest.approx(0.063, abs=0.0031)]
    # All of the call's time is in its attempts and between them. How much longer than decided a wait takes, the
    # machine's load decides.
    first, second, last = tracing.sends
    assert first.start_time is not None
    assert last.start_time is not None
    between = (last.start_time - first.start_time) / 1e9 - seconds(first) - seconds(second)
    assert 0.03 + 0.06 <= waited <= between + 0.001
    assert server + between <= seconds(call)
    # Each wait begins at its decision and ends where the next send begins.
    for event, before, after in zip(call.events, tracing.sends, tracing.sends[1:], strict=False):
        assert before.end_time is not None
        assert after.start_time is not None
        assert before.end_time <= event.timestamp < after.start_time


@pytest.mark.parametrize(("retry_after", "source"), [("90", "retry_after"), ("1", "rule")])
async def test_the_trace_says_who_asked_for_the_wait(
    sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, retry_after: str, source: str
) -> None:
    sandbox.script(Reply(429, headers={"Retry-After": retry_after}))
    async with session(sandbox, tracing) as client:
        await client.get("/accounting/invoices")
    [event] = tracing.call.events
    assert given(event)["lamella.wait_source"] == source
    assert given(event)["lamella.wait"] == (90 if source == "retry_after" else pytest.approx(63, abs=3))


async def test_the_trace_shows_which_attempts_the_server_received(
    sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    sandbox.script(429, Fault.RESET_AFTER_HEADERS, 200)
    async with session(sandbox, tracing) as client:
        await client.get("/accounting/invoices")
    seen = [
        trace.get_current_span(propagate.extract(received.headers)).get_span_context() for received in sandbox.received
    ]
    assert [len(received.headers.getall("traceparent")) for received in sandbox.received] == [1, 1, 1]
    assert [context.span_id for context in seen] == [span.context.span_id for span in tracing.sends]
    assert {context.trace_id for context in seen} == {tracing.call.context.trace_id}
    assert [given(span).get("http.request.resend_count") for span in tracing.sends] == [None, 1, 2]
    assert [span.parent and span.parent.span_id for span in tracing.sends] == [tracing.call.context.span_id] * 3
