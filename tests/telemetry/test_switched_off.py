"""Calls whose caller wants neither spans nor metrics get none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import SpanKind
from tests.dataset.workers import NOTHING
from tests.sdk import Metering, Tracing
from tests.servers import Serve, Statuses

from lamella import (
    AttemptSpan,
    Backoff,
    Breaker,
    HeaderAuth,
    LamellaError,
    RequestSpan,
    Rule,
    RuleBook,
    maesn,
    oauth,
    stack,
)
from lamella.dataset import Dataset, Here, sync_shards
from lamella.maesn.sandbox import Sandbox
from lamella.testing import VirtualClock

RULES = RuleBook(Rule(429, retry=Backoff(initial=0.02)), Rule(500, retry=Backoff(initial=0)))

SPECIAL, GENERAL = "OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"

Suppress = Callable[[], AbstractContextManager[None]]

BOTH = pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])


@pytest.mark.sampled(1)
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
            while server.statuses or len(server.requests) < 20:  # all has happened, and some calls went well after it
                await asyncio.gather(*(session._request("GET", "/") for _ in range(10)), return_exceptions=True)
                await asyncio.sleep(0.015)
        assert not tracing.spans
        assert not metering.metrics
        assert not [request for request in server.requests if "traceparent" in request.headers]
        # From the next call on there are some.
        await session.get("/")
    assert len(tracing.spans) == 2
    assert metering.count("lamella.call.duration") == 1


@BOTH
@pytest.mark.parametrize("kinds", [[RequestSpan], [AttemptSpan]])
async def test_a_single_layer_can_be_suppressed(
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
async def test_a_suppressed_call_writes_nothing_to_the_current_span(
    serve: Serve, tracing: Tracing, suppress: Suppress
) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses(429, 404)), middlewares=layers) as session:
        with tracing.provider.get_tracer("the user's").start_as_current_span("job"), suppress():
            with pytest.raises(LamellaError):
                await session.get("/")
    [job] = tracing.spans
    assert (job.events, dict(job.attributes or {})) == ((), {})


@BOTH
async def test_a_suppressed_task_and_run_have_no_spans(
    sandbox: Sandbox, virtual_time: VirtualClock, tracing: Tracing, tmp_path: Path, suppress: Suppress
) -> None:
    provider = tracing.provider
    made = Dataset.create(tmp_path / "out", batch="b", shards=1)
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=provider) as session:
        with suppress():
            await maesn.task(session, "POST", "accounting/contacts/async", json={"companyName": "Alder"})
            here = Here(scratch=tmp_path / "scratch", tracer_provider=provider)
            await sync_shards(here, made, ["north"], NOTHING, tracer_provider=provider)
    assert not tracing.spans


@pytest.mark.slow
@BOTH
async def test_the_token_fetch_of_a_suppressed_call_is_suppressed(
    serve: Serve, tracing: Tracing, metering: Metering, suppress: Suppress
) -> None:
    """Or else an exporter that sends by such a session would export its own token requests, and so on."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert "traceparent" not in request.headers or not suppressed
        paths.append(request.path)
        return web.json_response({"access_token": f"token-{len(paths)}", "expires_in": 0})

    url = await serve(answer)
    providers: Any = {"tracer_provider": tracing.provider, "meter_provider": metering.provider}
    tokens = oauth.client_credentials(f"{url}/token", oauth.Client("c", "a-secret"), **providers)
    layers = stack(RULES, auth=HeaderAuth({"Authorization": tokens}, origin=url), **providers)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        suppressed = True
        with suppress():
            await session.get("/")
        assert (paths, tracing.spans, metering.metrics) == (["/token", "/"], (), {})
        suppressed = False
        await session.get("/")
    assert len(tracing.spans) == 4
    assert metering.value("lamella.token.refreshes") == 1


