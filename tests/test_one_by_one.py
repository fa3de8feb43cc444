"""The same calls through the layers one by one and in one pipeline: what can be observed is the same."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import asdict
from typing import NamedTuple

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.layering import together
from tests.servers import serving

from lamella import (
    AttemptSpan,
    Backoff,
    Breaker,
    Buffer,
    Classify,
    Failure,
    HeaderAuth,
    LamellaError,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    Throttle,
    Timeout,
)
from lamella.call import Call
from lamella.pipeline import Layer
from lamella.testing.virtual_time import run_virtual

RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(initial=60, jitter=0)),
    Rule(Failure.CONNECTION_LOST, "Lost", retry=Backoff(initial=1, jitter=0)),
    Rule(Failure.ATTEMPT_TIMEOUT, "Too slow", retry=Backoff(initial=1, jitter=0)),
)
# Each of them twice at least, since the first one may leave something behind; the circuit opens near the end.
CALLS = (
    "good slow good busy refused good cut none streamed endless missing moved broken never cancelled unkeyed good "
    "streamed good busy moved refused streamed slow broken missing good never cut none good cancelled unkeyed good "
    "pause pause broken broken broken broken broken good pause slow good good asked good streamed missing good"
)
TRACE = 0x1234
# What the caller has begun, in turn: nothing, nothing, a trace, something else.
AROUND = (
    Context(),
    Context(),
    trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(TRACE, 1, is_remote=False))),
    baggage.set_baggage("who", "caller", Context()),
)
KINDS = ("RequestSpan", "Breaker", "Retry", "Throttle", "AttemptSpan", "Timeout", "HeaderAuth", "Buffer", "Classify")


class _Server:
    """It answers as the path asks for, and notes what has come."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self._times: Counter[str] = Counter()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        self._times[path] += 1
        names = ("X-A", "traceparent", "baggage")
        said = [request.headers.get(name) for name in names]
        self.sent.append(f"{asyncio.get_running_loop().time():.3f} {path} {said}")
        again = self._times[path] % 2 == 0
        match path:
            case "/slow":
                await asyncio.sleep(2)
            case "/refused" if not again:
                return web.Response(status=429, headers={"Retry-After": "30"})
            case "/missing":
                return web.json_response({"why": "nothing there"}, status=404)
            case "/broken":
                return web.Response(status=500)
            case "/moved":
                raise web.HTTPFound("/good")
            case "/none" if not again:
                assert request.transport is not None
                request.transport.close()
            case "/never" | "/cancelled":
                await asyncio.sleep(1_000_000)
            case "/cut" | "/streamed" | "/endless":
                response = web.StreamResponse(headers={"Content-Length": "8"} if path == "/cut" else {})
                response.content_type = "text/event-stream" if path == "/endless" else "text/plain"
                await response.prepare(request)
                await response.write(b"half")
                await asyncio.sleep(1)
                if path == "/cut" and not again:
                    assert request.transport is not None
                    request.transport.close()
                else:
                    await response.write(b"more")
                return response
        return web.Response(text="good")


class _Key:
    """What a function for a header's value may come up with."""

    def __init__(self) -> None:
        self.next = "value"

    def __call__(self) -> str | Awaitable[str]:
        match self.next:
            case "unkeyed":
                raise LookupError("no key")
            case "asked":
                return self._later()
        return "value"

    async def _later(self) -> str:
        await asyncio.sleep(1)
        return "value that was waited for"


class _Observed(NamedTuple):
    """All there is to be seen of CALLS."""

    calls: list[str]
    sent: list[str]
    spans: list[str]
    points: list[str]


