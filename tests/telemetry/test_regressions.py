"""What was found wrong once: each test failed before it was mended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest
import stamina
from aiohttp import web
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes
from tests.sdk import Metering, Tracing, given
from tests.servers import Serve
from tests.telemetry.conformance import Told

from lamella import (
    AttemptSpan,
    AttemptTimeout,
    Backoff,
    Classify,
    ConnectionLost,
    HeaderAuth,
    LamellaError,
    RequestSpan,
    Rule,
    RuleBook,
    Unauthorized,
    maesn,
    stack,
)
from lamella.maesn.sandbox import Sandbox
from lamella.redaction import redact_text
from lamella.testing import Fault, VirtualClock

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=60)))


async def ok(request: web.Request) -> web.Response:
    return web.Response()


async def test_an_error_without_rule_has_no_rule_attribute(serve: Serve, metering: Metering) -> None:
    async def never(request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    layers = stack(RULES, meter_provider=metering.provider)
    async with aiohttp.ClientSession(await serve(never), middlewares=layers) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session._request("GET", "/"), 0.02)
    [(attributes, _)] = metering.points("lamella.call.stops")
    assert attributes["lamella.stop_reason"] == "cancelled"
    assert "lamella.rule" not in attributes


def test_no_name_is_also_a_namespace() -> None:
    """By the conventions' rules for names: with lamella.wait_source there can be no lamella.wait."""
    names = {name for name in Told.by().attributes if name.startswith("lamella.")}
    assert not [name for name in names if any(other.startswith(f"{name}.") for other in names)]


class Asked(Sampler):
    """A sampler that notes what it is told of a span."""

    def __init__(self) -> None:
        self.told: list[set[str]] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.told.append(set(attributes or ()))
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "Asked"


async def test_a_sampler_gets_the_attributes_for_its_decision(serve: Serve) -> None:
    sampler = Asked()
    layers = stack(RULES, tracer_provider=TracerProvider(sampler))
    async with aiohttp.ClientSession(await serve(ok), middlewares=layers) as session:
        await session.get("/")
    assert all({"http.request.method", "server.address", "server.port"} <= told for told in sampler.told)


@pytest.mark.parametrize("fault", [Fault.CUT_BODY, Fault.SLOW_BODY])
async def test_a_received_status_is_reported(
    sandbox: Sandbox, tracing: Tracing, virtual_time: VirtualClock, fault: Fault
) -> None:
    sandbox.script(fault)
    async with maesn.session(
        sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider, attempts=1,
        attempt_timeout=0.05,
    ) as session:  # fmt: skip
        with pytest.raises((ConnectionLost, AttemptTimeout)):
            await session.get("/accounting/invoices")
    [send] = tracing.sends
    assert given(send)["http.response.status_code"] == 200


async def test_each_hop_counts_its_own_attempts(serve: Serve, tracing: Tracing) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            raise web.HTTPFound("/there")
        return web.Response()

    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(redirect), middlewares=layers) as session:
        await session.get("/")
    assert [given(span)["lamella.attempts"] for span in tracing.spans if span.kind is SpanKind.INTERNAL] == [1, 1]


async def test_a_redirect_that_was_not_followed_is_forgotten(serve: Serve, tracing: Tracing) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            raise web.HTTPFound("/there")
        return web.Response()

    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(redirect), middlewares=layers) as session:
        await session.get("/", allow_redirects=False)
        await session.get("/there")
    assert ["http.request.resend_count" in given(span) for span in tracing.sends] == [False, False]


@pytest.mark.parametrize("place", ["/{}/orders", "/?q={}", "/?first=1&q=a{}b"])
async def test_a_known_key_is_removed_from_earlier_urls(serve: Serve, tracing: Tracing, place: str) -> None:
    layers = stack(RULES, auth=HeaderAuth({"X-Key": "s3cr3t-key-value"}), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(ok), middlewares=layers) as session:
        await session.get(place.format("s3cr3t-key-value"))
    for span in tracing.spans:
        assert "s3cr3t-key-value" not in str(given(span)["url.full"])