@pytest.mark.parametrize(
    ("special", "general", "argument", "recorded"),
    [
        (None, None, None, ["/health", "/orders", "/orders/health?x=1"]),
        (None, "health", None, ["/orders"]),
        ("nothing", "health", None, ["/health", "/orders", "/orders/health?x=1"]),
        ("/health$, [?]x=", None, None, ["/orders"]),
        ("", "health", None, ["/health", "/orders", "/orders/health?x=1"]),
        (None, "health", [], ["/health", "/orders", "/orders/health?x=1"]),
        (None, None, [r"\d/health", "x=1"], ["/orders"]),
        (None, None, ["^http://127"], []),
        # Each pattern stands for itself: its flags, its groups and its comments.
        ("/ORDERS/, (?i)/HEALTH$", None, None, ["/orders", "/orders/health?x=1"]),
        (None, None, ["(?x) /health$ # no more", "(?P<what>x)=1", "(?P<what>y)=1"], ["/orders"]),
        (None, None, [r"(x)(y)\2", r"/(o)rders/.*\1"], ["/health", "/orders", "/orders/health?x=1"]),
        (None, None, [r"(x)(y)\2", r"(h)ealt\1"], ["/orders"]),
    ],
)
async def test_an_excluded_call_has_neither_spans_nor_metrics(
    serve: Serve,
    tracing: Tracing,
    metering: Metering,
    monkeypatch: pytest.MonkeyPatch,
    special: str | None,
    general: str | None,
    argument: list[str] | None,
    recorded: list[str],
) -> None:
    for name, value in ((SPECIAL, special), (GENERAL, general)):
        if value is not None:
            monkeypatch.setenv(name, value)
    server = Statuses()
    layers = stack(RULES, tracer_provider=tracing.provider, meter_provider=metering.provider, excluded_urls=argument)
    url = await serve(server)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        for path in ("/health", "/orders", "/orders/health?x=1"):
            await session.get(path)
    assert [str((span.attributes or {})["url.full"]).removeprefix(url) for span in tracing.sends] == recorded
    assert len(tracing.spans) == 2 * len(recorded)
    assert metering.count("lamella.call.duration") == len(recorded)
    assert sum("traceparent" in request.headers for request in server.requests) == len(recorded)


async def test_each_hop_of_a_redirect_may_be_excluded(serve: Serve, tracing: Tracing) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/here":
            raise web.HTTPFound("/there")
        return web.Response()

    layers = stack(RULES, tracer_provider=tracing.provider, excluded_urls=["/there"])
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        await session.get("/here")
    assert [span.kind for span in tracing.spans] == [SpanKind.CLIENT, SpanKind.INTERNAL]


async def test_an_excluded_call_does_not_propagate_without_an_sdk(serve: Serve) -> None:
    server = Statuses()
    provider = trace.NoOpTracerProvider()
    patterns = iter(["health"])
    layers = stack(RULES, tracer_provider=provider, meter_provider=NoOpMeterProvider(), excluded_urls=patterns)
    job = trace.NonRecordingSpan(trace.SpanContext(1, 2, False))
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        with trace.use_span(job):
            await session.get("/health")
            await session.get("/orders")
    assert ["traceparent" in request.headers for request in server.requests] == [False, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("health", "excluded_urls must be a collection of regular expressions, got the string 'health'"),
        (["good", "(bad"], r"excluded_urls must be regular expressions, got '\(bad': missing"),
        (["good", 7], "excluded_urls must be regular expressions, got 7: "),
        (["good", b"bytes"], "excluded_urls must be regular expressions, got b'bytes': "),
    ],
)
def test_bad_excluded_url_patterns_are_rejected(given: Any, message: str) -> None:
    for make in (RequestSpan, AttemptSpan, stack):
        with pytest.raises(ValueError, match=message):
            make(excluded_urls=given)


def test_a_bad_url_pattern_in_the_environment_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GENERAL, "[")
    with pytest.raises(ValueError, match=rf"{GENERAL} must be regular expressions, got '\['"):
        RequestSpan()
