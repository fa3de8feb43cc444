"""What the demo shows: tables and trees from its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from opentelemetry.trace import format_trace_id
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree
from yarl import URL

from lamella import telemetry
from lamella.cli.otlp import SERVICE, Delivery
from lamella.cli.traces import Trace, attribute, context, interest, number, seconds, traces
from lamella.cli.words import count, duration, plain
from lamella.errors import ApiError, LamellaError, TransportError
from lamella.policy import StopReason, WaitSource

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan

    from lamella.cli.demo import Check, Result

__all__ = ["delivery", "failures", "how_to_deliver", "outcome", "tree", "trees", "verdict"]

_WHAT, _ENDED = 13, 14  # columns for what a line of the tree is, and for how a send ended


def outcome(result: Result) -> RenderableType:
    """How many calls ended well, and what it took: sends, retries by cause, waits."""
    found = traces(result.spans)
    retries = [event for trace in found for event in trace.retries]
    waits = sorted(number(event, telemetry.WAIT) for event in retries)
    causes = Counter(_text(event, telemetry.ERROR_TYPE) for event in retries)
    sends = sum(len(trace.sends) for trace in found)
    well = sum(end.error is None and end.other is None for end in result.ended)
    calls = len(result.planned)

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("calls", str(calls), f"for {count(result.settings.accounts, 'account')}")
    table.add_row("ended well", str(well), f"{well / calls:.0%}")
    table.add_row("failed", str(calls - well), "below, by cause")
    table.add_row("sends", str(sends), f"{sends / calls:.2f} a call; the sandbox received {len(result.received)}")
    table.add_row("retries", str(len(retries)))
    for cause, many in sorted(causes.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(f"  after {cause}", str(many))
    if waits:
        table.add_row("waits", duration(sum(waits)), "in sum, of all calls")
        table.add_row("  median", duration(median(waits)))
        table.add_row("  longest", duration(waits[-1]))
    table.add_row("time", duration(result.took))
    return _titled("Outcome", table)


@dataclass(frozen=True, slots=True)
class _Cause:
    what: str
    stopped: str
    hint: str


def failures(result: Result) -> RenderableType:
    """The calls that failed, by cause: how many, why there was no further try, what to do."""
    groups: dict[_Cause, list[LamellaError]] = {}
    for end in result.ended:
        if end.error is not None:
            groups.setdefault(_cause(end.error), []).append(end.error)
    if not groups:
        return _titled("Failures", Text("None."))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for cause, errors in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0].what, item[0].stopped)):
        head = Text.assemble((cause.what, "bold red"), f", stopped: {cause.stopped}")
        table.add_row(f"{len(errors)} ×", head)
        # The calls end in any order, so the first of them would be another one each time.
        if said := min(filter(None, map(_said, errors)), default=""):
            table.add_row("", Text(f"it said: {said}"))
        table.add_row("", Text(cause.hint))
    return _titled("Failures", table)


def _cause(error: LamellaError) -> _Cause:
    what = f"{error.status} {error.rule.title}" if isinstance(error, ApiError) else error.rule.title
    return _Cause(what, error.stopped.phrase if error.stopped else "unknown", error.rule.hint)


def _said(error: LamellaError) -> str:
    """What the server or the network said, in a line."""
    if isinstance(error, TransportError):
        return plain(error.reason)
    said = (error.validation_errors or error.downstream_errors or error.details) if isinstance(error, ApiError) else ()
    return plain("; ".join(said))


def trees(result: Result) -> RenderableType:
    """The two calls with the most to see in them: one that ended well after several sends, one that did not."""
    found = traces(result.spans)
    chosen = (
        ("A call that ended well", [trace for trace in found if trace.succeeded and len(trace.sends) > 1]),
        ("A call that failed", [trace for trace in found if not trace.succeeded]),
    )
    # max() takes the first of equals: the one that began first.
    return Group(*(_titled(title, tree(max(some, key=interest))) for title, some in chosen if some))


def tree(trace: Trace) -> Tree:
    """A call as a tree: its span, and below it in the order of time its sends and its decisions."""
    lines = [(send.start_time or 0, _send(trace, send)) for send in trace.sends]
    lines += [(event.timestamp, _decision(trace, event)) for event in trace.call.events]
    root = Tree(Group(*_call(trace)), guide_style="dim")
    for _, line in sorted(lines, key=lambda item: item[0]):
        root.add(line)
    return root


def _call(trace: Trace) -> Iterator[Text]:
    span = trace.call
    yield _line((plain(span.name), "bold"))
    ended, style = _text(span, telemetry.OUTCOME), "green" if trace.succeeded else "red"
    attempts = count(int(number(span, telemetry.ATTEMPTS)), "attempt")
    took, waited = duration(seconds(span.end_time, span.start_time)), duration(number(span, telemetry.WAIT))
    yield _line("INTERNAL  ", (ended, style), f" after {attempts} in {took}, {waited} of it in waits")
    if stop := _text(span, telemetry.STOP_REASON):
        yield _line("stopped: ", (_phrase(stop), style))
    yield _line((f"path {plain(URL(_text(span, telemetry.URL_FULL)).raw_path_qs)}", "dim"))
    yield _line((f"trace {format_trace_id(context(span).trace_id)}", "dim"))


def _send(trace: Trace, send: ReadableSpan) -> Text:
    error = _text(send, telemetry.ERROR_TYPE)
    ended = error or _text(send, telemetry.STATUS)
    resent = (
        f"  resend_count={int(number(send, telemetry.RESEND_COUNT))}" if _text(send, telemetry.RESEND_COUNT) else ""
    )
    return _line(
        f"{_offset(trace, send.start_time)}  {f'CLIENT {_text(send, telemetry.METHOD)}':<{_WHAT}} ",
        (f"{ended:<{_ENDED}}", "red" if error else "green"),
        f"  {duration(seconds(send.end_time, send.start_time)):>7}{resent}",
    )


def _decision(trace: Trace, event: Event) -> Text:
    if event.name == telemetry.RETRY_EVENT:
        name, style, why = "retry", "yellow", _wait(event)
    elif event.name == telemetry.STOP_EVENT:
        name, style, why = "stop", "red", _phrase(_text(event, telemetry.STOP_REASON))
    else:
        name, style = plain(event.name), ""
        why = ", ".join(f"{key}={_text(event, key)}" for key in event.attributes or ())
    return _line(f"{_offset(trace, event.timestamp)}  ", (f"{name:<{_WHAT}} ", style), why)


def _wait(event: Event) -> str:
    wait = duration(number(event, telemetry.WAIT))
    match _text(event, telemetry.WAIT_SOURCE):
        case WaitSource.RULE:
            return f"after {wait}, by the rule: {_text(event, telemetry.RULE)}"
        case WaitSource.RETRY_AFTER:
            return f"after {wait}, as Retry-After says"
        case WaitSource.IMMEDIATE:
            return "at once: the connection may have been stale"
        case source:
            return f"after {wait}, by {source}"


def _offset(trace: Trace, moment: int | None) -> str:
    return f"{f'+{duration(seconds(moment, trace.call.start_time))}':>8}"


def _phrase(reason: str) -> str:
    try:
        return StopReason(reason).phrase
    except ValueError:
        return reason


def _text(of: ReadableSpan | Event, name: str) -> str:
    value = attribute(of, name)
    return "" if value is None else plain(str(value))


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
    return _titled("Checked", table)


def delivery(sent: Delivery) -> RenderableType:
    """What has become of the spans at the endpoint."""
    spans = count(sent.spans, "span")
    if sent.why is None:
        return _titled("Spans", Text(f"{spans} of the service {SERVICE} sent to {sent.url}: all have arrived."))
    some = f"{sent.arrived} of {spans}" if sent.arrived else f"None of {spans}"
    return _titled("Spans", Text(f"{some} arrived at {sent.url}: {sent.why}.", "red"))


def how_to_deliver() -> RenderableType:
    """How to see the same in a backend."""
    return _titled(
        "Spans",
        Text(f"To look at them in a trace backend that takes OTLP over HTTP, as the service {SERVICE}:"),
        Padding(Text("lamella demo --otlp http://localhost:4318"), (1, 2, 0, 2)),
    )


def _titled(title: str, *parts: RenderableType) -> RenderableType:
    return Group(Text(title, "bold underline"), *parts, Text())
