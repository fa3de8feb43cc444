"""A part of the SDK, a log handler or a template function that fails affects no work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import ExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from tests.dataset.workers import NOTHING
from tests.sdk import Metering, Tracing
from tests.servers import Serve, Statuses

from lamella import Backoff, Breaker, HeaderAuth, NotFound, Rule, RuleBook, TooManyRequests, maesn, oauth, stack
from lamella.dataset import Dataset, Here, sync_shards
from lamella.logger import LOGGER
from lamella.maesn.sandbox import Sandbox
from lamella.sync import Report
from lamella.testing import VirtualClock

RULES = RuleBook(Rule(429, retry=Backoff(initial=0)))
METHODS = pytest.mark.parametrize("method", ["on_start", "on_end", "should_sample"])


class Broken(SpanProcessor, Sampler):
    """Fails in one method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.failed = 0

    def fail(self, method: str) -> None:
        if method == self.method:
            self.failed += 1
            raise RuntimeError(method)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.fail("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        self.fail("on_end")

    def should_sample(self, *args: Any, **options: Any) -> SamplingResult:
        self.fail("should_sample")
        return ALWAYS_ON.should_sample(*args, **options)

    def get_description(self) -> str:
        return "broken"


def provider_with(broken: Broken) -> TracerProvider:
    provider = TracerProvider(sampler=broken, shutdown_on_exit=False)
    provider.add_span_processor(broken)
    return provider


@METHODS
async def test_a_part_of_the_sdk_that_fails_affects_no_call(
    serve: Serve, metering: Metering, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    broken = Broken(method)
    server = Statuses(429, 201)
    layers = stack(RULES, tracer_provider=provider_with(broken), meter_provider=metering.provider, retry_writes=True)
    job = trace.NonRecordingSpan(trace.SpanContext(1, 2, False))
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        with trace.use_span(job):
            assert (await session.post("/", data=b"once")).status == 201
            assert trace.get_current_span() is job
    assert len(server.requests) == 2
    lines = [line for line in caplog.records if line.getMessage() == "telemetry failed"]
    assert len(lines) == broken.failed >= 2
    assert metering.value("lamella.attempts.active") == 0
    assert metering.count("http.client.request.duration") == 2
    assert metering.count("lamella.call.duration") == 1


@METHODS
async def test_a_part_of_the_sdk_that_fails_affects_no_task(
    sandbox: Sandbox, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    provider = provider_with(Broken(method))
    async with maesn.session(
        sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=provider, deadline=None
    ) as session:
        done = await maesn.task(session, "POST", "accounting/contacts/async", json={"companyName": "Alder"})
    assert [done.data] == sandbox.created("contacts")
    assert "telemetry failed" in caplog.messages


@METHODS
async def test_a_part_of_the_sdk_that_fails_affects_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    provider = provider_with(Broken(method))
    made = Dataset.create(tmp_path / "out", batch="b", shards=8)
    here = Here(scratch=tmp_path / "scratch", tracer_provider=provider)
    report = await sync_shards(here, made, ["north", "south"], NOTHING, tracer_provider=provider)
    assert (report.shards, report.errors) == (2, ())
    assert caplog.messages == ["telemetry failed"] * 3


@pytest.mark.parametrize("method", ["on_start", "should_sample"])
async def test_calls_stay_in_the_trace_of_a_run_whose_shard_has_no_span(
    tmp_path: Path, tracing: Tracing, method: str
) -> None:
    made = Dataset.create(tmp_path / "out", batch="b", shards=1)
    here = Here(scratch=tmp_path / "scratch", tracer_provider=provider_with(Broken(method)))
    traces.clear()
    await sync_shards(here, made, ["north"], TRACED, tracer_provider=tracing.provider)
    [run] = tracing.spans
    assert run.context is not None
    assert traces == {run.context.trace_id}


traces: set[int] = set()
"""The traces in which :func:`note_trace` was called."""
TRACED = "tests.telemetry.test_broken:note_trace"


async def note_trace(*_: object, **_options: object) -> Report:
    traces.add(trace.get_current_span().get_span_context().trace_id)
    return Report(1, False, (), 0.0)


class BrokenFilter(ExemplarFilter):
    """Fails at each value of a metric."""

    works = False

    def should_sample(self, *_: object) -> bool:
        if not self.works:
            raise RuntimeError
        return False


@pytest.mark.usefixtures("virtual_time")
async def test_metrics_that_fail_affect_no_call(serve: Serve, tracing: Tracing) -> None:
    """Not even where it is retried and queued, a token is fetched, and a circuit opens and closes."""
    broken, refused = BrokenFilter(), asyncio.Event()
    metrics = MeterProvider([InMemoryMetricReader()], exemplar_filter=broken, shutdown_on_exit=False)
    server = Statuses(429, 200, 200, 500, 200, 404)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"access_token": "a-token", "expires_in": 60})
        return await server(request)

    url = await serve(answer)
    providers: Any = {"tracer_provider": tracing.provider, "meter_provider": metrics}
    tokens = oauth.client_credentials(f"{url}/token", oauth.Client("c", "a-secret"), **providers)
    layers = stack(
        RuleBook(Rule([429, 500], retry=Backoff(initial=(20, 30)))),
        Breaker(minimum=1, failures=0.01, open_for=10, probes=1),
        auth=HeaderAuth({"Authorization": tokens}, origin=url),
        on_attempt=lambda _, result, __: refused.set() if isinstance(result, TooManyRequests) else None,
        **providers,
    )
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        first = asyncio.create_task(session._request("GET", "/"))
        await refused.wait()
        assert (await session.get("/")).status == 200  # it was queued
        assert (await first).status == 200
        assert (await session.get("/")).status == 200  # the circuit was open
        with pytest.raises(NotFound):
            await session.get("/")
    broken.works = True  # the metrics are read after the test
    events = {event.name for span in tracing.spans for event in span.events}
    assert events >= {"lamella.retry", "lamella.token", "lamella.queued", "lamella.circuit.open", "lamella.stop"}
    assert "lamella rate limit" in {span.name for span in tracing.spans}


class Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError(record.getMessage())


class Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.getMessage())


