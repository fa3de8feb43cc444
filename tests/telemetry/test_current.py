"""While a call is made its span is the current one, and the span of an attempt during the attempt."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Span, SpanKind
from tests.cli.collector import collector
from tests.sdk import Tracing
from tests.servers import Serve, Statuses

from lamella import At, AttemptSpan, Backoff, HeaderAuth, LamellaError, RequestSpan, Rule, RuleBook, Slot, stack

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))


@pytest.fixture(autouse=True)
def _no_context_is_lost(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def id_of(span: Span | ReadableSpan | None) -> int:
    assert span is not None
    found = span.get_span_context() if isinstance(span, Span) else span.context
    return found.span_id


def seen_by(seen: list[Span]) -> aiohttp.ClientMiddlewareType:
    async def look(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(trace.get_current_span())
        response = await handler(request)
        assert trace.get_current_span() is seen[-1]
        return response

    return look


async def test_other_middlewares_see_the_span_around_them(serve: Serve, tracing: Tracing) -> None:
    of_call: list[Span] = []
    of_attempt: list[Span] = []
    layers = stack(
        RULES,
        At(Slot.BREAKER, seen_by(of_call)),
        At(Slot.ATTEMPT_SPAN, seen_by(of_call)),
        At(Slot.TIMEOUT, seen_by(of_attempt)),
        At(Slot.INNERMOST, seen_by(of_attempt)),
        tracer_provider=tracing.provider,
    )
    async with aiohttp.ClientSession(await serve(Statuses(429)), middlewares=layers) as session:
        await session.get("/")
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert {id_of(span) for span in of_call} == {id_of(tracing.call)}
    attempts = [id_of(span) for span in tracing.sends for _ in range(2)]
    assert [id_of(span) for span in of_attempt] == attempts


@pytest.mark.parametrize("apart", [True, False])
async def test_spans_of_other_code_are_in_the_trace_of_the_call(serve: Serve, tracing: Tracing, apart: bool) -> None:
    """A span around the attempts, one in a token function, and a call that the token function makes."""
    tracer = tracing.provider.get_tracer("the user's")
    url = await serve(Statuses())

    async def around(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        with tracer.start_as_current_span("around"):
            return await handler(request)

    async def token() -> str:
        layers = stack(RULES, tracer_provider=tracing.provider)
        async with aiohttp.ClientSession(url, middlewares=layers) as tokens:
            with tracer.start_as_current_span("token"):
                await tokens.get("/token")
        return "a-token"

    of_call, of_attempt = [kind(tracer_provider=tracing.provider) for kind in (RequestSpan, AttemptSpan)]
    auth = HeaderAuth({"Authorization": token})
    layers: Sequence[aiohttp.ClientMiddlewareType] = (of_call, around, of_attempt, auth)
    if not apart:
        layers = stack(RULES, of_call, At(Slot.RETRY, around), of_attempt, auth, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/")
    _, inner_call, fetched, attempt, between, call = tracing.spans
    assert [between.name, fetched.name] == ["around", "token"]
    assert [span.parent and span.parent.span_id for span in tracing.spans] == [
        id_of(span) for span in (inner_call, fetched, attempt, between, call)
    ] + [None]


@pytest.mark.parametrize("ends", ["well", "badly", "cancelled", "redirected", "refused"])
async def test_the_current_span_is_restored_after_a_call(serve: Serve, tracing: Tracing, ends: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if ends == "cancelled":
            await asyncio.sleep(3600)
        if ends == "redirected" and request.path == "/":
            raise web.HTTPFound("/there")
        return web.Response(status=404 if ends == "badly" else 200)

    async def refuse(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise OSError

    layers: list[At] = [At(Slot.THROTTLE, refuse)] if ends == "refused" else []
    chosen = stack(RULES, *layers, tracer_provider=tracing.provider)
    job = trace.NonRecordingSpan(trace.SpanContext(1, 2, False, trace.TraceFlags(1)))
    async with aiohttp.ClientSession(await serve(answer), middlewares=chosen) as session:
        with trace.use_span(job):
            before = context.get_current()
            with suppress(LamellaError, TimeoutError, OSError):
                async with asyncio.timeout(0.05 if ends == "cancelled" else 5):
                    await session.get("/")
            assert context.get_current() is before
    assert {span.context.trace_id for span in tracing.spans} == {1}
    outermost = [span for span in tracing.spans if span.kind is SpanKind.INTERNAL]
    assert [span.parent and span.parent.span_id for span in outermost] == [2] * (1 + (ends == "redirected"))


def _in_its_own_context(close: Callable[[], object]) -> None:
    close()


def _in_another_context(close: Callable[[], object]) -> None:
    contextvars.Context().run(close)


@pytest.mark.parametrize("dropped", [_in_its_own_context, _in_another_context])
async def test_a_call_discarded_by_the_event_loop_restores_the_span(
    tracing: Tracing, dropped: Callable[[Callable[[], object]], None]
) -> None:
    async def never(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await asyncio.get_running_loop().create_future()
        return await handler(request)

    layers = stack(RULES, At(Slot.INNERMOST, never), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:

        async def call() -> None:
            coroutine = session._request("GET", "http://127.0.0.1/")
            coroutine.send(None)
            dropped(coroutine.close)
            assert (trace.get_current_span() is trace.INVALID_SPAN) == (dropped is _in_its_own_context)

        await asyncio.create_task(call())
    assert len(tracing.spans) == 2


async def test_only_a_task_that_outlives_the_call_keeps_its_span(serve: Serve, tracing: Tracing) -> None:
    ended = asyncio.Event()
    tasks: list[asyncio.Task[int]] = []

    async def later() -> int:
        await ended.wait()
        return id_of(trace.get_current_span())

    async def begin(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        tasks.append(asyncio.create_task(later()))
        return await handler(request)

    layers = stack(RULES, At(Slot.RETRY, begin), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
        await session.get("/")
        await session.get("/")
    ended.set()
    calls = [span for span in tracing.spans if span.kind is SpanKind.INTERNAL]
    assert [await task for task in tasks] == [id_of(span) for span in calls]
    assert [span.parent for span in calls] == [None, None]


async def test_baggage_set_by_a_middleware_between_layers_is_sent(serve: Serve, tracing: Tracing) -> None:
    async def between(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        try:
            return await handler(request)
        finally:
            context.detach(token)

    server = Statuses()
    layers = stack(RULES, At(Slot.RETRY, between), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        await session.get("/")
    assert server.requests[0].headers["baggage"] == "tenant=acme"
    assert f"{id_of(tracing.sends[0]):016x}" in server.requests[0].headers["traceparent"]


@contextmanager
def logs_to(provider: LoggerProvider) -> Iterator[None]:
    with warnings.catch_warnings():
        # It moves to a package of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        handler = LoggingHandler(logger_provider=provider)
    logger = logging.getLogger("lamella")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


async def test_exemplars_and_log_records_refer_to_the_span(serve: Serve) -> None:
    with collector() as kept:
        spans = TracerProvider(shutdown_on_exit=False)
        spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{kept.url}/v1/traces")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{kept.url}/v1/metrics"))
        meters = MeterProvider([reader], shutdown_on_exit=False)
        logs = LoggerProvider(shutdown_on_exit=False)
        logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{kept.url}/v1/logs")))
        layers = stack(RULES, tracer_provider=spans, meter_provider=meters)
        async with aiohttp.ClientSession(await serve(Statuses(429, 404)), middlewares=layers) as session:
            with logs_to(logs), pytest.raises(LamellaError):
                await session.get("/")
        for provider in (spans, logs, meters):
            provider.shutdown()
        first, second, call = kept.spans

        def exemplars(name: str) -> list[Exemplar]:
            data = kept.metrics[name]
            points = getattr(data, str(data.WhichOneof("data"))).data_points
            return [exemplar for point in points for exemplar in point.exemplars]

        for name in ("lamella.call.duration", "lamella.call.stops", "lamella.call.retries"):
            assert [(found.trace_id, found.span_id) for found in exemplars(name)] == [(call.trace_id, call.span_id)]
        found = {(each.trace_id, each.span_id) for each in exemplars("http.client.request.duration")}
        assert found == {(attempt.trace_id, attempt.span_id) for attempt in (first, second)}
        [line] = kept.logs
        assert "Not Found" in line.body.string_value
        assert (line.trace_id, line.span_id) == (call.trace_id, call.span_id)
