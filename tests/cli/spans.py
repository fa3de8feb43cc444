"""Spans of made-up calls, and the page of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from rich.console import Console, RenderableType

from lamella.cli.html import Page
from lamella.cli.traces import Trace, context

MS = 1_000_000
START = 1_700_000_000 * 1000 * MS
GET = "http://127.0.0.1:1/accounting/invoices/7?limit=5"
ENDED: dict[str, str | float] = {"lamella__outcome": "success", "lamella__attempts": 1}


def text_of(what: RenderableType, width: int = 80, *, color: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=color, markup=False, emoji=False, highlight=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def call(
    number: int, start: float, end: float, *events: Event, method: str = "GET", **more: str | float
) -> ReadableSpan:
    """The span of a call in trace 1; times in milliseconds, and the dots of attributes as two underscores."""
    return ReadableSpan(
        f"lamella {method} /accounting/invoices/{{id}}",
        context=_context(number),
        attributes=_attributes({"url__full": GET} | more),
        events=events,
        start_time=START + int(start * MS),
        end_time=START + int(end * MS),
    )


def attempt(number: int, of: int, start: float, end: float, method: str = "GET", **more: str | float) -> ReadableSpan:
    """The span of an attempt of the call *of*."""
    return ReadableSpan(
        f"{method} /accounting/invoices/{{id}}",
        context=_context(number),
        parent=_context(of),
        kind=SpanKind.CLIENT,
        attributes=_attributes({"http__request__method": method} | more),
        start_time=START + int(start * MS),
        end_time=START + int(end * MS),
    )


def event(name: str, at: float, **more: str | float) -> Event:
    return Event(name, _attributes(more), START + int(at * MS))


def retry(at: float, wait: float, source: str, cause: str) -> Event:
    return event(
        "lamella.retry",
        at,
        lamella__wait=wait,
        lamella__wait_source=source,
        lamella__rule="Server Error",
        error__type=cause,
    )


def _context(number: int) -> SpanContext:
    return SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(1))


def _attributes(more: Mapping[str, str | float]) -> dict[str, str | float]:
    return {name.replace("__", "."): value for name, value in more.items()}


def a_good_call() -> list[ReadableSpan]:
    events = (
        retry(11.5, 0.5, "rule", "500"),
        retry(520, 0.0, "immediate", "ConnectionLost"),
        retry(540, 2.0, "retry_after", "429"),
        event("lamella.queued", 545, lamella__wait=1.9, lamella__queued_by="refusal"),
        event("lamella.unheard_of", 2544, seconds=2),
    )
    return [
        # In another order than that of time, as exporters give them.
        attempt(14, 10, 2545, 2550, http__response__status_code=200, http__request__resend_count=3),
        attempt(11, 10, 1.5, 11.4, http__response__status_code=500, error__type="500"),
        attempt(13, 10, 530, 535, error__type="429", http__request__resend_count=2),
        attempt(12, 10, 512, 515, error__type="ConnectionLost", http__request__resend_count=1),
        call(10, 0, 2551, *events, lamella__outcome="success", lamella__attempts=4, lamella__wait=2.5),
    ]


def a_bad_call() -> list[ReadableSpan]:
    stopped = {"lamella__stop_reason": "unsafe_method"}
    stop = event("lamella.stop", 9, error__type="500", **stopped)
    ended: dict[str, str | float] = {"lamella__outcome": "failure", "lamella__attempts": 1, "lamella__wait": 0}
    return [
        attempt(21, 20, 1, 8, "POST", http__response__status_code=500, error__type="500"),
        call(20, 0, 10, stop, method="POST", **ended, **stopped),
    ]


def traces(spans: Iterable[ReadableSpan]) -> tuple[Trace, ...]:
    """The calls among *spans*, in the order in which they began."""
    calls: list[ReadableSpan] = []
    attempts: dict[int, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        if span.parent is None:
            calls.append(span)
        else:
            attempts.setdefault(span.parent.span_id, []).append(span)
    return tuple(Trace(call, tuple(attempts.get(context(call).span_id, ()))) for call in calls)


def page_of(spans: Iterable[ReadableSpan] | None = None, **changes: Any) -> Page:
    """The page of a run; None means a call that ended well and one that failed."""
    found = traces((*a_good_call(), *a_bad_call()) if spans is None else spans)
    page = Page("run 1", "Run 1 of a.journal.", totals=(), causes=(), checks=(), traces=found)
    return replace(page, **changes)
