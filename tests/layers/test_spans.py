from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
from tests.sdk import Tracing, given
from tests.servers import Serve, Statuses

from lamella import (
    AttemptSpan,
    AttemptTimeout,
    Backoff,
    Classify,
    ConnectionLost,
    HeaderAuth,
    RequestSpan,
    Rule,
    RuleBook,
    ServerStatusError,
    stack,
)
from lamella.telemetry import names
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(initial=0)), Rule(503, "Unavailable", hint="wait", retry=None)
)


def test_span_names_follow_the_conventions() -> None:
    assert names.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert names.METHOD == http_attributes.HTTP_REQUEST_METHOD
    assert names.RESEND_COUNT == http_attributes.HTTP_REQUEST_RESEND_COUNT
    assert names.STATUS == http_attributes.HTTP_RESPONSE_STATUS_CODE
    assert names.PROTOCOL_VERSION == network_attributes.NETWORK_PROTOCOL_VERSION
    assert names.SERVER_ADDRESS == server_attributes.SERVER_ADDRESS
    assert names.SERVER_PORT == server_attributes.SERVER_PORT
    assert names.URL_FULL == url_attributes.URL_FULL


async def test_a_call_with_two_attempts_has_two_attempt_spans(
    serve: Serve, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    url = await serve(Statuses(429))
    port = int(url.rpartition(":")[2])
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
        await session.get("/path?limit=5&api_key=s3cr3t")
    first, second = tracing.sends
    common = {
        "http.request.method": "GET",
        "url.full": f"{url}/path?limit=5&api_key=REDACTED",
        "server.address": "127.0.0.1",
        "server.port": port,
    }
    answered = {"network.peer.address": "127.0.0.1", "network.peer.port": port, "network.protocol.version": "1.1"}
    failed = {"http.response.status_code": 429, "error.type": "429", "lamella.rule": "Too Many Requests"}
    assert given(first) == {**common, **answered, **failed}
    assert given(second) == {
        **common,
        **answered,
        "http.response.status_code": 200,
        "http.request.resend_count": 1,
    }
    assert [span.name for span in tracing.sends] == ["GET", "GET"]
    assert [span.status.status_code for span in tracing.sends] == [StatusCode.ERROR, StatusCode.UNSET]
    call = tracing.call
    assert call.status.is_unset
    assert given(call) == {
        **common,
        "lamella.outcome": "success",
        "lamella.attempts": 2,
        "lamella.wait": pytest.approx(0, abs=0.1),
    }
    [event] = call.events
    assert event.name == "lamella.retry"
    assert dict(event.attributes or {}) == {
        "lamella.attempt": 1,
        "lamella.rule": "Too Many Requests",
        "lamella.wait": 0.0,
        "lamella.wait_source": "rule",
        "lamella.attempts_left": 4,
        "http.response.status_code": 429,
        "error.type": "429",
    }


async def test_a_failed_call_has_an_error_on_its_span(serve: Serve, tracing: Tracing) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses(503, 0)), middlewares=layers) as session:
        with pytest.raises(ServerStatusError):
            await session.get("/")
        call = tracing.call
        assert (call.status.status_code, "wait" in str(call.status.description)) == (StatusCode.ERROR, True)
        assert given(call)["lamella.outcome"] == "failure"
        assert given(call)["lamella.stop_reason"] == "not_retryable"
        assert given(call)["error.type"] == "503"
        assert [event.name for event in call.events] == ["lamella.stop"]
        tracing.exporter.clear()
        with pytest.raises(ConnectionLost):
            await session.post("/")
    assert given(tracing.call)["error.type"] == given(tracing.sends[0])["error.type"] == "ConnectionLost"
    assert given(tracing.call)["lamella.stop_reason"] == "unsafe_method"


@pytest.mark.parametrize("status", [400, 503])
async def test_spans_are_the_same_without_raise_errors(serve: Serve, tracing: Tracing, status: int) -> None:
    layers = stack(RULES, raise_errors=False, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(Statuses(status)), middlewares=layers) as session:
        await session.get("/")
    for span in tracing.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert given(span)["error.type"] == str(status)
    assert given(tracing.call)["lamella.outcome"] == "failure"


