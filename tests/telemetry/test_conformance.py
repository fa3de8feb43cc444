"""What we emit is what the conventions and docs/reference/telemetry.md say, by name, kind, unit and type."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.metrics.export import HistogramDataPoint
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind
from tests.dataset.workers import NOTHING
from tests.layering import in_order
from tests.sdk import Metering, Tracing, given
from tests.servers import Serve
from tests.telemetry.conformance import (
    PAGE,
    SCOPE,
    Checker,
    Recorder,
    Told,
    published,
    published_metrics,
    tables,
    type_of,
)

from lamella import (
    AttemptSpan,
    Backoff,
    Breaker,
    HeaderAuth,
    LamellaError,
    Limit,
    RequestSpan,
    Rule,
    RuleBook,
    StopReason,
    Throttle,
    Token,
    Tokens,
    WaitSource,
    maesn,
    stack,
)
from lamella.dataset import Dataset, Here, sync_shards
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.testing import VirtualClock, virtual_clock

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)), Rule(503, retry=Backoff(initial=1)))


async def emit_everything(serve: Serve, tracing: Tracing, metering: Metering) -> list[object]:
    """Make calls that end well, badly, and not at all. Return the layers: their gauges go with them."""
    with TemporaryDirectory() as folder:
        made = Dataset.create(folder, batch="b", shards=1)
        here = Here(scratch=Path(folder, "scratch"), tracer_provider=tracing.provider)
        await sync_shards(here, made, ["north"], NOTHING, tracer_provider=tracing.provider)
    with virtual_clock():
        return await emit_all(serve, tracing, metering)


async def emit_all(serve: Serve, tracing: Tracing, metering: Metering) -> list[object]:
    arrived = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/moved":
            raise web.HTTPFound("/200")
        if request.path == "/never":
            arrived.set()
            await asyncio.sleep(3600)
        if request.path == "/busy":
            return web.Response(status=429, headers={"Retry-After": "3600"})
        return web.Response(status=int(request.path.strip("/")), headers={"X-Request-Id": "r-7"})

    spans = AttemptSpan(
        tracer_provider=tracing.provider,
        meter_provider=metering.provider,
        url_template=lambda _: "/{status}",
        request_headers=["Accept"],
        response_headers=["Content-Type"],
        body_sizes=True,
    )
    layers = stack(
        RULES,
        spans,
        attempts=2,
        deadline=60,
        account=lambda request: request.url.path,  # one that is rate-limited for an hour would keep the others waiting
        tracer_provider=tracing.provider,
        meter_provider=metering.provider,
        url_template=lambda _: "/{status}",
    )
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        for method, path in (
            ("GET", "/moved"),
            ("GET", "/429"),
            ("GET", "/busy"),
            ("PROPFIND", "/200"),
            ("GET", "/404"),
            ("GET", "/503"),
        ):
            with suppress(LamellaError):
                await session.request(method, path)
        cancelled = asyncio.create_task(session._request("GET", "/never"))
        await arrived.wait()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    throttled = await emit_an_episode(serve, tracing, metering)
    await emit_a_part(serve, tracing)
    await emit_a_circuit(serve, tracing, metering)
    await emit_a_token(serve, tracing, metering)
    await emit_a_task(tracing)
    return [layers, throttled]


async def emit_a_circuit(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    """One that opens, stays open for a failed probe, and closes."""
    answers = iter([500, 500])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(answers, 200))

    breaker = Breaker(minimum=1, open_for=0.01, probes=1, meter_provider=metering.provider)
    layers = in_order(breaker, RequestSpan(tracer_provider=tracing.provider, meter_provider=metering.provider))
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        for _ in range(3):
            await session.get("/")
            await asyncio.sleep(0.015)


async def emit_a_token(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    async def fetch() -> Token:
        return Token("Bearer t", 60)

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    auth = HeaderAuth({"Authorization": Tokens(fetch, meter_provider=metering.provider)})
    async with aiohttp.ClientSession(
        await serve(answer), middlewares=stack(auth=auth, tracer_provider=tracing.provider)
    ) as session:
        await session.get("/")


async def emit_a_task(tracing: Tracing) -> None:
    """A task, and an account that has too many errors."""
    done = {"data": {"status": "FINISHED", "information": [], "responseData": {}}}
    async with Sandbox(unsupported={"offers"}) as sandbox:
        sandbox.script(Reply(body=done), path="/accounting/asyncTask/*")
        async with maesn.session(
            *(sandbox.api_key, sandbox.account_key, sandbox.url),
            guard=maesn.ErrorGuard(most=1),
            tracer_provider=tracing.provider,
        ) as session:
            await maesn.task(session, "POST", "accounting/contacts/async", json={})
            for _ in range(2):
                with suppress(LamellaError):
                    await session.get("/accounting/offers")


class BrokenStore:
    """Of shared state."""

    async def update(self, *_: object) -> NoReturn:
        raise ConnectionError("redis://:password@store")


async def emit_an_episode(serve: Serve, tracing: Tracing, metering: Metering) -> object:
    """An account that is rate-limited for a moment, and a store that fails."""
    answers = iter([*(200,) * 5, *(429,) * 6])  # the last one goes alone

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(answers, 200))

    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0.02)))
    throttle = Throttle(
        rules,
        show_key=True,
        store=BrokenStore(),
        tracer_provider=tracing.provider,
        meter_provider=metering.provider,
    )
    layers = stack(rules, throttle, tracer_provider=tracing.provider, meter_provider=metering.provider)
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        await asyncio.gather(*(session._request("GET", "/") for _ in range(10)))
    limited = stack(rules, limits=Limit(1, per=0.01), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(answer), middlewares=limited) as session:
        await asyncio.gather(*(session._request("GET", "/") for _ in range(2)))
    return layers


async def emit_a_part(serve: Serve, tracing: Tracing) -> None:
    """A path that is refused for half a second while another one passes."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=429 if request.path == "/limited" and loop.time() - began < 0.5 else 200)

    rules = RuleBook(Rule(429, retry=Backoff(initial=0.02)))
    layers = stack(rules, attempts=100, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:

        async def call(at: float, path: str) -> None:
            await asyncio.sleep(at)
            await session.get(path)

        paths = ["/free", "/limited", "/free"] * 30
        await asyncio.gather(*(call(number / 100, path) for number, path in enumerate(paths)))


async def test_exactly_the_documented_telemetry_is_emitted(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    layers = await emit_everything(serve, tracing, metering)
    checker = Checker(Told.by())
    faults = [fault for span in tracing.spans for fault in checker.span(span)]
    faults += [fault for metric in metering.metrics.values() for fault in checker.metric(metric)]
    assert not faults
    assert checker.seen == Told.by().all
    del layers


async def test_spans_and_metrics_have_the_scope_of_lamella(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    layers = await emit_everything(serve, tracing, metering)
    data = metering.reader.get_metrics_data()
    assert data is not None
    scopes = {span.instrumentation_scope for span in tracing.spans}
    scopes |= {scope.scope for resource in data.resource_metrics for scope in resource.scope_metrics}
    assert {(scope.name, scope.version, scope.schema_url) for scope in scopes if scope} == {
        (SCOPE, version("lamella"), "https://opentelemetry.io/schemas/1.30.0")
    }
    del layers


async def test_duration_histograms_have_the_recommended_buckets(
    serve: Serve, tracing: Tracing, metering: Metering
) -> None:
    layers = await emit_everything(serve, tracing, metering)
    advised = {}
    for name, metric in metering.metrics.items():
        point = next(iter(metric.data.data_points))
        if isinstance(point, HistogramDataPoint):
            advised[name] = point.explicit_bounds
    of_a_call = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
    assert advised == {
        # https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpclientrequestduration
        "http.client.request.duration": (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
        "lamella.call.duration": of_a_call,
        "lamella.call.wait": of_a_call,
        "lamella.queue.wait": of_a_call,
        "lamella.rate_limit.duration": of_a_call,
    }
    del layers


def test_the_telemetry_page_follows_the_published_conventions() -> None:
    told = Told.by()
    ours = {name.removesuffix(".<key>") for name in told.attributes if not name.startswith("lamella.")}
    assert ours <= published()
    theirs = {name: kind for name, kind in told.metrics.items() if not name.startswith("lamella.")}
    assert theirs == {name: published_metrics()[name] for name in theirs}
    assert set(theirs) == {"http.client.request.duration"}
    assert told.spans.keys() == {"INTERNAL", "CLIENT"}


def test_names_and_units_follow_the_conventions() -> None:
    """https://opentelemetry.io/docs/specs/semconv/general/naming/"""
    told = Told.by()
    names = {*told.metrics, *told.events, *(name.removesuffix(".<key>") for name in told.attributes)}
    assert not [name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*(?:[._][a-z0-9]+)+", name)]
    assert {unit for _, unit in told.metrics.values()} <= {
        "s",
        "{refresh}",
        "{attempt}",
        "{call}",
        "{retry}",
        "{episode}",
        "{transition}",
    }
    # No metric is a namespace of another, and none has its unit in its name.
    assert not [name for name in told.metrics if any(other.startswith(f"{name}.") for other in told.metrics)]
    assert not [name for name in told.metrics if name.endswith(("_total", ".total", "seconds", "_s"))]


def test_no_metric_attribute_has_high_cardinality() -> None:
    many = {"url.full", "url.template", "network.peer.address", "network.peer.port", "http.request.method_original"}
    for name in Told.by().metrics:
        assert not Told.by().on[name] & many, name
        assert not [attribute for attribute in Told.by().on[name] if ".header." in attribute], name


def test_each_enum_value_is_documented() -> None:
    told = Told.by()
    assert told.stop_reasons == set(StopReason)
    text = {row["attribute"]: row["meaning"] for rows in tables(page()) for row in rows if "attribute" in row}
    assert all(f"`{source}`" in text["`lamella.wait_source`"] for source in WaitSource)
    assert all(f"`{outcome}`" in text["`lamella.outcome`"] for outcome in ("success", "failure", "cancelled"))


def page() -> str:
    return PAGE.read_text("utf-8")


async def test_the_fields_of_the_log_are_documented(
    serve: Serve, tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    usual = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    layers = await emit_everything(serve, tracing, metering)
    lines = [record for record in caplog.records if record.name == "lamella"]
    assert len(lines) == 8  # six calls that failed, a store, and a circuit
    assert {name for line in lines for name in vars(line)} - usual == Told.by().log_fields
    del layers


async def test_each_instrument_has_a_description(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    layers = await emit_everything(serve, tracing, metering)
    assert metering.metrics.keys() == Told.by().metrics.keys()
    assert not [metric.name for metric in metering.metrics.values() if not str(metric.description).endswith(".")]
    del layers


class TestTheRecorder:
    """It would notice."""

    @pytest.mark.parametrize(
        ("attributes", "fault"),
        [
            ({"lamella.unheard_of": "x"}, "lamella.unheard_of"),
            ({"http.unheard_of": "x"}, "neither the conventions'"),
            ({"lamella.attempts": "2"}, "lamella.attempts as string"),
            ({"lamella.attempts": True}, "lamella.attempts as boolean"),
            ({"lamella.wait": 1}, "lamella.wait as int"),
            ({"http.request.resend_count": 1}, "http.request.resend_count on call"),
            ({"url.full": ""}, "empty"),
            ({"http.response.header.etag": "x"}, "header.etag as string"),
            ({"http.request.method": "POST"}, "the name"),
            ({"url.template": "/{id}"}, "the name"),
        ],
    )
    def test_the_recorder_rejects_an_undocumented_attribute(self, attributes: dict[str, str | int], fault: str) -> None:
        checker = Checker(Told.by())
        good: dict[str, str | int] = {"http.request.method": "GET", "lamella.attempts": 1}
        scope = InstrumentationScope(SCOPE)
        span = ReadableSpan("lamella GET", attributes=good, kind=SpanKind.INTERNAL, instrumentation_scope=scope)
        assert not checker.span(span)
        span = ReadableSpan("lamella GET", attributes={**good, **attributes}, kind=SpanKind.INTERNAL)
        assert fault in "; ".join(checker.span(span))

    @pytest.mark.parametrize("name", ["lamella", "lamella get", "lamella GET /orders/17", "GET"])
    def test_the_recorder_rejects_an_undocumented_name(self, name: str) -> None:
        span = ReadableSpan(name, attributes={"http.request.method": "GET"}, kind=SpanKind.INTERNAL)
        assert Checker(Told.by()).span(span)

    def test_the_recorder_rejects_a_wrong_kind_or_scope(self) -> None:
        recorder = Recorder()
        recorder.on_end(ReadableSpan("x", kind=SpanKind.SERVER, instrumentation_scope=InstrumentationScope("other")))
        assert recorder.faults() == []
        recorder.on_end(ReadableSpan("x", kind=SpanKind.SERVER, instrumentation_scope=InstrumentationScope(SCOPE)))
        assert "SERVER" in recorder.faults()[0]
        assert recorder.faults() == []

    def test_the_recorder_rejects_an_undocumented_event(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        span = provider.get_tracer("the user's").start_span("x")
        span.add_event("lamella.again", {"lamella.attempt": 1})
        assert isinstance(span, ReadableSpan)
        faults = Checker(Told.by()).event(span.events[0])
        assert faults == ["the event 'lamella.again'", "lamella.attempt on lamella.again"]

    @pytest.mark.parametrize(
        ("name", "unit", "attributes", "fault"),
        [
            ("lamella.call.duration", "ms", {}, "histogram in ms"),
            ("lamella.call.unheard_of", "s", {}, "lamella.call.unheard_of"),
            ("lamella.call.stops", "{call}", {}, "lamella.call.stops as histogram"),
            ("lamella.call.duration", "s", {"url.full": "http://x"}, "url.full on lamella.call.duration"),
        ],
    )
    def test_the_recorder_rejects_an_undocumented_metric(
        self, metering: Metering, name: str, unit: str, attributes: dict[str, str], fault: str
    ) -> None:
        metering.provider.get_meter("the user's").create_histogram(name, unit).record(1, attributes)
        assert fault in "; ".join(Checker(Told.by()).metric(metering.metrics[name]))

    @pytest.mark.parametrize(
        ("value", "type_"),
        [("a", "string"), (1, "int"), (1.0, "double"), (True, "boolean"), (("a",), "string[]"), ((1,), "int[]")],
    )
    def test_the_recorder_rejects_a_wrong_type(self, value: object, type_: str) -> None:
        assert type_of(value) == type_


class TestThePage:
    def test_the_code_on_the_page_has_documented_names(self) -> None:
        [code] = re.findall(r"```python\n(.*?)```", page(), re.DOTALL)
        compile(code, PAGE.name, "exec")
        for module, names in re.findall(r"^from (\S+) import (.+)$", code, re.MULTILINE):
            for name in names.split(", "):
                assert getattr(import_module(module), name)

    def test_the_collector_policies_use_span_attributes(self) -> None:
        [policies] = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
        keys = set(re.findall(r"key: ([\w.]+)", policies))
        assert keys == {"lamella.attempts", "lamella.outcome", "lamella.queue_wait"}
        assert keys <= Told.by().on["call"]

    async def test_the_example_on_the_page_is_the_real_output(
        self, sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock
    ) -> None:
        sandbox.script(429, 429)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
        ) as session:
            await session.get("/accounting/invoices", params={"limit": 100})
        shared = {"http.request.method", "url.full", "url.template"}
        lines = []
        for span in (tracing.call, *tracing.sends):
            lines.append(f"{span.name}  {span.kind.name}")
            owners: list[ReadableSpan | Event] = [span, *span.events]
            for owner in owners:
                lines += [] if owner is span else [f"event {owner.name}"]
                for name, value in given(owner).items():
                    if name not in shared and not name.startswith(("server.", "network.")):
                        lines.append(f"{name} = {value}" if not isinstance(value, float) else f"{name} =")
        example = page().partition("## An example")[2].partition("```\n")[2].partition("```")[0]
        told = [re.sub(r"^[│├└─ ]*", "", line) for line in example.splitlines()]
        assert sorted(line[: len(ours)] for line, ours in zip(sorted(told), sorted(lines), strict=True)) == sorted(
            lines
        )
