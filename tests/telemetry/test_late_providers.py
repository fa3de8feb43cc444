"""Without an SDK nothing is described; what is set later is used, and what others began goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from tests.layering import together
from tests.sdk import Metering, Tracing
from tests.servers import Serve

from lamella import (
    AttemptSpan,
    Backoff,
    Classify,
    RequestSpan,
    Rule,
    RuleBook,
    ServerStatusError,
    stack,
)
from lamella.telemetry import shared

PARENT = SpanContext(0x1234567890ABCDEF1234567890ABCDEF, 0x1234567890ABCDEF, False, TraceFlags(1))

PROGRAM = """
import asyncio
import aiohttp
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from lamella import maesn
from lamella.telemetry.attributes import described
from lamella.maesn.sandbox import Sandbox

told, described = [], described

def telling(*args):
    told.append(args)
    return described(*args)

described = telling

async def main():
    async with Sandbox() as sandbox, maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        await session.get("/accounting/invoices")
        assert not told, "described for nobody"
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        if "tracer" in WHAT:
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(provider)
        if "meter" in WHAT:
            metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
        await session.get("/accounting/invoices")
        data = reader.get_metrics_data()
        names = {metric.name for each in data.resource_metrics for scope in each.scope_metrics
                 for metric in scope.metrics} if data else set()
        print(sorted(span.name for span in exporter.get_finished_spans()), sorted(names))

asyncio.run(main())
"""
SPANS = ["GET /accounting/invoices", "lamella GET /accounting/invoices"]
METRICS = [
    "http.client.request.duration",
    "lamella.attempts.active",
    "lamella.call.duration",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "spans", "metrics"),
    [
        pytest.param("nothing", [], [], marks=pytest.mark.slow),
        pytest.param("tracer", SPANS, [], marks=pytest.mark.slow),
        pytest.param("meter", [], METRICS, marks=pytest.mark.slow),
        ("tracer, meter", SPANS, METRICS),
    ],
)
def test_a_provider_set_later_is_used_from_then_on(what: str, spans: list[str], metrics: list[str]) -> None:
    # In a process of its own: a global provider is set once.
    program = f"WHAT = {what!r}\n{PROGRAM}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.strip() == f"{spans} {metrics}"


def test_max_servers_also_applies_to_a_provider_set_later() -> None:
    """And the servers of a stack that was made before count for the stacks after it."""
    program = """if True:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from lamella import stack
        from lamella.telemetry.metrics import instruments_of

        early = stack(max_servers=2)
        instruments_of(None).server("a", 1)
        provider = MeterProvider(shutdown_on_exit=False)
        metrics.set_meter_provider(provider)
        stack()
        stack(meter_provider=provider)
        for used in (None, provider):
            print(*[instruments_of(used).server(host, None)["server.address"] for host in "bcb"])
        print(instruments_of(MeterProvider(shutdown_on_exit=False)).max_servers)
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.splitlines() == ["b _OTHER b", "b _OTHER b", "100"]


@pytest.mark.parametrize("kinds", [(AttemptSpan,), (RequestSpan, AttemptSpan)])
async def test_spans_are_not_described_without_an_sdk(
    serve: Serve, kinds: tuple[type[AttemptSpan] | type[RequestSpan], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "described", None)
    assert "traceparent" not in await headers_of_a_call(serve, *layers(*kinds))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("raised", [True, False])
async def test_calls_fail_normally_without_an_sdk(
    serve: Serve, caplog: pytest.LogCaptureFixture, raised: bool, fused: bool
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    chosen = [*layers(RequestSpan, AttemptSpan), *([Classify(RuleBook())] if raised else [])]
    async with aiohttp.ClientSession(
        await serve(answer), middlewares=[together(chosen)] if fused else chosen
    ) as session:
        for _ in range(2):
            with pytest.raises(ServerStatusError) if raised else nullcontext():
                assert (await session.get("/")).status == 503
    assert len(caplog.records) == 2 * raised


@contextmanager
def attached(given: Context) -> Iterator[None]:
    token = context.attach(given)
    try:
        yield
    finally:
        context.detach(token)


class _Own(TextMapPropagator):
    """Writes a header whatever there is to hand on."""

    def extract(self, *_: Any, **__: Any) -> Context:
        return Context()

    def inject(self, carrier: Any, *_: Any, **__: Any) -> None:
        carrier["X-Own"] = "always"

    @property
    def fields(self) -> set[str]:
        return {"X-Own"}


async def headers_of_a_call(serve: Serve, *layers: aiohttp.ClientMiddlewareType) -> dict[str, str]:
    seen: dict[str, str] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.update(request.headers)
        return web.Response()

    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        await session.get("/")
    return seen


def layers(
    *kinds: type[AttemptSpan] | type[RequestSpan], meters: MeterProvider | None = None
) -> list[AttemptSpan | RequestSpan]:
    meters = meters or NoOpMeterProvider()
    return [kind(tracer_provider=trace.NoOpTracerProvider(), meter_provider=meters) for kind in kinds]


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("kinds", [(AttemptSpan,), (RequestSpan, AttemptSpan)])
async def test_a_foreign_trace_continues_without_an_sdk(
    serve: Serve, metering: Metering, kinds: tuple[type[AttemptSpan] | type[RequestSpan], ...], measured: bool
) -> None:
    meters = metering.provider if measured else None
    assert "traceparent" not in await headers_of_a_call(serve, *layers(*kinds, meters=meters))
    with attached(baggage.set_baggage("who", "me", set_span_in_context(NonRecordingSpan(PARENT)))):
        headers = await headers_of_a_call(serve, *layers(*kinds, meters=meters))
    assert headers["traceparent"] == f"00-{PARENT.trace_id:032x}-{PARENT.span_id:016x}-01"
    assert headers["baggage"] == "who=me"


async def test_baggage_alone_is_propagated_without_an_sdk(serve: Serve) -> None:
    with attached(baggage.set_baggage("who", "me")):
        headers = await headers_of_a_call(serve, *layers(RequestSpan, AttemptSpan))
    assert headers["baggage"] == "who=me"
    assert "traceparent" not in headers


@pytest.mark.parametrize("propagator", [_Own(), CompositePropagator([_Own()])])
async def test_a_custom_propagator_is_always_called(serve: Serve, propagator: TextMapPropagator) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(propagator)
    try:
        headers = await headers_of_a_call(serve, *layers(RequestSpan, AttemptSpan))
    finally:
        propagate.set_global_textmap(before)
    assert headers["X-Own"] == "always"


async def test_nothing_is_written_to_a_foreign_span(serve: Serve, tracing: Tracing) -> None:
    """What is told of a call is told on its span, which there is none of here."""
    statuses = [429]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=statuses.pop() if statuses else 200)

    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
    chosen = stack(rules, tracer_provider=trace.NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    async with aiohttp.ClientSession(await serve(answer), middlewares=chosen) as session:
        with tracing.provider.get_tracer("user").start_as_current_span("job"):
            await session.get("/")
    [job] = tracing.spans
    assert (job.name, job.events, dict(job.attributes or {})) == ("job", (), {})
