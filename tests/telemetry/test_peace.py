"""With OpenTelemetry's own instrumentation of aiohttp in the same process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import aiohttp
import pytest
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import SpanKind
from tests.layering import together
from tests.sdk import Tracing

from lamella import AttemptSpan, Classify, ClientStatusError, RequestSpan, RuleBook, maesn
from lamella.maesn.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _instrumented(tracing: Tracing, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    meters = MeterProvider()
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=tracing.provider, meter_provider=meters)
    yield
    instrumentor.uninstrument()
    meters.shutdown()
    # As of a context that was detached twice.
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.mark.parametrize("kind", ["a session of lamella's", "layers in a session", "one layer in a session"])
async def test_each_attempt_has_one_client_span_and_one_traceparent(
    sandbox: Sandbox, tracing: Tracing, no_waits: None, kind: str
) -> None:
    keys = sandbox.api_key, sandbox.account_key, sandbox.url
    if kind == "a session of lamella's":
        session = maesn.session(*keys, tracer_provider=tracing.provider)
    elif kind == "layers in a session":
        layers = maesn.layers(*keys, tracer_provider=tracing.provider)
        session = aiohttp.ClientSession(sandbox.url, middlewares=layers)
    else:
        layers = (AttemptSpan(tracer_provider=tracing.provider),)
        session = aiohttp.ClientSession(sandbox.url, middlewares=layers)
    sandbox.script(429, 500)
    async with session:
        for _ in range(2):
            tracing.exporter.clear()
            before = len(sandbox.received)
            with tracing.provider.get_tracer("user").start_as_current_span("job") as job:
                token = context.attach(baggage.set_baggage("tenant", "acme"))
                async with session.get("/accounting/invoices") as response:
                    await response.read()
                context.detach(token)
                assert trace.get_current_span() is job
            received = sandbox.received[before:]
            assert [span.kind for span in tracing.spans].count(SpanKind.CLIENT) == len(received)
            assert {span.instrumentation_scope and span.instrumentation_scope.name for span in tracing.spans} == {
                "lamella",
                "user",
            }
            assert [request.headers.getall("traceparent") for request in received] == [
                [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"]
                for span in tracing.sends
            ]
            [outermost] = {span.parent.span_id for span in tracing.spans if span.parent} - {
                span.context.span_id for span in tracing.spans if span.name != "job"
            }
            assert outermost == job.get_span_context().span_id
            assert {request.headers["baggage"] for request in received} == {"tenant=acme"}


@pytest.mark.parametrize("classified", [False, True])
@pytest.mark.parametrize("fused", [False, True])
async def test_the_span_in_traceparent_is_ended_by_its_owner(
    sandbox: Sandbox, tracing: Tracing, classified: bool, fused: bool
) -> None:
    """Without an AttemptSpan that is theirs; with one it is ours alone, also where the call fails."""
    call, rules = RequestSpan(tracer_provider=tracing.provider), Classify(RuleBook())
    for layers, scope in (
        ((call, rules), "opentelemetry.instrumentation.aiohttp_client"),
        ((call, AttemptSpan(tracer_provider=tracing.provider), rules), "lamella"),
    ):
        tracing.exporter.clear()
        chosen = layers if classified else layers[:-1]
        async with aiohttp.ClientSession(sandbox.url, middlewares=(together(chosen),) if fused else chosen) as session:
            with pytest.raises(ClientStatusError) if classified else nullcontext():
                await session.get("/accounting/invoices")
        [send] = tracing.sends
        assert send.instrumentation_scope is not None
        assert send.instrumentation_scope.name == scope
        traceparent = sandbox.received[-1].headers["traceparent"]
        assert traceparent.split("-")[1:3] == [f"{send.context.trace_id:032x}", f"{send.context.span_id:016x}"]


@pytest.mark.parametrize("meters", [MeterProvider(shutdown_on_exit=False), NoOpMeterProvider()], ids=["metrics", ""])
@pytest.mark.parametrize("job", [True, False])
@pytest.mark.parametrize("of_send", [True, False])
@pytest.mark.parametrize("of_call", [True, False])
async def test_traceparent_names_an_existing_span_for_any_disabled_layer(
    sandbox: Sandbox, tracing: Tracing, of_call: bool, of_send: bool, job: bool, meters: metrics.MeterProvider
) -> None:
    layers = [
        kind(tracer_provider=tracing.provider if on else trace.NoOpTracerProvider(), meter_provider=meters)
        for kind, on in ((RequestSpan, of_call), (AttemptSpan, of_send))
    ]
    async with aiohttp.ClientSession(sandbox.url, middlewares=layers) as session:
        with tracing.provider.get_tracer("user").start_as_current_span("job") if job else nullcontext():
            await session.get("/accounting/invoices")
    ids = {f"{span.context.span_id:016x}" for span in tracing.spans}
    assert sandbox.received[-1].headers["traceparent"].split("-")[2] in ids
    assert {f"{span.parent.span_id:016x}" for span in tracing.spans if span.parent} <= ids
    assert len({span.context.trace_id for span in tracing.spans}) == 1
    # Theirs stands in where none is ours.
    scopes = [span.instrumentation_scope.name for span in tracing.spans if span.instrumentation_scope]
    theirs = not of_call and not of_send
    assert len(tracing.spans) == of_call + of_send + theirs + job
    assert scopes.count("opentelemetry.instrumentation.aiohttp_client") == theirs


async def test_suppressed_calls_are_not_traced(sandbox: Sandbox, tracing: Tracing) -> None:
    layers = (RequestSpan(tracer_provider=tracing.provider), AttemptSpan(tracer_provider=tracing.provider))
    async with aiohttp.ClientSession(sandbox.url, middlewares=layers) as session:
        with suppress_http_instrumentation():
            await session.get("/accounting/invoices")
    # Older versions of OpenTelemetry's instrumentation do not care.
    assert "lamella" not in {span.instrumentation_scope and span.instrumentation_scope.name for span in tracing.spans}


async def test_maesn_session_keeps_the_given_trace_configs(sandbox: Sandbox) -> None:
    mine = aiohttp.TraceConfig()
    async with maesn.session("key", "account", sandbox.url, trace_configs=[mine]) as session:
        assert session.trace_configs == [mine]


async def test_sessions_without_lamella_keep_the_other_instrumentation(sandbox: Sandbox, tracing: Tracing) -> None:
    async with aiohttp.ClientSession(sandbox.url) as session:
        async with session.get("/accounting/invoices") as response:
            assert response.status == 403
    [span] = tracing.spans
    assert span.instrumentation_scope is not None
    assert "aiohttp_client" in span.instrumentation_scope.name
