"""Calls whose caller wants neither spans nor metrics get none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from tests.sdk import Metering, Tracing
from tests.servers import Serve, Statuses

from lamella import AttemptSpan, Backoff, Breaker, LamellaError, RequestSpan, Rule, RuleBook, stack

RULES = RuleBook(Rule(429, retry=Backoff(initial=0.02)), Rule(500, retry=Backoff(initial=0)))

Suppress = Callable[[], AbstractContextManager[None]]

BOTH = pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])


@BOTH
async def test_a_suppressed_call_has_neither_spans_nor_metrics(
    serve: Serve, tracing: Tracing, metering: Metering, suppress: Suppress
) -> None:
    """Not even where it is retried and queued, a circuit opens and closes, and the call fails."""
    server = Statuses(*[200] * 5, 429, 500, *[500] * 4, 404)

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return await server(request)

    breaker = Breaker(minimum=1, failures=0.01, open_for=0.01, probes=1)
    providers = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    layers = stack(RULES, breaker, **providers)  # type: ignore[arg-type]
    job = trace.NonRecordingSpan(trace.SpanContext(1, 2, False, trace.TraceFlags(1)))
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        with trace.use_span(job), suppress():
            for _ in range(3):
                await asyncio.gather(*(session._request("GET", "/") for _ in range(10)), return_exceptions=True)
                await asyncio.sleep(0.015)
        assert len(server.requests) > 12
        assert not tracing.spans
        assert not metering.metrics
        assert not [request for request in server.requests if "traceparent" in request.headers]
        # From the next call on there are some.
        await session.get("/")
    assert len(tracing.spans) == 2
    assert metering.value("lamella.call.attempts") == 1


@BOTH
@pytest.mark.parametrize("kinds", [[RequestSpan], [AttemptSpan]])
async def test_a_layer_alone_is_suppressed(
    serve: Serve,
    tracing: Tracing,
    metering: Metering,
    suppress: Suppress,
    kinds: list[type[RequestSpan] | type[AttemptSpan]],
) -> None:
    server = Statuses(404)
    layers = [kind(tracer_provider=tracing.provider, meter_provider=metering.provider) for kind in kinds]
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        with suppress():
            await session.get("/", headers={"traceparent": "the user's own"})
    context.detach(token)
    assert not tracing.spans
    assert not metering.metrics
    assert server.requests[0].headers["traceparent"] == "the user's own"
    assert "baggage" not in server.requests[0].headers


@BOTH
async def test_a_suppressed_call_writes_nothing_on_the_current_span(
    serve: Serve, tracing: Tracing, suppress: Suppress
) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses(429, 404)), middlewares=layers) as session:
        with tracing.provider.get_tracer("the user's").start_as_current_span("job"), suppress():
            with pytest.raises(LamellaError):
                await session.get("/")
    [job] = tracing.spans
    assert (job.events, dict(job.attributes or {})) == ((), {})
