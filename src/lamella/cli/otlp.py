"""Where the spans of a command go: a provider of its own, and an OTLP endpoint if there is one."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from yarl import URL

from lamella.cli.words import plain
from lamella.redaction import redact_url

__all__ = ["Delivery", "Outlet", "deliver", "endpoint", "make_provider"]

_PATH = "/v1/traces"  # where an OTLP endpoint takes traces, below its base URL
_ATTEMPT_SECONDS = 2.0
_LONGEST_SECONDS = 5.0
_BATCH = 512
_SPANS_A_CALL = 6  # its own, and one for each of five sends


@dataclass(frozen=True, slots=True)
class Delivery:
    """What has become of a service's spans at an endpoint. ``why`` says why some did not arrive; None: all did."""

    service: str
    url: str
    spans: int
    arrived: int
    why: str | None


class Outlet(SpanExporter):
    """An exporter that counts what arrives, and after a batch that did not takes no pains for *pause* seconds."""

    def __init__(self, url: URL, pause: float = inf) -> None:
        self.url = url
        self.arrived = 0
        self.complaint = ""
        self._pause = pause
        self._failed = -inf
        """When a batch did not arrive, by a clock that only goes forward."""
        self._exporter: SpanExporter = OTLPSpanExporter(str(url), timeout=_ATTEMPT_SECONDS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, unless one has failed lately."""
        if time.monotonic() - self._failed < self._pause:
            return SpanExportResult.FAILURE
        with _complaints() as complaints:
            try:
                result = self._exporter.export(spans)
            except Exception as exc:  # noqa: BLE001 - older exporters raise what the transport raises
                complaints.append(type(exc).__name__)
                result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.arrived += len(spans)
        else:
            self._failed = time.monotonic()
            self.complaint = complaints[0] if complaints else ""
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def endpoint(url: str) -> URL:
    """The URL that takes traces, from itself or from its base.

    Raises:
        ValueError: *url* is no http or https URL with a host.
    """
    try:
        found = URL(url.strip())
        is_good = found.scheme in {"http", "https"} and found.host and not found.raw_query_string
    except ValueError:
        found, is_good = URL(), False
    if not is_good or any(char.isspace() for char in str(found)):
        raise ValueError("it must be a URL such as http://localhost:4318")
    path = found.path.rstrip("/")
    return found.with_path(path if path.endswith(_PATH) else path + _PATH)


def make_provider(service: str, outlet: Outlet | None, calls: int) -> TracerProvider:
    """A provider that keeps every span, whatever the environment says of samplers, and sends them to *outlet*.

    *calls* is how many may come in a storm: for so many there is room until they are sent.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    if outlet is not None:
        room = max(_BATCH, calls * _SPANS_A_CALL)
        provider.add_span_processor(BatchSpanProcessor(outlet, max_queue_size=room, max_export_batch_size=_BATCH))
    return provider


def deliver(provider: TracerProvider, outlet: Outlet, spans: int) -> Delivery:
    """Send what is left, for some seconds at most, and tell how many of the *spans* have arrived."""
    # In a thread of its own: some versions of the exporter try for a minute, and none can be told to stop.
    sending = threading.Thread(target=provider.shutdown, daemon=True)
    sending.start()
    sending.join(_LONGEST_SECONDS)
    arrived, why = outlet.arrived, None
    if sending.is_alive():
        why = f"it took longer than {_LONGEST_SECONDS:g} s"
    elif arrived < spans:
        why = _unreachable(outlet.url) or outlet.complaint or "the endpoint did not take them"
    service = str(provider.resource.attributes["service.name"])
    return Delivery(service, redact_url(outlet.url), spans, arrived, why and plain(why).rstrip("."))


def _unreachable(url: URL) -> str | None:
    """Why no connection comes about. The exporter's own words for it fill a screen."""
    try:
        socket.create_connection((url.host, url.port or 0), timeout=1).close()
    except OSError as exc:
        return exc.strerror or str(exc) or type(exc).__name__
    return None


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the exporter logs, kept instead of printed: in our output it would be a traceback in the middle."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("opentelemetry.exporter")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
