"""Trace context and baggage go to the origins of the stack, and not to where a redirect leads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator, default_setter
from tests.sdk import Tracing
from tests.servers import Serve, Statuses
from yarl import URL

from lamella import At, AttemptSpan, Backoff, HeaderAuth, RequestSpan, Rule, RuleBook, Slot, maesn, stack
from lamella.maesn.sandbox import Sandbox

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
FIELDS = ("traceparent", "baggage")
OWN = {"traceparent": "the user's", "baggage": "of=theirs"}


class Server:
    """Notes which context each request had; redirects to what the query says."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append([field for field in FIELDS if field in request.headers])
        self.headers.append(dict(request.headers))
        if to := request.query.getall("to", []):
            raise web.HTTPTemporaryRedirect(URL(to[0]).with_query([("to", each) for each in to[1:]]))
        return web.Response()


@pytest.fixture
async def here(serve: Serve) -> Server:
    server = Server()
    server.url = await serve(server)
    return server


@pytest.fixture
async def there(serve: Serve) -> Server:
    server = Server()
    server.url = await serve(server)
    return server


@pytest.fixture(autouse=True)
def _with_baggage() -> Iterator[None]:
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    yield
    context.detach(token)


def going_to(server: Server, *others: Server) -> str:
    return str(URL(server.url).with_query([("to", other.url) for other in others]))


@pytest.mark.parametrize("sdk", ["an SDK", "no SDK", "OpenTelemetry's instrumentation as well"])
@pytest.mark.parametrize("own", [{}, OWN])
@pytest.mark.parametrize("auth", ["stated", "of the first request", "none"])
async def test_trace_context_is_not_sent_to_a_redirect_target(
    here: Server, there: Server, tracing: Tracing, sdk: str, own: dict[str, str], auth: str
) -> None:
    """Not even a header of the user's own, which aiohttp would send there as well."""
    provider: trace.TracerProvider = trace.NoOpTracerProvider() if sdk == "no SDK" else tracing.provider
    options: dict[str, Any] = {"tracer_provider": provider, "meter_provider": NoOpMeterProvider()}
    if auth != "none":
        options["auth"] = HeaderAuth({"X-Key": "a-key"}, origin=here.url if auth == "stated" else None)
    instrumentor = AioHttpClientInstrumentor()
    if sdk.startswith("OpenTelemetry"):
        instrumentor.instrument(tracer_provider=tracing.provider)
    job = trace.NonRecordingSpan(trace.SpanContext(1, 2, False, trace.TraceFlags(1)))
    try:
        async with aiohttp.ClientSession(middlewares=stack(RULES, **options)) as session:
            with trace.use_span(job):
                # Back again is the origin that the caller has named.
                await session.get(going_to(here, there, here, here), headers=own)
    finally:
        if sdk.startswith("OpenTelemetry"):
            instrumentor.uninstrument()
    assert (here.seen, there.seen) == ([list(FIELDS)] * 3, [[]])
    assert "the user's" not in [headers["traceparent"] for headers in here.headers]


@pytest.mark.parametrize("given_by", ["request", "session"])
@pytest.mark.parametrize("off", ["no SDK", "suppressed", "excluded"])
@pytest.mark.parametrize("retried", [False, True])
async def test_trace_headers_are_removed_on_redirect_without_recording(
    here: Server, serve: Serve, tracing: Tracing, given_by: str, off: str, retried: bool
) -> None:
    there = Statuses(*[429] * retried)
    url = URL(here.url).with_query({"to": await serve(there)})
    options: dict[str, Any] = {} if off == "no SDK" else {"tracer_provider": tracing.provider}
    if off == "excluded":
        options["excluded_urls"] = ["."]
    of_session, of_request = (OWN, {}) if given_by == "session" else ({}, OWN)
    async with aiohttp.ClientSession(middlewares=stack(RULES, **options), headers=of_session) as session:
        with nothing_current(), suppress_instrumentation() if off == "suppressed" else nullcontext():
            await session.get(url, headers=of_request)
            await session.get(here.url, headers=of_request)
    assert here.seen == [list(FIELDS)] * 2
    assert len(there.requests) == 1 + retried
    assert not [request for request in there.requests if OWN.keys() & set(map(str.lower, request.headers))]


async def test_trace_context_is_sent_only_to_origins_of_auth_layers(
    here: Server, there: Server, tracing: Tracing
) -> None:
    auth = HeaderAuth({"X-Key": "a-key"}, origin=here.url)
    async with aiohttp.ClientSession(middlewares=stack(RULES, auth=auth, tracer_provider=tracing.provider)) as session:
        for server in (here, there):
            await session.get(server.url)
    assert (here.seen, there.seen) == ([list(FIELDS)], [[]])
    assert len(tracing.spans) == 4