@pytest.fixture(params=["filter", "handler"])
def bad_log(request: pytest.FixtureRequest) -> Iterator[None]:
    logger, made_filter, handler = logging.getLogger("lamella"), Filter(), Handler()
    if request.param == "filter":
        logger.addFilter(made_filter)
    else:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeFilter(made_filter)
        logger.removeHandler(handler)


@pytest.mark.usefixtures("bad_log")
async def test_a_log_handler_that_fails_affects_no_call(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    broken = TracerProvider(sampler=Broken("should_sample"), shutdown_on_exit=False)
    url = await serve(Statuses(404))
    layers = stack(RULES, tracer_provider=broken, url_template=lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        with pytest.raises(NotFound):
            await session.get("/")
        assert (await session.get("/")).status == 200
    printed = capsys.readouterr().err
    assert "RuntimeError: telemetry failed" in printed
    assert "RuntimeError: GET" in printed


def test_a_log_record_names_the_place_that_logged_it(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.warning("%s", "here", extra={"lamella.method": "GET"})
    [record] = caplog.records
    assert (record.funcName, record.filename) == ("test_a_log_record_names_the_place_that_logged_it", "test_broken.py")
    assert (record.getMessage(), getattr(record, "lamella.method")) == ("here", "GET")


@pytest.mark.parametrize("template", [7, ["/orders"], {"path": "/orders"}, b"/orders"])
async def test_a_template_that_is_no_text_is_logged(
    serve: Serve, tracing: Tracing, caplog: pytest.LogCaptureFixture, template: Any
) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider, url_template=lambda _: template)
    async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
        await session.get("/")
    assert [(span.name, span.kind) for span in tracing.spans] == [
        ("GET", SpanKind.CLIENT),
        ("lamella GET", SpanKind.INTERNAL),
    ]
    said = f"TypeError: url_template must return a str or None, got {type(template).__name__}"
    assert f"url_template failed: {said}" in caplog.messages


async def test_the_log_of_a_template_that_fails_shows_no_credential(
    serve: Serve, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(request: aiohttp.ClientRequest) -> str:
        raise LookupError(str(request.url))

    layers = stack(RULES, tracer_provider=tracing.provider, url_template=failing)
    url = await serve(Statuses())
    caplog.set_level(logging.ERROR)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/?token=a-secret")
    assert caplog.messages == [f"url_template failed: LookupError: {url}/?token=REDACTED"]
    assert "a-secret" not in caplog.text
