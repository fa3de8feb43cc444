"""Names, attributes and instruments of what we emit; docs/telemetry.md says what each of them tells.

Names under ``http.``, ``url.``, ``server.``, ``network.`` and ``error.`` are OpenTelemetry's HTTP semantic conventions;
those under ``lamella.`` are ours.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from multidict import istr
from opentelemetry import context, metrics, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from lamella.call import Call, secrets_of
from lamella.redaction import redact_text, redact_url

if TYPE_CHECKING:
    import aiohttp

    from lamella.errors import LamellaError

__all__ = [
    "ATTEMPT",
    "ATTEMPTS",
    "ATTEMPTS_LEFT",
    "CIRCUIT_CLOSE_EVENT",
    "CIRCUIT_FAILURES",
    "CIRCUIT_OPEN_EVENT",
    "CIRCUIT_OPEN_FOR",
    "CIRCUIT_SENDS",
    "CIRCUIT_STATE",
    "CIRCUIT_WAS_OPEN",
    "DEADLINE_LEFT",
    "EPISODE",
    "ERROR_TYPE",
    "GATE_WAIT",
    "KEY_HASH",
    "LIMIT",
    "LIMIT_PERIOD",
    "METHOD",
    "METHOD_ORIGINAL",
    "OTHER_METHOD",
    "OUTCOME",
    "PARKED",
    "PARKED_BY",
    "PARKED_EVENT",
    "PEER_ADDRESS",
    "PEER_PORT",
    "PROTOCOL_VERSION",
    "REFUSED",
    "REQUEST_HEADER",
    "RESEND_COUNT",
    "RESPONSE_HEADER",
    "RETRY_EVENT",
    "RULE",
    "SERVER_ADDRESS",
    "SERVER_PORT",
    "STATUS",
    "STOP_EVENT",
    "STOP_REASON",
    "STORE_EVENT",
    "URL_FULL",
    "URL_TEMPLATE",
    "WAIT",
    "WAIT_SOURCE",
    "Described",
    "Instruments",
    "Tracing",
    "UrlTemplate",
    "described",
    "error_type",
    "give_back",
    "hands_on_nothing",
    "header_attributes",
    "ids_of",
    "inject",
    "known_methods",
    "last_shown_url",
    "log_failure",
    "meter_of",
    "origin_attributes",
    "peer_attributes",
    "response_attributes",
    "shown_url",
    "take_over",
    "unrecorded",
    "without_other_instrumentation",
]

ERROR_TYPE = "error.type"
METHOD = "http.request.method"
METHOD_ORIGINAL = "http.request.method_original"
PEER_ADDRESS = "network.peer.address"
PEER_PORT = "network.peer.port"
PROTOCOL_VERSION = "network.protocol.version"
REQUEST_HEADER = "http.request.header."
RESEND_COUNT = "http.request.resend_count"
RESPONSE_HEADER = "http.response.header."
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
STATUS = "http.response.status_code"
URL_FULL = "url.full"
URL_TEMPLATE = "url.template"

ATTEMPT = "lamella.attempt"
ATTEMPTS = "lamella.attempts"
ATTEMPTS_LEFT = "lamella.attempts_left"
DEADLINE_LEFT = "lamella.deadline_left"
OUTCOME = "lamella.outcome"
RULE = "lamella.rule"
STOP_REASON = "lamella.stop_reason"
WAIT = "lamella.wait"
WAIT_SOURCE = "lamella.wait_source"

CIRCUIT_FAILURES = "lamella.circuit.failures"
CIRCUIT_OPEN_FOR = "lamella.circuit.open_for"
CIRCUIT_SENDS = "lamella.circuit.sends"
CIRCUIT_STATE = "lamella.circuit.state"
CIRCUIT_WAS_OPEN = "lamella.circuit.was_open"
GATE_WAIT = "lamella.gate_wait"
KEY_HASH = "lamella.key_hash"
LIMIT = "lamella.limit.requests"
LIMIT_PERIOD = "lamella.limit.period"
PARKED = "lamella.parked_calls"
PARKED_BY = "lamella.parked_by"
REFUSED = "lamella.refused_sends"

EPISODE = "lamella rate limit"
CIRCUIT_CLOSE_EVENT = "lamella.circuit.close"
CIRCUIT_OPEN_EVENT = "lamella.circuit.open"
PARKED_EVENT = "lamella.parked"
RETRY_EVENT = "lamella.retry"
STORE_EVENT = "lamella.store_failed"
STOP_EVENT = "lamella.stop"

OTHER_METHOD = "_OTHER"

UrlTemplate = Callable[["aiohttp.ClientRequest"], str | None]
"""The path of a request with what varies in it named, as in ``/orders/{id}``, or None where that is not known."""

# The conventions' advice for durations of HTTP requests, in seconds.
_SEND_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# A call waits for minutes where a send takes seconds.
_CALL_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_ATTEMPT_BUCKETS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)


@cache
def _version() -> str:
    from importlib.metadata import version  # it takes longer to import than all else here

    return version("lamella")


class Tracing:
    """Our tracer of *provider*. None means the global one, even if it is set later."""

    __slots__ = ("_late", "_never", "tracer")

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self.tracer = trace.get_tracer("lamella", _version(), tracer_provider=provider, schema_url=_SCHEMA)
        self._never = isinstance(self.tracer, trace.NoOpTracer)
        self._late = isinstance(self.tracer, trace.ProxyTracer)

    def start(
        self, name: str, parent: trace.Span | None, kind: trace.SpanKind, attributes: Mapping[str, AttributeValue]
    ) -> trace.Span:
        """A span inside of *parent*, None meaning the current one; while there is no SDK, what stands for one."""
        if self.silent:
            return unrecorded(parent)
        within = None if parent is None else trace.set_span_in_context(parent)
        return self.tracer.start_span(name, within, kind, attributes)

    @property
    def silent(self) -> bool:
        """Whether there is no SDK (yet), so that no span need be described."""
        # The public function for this looks into the environment each time. Without the name, we go the long way.
        return self._never or (self._late and getattr(trace, "_TRACER_PROVIDER", self) is None)


def unrecorded(parent: trace.Span | None = None) -> trace.Span:
    """What stands for a span while there is no SDK: it has the context of *parent*, None meaning the current one.

    So a trace that somebody else has begun goes on through us. (Of old the API's own tracers ended it.)
    """
    if parent is None:
        if not context.get_current():
            return trace.INVALID_SPAN  # as it would come out, in 2 µs
        parent = trace.get_current_span()
    return parent if isinstance(parent, trace.NonRecordingSpan) else trace.NonRecordingSpan(parent.get_span_context())


def hands_on_nothing() -> bool:
    """Whether there is no trace to go on with, and no other context, which propagators find out in 3 µs."""
    return not context.get_current() and _is_w3c(propagate.get_global_textmap())


def inject(span: trace.Span, headers: MutableMapping[str, str]) -> None:
    """Hand *span* and the rest of the current context on in *headers*, as the global propagator does it."""
    if not hands_on_nothing():
        propagate.get_global_textmap().inject(headers, trace.set_span_in_context(span))
    elif (at := span.get_span_context()).is_valid:
        # W3C Trace Context, section 3.2. The propagators take 7 µs for it, this 1.
        headers[_TRACEPARENT] = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
        if at.trace_state:
            headers[_TRACESTATE] = at.trace_state.to_header()


_TRACEPARENT: Final = istr("traceparent")
_TRACESTATE: Final = istr("tracestate")


def _is_w3c(propagator: TextMapPropagator) -> bool:
    """Whether it hands on traces and baggage alone; one of the user's might write headers of its own."""
    return type(propagator) is CompositePropagator and _are_w3c(propagator)


@lru_cache(maxsize=1)
def _are_w3c(propagator: CompositePropagator) -> bool:
    parts = getattr(propagator, "_propagators", [None])
    return all(type(part) in {TraceContextTextMapPropagator, W3CBaggagePropagator} for part in parts)


def meter_of(provider: metrics.MeterProvider | None) -> metrics.Meter:
    """Our meter of *provider*. None means the global one, even if it is set later."""
    return metrics.get_meter("lamella", _version(), meter_provider=provider, schema_url=_SCHEMA)


_SCHEMA: Final = "https://opentelemetry.io/schemas/1.30.0"


class Instruments:
    """What we count and measure. *provider* None means the global one, even if it is set later."""

    __slots__ = (
        "attempts",
        "call_duration",
        "episode_duration",
        "episodes",
        "gate_wait",
        "in_flight",
        "parked",
        "retries",
        "send_duration",
        "stops",
        "wait",
        "waiting",
    )

    def __init__(self, provider: metrics.MeterProvider | None = None) -> None:
        meter = meter_of(provider)
        self.send_duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests: of each send by itself.",
            explicit_bucket_boundaries_advisory=_SEND_BUCKETS,
        )
        self.in_flight = meter.create_up_down_counter("lamella.sends.active", "{send}", "Sends in flight now.")
        self.call_duration = meter.create_histogram(
            "lamella.call.duration",
            "s",
            "Duration of whole calls, with all their sends and waits.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.attempts = meter.create_histogram(
            "lamella.call.attempts",
            "{send}",
            "How often a call was sent.",
            explicit_bucket_boundaries_advisory=_ATTEMPT_BUCKETS,
        )
        self.wait = meter.create_histogram(
            "lamella.call.wait",
            "s",
            "How long a call waited between its sends, in sum.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.retries = meter.create_counter("lamella.call.retries", "{retry}", "Decisions to send again.")
        self.stops = meter.create_counter("lamella.call.stops", "{call}", "Calls that were given up, by the reason.")
        self.waiting = meter.create_up_down_counter("lamella.calls.waiting", "{call}", "Calls that wait now.")
        self.parked = meter.create_up_down_counter(
            "lamella.calls.parked", "{call}", "Calls that wait at the gate of their account now."
        )
        self.gate_wait = meter.create_histogram(
            "lamella.gate.wait",
            "s",
            "How long sends waited at the gate of their account, of those that had to.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.episodes = meter.create_counter(
            "lamella.rate_limit.episodes", "{episode}", "How often a rate limit closed the gate of an account."
        )
        self.episode_duration = meter.create_histogram(
            "lamella.rate_limit.duration",
            "s",
            "How long nothing passed for an account after its rate limit had refused a send.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )

    @property
    def silent(self) -> bool:
        """Whether nobody measures (yet)."""
        # The API has no name for that. Without this one, we go the long way.
        return getattr(self.call_duration, "_real_instrument", self) is None or isinstance(
            self.call_duration, metrics.NoOpHistogram
        )


def known_methods() -> frozenset[str]:
    """The methods that are named as they are: the conventions', or those of the variable that overrides them."""
    given = os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "")
    named = frozenset(method.strip() for method in given.split(",") if method.strip())
    return named or frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Described(NamedTuple):
    """What is said of a request where it begins."""

    name: str
    """Of low cardinality: the method, and the template of the path where there is one."""
    server: Mapping[str, AttributeValue]
    """What a metric may have of it: method and server, never a URL."""
    asked: Mapping[str, AttributeValue]
    """What the conventions require of a client span, but for ``url.full``, which :func:`shown_url` knows at the end."""


def described(
    request: aiohttp.ClientRequest, call: Call, template: UrlTemplate | None, known: frozenset[str]
) -> Described:
    """What is said of *request*, whose path *template* names; *known* are the methods that are named as they are."""
    url, method = request.url, request.method
    made_of = url, method, template
    # Both spans say the same. (Another middleware may have changed the request between them.)
    if call.described is None or call.described[0] != made_of:
        shown = method if method in known else OTHER_METHOD
        path = _template_of(request, template)
        call.described = made_of, _described(shown, method, url.host or "", url.port, path)
    return call.described[1]


# A service calls few servers, each of them often, and by few templates.
@lru_cache(maxsize=1024)
def _described(shown: str, method: str, host: str, port: int | None, path: str | None) -> Described:
    server = MappingProxyType({METHOD: shown, **_origin_attributes(host, port)})
    asked = dict(server)
    if shown == OTHER_METHOD:
        asked[METHOD_ORIGINAL] = method
    if path:
        asked[URL_TEMPLATE] = path
    name = "HTTP" if shown == OTHER_METHOD else method
    return Described(f"{name} {path}" if path else name, server, MappingProxyType(asked))


def origin_attributes(request: aiohttp.ClientRequest) -> Mapping[str, AttributeValue]:
    """What a metric may have of something that many requests to one server share."""
    return _origin_attributes(request.url.host or "", request.url.port)


@lru_cache(maxsize=1024)
def _origin_attributes(host: str, port: int | None) -> Mapping[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {SERVER_ADDRESS: host}
    if port is not None:
        attributes[SERVER_PORT] = port
    return MappingProxyType(attributes)


def shown_url(request: aiohttp.ClientRequest, call: Call) -> str:
    """``url.full``, to be asked for at the end of a span: what an auth layer sets is known only after it has run."""
    url = request.url
    call.shown = url, call.secrets, redact_url(url, secrets_of(request))
    return call.shown[2]


def last_shown_url(request: aiohttp.ClientRequest, call: Call) -> str:
    """The same, for the end of the call: that of its last send, where there was one."""
    if call.shown is not None and call.shown[0] is request.url and call.shown[1] == call.secrets:
        return call.shown[2]
    return shown_url(request, call)


def _template_of(request: aiohttp.ClientRequest, template: UrlTemplate | None) -> str | None:
    """What *template* says of *request*; what it raises ends up in the log, and not in the call."""
    if template is None:
        return None
    try:
        return template(request)
    except Exception:
        _LOGGER.exception("url_template failed")
        return None


def response_attributes(response: aiohttp.ClientResponse) -> dict[str, AttributeValue]:
    """Status and protocol version of an answer."""
    if response.version is None:
        return {STATUS: response.status}
    return {STATUS: response.status, PROTOCOL_VERSION: _protocol_version(*response.version)}


@lru_cache(maxsize=16)
def _protocol_version(major: int, minor: int) -> str:
    return f"{major}.{minor}" if major < 2 else f"{major}"


def peer_attributes(response: aiohttp.ClientResponse) -> dict[str, AttributeValue]:
    """Whom we were really connected to; empty where the connection is gone."""
    # A short answer has given its connection back already, which public attributes no longer show.
    protocol = getattr(response, "_protocol", None)
    transport = getattr(protocol, "transport", None)
    peer = transport.get_extra_info("peername") if transport is not None else None
    if isinstance(peer, tuple) and len(peer) >= 2:
        return {PEER_ADDRESS: peer[0], PEER_PORT: peer[1]}
    return {PEER_ADDRESS: peer} if isinstance(peer, str) and peer else {}


def header_attributes(
    prefix: str, headers: Mapping[str, str], names: Iterable[str], call: Call, secrets: Iterable[str]
) -> dict[str, AttributeValue]:
    """The values of the headers *names*, each as a list, but of none that an auth layer has set, and no secret."""
    hidden = {name.lower() for names in call.auth_headers for name in names}
    found: dict[str, list[str]] = {}
    for name, value in headers.items():
        lowered = name.lower()
        if lowered in names and lowered not in hidden:
            found.setdefault(f"{prefix}{lowered}", []).append(redact_text(value, secrets))
    return dict(found)


def take_over(request: aiohttp.ClientRequest, call: Call) -> None:
    """Take away what OpenTelemetry's own instrumentation of aiohttp has begun for this call.

    Its one CLIENT span would stand around all our sends, and be the parent of ours in place of the caller's span.
    It takes no offence: a call of which it has no span is none of its business. Where we make no spans of our own its
    span is left to it: the server is told of that one.
    """
    for trace_ in getattr(request, "_traces", ()):
        if getattr(getattr(trace_, "_trace_config", None), _INSTRUMENTED, False):
            state = getattr(trace_, "_trace_config_ctx", None)
            if state is not None and getattr(state, "token", None) is not None:
                context.detach(state.token)
                if call.span is not None and call.span.get_span_context() == state.span.get_span_context():
                    call.span = unrecorded()  # it stood for that one, for a RequestSpan that makes none
                call.taken_over = (*call.taken_over, (state, state.span))
                state.token = state.span = None


def give_back(call: Call) -> None:
    """For a call without a send of ours: the span that is in its ``traceparent`` must be ended by who began it."""
    for state, span in call.taken_over:
        state.span = span


def without_other_instrumentation(session: aiohttp.ClientSession) -> aiohttp.ClientSession:
    """*session*, which is ours, without what OpenTelemetry's own instrumentation has added to it."""
    session.trace_configs[:] = [each for each in session.trace_configs if not getattr(each, _INSTRUMENTED, False)]
    return session


# How that instrumentation marks its own.
_INSTRUMENTED: Final = "_is_instrumented_by_opentelemetry"


def log_failure(error: LamellaError, span: trace.Span | None) -> None:
    """One line for a call that ended badly, with what is needed to find its trace."""
    if not _LOGGER.isEnabledFor(logging.WARNING):
        return
    fields = {
        "lamella.method": error.method,
        "lamella.url": error.url,
        "lamella.outcome": str(error.outcome),
        "lamella.attempts": len(error.attempts),
        "lamella.wait": sum((record.waited for record in error.attempts), 0.0),
        "lamella.stop_reason": error.stopped and error.stopped.value,
        **ids_of(span or trace.get_current_span()),
    }
    _LOGGER.warning("%s", error, extra=fields)


def ids_of(span: trace.Span) -> dict[str, str]:
    """What a line of the log needs for *span* to be found."""
    context = span.get_span_context()
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


# It goes where the application's logging sends it, and nowhere by itself.
_LOGGER: Final = logging.getLogger("lamella")
_LOGGER.addHandler(logging.NullHandler())


def error_type(exc: BaseException) -> str:
    """``error.type`` of an exception: its status where it has one, else the name of its class."""
    status = getattr(exc, "status", None)
    return str(status) if isinstance(status, int) and status else type(exc).__qualname__
