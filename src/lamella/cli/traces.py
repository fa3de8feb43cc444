"""The spans of calls, put together again: each call with its sends and its decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.cli.words import plain
from lamella.rules import StopReason
from lamella.telemetry.names import ERROR_TYPE, OUTCOME, RETRY_EVENT, URL_FULL, WAIT_SOURCE

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan

__all__ = [
    "Trace",
    "attribute",
    "context",
    "interest",
    "number",
    "path",
    "seconds",
    "stop_phrase",
    "text",
]


@dataclass(frozen=True, slots=True)
class Trace:
    """The INTERNAL span of a call, and its CLIENT spans in the order in which they began."""

    call: ReadableSpan
    sends: tuple[ReadableSpan, ...]

    @property
    def succeeded(self) -> bool:
        """Whether the call ended well."""
        return attribute(self.call, OUTCOME) == "success"

    @property
    def retries(self) -> list[Event]:
        """The decisions to send again."""
        return [event for event in self.call.events if event.name == RETRY_EVENT]


def interest(trace: Trace) -> tuple[int, int]:
    """How much there is to see in a trace: distinct things first, then sends."""
    ends = {attribute(send, ERROR_TYPE) for send in trace.sends}
    reasons = {attribute(event, WAIT_SOURCE) for event in trace.retries}
    return len(ends) + len(reasons), len(trace.sends)


def context(span: ReadableSpan) -> SpanContext:
    """The ids of a span."""
    return span.get_span_context() or INVALID_SPAN_CONTEXT


def attribute(of: ReadableSpan | Event, name: str) -> AttributeValue | None:
    """An attribute, or None."""
    return (of.attributes or {}).get(name)


def number(of: ReadableSpan | Event, name: str) -> float:
    """An attribute that is a number, or 0."""
    value = attribute(of, name)
    return value if isinstance(value, int | float) else 0.0


def text(of: ReadableSpan | Event, name: str) -> str:
    """An attribute as a text for one line, or an empty one."""
    value = attribute(of, name)
    return "" if value is None else plain(str(value))


def path(trace: Trace) -> str:
    """What was called: path and query as they were sent."""
    url = text(trace.call, URL_FULL)
    try:
        return plain(URL(url).raw_path_qs)
    except ValueError:
        return url


def stop_phrase(reason: str) -> str:
    """Why there was no further try, in words."""
    try:
        return StopReason(reason).phrase
    except ValueError:
        return reason


def seconds(nanoseconds: int | None, since: int | None = 0) -> float:
    """The time of a span or an event, from the moment *since* on."""
    return ((nanoseconds or 0) - (since or 0)) / 1e9
