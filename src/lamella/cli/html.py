"""The page of a run: totals and a waterfall of calls in one self-contained HTML file."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import format_trace_id

from lamella.cli.causes import Cause
from lamella.cli.report import Check, Total
from lamella.cli.terminal import some
from lamella.cli.traces import Trace, attribute, context, number, path, stop_phrase, text, tree_text
from lamella.redaction import redact_text
from lamella.rules import WaitSource
from lamella.telemetry import names

_Json = dict[str, Any]

_KINDS: Final = {"2xx": "2xx", "3xx": "3xx", "4xx": "4xx", "429": "429", "5xx": "5xx", "none": "no answer"}
"""How an attempt may end, by name in the data: the label on the page. Each has its own colour."""
_SOURCES: Final[dict[str, str]] = {
    WaitSource.RULE: "by the rule",
    WaitSource.RETRY_AFTER: "by Retry-After",
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
_environment.filters["some"] = some
# The filter tojson escapes everything that could end the script: <, >, & and quotes.
_environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}


@dataclass(frozen=True, slots=True)
class Page:
    """The content of the page."""

    title: str  # short title of the run
    about: str  # description of the run, one or two sentences
    totals: Sequence[Total]
    causes: Sequence[Cause]
    checks: Sequence[Check]
    traces: Sequence[Trace]  # the calls, in the order in which they began
    note: str = ""  # which calls these are; empty: all


def html_report(page: Page) -> str:
    """Return the page as text."""
    began = min((trace.call.start_time or 0 for trace in page.traces), default=0)
    calls = [_call(trace, began) for trace in page.traces]
    nested: dict[str, list[Total]] = {}
    whole = ""
    for total in page.totals:
        whole = whole if total.nested else total.name
        nested.setdefault(whole, []).extend([total] * total.nested)
    ends = Counter(attempt["kind"] for call in calls for attempt in call["attempts"])
    # These files are part of the package, so marking them as safe is correct.
    style, script = (Markup(_loader.get_source(_environment, f"report.{kind}")[0]) for kind in ("css", "js"))  # noqa: S704
    return _environment.get_template("report.html.j2").render(
        page=page,
        version=version("lamella"),
        totals=[total for total in page.totals if not total.nested],
        parts=[(whole, own) for whole, own in nested.items() if own],
        kinds=[(kind, name, ends[kind]) for kind, name in _KINDS.items() if kind in ends],
        calls=calls,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _hash(inline: str) -> str:
    """Return the hash with which the page's Content-Security-Policy allows only our own style and script."""
    return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"


def _call(trace: Trace, began: int) -> _Json:
    """Return a call for the script. Times are in microseconds since the start of the first call."""
    attempts = [_attempt(attempt, began) for attempt in trace.attempts]
    for event in trace.call.events:
        if event.name in {names.RETRY_EVENT, names.STOP_EVENT}:
            # A decision follows its attempt.
            before = [attempt for attempt in attempts if attempt["at"] <= _since(event.timestamp, began)]
            if before:
                before[-1]["decision"] = _decision(event, began)
    return {
        "at": _since(trace.call.start_time, began),
        "took": _since(trace.call.end_time, trace.call.start_time),
        "method": text(trace.call, names.METHOD_ORIGINAL) or text(trace.call, names.METHOD),
        "path": path(trace),
        "account": redact_text(trace.account),
        **_resource(trace),
        "outcome": text(trace.call, names.OUTCOME),
        "trace": format_trace_id(context(trace.call).trace_id),
        "attempts": attempts,
        "others": list(_other_waits(trace, began)),
        "tree": tree_text(trace),
    }


def _resource(trace: Trace) -> _Json:
    """Return the path with its variable parts named, where it differs from the path of the call."""
    template = text(trace.call, names.URL_TEMPLATE)
    return {} if template in {"", path(trace).partition("?")[0]} else {"template": template}


def _attempt(attempt: ReadableSpan, began: int) -> _Json:
    error, status = text(attempt, names.ERROR_TYPE), text(attempt, names.STATUS)
    ended = error or status
    # A truncated response has an error, which matters more than its status.
    kind = "429" if ended == "429" else f"{ended[:1]}xx" if ended.isdecimal() else ""
    return {
        "at": _since(attempt.start_time, began),
        "took": _since(attempt.end_time, attempt.start_time),
        "kind": kind if kind in _KINDS else "none",
        "ended": ended or "no answer",
    }


def _decision(event: Event, began: int) -> _Json:
    decision: _Json = {"at": _since(event.timestamp, began), "rule": text(event, names.RULE)}
    if event.name == names.STOP_EVENT:
        decision["stop"] = stop_phrase(text(event, names.STOP_REASON))
    else:
        source = text(event, names.WAIT_SOURCE)
        decision |= {"wait": round(number(event, names.WAIT) * 1e6), "source": _SOURCES.get(source, source)}
    if attribute(event, names.ATTEMPTS_LEFT) is not None:
        decision["left"] = int(number(event, names.ATTEMPTS_LEFT))
    if attribute(event, names.DEADLINE_LEFT) is not None:
        decision["deadline"] = round(number(event, names.DEADLINE_LEFT) * 1e6)
    return decision


def _other_waits(trace: Trace, began: int) -> Iterator[_Json]:
    """Yield waits that do not precede a retry, such as those in the queue of an account."""
    for event in trace.call.events:
        wait = number(event, names.WAIT)
        if wait and event.name not in {names.RETRY_EVENT, names.STOP_EVENT}:
            yield {"at": _since(event.timestamp, began), "wait": round(wait * 1e6), "name": event.name}


def _since(moment: int | None, began: int | None) -> int:
    return round(((moment or 0) - (began or 0)) / 1000)