async def _observed(
    kinds: Iterable[str], *, wrapped: bool, total: float | None = None, traced: bool = True, metered: bool = True
) -> _Observed:
    server, key, exporter, reader = _Server(), _Key(), InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = tracing if traced else trace.NoOpTracerProvider()
    meter = metering if metered else metrics.NoOpMeterProvider()
    throttle = Throttle(RULES, tracer_provider=tracer, meter_provider=meter)
    breaker = Breaker(minimum=4, window=50, failures=0.7, probes=2, meter_provider=meter)
    everything: tuple[Layer, ...] = (
        RequestSpan(tracer_provider=tracer, meter_provider=meter),
        breaker,
        Retry(RULES, attempts=3, random=lambda: 0.5),
        throttle,
        AttemptSpan(tracer_provider=tracer, meter_provider=meter),
        Timeout(5),
        HeaderAuth({"X-A": key}),  # type: ignore[dict-item]
        Buffer(),
        Classify(RULES),
    )
    layers = [layer for layer in everything if type(layer).__name__ in kinds]
    seen: list[str] = []

    async def look(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        finally:
            call = Call.of(request)
            # What is left of the call: nothing that holds on to its request, and no credential.
            assert (call.stop, vars(call).get("request")) == (None, None)
            left = call.circuit, call.queued, call.records, call.deadline, call.secrets
            seen.append(f"{request.headers.get('X-A')} {left}")

    async def get(session: aiohttp.ClientSession, what: str) -> None:
        try:
            async with session.get(f"/{what}") as response:
                text = await response.text()
                seen.append(f"{what}: {response.status} {text} {response.request_info.headers.get('X-A')}")
        except asyncio.CancelledError:
            seen.append(f"{what}: cancelled")
        except (aiohttp.ClientError, LookupError, TimeoutError) as exc:
            records = exc.attempts if isinstance(exc, LamellaError) else ()
            seen.append(f"{what}: {exc!r} from {exc.__cause__!r} after {records}")
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling() or what == "cancelled"

    async with serving(server) as url:
        async with aiohttp.ClientSession(
            url,
            middlewares=(look, together(layers)) if wrapped else (look, *layers),
            timeout=aiohttp.ClientTimeout(total=total),
        ) as session:
            for what, around in zip(CALLS.split(), itertools.cycle(AROUND), strict=False):
                key.next = what
                token = context.attach(around)
                match what:
                    case "pause":
                        await asyncio.sleep(31)
                    case "busy":
                        calls = [
                            asyncio.create_task(get(session, each)) for each in ("refused", "slow", "slow", "good")
                        ]
                        await asyncio.sleep(1)
                        await asyncio.gather(*calls, get(session, "good"))
                    case "cancelled":
                        task = asyncio.create_task(get(session, what))
                        await asyncio.sleep(1)
                        task.cancel()
                        await task
                    case _:
                        await get(session, what)
                context.detach(token)
                seen.append(f"at {asyncio.get_running_loop().time():.3f}")
                seen.extend(_left(throttle, breaker))
    spans = [
        (
            span.name,
            span.kind,
            span.status.status_code,
            span.status.description,
            dict(span.attributes or {}),
            span.parent is not None,
            [(event.name, dict(event.attributes or {})) for event in span.events],
        )
        for span in exporter.get_finished_spans()
    ]
    points = [*_points(reader)]
    tracing.shutdown()
    metering.shutdown()
    # What is drawn by lot, or goes by the calendar.
    port = url.rpartition(":")[2]
    lots = re.compile(rf"\b({port}|[0-9a-f]{{16}}|(?!{TRACE:032x})[0-9a-f]{{32}}|20\d\d-\S+ \S+Z)\b")
    return _Observed(
        *([lots.sub("…", each) for each in part] for part in (seen, server.sent, map(repr, spans), points))
    )


def _left(throttle: Throttle, breaker: Breaker) -> Iterator[str]:
    """What the layers know after a call, and what nobody must have left behind."""
    for account in vars(throttle)["_accounts"].values():
        assert account.queue.in_flight == account.queue.waiting == 0
        yield f"episode: {account.episode!r}"
    for layer in (vars(throttle)["_state"], vars(breaker)["_shared"]):
        yield from (repr(asdict(state)) for state in layer.memory._states.values())


def _points(reader: InMemoryMetricReader) -> Iterator[str]:
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    numbers = [getattr(point, name, None) for name in ("value", "count", "sum", "min", "max")]
                    yield f"{metric.name} {dict(point.attributes or {})} {numbers}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "without",
    [
        *("nothing", "Retry", "Retry Throttle Classify"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (*KINDS, "Retry Classify") if kind != "Retry"),
    ],
)
def test_a_stack_behaves_like_separate_layers_without_a_deadline(without: str) -> None:
    """Without a total timeout of the session `Retry` has no deadline, and calls that end well go the short way."""
    kinds = [kind for kind in KINDS if kind not in without.split()]
    one_by_one, at_once = (run_virtual(_observed(kinds, wrapped=wrapped)) for wrapped in (False, True))
    assert at_once == one_by_one


def test_the_compared_calls_open_and_close_the_circuit() -> None:
    """Else little of what the layers do would have been compared."""
    seen = run_virtual(_observed(KINDS, wrapped=True))
    states = [state for state in ("open", "half_open", "closed") if any(f"'{state}'" in each for each in seen.points)]
    assert states == ["open", "half_open", "closed"]


@pytest.mark.slow
def test_a_stack_behaves_like_separate_layers_with_a_deadline() -> None:
    one_by_one, at_once = (run_virtual(_observed(KINDS, wrapped=wrapped, total=1000.0)) for wrapped in (False, True))
    assert at_once == one_by_one


@pytest.mark.slow
@pytest.mark.parametrize("without", ["nothing", "RequestSpan", "AttemptSpan"])
def test_a_stack_behaves_like_separate_layers_without_an_sdk(without: str) -> None:
    kinds = [kind for kind in KINDS if kind != without]
    one_by_one, at_once = (
        run_virtual(_observed(kinds, wrapped=wrapped, traced=False, metered=False)) for wrapped in (False, True)
    )
    assert at_once == one_by_one


@pytest.mark.slow
def test_calls_spans_and_metrics_are_equal_with_other_listeners() -> None:
    everybody, spans_alone, metrics_alone, nobody = (
        run_virtual(_observed(KINDS, wrapped=True, traced=traced, metered=metered))
        for traced, metered in ((True, True), (True, False), (False, True), (False, False))
    )
    assert spans_alone == everybody._replace(points=[])
    assert metrics_alone == everybody._replace(sent=nobody.sent, spans=[])
    assert nobody.calls == everybody.calls
    # Only whose trace it is differs.
    assert [_untraced(each) for each in nobody.sent] == [_untraced(each) for each in everybody.sent]


def _untraced(sent: str) -> str:
    return re.sub("'00-[^']*'", "None", sent)
