"""Export the spans of a command: its own provider, and an OTLP endpoint if one is given."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Final, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from rich.text import Text
from yarl import URL

from lamella.cli.colours import FAILED
from lamella.cli.terminal import count, http_url
from lamella.redaction import redact_text, redact_url

_SERVICE: Final = "lamella-sync"  # unless the environment sets a name
_PATH: Final = "/v1/traces"  # path for traces below the base URL of an OTLP endpoint
_ATTEMPT_SECONDS: Final = 2.0
_LONGEST_SECONDS = 5.0
_PAUSE: Final = 15.0  # seconds without exports after an endpoint failed
_BATCH: Final = 512
_ROOM: Final = 30_000  # maximum of spans waiting for export: those of 5,000 calls in a burst


class Delivery(NamedTuple):
    """The result of an export. ``why`` says why some spans did not arrive; None: all arrived."""

    url: str
    spans: int
    arrived: int
    why: str | None

    def __rich__(self) -> Text:
        spans = count(self.spans, "span")
        if self.why is None:
            return Text(f"{spans} of the service {_service()} sent to {self.url}: all arrived.")
        some = f"{self.arrived} of {spans}" if self.arrived else f"None of {spans}"
        return Text(f"{some} arrived at {self.url}: {self.why}.", FAILED)


class Outlet(SpanExporter):
    """Export spans, count those that arrive, and pause for *pause* seconds after a failed batch."""

    def __init__(self, url: URL, pause: float = _PAUSE) -> None:
        # Only --otlp needs it: it loads protobuf and requests.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self.url = url
        self.arrived: int = 0
        self.complaint: str = ""
        self._pause = pause
        self._failed_at = -inf
        self._exporter: SpanExporter = OTLPSpanExporter(str(url), timeout=_ATTEMPT_SECONDS)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, unless the exporter is paused."""
        if time.monotonic() - self._failed_at < self._pause:
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
            self._failed_at = time.monotonic()
            self.complaint = complaints[0] if complaints else ""
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def endpoint(url: str) -> URL:
    """Return the URL for traces, given that URL or its base. Raises ValueError if it is not an http or https URL."""
    found = http_url(url)
    if found is None:
        raise ValueError("must be a URL such as http://localhost:4318")
    path = found.path.rstrip("/")
    return found.with_path(path if path.endswith(_PATH) else path + _PATH)


def make_provider(outlet: Outlet | None) -> TracerProvider:
    """Return a provider that exports every span to *outlet*, whatever samplers the environment sets."""
    resource = Resource.create({"service.name": _service()})
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    if outlet is not None:
        provider.add_span_processor(BatchSpanProcessor(outlet, max_queue_size=_ROOM, max_export_batch_size=_BATCH))
    return provider


def _service() -> str:
    """Return the service name from OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES, else the command's."""
    found = str(Resource.create().attributes["service.name"])
    return _SERVICE if found.startswith("unknown_service") else redact_text(found)


def deliver(provider: TracerProvider, outlet: Outlet, spans: int) -> Delivery:
    """Send the remaining spans, with a limit of some seconds, and count how many of *spans* arrived."""
    # In a thread: some versions of the exporter try for a minute, and none can be stopped.
    sending = threading.Thread(target=provider.shutdown, daemon=True)
    sending.start()
    sending.join(_LONGEST_SECONDS)
    arrived, why = outlet.arrived, None
    if sending.is_alive():
        why = f"it took longer than {_LONGEST_SECONDS:g} s"
    elif arrived < spans:
        why = _unreachable(outlet.url) or outlet.complaint or "the endpoint rejected them"
    return Delivery(redact_url(outlet.url), spans, arrived, why and redact_text(why).rstrip("."))


def _unreachable(url: URL) -> str | None:
    """Return why there is no connection. The exporter's own message fills a screen."""
    try:
        socket.create_connection((url.host, url.port or 0), timeout=1).close()
    except OSError as exc:
        return exc.strerror or str(exc) or type(exc).__name__
    return None


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Capture what the exporter logs, which would otherwise print tracebacks into the output."""
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
