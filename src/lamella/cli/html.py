"""The page of a run: the totals, and a waterfall of its calls, in one HTML file that loads nothing."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from opentelemetry.trace import format_trace_id

from lamella.cli.causes import Cause
from lamella.cli.check import Check
from lamella.cli.counting import Total
from lamella.cli.report import tree_text
from lamella.cli.traces import Trace, attribute, context, number, path, stop_phrase, text
from lamella.cli.words import some
from lamella.rules import WaitSource
from lamella.telemetry.names import (
    ATTEMPTS_LEFT,
    DEADLINE_LEFT,
    ERROR_TYPE,
    METHOD,
    METHOD_ORIGINAL,
    OUTCOME,
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

__all__ = ["Page", "html_report"]

_Json = dict[str, Any]

_KINDS: Final = {"2xx": "2xx", "3xx": "3xx", "4xx": "4xx", "429": "429", "5xx": "5xx", "none": "no answer"}
"""What a send may have come to, each a colour: its name in the data, and what it is called."""

_SOURCES: Final = {
    WaitSource.RULE: "by the rule",
    WaitSource.RETRY_AFTER: "as Retry-After says",
    WaitSource.IMMEDIATE: "none: the connection may have been stale",
}

_loader = PackageLoader("lamella.cli")
_environment = Environment(
    loader=_loader,
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# The filter tojson escapes whatever could end the script: <, >, & and quotes.
_environment.filters["some"] = some
_environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}


@dataclass(frozen=True, slots=True)
class Page:
    """What goes on it."""

    name: str
    """Of the command."""
    title: str
    """Which run of it this is, in a few words."""
    about: str
    """The same in a sentence or two."""
    totals: tuple[Total, ...]
    causes: tuple[Cause, ...]
    checks: tuple[Check, ...]
    """Empty: nothing was checked."""
    traces: tuple[Trace, ...]
    """The calls, in the order in which they began."""
    note: str = ""
    """Which of all calls these are. Empty: all."""


def html_report(page: Page) -> str:
    """The page as a text."""
    began = min((trace.call.start_time or 0 for trace in page.traces), default=0)
    calls = [_call(trace, began) for trace in page.traces]
    style, script = _asset("report.css"), _asset("report.js")
    return _environment.get_template("report.html.j2").render(
        page=page,
        version=version("lamella"),
        totals=[total for total in page.totals if not total.nested],
        parts=_parts(page.totals),
        kinds=_used(calls),
        calls=calls,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _asset(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup(_loader.get_source(_environment, name)[0])  # noqa: S704 - nobody's text but ours


def _hash(inline: str) -> str:
    """By which the page's policy knows our own style and script, and lets no other run."""
    return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"


def _parts(totals: tuple[Total, ...]) -> list[tuple[str, list[Total]]]:
    """The totals that have parts, each with those."""
    parts: dict[str, list[Total]] = {}
    whole = ""
    for total in totals:
        if total.nested:
            parts.setdefault(whole, []).append(total)
        else:
            whole = total.name
    return list(parts.items())


def _used(calls: list[_Json]) -> list[tuple[str, str, int]]:
    """The kinds of ends that there are, with their names and how many sends came to them."""
    ends = Counter(send["kind"] for call in calls for send in call["sends"])
    return [(kind, name, ends[kind]) for kind, name in _KINDS.items() if kind in ends]


def _call(trace: Trace, began: int) -> _Json:
    """A call for the script: times are in microseconds, from the start of the first call on."""
    sends = [_send(send, began) for send in trace.sends]
    for event in trace.call.events:
        if event.name in {RETRY_EVENT, STOP_EVENT}:
            # A decision belongs to the send before it.
            before = [send for send in sends if send["at"] <= _since(event.timestamp, began)]
            if before:
                before[-1]["decision"] = _decision(event, began)
    return {
        "at": _since(trace.call.start_time, began),
        "took": _since(trace.call.end_time, trace.call.start_time),
        "method": text(trace.call, METHOD_ORIGINAL) or text(trace.call, METHOD),
        "path": path(trace),
        "outcome": text(trace.call, OUTCOME),
        "trace": format_trace_id(context(trace.call).trace_id),
        "sends": sends,
        "others": list(_others(trace, began)),
        "tree": tree_text(trace),
    }


def _send(send: ReadableSpan, began: int) -> _Json:
    return {
        "at": _since(send.start_time, began),
        "took": _since(send.end_time, send.start_time),
        "kind": _kind(send),
        "ended": text(send, ERROR_TYPE) or text(send, STATUS) or "no answer",
    }


def _kind(send: ReadableSpan) -> str:
    """By the colour: an answer that broke off in the middle is none, whatever its status was."""
    error, status = text(send, ERROR_TYPE), attribute(send, STATUS)
    ended = error or str(status)
    if ended == "429":
        return ended
    kind = f"{ended[:1]}xx"
    return kind if ended.isdecimal() and kind in _KINDS else "none"


def _decision(event: Event, began: int) -> _Json:
    decision: _Json = {"at": _since(event.timestamp, began), "rule": text(event, RULE)}
    if event.name == STOP_EVENT:
        decision["stop"] = stop_phrase(text(event, STOP_REASON))
    else:
        source = text(event, WAIT_SOURCE)
        decision["wait"] = round(number(event, WAIT) * 1e6)
        decision["source"] = next((words for name, words in _SOURCES.items() if name == source), source)
    if attribute(event, ATTEMPTS_LEFT) is not None:
        decision["left"] = int(number(event, ATTEMPTS_LEFT))
    if attribute(event, DEADLINE_LEFT) is not None:
        decision["deadline"] = round(number(event, DEADLINE_LEFT) * 1e6)
    return decision


def _others(trace: Trace, began: int) -> Iterator[_Json]:
    """Waits that are not before a retry, as for a slot under a limit."""
    for event in trace.call.events:
        wait = number(event, WAIT)
        if wait and event.name not in {RETRY_EVENT, STOP_EVENT}:
            yield {"at": _since(event.timestamp, began), "wait": round(wait * 1e6), "name": event.name}


def _since(moment: int | None, began: int | None) -> int:
    return round(((moment or 0) - (began or 0)) / 1000)
