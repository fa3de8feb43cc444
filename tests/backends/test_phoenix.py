"""What the standard OTLP exporter sends to a real Phoenix comes back from it as the tree that it was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from lamella import InternalServerError, maesn
from lamella.maesn.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.backends.conftest import Phoenix

KINDS = {SpanKind.INTERNAL: "CHAIN", SpanKind.CLIENT: "TOOL"}


class KindsForPhoenix(SpanProcessor):
    """Phoenix keeps no kind of OpenTelemetry's, only the one of OpenInference, which is an attribute."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        span.set_attribute("openinference.span.kind", KINDS[span.kind])


def exporting_to(phoenix: Phoenix, project: str) -> tuple[TracerProvider, InMemorySpanExporter]:
    """A provider whose spans go to a project of Phoenix's, and to memory to compare them with."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"openinference.project.name": project}))
    provider.add_span_processor(KindsForPhoenix())
    provider.add_span_processor(SimpleSpanProcessor(memory))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{phoenix.url}/v1/traces")))
    return provider, memory


def as_phoenix_shows_it(memory: InMemorySpanExporter) -> list[dict[str, Any]]:
    """The spans of the SDK in the form of Phoenix's REST API."""
    shown = []
    for span in sorted(memory.get_finished_spans(), key=lambda span: span.start_time or 0):
        context = span.get_span_context()
        assert context is not None
        attributes = dict(span.attributes or {})
        shown.append(
            {
                "name": span.name,
                "context": {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)},
                "span_kind": attributes.pop("openinference.span.kind"),
                "parent_id": span.parent and format_span_id(span.parent.span_id),
                "status_code": span.status.status_code.name,
                "status_message": span.status.description or "",
                "attributes": attributes,
                "events": [{"name": event.name, "attributes": dict(event.attributes or {})} for event in span.events],
                "moments": moments(span.start_time, *(event.timestamp for event in span.events), span.end_time),
            }
        )
    return shown


def moments(*nanoseconds: int | None) -> object:
    """Moments as Phoenix has them, which rounds to microseconds by way of floats."""
    return pytest.approx([(moment or 0) / 1e9 for moment in nanoseconds], rel=0, abs=5e-6)


