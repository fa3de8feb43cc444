"""Assemble the spans of a run: each call with its attempts and decisions, also as a tree."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, SpanKind, format_trace_id
from opentelemetry.util.types import AttributeValue
from rich.console import Group
from rich.text import Text
from rich.tree import Tree
from yarl import URL

from lamella.cli.colours import FAILED, MINOR, PASSED, QUEUED, RUNNING
from lamella.cli.terminal import count, duration, line
from lamella.redaction import redact_text
from lamella.rules import StopReason, WaitSource
from lamella.telemetry import names

_FAILED, _RETRIED, _OTHERS = range(3)
_KINDS = ("that failed", "with more than one attempt", "others")
_WHAT, _ENDED = 13, 14  # widths of the columns for the label of a line and the result of an attempt

_IN_WORDS: Final = {
    names.CIRCUIT_OPEN_EVENT: ("circuit open", "for {open_for} s: too many attempts have failed"),
    names.CIRCUIT_CLOSE_EVENT: ("circuit closed", "after {was_open} s"),
    names.BELIEF_EVENT: (
        "limit learned",
        "{kind}: {requests} in {period} s, {in_flight} in flight (0: unknown)",
    ),
    names.STORE_EVENT: ("store failed", "{type}: shared state is not used meanwhile"),
    names.TOKEN_EVENT: ("token", "{result}"),
}
"""Titles and texts of events. Placeholders are the last parts of attribute names."""


class Trace(NamedTuple):
    """The INTERNAL span of a call, and its CLIENT spans in the order in which they began."""

    call: ReadableSpan
    attempts: tuple[ReadableSpan, ...]
    account: str = ""  # name of the account; empty: unknown

    @property
    def succeeded(self) -> bool:
        """Whether the call succeeded."""
        return attribute(self.call, names.OUTCOME) == "success"

    @property
    def is_retried(self) -> bool:
        """Whether the call succeeded after several attempts."""
        return self.succeeded and len(self.attempts) > 1

    @property
    def retries(self) -> list[Event]:
        """The decisions to make another attempt."""
        return [event for event in self.call.events if event.name == names.RETRY_EVENT]


class Collector(SpanProcessor):
    """Count all calls and attempts of a run, and keep the traces of at most *most* calls.

    Failed calls are kept first, then calls with more than one attempt. If a kind has too many calls, a random sample is
    kept.

    Args:
        most: Maximum number of traces.
        account: Called in the context of each call when it begins; returns the name of its account. None means unknown.
    """

    def __init__(self, most: int = 2000, account: Callable[[], str | None] = lambda: None) -> None:
        self.spans: int = 0
        self.attempts: int = 0
        self.waited: float = 0.0  # seconds between attempts, summed over all calls
        self.after: Counter[str] = Counter()  # number of retries after each kind of failure
        self._most = most
        self._ended: Counter[int] = Counter()  # number of calls of each kind
        self._kept: tuple[list[Trace], ...] = ([], [], [])
        self._open: dict[int, list[ReadableSpan]] = {}
        """Attempts of running calls, by the id of the call's span."""
        self._account = account
        self._accounts: dict[int, str] = {}
        """Accounts of running calls, by the id of the call's span."""
        self._random = random.Random(0)
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """The number of ended calls."""
        return self._ended.total()

    @property
    def traces(self) -> tuple[Trace, ...]:
        """The kept traces, in the order in which the calls began."""
        with self._lock:
            kept = [trace for traces in self._kept for trace in traces]
        return tuple(sorted(kept, key=lambda trace: _start(trace.call)))

    @property
    def note(self) -> str:
        """Which calls are kept. Empty: all."""
        if self.calls <= self._most:
            return ""
        shown = []
        for kind, name in enumerate(_KINDS):
            if len(self._kept[kind]) < self._ended[kind]:
                shown.append(f"a sample of {'the' if kind == _OTHERS else 'those'} {name}")
                break
            if self._ended[kind]:
                shown.append(f"all {self._ended[kind]:,} {name}")
        *most, last = shown
        kinds = f"{', '.join(most)} and {last}" if most else last
        return f"{self._most:,} of {self.calls:,} calls are shown: {kinds}."

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Record the account of a call that begins."""
        if span.kind is not SpanKind.CLIENT and (name := self._account()):
            with self._lock:
                self._accounts[context(span).span_id] = name

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span."""
        with self._lock:
            self.spans += 1
            account = self._accounts.pop(context(span).span_id, "")
            if span.kind is SpanKind.CLIENT and span.parent is not None:
                self.attempts += 1
                self._open.setdefault(span.parent.span_id, []).append(span)
            elif attribute(span, names.OUTCOME) is not None:
                attempts = self._open.pop(context(span).span_id, [])
                self._take(Trace(span, tuple(sorted(attempts, key=_start)), account))

    def _take(self, trace: Trace) -> None:
        for event in trace.retries:
            self.after[text(event, names.ERROR_TYPE)] += 1
            self.waited += number(event, names.WAIT)
        kind = _RETRIED if trace.is_retried else _OTHERS if trace.succeeded else _FAILED
        self._ended[kind] += 1
        kept = self._kept[kind]
        if sum(map(len, self._kept)) < self._most:
            kept.append(trace)
        elif lesser := next((traces for traces in self._kept[:kind:-1] if traces), None):
            lesser[self._random.randrange(len(lesser))] = lesser[-1]
            lesser.pop()
            kept.append(trace)
        elif kept and (place := self._random.randrange(self._ended[kind])) < len(kept):
            kept[place] = trace  # reservoir sampling: each call of a kind has the same chance


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def interest(trace: Trace) -> tuple[int, int]:
    """Return how interesting a trace is: first by the number of distinct events, then by attempts."""
    ends = {str(attribute(attempt, names.ERROR_TYPE)) for attempt in trace.attempts}
    sources = {str(attribute(event, names.WAIT_SOURCE)) for event in trace.retries}
    return len(ends) + len(sources), len(trace.attempts)