class NoRetries(Sampler):
    """A sampler that leaves out whatever is sent again."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        again = "http.request.resend_count" in (attributes or ())
        return SamplingResult(Decision.DROP if again else Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return "NoRetries"


async def test_a_key_set_in_an_unrecorded_attempt_is_removed_from_the_call_url(serve: Serve, tracing: Tracing) -> None:
    keys = iter(["s3cr3t-key-first", "s3cr3t-key-second"])
    statuses = [401]

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=statuses.pop() if statuses else 200)

    tracing.provider.sampler = NoRetries()
    rules = RuleBook(Rule(401, "Token is used up", retry=Backoff(initial=0)))
    auth = HeaderAuth({"X-Key": lambda: next(keys)})
    layers = stack(rules, auth=auth, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        await session.get("/s3cr3t-key-second")
    assert len(tracing.sends) == 1
    assert str(given(tracing.call)["url.full"]).endswith("/REDACTED")


async def test_a_key_in_a_callers_header_is_removed_from_urls(serve: Serve, tracing: Tracing) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(ok), middlewares=layers) as session:
        await session.get("/s3cr3t-key-value", headers={"Authorization": "Bearer s3cr3t-key-value"})
    for span in tracing.spans:
        assert "s3cr3t-key-value" not in str(given(span)["url.full"])


async def test_a_key_that_a_server_repeats_in_a_header_is_not_shown(serve: Serve, tracing: Tracing) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"X-Echo": f"key {request.headers['X-Key']}"})

    spans = AttemptSpan(tracer_provider=tracing.provider, response_headers=["X-Echo"], request_headers=["X-Copy"])
    layers = stack(RULES, spans, auth=HeaderAuth({"X-Key": "s3cr3t-key-value"}), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(echo), middlewares=layers) as session:
        await session.get("/", headers={"X-Copy": "s3cr3t-key-value"})
    [send] = tracing.sends
    assert "s3cr3t-key-value" not in send.to_json()


async def test_a_response_handled_by_another_middleware_is_not_that_of_the_attempt(
    serve: Serve, tracing: Tracing
) -> None:
    """A middleware of the user's gets a fresh token after a 401; then the connection breaks."""
    statuses = [401, 0]

    async def answer(request: web.Request) -> web.StreamResponse:
        status = statuses.pop(0)
        if not status:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200)

    async def refresh(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        try:
            return await handler(request)
        except Unauthorized:
            return await handler(request)

    layers = (AttemptSpan(tracer_provider=tracing.provider), refresh, Classify(RULES))
    async with aiohttp.ClientSession(await serve(answer), middlewares=layers) as session:
        with pytest.raises(ConnectionLost):
            await session.get("/")
    [send] = tracing.sends
    assert given(send)["error.type"] == "ConnectionLost"
    assert "http.response.status_code" not in given(send)


async def test_a_failing_stamina_hook_leaves_no_call_counted_as_waiting(serve: Serve, metering: Metering) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429)

    def hook(details: stamina.instrumentation.RetryDetails) -> None:
        raise RuntimeError("a hook of the user's")

    stamina.instrumentation.set_on_retry_hooks([hook])
    try:
        layers = stack(RULES, meter_provider=metering.provider)
        async with aiohttp.ClientSession(
            await serve(busy), timeout=aiohttp.ClientTimeout(), middlewares=layers
        ) as session:
            with pytest.raises(RuntimeError, match="hook"):
                await session.get("/")
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
    assert metering.value("lamella.calls.waiting") == 0


async def test_a_failing_url_template_does_not_affect_the_call(serve: Serve, tracing: Tracing) -> None:
    def template(request: aiohttp.ClientRequest) -> str:
        raise LookupError

    layers = (RequestSpan(tracer_provider=tracing.provider, url_template=template),)
    async with aiohttp.ClientSession(await serve(ok), middlewares=layers) as session:
        async with session.get("/") as response:
            assert response.status == 200


async def test_an_error_for_a_short_deadline_states_the_wait(serve: Serve, tracing: Tracing) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429)

    layers = stack(RULES, deadline=50, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(busy), middlewares=layers) as session:
        with pytest.raises(LamellaError):
            await session.get("/")
    [stop] = tracing.call.events
    assert given(stop)["lamella.stop_reason"] == "deadline"
    assert given(stop)["lamella.wait"] == pytest.approx(63, abs=3.1)


@pytest.mark.parametrize("secret", ["zq\\nkey\\\\end", "zq\"double'single", "zq-schlüssel-ключ"])
def test_a_secret_in_a_bytes_repr_is_removed(secret: str) -> None:
    """As in aiohttp's message for an answer that is not HTTP."""
    assert redact_text(f"Bad status line: {secret.encode()!r}", [secret]) == "Bad status line: b'REDACTED'"
