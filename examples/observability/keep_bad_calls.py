"""Export the spans of all calls that were retried or failed, and of a fraction of the others.

    pip install 'lamella[sdk]'
    python examples/observability/keep_bad_calls.py

A sampler decides when a call begins, and cannot know how it ends. This span processor holds the spans of a call until
it has ended. The sampler of the provider has to record all calls, as the SDK's default does. For several services in
one trace use the tail sampling of a Collector: docs/reference/telemetry.md has its configuration.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from lamella import LamellaError, maesn
from lamella.maesn.sandbox import Sandbox


@dataclass
class Held:
    """The spans of a call and of nested work, until the call ends."""

    call: int
    """The id of the call's span."""
    outer: Held | None
    """The call around this one, such as for its token. None: no outer call."""
    spans: list[ReadableSpan] = field(default_factory=list)
    is_bad: bool = False
    is_kept: bool | None = None
    """None: the call has not ended, or *outer* decides."""
    is_merged: bool = False
    """Whether it has ended, and *outer* decides."""

    @property
    def deciding(self) -> Held:
        """The outermost call, which decides whether these spans are kept."""
        return self.outer.deciding if self.is_merged and self.outer is not None else self


class KeepBadCalls(SpanProcessor):
    """Pass on the spans of calls that were retried or failed, of a *share* of the others, and all spans around them.

    Args:
        target: Gets the spans that are kept, such as a ``BatchSpanProcessor`` with an exporter.
        share: The share of the calls that succeeded at the first attempt, or were cancelled, by their trace ids: all
            calls of a trace are kept, or none.
    """

    def __init__(self, target: SpanProcessor, share: float = 0.0) -> None:
        self._target = target
        self._bound = TraceIdRatioBased(share).bound
        self._open: dict[int, Held] = {}
        """By the ids of running spans; ended calls leave nothing behind."""
        self._lock = threading.Lock()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        with self._lock:
            held = None if span.parent is None else self._open.get(span.parent.span_id)
            if is_call(span):
                held = Held(span.context.span_id, held)
            if held is not None:
                self._open[span.context.span_id] = held
        self._target.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        for each in self._passed_on(span):
            self._target.on_end(each)

    def _passed_on(self, span: ReadableSpan) -> list[ReadableSpan]:
        """Return the spans to pass on after *span* has ended."""
        with self._lock:
            of = self._open.pop(span.context.span_id, None)
            if of is None:
                return [span]  # it is not part of a call
            held = of.deciding
            if held.is_kept is not None:
                return [span] if held.is_kept else []  # from a task that outlives the call
            held.spans.append(span)
            held.is_bad = held.is_bad or is_bad(span)
            return self._ended(held, span) if span.context.span_id == held.call else []

    def _ended(self, held: Held, span: ReadableSpan) -> list[ReadableSpan]:
        """Return the spans to pass on after the call with this *span* has ended."""
        outer = None if held.outer is None else held.outer.deciding
        if outer is not None and outer.is_kept is None:
            outer.spans += held.spans
            outer.is_bad = outer.is_bad or held.is_bad
            held.is_merged = True
            return []
        in_share = span.context.trace_id & (2**64 - 1) < self._bound
        # A background token renewal outlives the call that caused it.
        held.is_kept = held.is_bad or in_share or (outer is not None and bool(outer.is_kept))
        return held.spans if held.is_kept else []

    def shutdown(self) -> None:
        self._target.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._target.force_flush(timeout_millis)


def is_call(span: ReadableSpan) -> bool:
    """Return whether *span* is the span of a call, not of an attempt or a rate-limit episode."""
    scope = span.instrumentation_scope
    return (
        scope is not None
        and scope.name == "lamella"
        and span.kind.name == "INTERNAL"
        and "url.full" in (span.attributes or {})
    )


def is_bad(span: ReadableSpan) -> bool:
    """Return whether *span* is the span of a call that failed or took more than one attempt."""
    attributes = span.attributes or {}
    attempts = attributes.get("lamella.attempts", 0)
    return attributes.get("lamella.outcome") == "failure" or (isinstance(attempts, int) and attempts > 1)


async def main() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(KeepBadCalls(SimpleSpanProcessor(exporter)))
    async with Sandbox() as sandbox:
        async with maesn.session(
            sandbox.api_key,
            sandbox.account_key,
            sandbox.url,
            rules=maesn.RULES.scaled(0.001),
            tracer_provider=provider,
        ) as session:
            for statuses in ([200], [429, 200], [200], [404], [200]):
                sandbox.script(*statuses)
                with suppress(LamellaError):
                    await session.get("/accounting/invoices")
    for span in exporter.get_finished_spans():
        if is_call(span):
            attributes = span.attributes or {}
            print(span.name, attributes["lamella.outcome"], attributes["lamella.attempts"])


if __name__ == "__main__":
    asyncio.run(main())