async def test_each_span_layer_works_alone(serve: Serve, tracing: Tracing) -> None:
    server = Statuses()
    url = await serve(server)
    for layer, kind in (
        (AttemptSpan(tracer_provider=tracing.provider), SpanKind.CLIENT),
        (RequestSpan(tracer_provider=tracing.provider), SpanKind.INTERNAL),
    ):
        tracing.exporter.clear()
        async with aiohttp.ClientSession(url, middlewares=(layer,)) as session:
            await session.get("/")
        assert [span.kind for span in tracing.spans] == [kind]


async def test_a_call_without_other_layers_is_one_attempt_and_its_failure_is_in_the_log(
    serve: Serve, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    layers = (RequestSpan(tracer_provider=tracing.provider), Classify(RULES))
    async with aiohttp.ClientSession(await serve(Statuses(200, 503)), middlewares=layers) as session:
        await session.get("/")
        assert not caplog.records
        with pytest.raises(ServerStatusError):
            await session.get("/")
    assert [given(call)["lamella.attempts"] for call in tracing.spans] == [1, 1]
    [line] = caplog.records
    assert tracing.spans[1].context is not None
    assert vars(line)["trace_id"] == f"{tracing.spans[1].context.trace_id:032x}"


async def test_an_attempt_that_the_deadline_ends_is_a_timeout_and_one_that_is_cancelled_is_no_error(
    serve: Serve, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1_000_000)
        return web.Response()

    layers = stack(RULES, deadline=10, attempts=1, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(never), middlewares=layers) as session:
        with pytest.raises(AttemptTimeout):
            await session.get("/")
        cancelled = asyncio.create_task(session.get("/"))
        await asyncio.sleep(9.9)
        cancelled.cancel()
        await asyncio.wait([cancelled])
    late, given_up = tracing.sends
    assert given(late)["error.type"] == "AttemptTimeout"
    assert late.status.status_code is StatusCode.ERROR
    assert "error.type" not in given(given_up)
    assert given_up.status.status_code is StatusCode.UNSET


async def test_an_answer_just_before_the_deadline_is_no_timeout(
    serve: Serve, tracing: Tracing, virtual_time: VirtualClock
) -> None:
    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(9.999)
        return web.Response()

    layers = stack(RULES, deadline=10, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(late), middlewares=layers) as session:
        await session.get("/")
    for span in tracing.spans:
        assert "error.type" not in given(span)
        assert span.status.is_unset


async def test_the_users_span_is_the_parent_and_baggage_passes(serve: Serve, tracing: Tracing) -> None:
    server = Statuses()
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        with tracing.provider.get_tracer("user").start_as_current_span("job") as job:
            token = context.attach(baggage.set_baggage("tenant", "acme"))
            await session.get("/")
            context.detach(token)
            assert trace.get_current_span() is job
    call = next(span for span in tracing.spans if span.name == "lamella GET")
    assert call.parent is not None
    assert call.parent.span_id == job.get_span_context().span_id
    [request] = server.requests
    assert request.headers["baggage"] == "tenant=acme"
    extracted = trace.get_current_span(propagate.extract(request.headers)).get_span_context()
    assert extracted.span_id == tracing.sends[0].context.span_id


async def test_a_sampled_out_call_still_propagates(serve: Serve) -> None:
    server = Statuses()
    layers = stack(RULES, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        await session.get("/")
    flags = server.requests[0].headers["traceparent"].split("-")[3]
    assert int(flags, 16) & TraceFlags.SAMPLED == 0


async def test_no_credential_is_on_any_span(serve: Serve, tracing: Tracing) -> None:
    auth = HeaderAuth({"X-API-KEY": "s3cr3t-key"})
    layers = stack(RULES, auth=auth, tracer_provider=tracing.provider)
    url = (await serve(Statuses(429, 503))).replace("//", "//user:s3cr3t-password@")
    async with aiohttp.ClientSession(middlewares=layers) as session:
        with pytest.raises(ServerStatusError):
            await session.get(f"{url}/?token=s3cr3t-token&access_key=s3cr3t-key", headers={"Cookie": "a=s3cr3t-cookie"})
    assert len(tracing.spans) == 3
    for span in tracing.spans:
        assert "s3cr3t" not in span.to_json()


async def test_a_redirect_has_another_attempt_span(serve: Serve, tracing: Tracing) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        if request.path == "/":
            raise web.HTTPFound("/there")
        return web.Response()

    layers = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(redirect), middlewares=layers) as session:
        await session.get("/")
    assert [given(span)["http.response.status_code"] for span in tracing.sends] == [302, 200]
    assert [given(span).get("http.request.resend_count") for span in tracing.sends] == [None, 1]