def from_phoenix(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The spans without Phoenix's own ids, and their times in one list."""
    shown = []
    for span in spans:
        times = [span["start_time"], *(event["timestamp"] for event in span["events"]), span["end_time"]]
        shown.append(
            {name: value for name, value in span.items() if name not in {"id", "start_time", "end_time"}}
            | {"events": [{"name": event["name"], "attributes": event["attributes"]} for event in span["events"]]}
            | {"moments": [datetime.fromisoformat(time).timestamp() for time in times]}
        )
    return shown


def sent_ids(sandbox: Sandbox) -> list[tuple[str, str]]:
    """The ids of trace and span that came with each request."""
    ids = [received.headers["traceparent"].split("-") for received in sandbox.received]
    return [(trace_id, span_id) for _, trace_id, span_id, _ in ids]


async def test_phoenix_shows_a_call_with_three_attempts(phoenix: Phoenix) -> None:
    provider, memory = exporting_to(phoenix, "third-send")
    async with Sandbox() as sandbox:
        sandbox.script(429, 429, 200)
        async with maesn.session(
            sandbox.api_key,
            sandbox.account_key,
            sandbox.url,
            rules=maesn.RULES.scaled(0.001),
            tracer_provider=provider,
        ) as session:
            assert (await session.get("/accounting/invoices")).status == 200
    await asyncio.to_thread(provider.shutdown)

    spans = await asyncio.to_thread(phoenix.spans, "third-send", 5)
    assert from_phoenix(spans) == as_phoenix_shows_it(memory)

    [episode] = [span for span in spans if span["name"] == "lamella rate limit"]
    assert (episode["parent_id"], episode["attributes"]["lamella.refused_attempts"]) == (None, 2)
    call, *sends = [span for span in spans if span is not episode]
    assert episode["context"]["trace_id"] != call["context"]["trace_id"]
    assert (call["name"], call["span_kind"]) == ("lamella GET /accounting/invoices", KINDS[SpanKind.INTERNAL])
    assert (call["parent_id"], call["status_code"]) == (None, "UNSET")
    assert (call["attributes"]["lamella.outcome"], call["attributes"]["lamella.attempts"]) == ("success", 3)
    events = [(event["name"], event["attributes"]["lamella.attempt"]) for event in call["events"]]
    assert events == [("lamella.retry", 1), ("lamella.retry", 2)]
    waits = [event["attributes"]["lamella.wait"] for event in call["events"]]
    assert waits[0] >= 0.06
    assert waits[1] >= 0.12

    assert [send["name"] for send in sends] == ["GET /accounting/invoices"] * 3
    assert [send["span_kind"] for send in sends] == [KINDS[SpanKind.CLIENT]] * 3
    assert [send["parent_id"] for send in sends] == [call["context"]["span_id"]] * 3
    assert [send["attributes"].get("http.request.resend_count") for send in sends] == [None, 1, 2]
    assert [send["attributes"]["http.response.status_code"] for send in sends] == [429, 429, 200]
    assert [send["status_code"] for send in sends] == ["ERROR", "ERROR", "UNSET"]
    assert [(send["context"]["trace_id"], send["context"]["span_id"]) for send in sends] == sent_ids(sandbox)


async def test_phoenix_shows_a_write_without_retry(phoenix: Phoenix) -> None:
    provider, memory = exporting_to(phoenix, "write")
    async with Sandbox() as sandbox:
        sandbox.script(500)
        async with maesn.session(
            sandbox.api_key, sandbox.account_key, sandbox.url, tracer_provider=provider
        ) as session:
            with pytest.raises(InternalServerError) as caught:
                await session.post("/accounting/contacts", json={"name": "Ada"})
    await asyncio.to_thread(provider.shutdown)

    spans = await asyncio.to_thread(phoenix.spans, "write", 2)
    assert from_phoenix(spans) == as_phoenix_shows_it(memory)
    call, send = spans
    assert (call["status_code"], call["status_message"]) == ("ERROR", str(caught.value))
    assert call["attributes"]["lamella.stop_reason"] == "unsafe_method"
    assert [event["name"] for event in call["events"]] == ["lamella.stop"]
    assert [(send["context"]["trace_id"], send["context"]["span_id"])] == sent_ids(sandbox)


def test_phoenix_shows_a_sync_of_the_sandbox(phoenix: Phoenix) -> None:
    sync = [sys.executable, "-m", "lamella", "sync", "--sandbox", "--resource", "items", "--otlp", phoenix.url]
    done = subprocess.run(sync, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    count = int(said.partition(" spans of the service lamella-sync sent to ")[0].rpartition(" ")[2])
    assert "all arrived." in said

    spans = phoenix.spans("default", count)
    # An episode of a rate limit, or of an open circuit, belongs to no call.
    spans = [span for span in spans if span["parent_id"] or "lamella.outcome" in span["attributes"]]
    calls = {span["context"]["span_id"]: span for span in spans if span["parent_id"] is None}
    assert len(calls) == int(said.partition(" calls retries ")[0].rpartition(" ")[2])
    sends: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for span in spans:
        if span["parent_id"] is not None:
            sends[span["parent_id"]].append(span)  # a KeyError here is a send without its call

    outcomes: Counter[str] = Counter()
    for name, call in calls.items():
        attributes, events = call["attributes"], Counter(event["name"] for event in call["events"])
        outcomes[attributes["lamella.outcome"]] += 1
        assert call["name"].startswith("lamella ")
        assert attributes["lamella.attempts"] == len(sends[name])
        assert {send["context"]["trace_id"] for send in sends[name]} <= {call["context"]["trace_id"]}
        resends = [send["attributes"].get("http.request.resend_count") for send in sends[name]]
        assert resends == [None, *range(1, len(resends))][: len(resends)]
        has_failed = attributes["lamella.outcome"] == "failure"
        # An open circuit rejects a call before its first attempt, or where its next attempt was decided already.
        is_rejected = attributes.get("lamella.stop_reason") == "circuit_open"
        assert events["lamella.retry"] == (len(resends) if is_rejected else len(resends) - 1)
        assert events["lamella.stop"] == int(has_failed and bool(resends))
        assert call["status_code"] == ("ERROR" if has_failed else "UNSET")
        assert ("lamella.stop_reason" in attributes) == has_failed
    assert outcomes["success"] > 0
    assert outcomes["failure"] > 0

    text = json.dumps(spans)
    assert "sandbox-account-key" not in text
    assert "sandbox-api-key" not in text