def context(span: ReadableSpan) -> SpanContext:
    """Return the ids of a span."""
    return span.get_span_context() or INVALID_SPAN_CONTEXT


def attribute(of: ReadableSpan | Event, name: str) -> AttributeValue | None:
    """Return an attribute, or None."""
    return (of.attributes or {}).get(name)


def number(of: ReadableSpan | Event, name: str) -> float:
    """Return an attribute that is a number, or 0."""
    value = attribute(of, name)
    return value if isinstance(value, int | float) else 0.0


def text(of: ReadableSpan | Event, name: str) -> str:
    """Return an attribute as text for one line, or empty text."""
    value = attribute(of, name)
    return "" if value is None else redact_text(str(value))


def path(trace: Trace) -> str:
    """Return the path and query of a call."""
    url = text(trace.call, names.URL_FULL)
    try:
        return redact_text(URL(url).raw_path_qs)
    except ValueError:
        return url


def stop_phrase(reason: str) -> str:
    """Return the reason for stopping in words."""
    return StopReason(reason).phrase if reason in set(StopReason) else reason


def seconds(nanoseconds: int | None, since: int | None = 0) -> float:
    """Return the time of a span or an event in seconds since *since*."""
    return ((nanoseconds or 0) - (since or 0)) / 1e9


def tree(trace: Trace) -> Tree:
    """Return a call as a tree: its span, and below it attempts and decisions in order of time."""
    root = Tree(Group(*_call(trace)), guide_style=MINOR)
    for branch in _branches(trace):
        root.add(branch)
    return root


def tree_text(trace: Trace) -> str:
    """Return the same tree as plain text with full lines; rich is too slow for thousands of them."""
    branches = [branch.plain for branch in _branches(trace)]
    guides = ["├── "] * (len(branches) - 1) + ["└── "]
    return "\n".join([*(head.plain for head in _call(trace)), *map("".join, zip(guides, branches, strict=False))])


def _branches(trace: Trace) -> list[Text]:
    lines = [(_start(attempt), _attempt(trace, attempt)) for attempt in trace.attempts]
    lines += [(event.timestamp, _decision(trace, event)) for event in trace.call.events]
    return [branch for _, branch in sorted(lines, key=lambda item: item[0])]


def _call(trace: Trace) -> Iterator[Text]:
    span = trace.call
    yield line((redact_text(span.name), "bold"))
    ended, style = text(span, names.OUTCOME), PASSED if trace.succeeded else FAILED
    attempts = count(int(number(span, names.ATTEMPTS)), "attempt")
    took, waited = duration(seconds(span.end_time, span.start_time)), duration(number(span, names.WAIT))
    yield line("INTERNAL  ", (ended, style), f" after {attempts} in {took}, {waited} of it in waits")
    if stop := text(span, names.STOP_REASON):
        yield line("stopped: ", (stop_phrase(stop), style))
    yield line((f"path {path(trace)}", MINOR))
    if trace.account:
        yield line((f"account {redact_text(trace.account)}", MINOR))
    yield line((f"trace {format_trace_id(context(span).trace_id)}", MINOR))


def _attempt(trace: Trace, attempt: ReadableSpan) -> Text:
    error = text(attempt, names.ERROR_TYPE)
    resent = f"  resend_count={int(number(attempt, names.RESEND_COUNT))}" if text(attempt, names.RESEND_COUNT) else ""
    return line(
        f"{_offset(trace, attempt.start_time)}  {f'CLIENT {text(attempt, names.METHOD)}':<{_WHAT}} ",
        (f"{error or text(attempt, names.STATUS):<{_ENDED}}", FAILED if error else PASSED),
        f"  {duration(seconds(attempt.end_time, attempt.start_time)):>7}{resent}",
    )


def _decision(trace: Trace, event: Event) -> Text:
    name, style = redact_text(event.name), ""
    if event.name == names.RETRY_EVENT:
        name, style, why = "retry", RUNNING, _wait(event)
    elif event.name == names.STOP_EVENT:
        name, style, why = "stop", FAILED, stop_phrase(text(event, names.STOP_REASON))
    elif event.name == names.QUEUED_EVENT:
        until = (
            "the account was rate-limited" if text(event, names.QUEUED_BY) == "refusal" else "in the account's queue"
        )
        name, style, why = "queued", QUEUED, f"for {duration(number(event, names.WAIT))}, {until}"
    elif event.name in _IN_WORDS:
        name, why = _IN_WORDS[event.name]
        values = {key.rpartition(".")[2]: text(event, key) for key in event.attributes or ()}
        why = why.format_map(defaultdict(str, values))
    else:
        why = ", ".join(f"{key}={text(event, key)}" for key in event.attributes or ())
    return line(f"{_offset(trace, event.timestamp)}  ", (f"{name:<{_WHAT}} ", style), why)


def _wait(event: Event) -> str:
    wait = duration(number(event, names.WAIT))
    match text(event, names.WAIT_SOURCE):
        case WaitSource.RULE:
            return f"after {wait}, by the rule: {text(event, names.RULE)}"
        case WaitSource.RETRY_AFTER:
            return f"after {wait}, by Retry-After"
        case WaitSource.IMMEDIATE:
            return "at once: the connection may have been stale"
        case source:
            return f"after {wait}, by {source}"


def _offset(trace: Trace, moment: int | None) -> str:
    return f"{f'+{duration(seconds(moment, trace.call.start_time))}':>8}"
