"""What is shown at the end: tables and trees, of a sync."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.trace import format_trace_id
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lamella.cli.traces import Trace, context, number, path, seconds, stop_phrase, text
from lamella.cli.words import count, duration, plain, some
from lamella.rules import WaitSource
from lamella.telemetry.names import (
    ATTEMPTS,
    ERROR_TYPE,
    METHOD,
    OUTCOME,
    QUEUED_BY,
    QUEUED_EVENT,
    RESEND_COUNT,
    RETRY_EVENT,
    RULE,
    STATUS,
    STOP_EVENT,
    STOP_REASON,
    WAIT,
    WAIT_SOURCE,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan

    from lamella.cli.causes import Cause
    from lamella.cli.check import Check
    from lamella.cli.counting import Total
    from lamella.cli.otlp import Delivery

__all__ = [
    "delivery",
    "failures",
    "outcome",
    "page",
    "titled",
    "tree",
    "tree_text",
    "verdict",
]

_SHOWN_NAMES = 5
_WHAT, _ENDED = 13, 14  # columns for what a line of the tree is, and for how a send ended


def outcome(totals: Iterable[Total]) -> RenderableType:
    """What a run has come to, in numbers."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in totals:
        table.add_row(f"  {row.name}" if row.nested else row.name, row.value, row.note)
    return titled("Outcome", table)


def failures(causes: Sequence[Cause]) -> RenderableType:
    """What failed, by cause: how many, why there was no further try, what to do."""
    if not causes:
        return titled("Failures", Text("None."))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for cause in causes:
        head = Text.assemble((cause.what, "bold red"), f", stopped: {cause.stopped}" if cause.stopped else "")
        table.add_row(f"{cause.many} ×", head)
        if cause.who:
            table.add_row("", Text(some(cause.who, _SHOWN_NAMES), "bold"))
        if cause.said:
            table.add_row("", Text(f"it said: {cause.said}"))
        if cause.hint:
            table.add_row("", Text(cause.hint))
    return titled("Failures", table)


def tree(trace: Trace) -> Tree:
    """A call as a tree: its span, and below it in the order of time its sends and its decisions."""
    root = Tree(Group(*_call(trace)), guide_style="dim")
    for line in _branches(trace):
        root.add(line)
    return root


def tree_text(trace: Trace) -> str:
    """The same tree as plain text, each line in full: thousands of them take rich too long."""
    branches = [line.plain for line in _branches(trace)]
    guides = ["├── "] * (len(branches) - 1) + ["└── "]
    return "\n".join([*(line.plain for line in _call(trace)), *map("".join, zip(guides, branches, strict=False))])


def _branches(trace: Trace) -> list[Text]:
    lines = [(send.start_time or 0, _send(trace, send)) for send in trace.sends]
    lines += [(event.timestamp, _decision(trace, event)) for event in trace.call.events]
    return [line for _, line in sorted(lines, key=lambda item: item[0])]


def _call(trace: Trace) -> Iterator[Text]:
    span = trace.call
    yield _line((plain(span.name), "bold"))
    ended, style = text(span, OUTCOME), "green" if trace.succeeded else "red"
    attempts = count(int(number(span, ATTEMPTS)), "attempt")
    took, waited = duration(seconds(span.end_time, span.start_time)), duration(number(span, WAIT))
    yield _line("INTERNAL  ", (ended, style), f" after {attempts} in {took}, {waited} of it in waits")
    if stop := text(span, STOP_REASON):
        yield _line("stopped: ", (stop_phrase(stop), style))
    yield _line((f"path {path(trace)}", "dim"))
    yield _line((f"trace {format_trace_id(context(span).trace_id)}", "dim"))


def _send(trace: Trace, send: ReadableSpan) -> Text:
    error = text(send, ERROR_TYPE)
    ended = error or text(send, STATUS)
    resent = f"  resend_count={int(number(send, RESEND_COUNT))}" if text(send, RESEND_COUNT) else ""
    return _line(
        f"{_offset(trace, send.start_time)}  {f'CLIENT {text(send, METHOD)}':<{_WHAT}} ",
        (f"{ended:<{_ENDED}}", "red" if error else "green"),
        f"  {duration(seconds(send.end_time, send.start_time)):>7}{resent}",
    )


def _decision(trace: Trace, event: Event) -> Text:
    if event.name == RETRY_EVENT:
        name, style, why = "retry", "yellow", _wait(event)
    elif event.name == STOP_EVENT:
        name, style, why = "stop", "red", stop_phrase(text(event, STOP_REASON))
    elif event.name == QUEUED_EVENT:
        limited = text(event, QUEUED_BY) == "refusal"
        until = "its account was rate-limited" if limited else "until its account's turn"
        name, style, why = "queued", "cyan", f"for {duration(number(event, WAIT))}, {until}"
    else:
        name, style = plain(event.name), ""
        why = ", ".join(f"{key}={text(event, key)}" for key in event.attributes or ())
    return _line(f"{_offset(trace, event.timestamp)}  ", (f"{name:<{_WHAT}} ", style), why)


def _wait(event: Event) -> str:
    wait = duration(number(event, WAIT))
    match text(event, WAIT_SOURCE):
        case WaitSource.RULE:
            return f"after {wait}, by the rule: {text(event, RULE)}"
        case WaitSource.RETRY_AFTER:
            return f"after {wait}, as Retry-After says"
        case WaitSource.IMMEDIATE:
            return "at once: the connection may have been stale"
        case source:
            return f"after {wait}, by {source}"


def _offset(trace: Trace, moment: int | None) -> str:
    return f"{f'+{duration(seconds(moment, trace.call.start_time))}':>8}"


def _line(*parts: str | tuple[str, str]) -> Text:
    """A line that is cut at the edge of the screen rather than broken."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def verdict(checks: tuple[Check, ...]) -> RenderableType:
    """What was checked, and whether it holds."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for check in checks:
        table.add_row(Text("FAILED", "bold red") if check.fault else Text("ok", "green"), Text(check.what))
        if check.fault:
            table.add_row("", Text(plain(check.fault)))
    return titled("Checked", table)


def page(path: Path, size: int) -> RenderableType:
    """Where the page is that shows all of it."""
    return titled("Page", Text(f"{plain(str(path))}, {size / 1024:,.0f} kB: open it in a browser."))


def delivery(sent: Delivery) -> RenderableType:
    """What has become of the spans at the endpoint."""
    spans = count(sent.spans, "span")
    if sent.why is None:
        return titled("Spans", Text(f"{spans} of the service {sent.service} sent to {sent.url}: all have arrived."))
    some = f"{sent.arrived} of {spans}" if sent.arrived else f"None of {spans}"
    return titled("Spans", Text(f"{some} arrived at {sent.url}: {sent.why}.", "red"))


def titled(title: str, *parts: RenderableType) -> RenderableType:
    """A section of the screen."""
    return Group(Text(title, "bold underline"), *parts, Text())
