"""A sampler, span processor or template function that fails affects no call."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from tests.sdk import Metering, Tracing
from tests.servers import Serve, Statuses

from lamella import Backoff, Rule, RuleBook, stack

RULES = RuleBook(Rule(429, retry=Backoff(initial=0)))


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


@pytest.mark.parametrize("method", ["on_start", "on_end", "should_sample"])
async def test_a_part_of_the_sdk_that_fails_affects_no_call(
    serve: Serve, metering: Metering, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    broken = Broken(method)
    provider = TracerProvider(sampler=broken, shutdown_on_exit=False)
    provider.add_span_processor(broken)
    server = Statuses(429, 201)
    layers = stack(RULES, tracer_provider=provider, meter_provider=metering.provider, retry_writes=True)
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
    [line, *_] = [line for line in caplog.records if line.getMessage() == "url_template failed"]
    assert f"url_template must return a str or None, got {type(template).__name__}" in str(line.exc_info)
