"""The names on our spans, and the attributes that come from a request or an answer.

Names under ``http.``, ``url.``, ``server.``, ``network.`` and ``error.`` are OpenTelemetry's stable HTTP semantic
conventions; those under ``lamella.`` are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.redaction import redact_url

if TYPE_CHECKING:
    import aiohttp

__all__ = ["error_type", "request_attributes", "tracer"]

ERROR_TYPE = "error.type"
METHOD = "http.request.method"
RESEND_COUNT = "http.request.resend_count"
STATUS = "http.response.status_code"
PROTOCOL_VERSION = "network.protocol.version"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
URL_FULL = "url.full"

ATTEMPT = "lamella.attempt"
ATTEMPTS = "lamella.attempts"
OUTCOME = "lamella.outcome"
RULE = "lamella.rule"
STOP_REASON = "lamella.stop_reason"
WAIT = "lamella.wait"
WAIT_SOURCE = "lamella.wait.source"

RETRY_EVENT = "lamella.retry"
STOP_EVENT = "lamella.stop"


def tracer(provider: trace.TracerProvider | None) -> trace.Tracer:
    """Our tracer of *provider*. None means the global one, even if it is set later."""
    return trace.get_tracer("lamella", tracer_provider=provider)


def request_attributes(request: aiohttp.ClientRequest) -> Mapping[str, AttributeValue]:
    """What the conventions require of a client span before the request is sent."""
    url = request.url
    attributes: dict[str, AttributeValue] = {
        METHOD: request.method,
        URL_FULL: redact_url(url, Call.of(request).secrets),
        SERVER_ADDRESS: url.host or "",
    }
    if url.port is not None:
        attributes[SERVER_PORT] = url.port
    return attributes


def error_type(exc: BaseException) -> str:
    """``error.type`` of an exception: its status where it has one, else the name of its class."""
    status = getattr(exc, "status", None)
    return str(status) if isinstance(status, int) and status else type(exc).__qualname__