async def test_without_auth_origin_trace_context_is_sent_to_any_request(
    here: Server, there: Server, tracing: Tracing
) -> None:
    layers = stack(RULES, auth=HeaderAuth({"X-Key": "a-key"}), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        for server in (here, there):
            await session.get(server.url)
        await session.get(going_to(here, there), allow_redirects=False)
        await session.get(there.url)
    assert (here.seen, there.seen) == ([list(FIELDS)] * 2, [list(FIELDS)] * 2)


async def test_origins_for_trace_context_can_be_added(here: Server, there: Server, tracing: Tracing) -> None:
    auth = HeaderAuth({"X-Key": "a-key"}, origin=here.url)
    spans = AttemptSpan(origins=[there.url], tracer_provider=tracing.provider)
    layers = stack(RULES, spans, auth=auth, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        await session.get(going_to(here, there))
        await session.get(there.url)
    assert (here.seen, there.seen) == ([list(FIELDS)], [list(FIELDS)] * 2)


async def test_a_middleware_may_send_the_request_somewhere_else(here: Server, there: Server, tracing: Tracing) -> None:
    """What a redirect does not decide, the service has decided itself."""

    async def elsewhere(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await handler(request)).release()
        request.url = URL(there.url)
        return await handler(request)

    layers = stack(RULES, At(Slot.THROTTLE, elsewhere), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        await session.get(here.url)
    assert (here.seen, there.seen) == ([list(FIELDS)], [list(FIELDS)])


async def test_an_excluded_call_propagates_to_no_hop(here: Server, there: Server, tracing: Tracing) -> None:
    layers = stack(RULES, tracer_provider=tracing.provider, excluded_urls=["to="])
    async with aiohttp.ClientSession(middlewares=layers) as session:
        await session.get(going_to(here, there))
    assert (here.seen, there.seen, len(tracing.spans)) == ([[]], [[]], 2)


async def test_maesn_session_propagates_only_to_its_base_url(sandbox: Sandbox, there: Server, tracing: Tracing) -> None:
    async with maesn.session(
        sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=tracing.provider
    ) as session:
        await session.get("/accounting/invoices")
        await session.get(there.url)
    assert set(FIELDS) <= set(map(str.lower, sandbox.received[-1].headers))
    assert there.seen == [[]]


class Letters(TextMapPropagator):
    """A propagator that writes its header always."""

    def extract(self, *_: Any, **__: Any) -> Context:
        return Context()

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = default_setter) -> None:
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "x-letters", trace.format_span_id(span.span_id))

    @property
    def fields(self) -> set[str]:
        return {"x-letters"}


@contextmanager
def nothing_current() -> Iterator[None]:
    token = context.attach(Context())
    yield
    context.detach(token)


async def test_the_propagator_of_the_stack_is_used(here: Server, there: Server, tracing: Tracing) -> None:
    layers = stack(RULES, propagate=Letters(), tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        await session.get(going_to(here, there), headers={"x-letters": "the user's"})
    assert here.seen == [[]]
    assert here.headers[0]["x-letters"] == f"{tracing.sends[0].context.span_id:016x}"
    assert "x-letters" not in there.headers[0]


async def test_the_propagator_of_the_stack_is_used_without_an_sdk(here: Server) -> None:
    layers = stack(RULES, propagate=Letters())
    with nothing_current():
        async with aiohttp.ClientSession(middlewares=layers) as session:
            await session.get(here.url)
    assert here.headers[0]["x-letters"] == "0" * 16


@pytest.mark.parametrize("own", [{}, OWN])
async def test_propagate_false_leaves_headers_unchanged(here: Server, tracing: Tracing, own: dict[str, str]) -> None:
    layers = stack(RULES, propagate=False, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(middlewares=layers) as session:
        await session.get(here.url, headers=own)
    assert {name: here.headers[0].get(name) for name in OWN} == (own or dict.fromkeys(OWN))
    assert len(tracing.spans) == 2


async def test_each_attempt_names_its_own_span(serve: Serve, tracing: Tracing) -> None:
    server = Statuses(429, 429)
    layers: Sequence[Any] = stack(RULES, tracer_provider=tracing.provider)
    async with aiohttp.ClientSession(await serve(server), middlewares=layers) as session:
        await session.get("/")
    named = [request.headers["traceparent"].split("-")[2] for request in server.requests]
    assert named == [f"{span.context.span_id:016x}" for span in tracing.sends]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagate": None}, "propagate must be a propagator, True or False, got NoneType"),
        ({"propagate": "tracecontext"}, "propagate must be a propagator, True or False, got str"),
        (
            {"origins": ["api.example.com"]},
            "origin must be an http or https URL with a host, got 'api.example.com': write",
        ),
        ({"origins": "https://api.example.com"}, "origins must be a collection of origins, such as a list, got"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttemptSpan(**options)


def test_an_option_without_effect_is_rejected() -> None:
    with pytest.raises(ValueError, match="propagate= has no effect on a AttemptSpan made by hand"):
        stack(RULES, AttemptSpan(), propagate=False)
    with pytest.raises(ValueError, match="propagate= has no effect: this stack has no AttemptSpan"):
        stack(RULES, spans=False, propagate=False)
    stack(RULES, RequestSpan(), propagate=False)
