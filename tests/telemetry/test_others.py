"""Telemetry of others in the same process goes on as it was."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import aiohttp
import pytest
import stamina
from multidict import CIMultiDict
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.textmap import CarrierT, Getter, Setter, TextMapPropagator, default_setter
from opentelemetry.sdk.trace import TracerProvider
from tests.sdk import Metering, Tracing, given
from tests.servers import Serve, Statuses

from lamella import Backoff, LamellaError, Rule, RuleBook, maesn, stack
from lamella.maesn.sandbox import Sandbox
from lamella.telemetry.propagation import inject
from lamella.testing import VirtualClock

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))


async def test_the_callers_span_is_the_parent_and_stays_current(serve: Serve, tracing: Tracing) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider)
    tracer = tracing.provider.get_tracer("the user's")
    async with aiohttp.ClientSession(await serve(Statuses(429)), middlewares=layers) as session:
        with tracer.start_as_current_span("job") as job:
            async with session.get("/"):
                assert trace.get_current_span() is job
            with tracer.start_as_current_span("next"):
                pass
    call = next(span for span in tracing.spans if span.name == "lamella GET")
    after = next(span for span in tracing.spans if span.name == "next")
    assert [span.parent and span.parent.span_id for span in (call, after)] == [job.get_span_context().span_id] * 2
    assert {span.context.trace_id for span in tracing.spans} == {job.get_span_context().trace_id}


async def test_baggage_passes_with_each_attempt(serve: Serve, tracing: Tracing) -> None:
    server = Statuses(429)
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            await session.get("/")
        finally:
            context.detach(token)
    assert [request.headers.getall("baggage") for request in server.requests] == [["tenant=acme"]] * 2


async def test_a_traceparent_of_the_caller_is_replaced(serve: Serve, tracing: Tracing) -> None:
    server = Statuses(429)
    old = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        await session.get("/", headers={"TraceParent": old})
    for request, span in zip(server.requests, tracing.sends, strict=True):
        [header] = request.headers.getall("traceparent")
        assert trace.format_span_id(span.context.span_id) in header


@pytest.mark.parametrize(
    "of",
    [
        trace.INVALID_SPAN_CONTEXT,
        trace.SpanContext(1, 2, False),
        trace.SpanContext(2**128 - 1, 2**64 - 1, False, trace.TraceFlags(3)),
        trace.SpanContext(7, 9, False, trace.TraceFlags(1), trace.TraceState([("acme", "a=b"), ("other", "1")])),
    ],
)
def test_with_only_a_span_the_header_equals_the_propagators(of: trace.SpanContext) -> None:
    ours, theirs = CIMultiDict[str](), CIMultiDict[str]()
    with trace.use_span(trace.NonRecordingSpan(of)):
        inject(ours, propagate.get_global_textmap())
        propagate.inject(theirs)
    assert ours == theirs
    assert bool(ours) is of.is_valid


class Letters(TextMapPropagator):
    """A propagator with a header of its own."""

    def inject(
        self, carrier: CarrierT, context: context.Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "x-letters", trace.format_span_id(span.span_id))

    def extract(
        self, carrier: CarrierT, context: context.Context | None = None, getter: Getter[CarrierT] | None = None
    ) -> context.Context:
        raise NotImplementedError

    @property
    def fields(self) -> set[str]:
        return {"x-letters"}


async def test_any_global_propagator_is_used(serve: Serve, tracing: Tracing) -> None:
    server = Statuses(429)
    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(Letters())
    layers = stack(RULES, tracer_provider=tracing.provider)
    try:
        async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
            await session.get("/")
    finally:
        propagate.set_global_textmap(usual)
    ids = [trace.format_span_id(span.context.span_id) for span in tracing.sends]
    assert [request.headers["x-letters"] for request in server.requests] == ids
    assert "traceparent" not in server.requests[0].headers


async def test_providers_are_given_explicitly_or_global(
    serve: Serve, tracing: Tracing, metering: Metering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The global one may even be set after the layers were made."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    url = await serve(Statuses())
    layers = stack(RULES)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracing.provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/")
    assert len(tracing.spans) == 2
    layers = stack(RULES, tracer_provider=TracerProvider(shutdown_on_exit=False), meter_provider=metering.provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/")
    assert len(tracing.spans) == 2
    assert metering.count("lamella.call.duration") == 1


async def test_trace_configs_of_the_session_see_one_request(serve: Serve, tracing: Tracing) -> None:
    seen: list[str] = []
    # Named as OpenTelemetry's own instrumentation of aiohttp has them.
    state = SimpleNamespace(token="mine", span="mine")
    config = aiohttp.TraceConfig(lambda trace_request_ctx: state)  # type: ignore[arg-type]

    async def note(session: aiohttp.ClientSession, ctx: object, params: aiohttp.TraceRequestStartParams) -> None:
        seen.append(params.method)

    config.on_request_start.append(note)
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses(429)), middlewares=layers, trace_configs=[config]) as session:
        await session.get("/")
        assert session.trace_configs == [config]
    assert (seen, len(tracing.sends)) == (["GET"], 2)
    assert (state.token, state.span) == ("mine", "mine")


async def test_other_stamina_retries_are_logged_as_before(
    sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sandbox.script(429)
    keys = sandbox.api_key, sandbox.account_key, sandbox.url
    async with maesn.session(*keys, tracer_provider=tracing.provider) as session:
        await session.get("/accounting/invoices")
    assert not [record for record in caplog.records if record.name == "stamina"]

    @stamina.retry(on=ValueError, attempts=2, wait_initial=0, wait_jitter=0)
    async def others() -> None:
        raise ValueError("of the user's")

    with pytest.raises(ValueError, match="of the user's"):
        await others()
    assert [record.levelno for record in caplog.records if record.name == "stamina"] == [logging.WARNING]


class OwnError(Exception):
    """With a status, if any, of whatever kind."""

    def __init__(self, status: object) -> None:
        super().__init__("with a s3cr3t in it")
        self.status = status


@pytest.mark.parametrize(("status", "shown"), [(None, "OwnError"), (0, "OwnError"), ("odd", "OwnError"), (503, "503")])
async def test_the_error_type_of_a_custom_layer_is_its_status_or_class(
    serve: Serve, tracing: Tracing, status: object, shown: str
) -> None:
    async def own(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise OwnError(status)

    layers = (*stack(RULES, tracer_provider=tracing.provider), own)
    async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
        with pytest.raises(OwnError) as caught:
            await session.get("/")
    assert not isinstance(caught.value, LamellaError)
    assert len(tracing.spans) == 2
    for span in tracing.spans:
        assert given(span)["error.type"] == shown
        assert span.status.description is None
        assert "s3cr3t" not in span.to_json()
        assert not [event for event in span.events if event.name == "exception"]
