"""What is shown, line by line, for spans and errors that are given."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from rich.console import Console, RenderableType
from yarl import URL

from lamella import ConnectionLost, Rule, StopReason
from lamella.cli import counting, report
from lamella.cli.check import Check
from lamella.cli.demo import Ended, Result
from lamella.cli.otlp import Delivery
from lamella.cli.plan import Planned, Settings
from lamella.cli.traces import traces
from lamella.rules import Failure

MS = 1_000_000
START = 1_700_000_000 * 1000 * MS
GET = "http://127.0.0.1:1/accounting/invoices/7?limit=5"


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


def send(number: int, of: int, start: float, end: float, method: str = "GET", **more: str | float) -> ReadableSpan:
    """The span of a send of the call *of*."""
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
        send(14, 10, 2545, 2550, http__response__status_code=200, http__request__resend_count=3),
        send(11, 10, 1.5, 11.4, http__response__status_code=500, error__type="500"),
        send(13, 10, 530, 535, error__type="429", http__request__resend_count=2),
        send(12, 10, 512, 515, error__type="ConnectionLost", http__request__resend_count=1),
        call(10, 0, 2551, *events, lamella__outcome="success", lamella__attempts=4, lamella__wait=2.5),
    ]


def a_bad_call() -> list[ReadableSpan]:
    stopped = {"lamella__stop_reason": "unsafe_method"}
    stop = event("lamella.stop", 9, error__type="500", **stopped)
    ended: dict[str, str | float] = {"lamella__outcome": "failure", "lamella__attempts": 1, "lamella__wait": 0}
    return [
        send(21, 20, 1, 8, "POST", http__response__status_code=500, error__type="500"),
        call(20, 0, 10, stop, method="POST", **ended, **stopped),
    ]


def error(reason: str = "reset", stopped: StopReason = StopReason.UNSAFE_METHOD) -> ConnectionLost:
    rule = Rule(Failure.CONNECTION_LOST, "Connection Lost", hint="Look before you send it again.")
    lost = ConnectionLost("POST", URL(GET), rule, reason)
    lost.stopped = stopped
    return lost


def result() -> Result:
    calls = tuple(Planned(number, "a", "GET", "/", {}, {}, None, ()) for number in (1, 2))
    ended = (Ended(1), Ended(2, error()))
    return Result(Settings(2, 3, 1, 1.0), calls, ended, (*a_good_call(), *a_bad_call()), (), 0, 2.56)


def test_the_tree_of_a_call_that_ended_well() -> None:
    [trace] = traces(a_good_call())
    assert text_of(report.tree(trace)) == (
        "lamella GET /accounting/invoices/{id}\n"
        "INTERNAL  success after 4 attempts in 2.55 s, 2.5 s of it in waits\n"
        "path /accounting/invoices/7?limit=5\n"
        "trace 00000000000000000000000000000001\n"
        "├──  +1.5 ms  CLIENT GET    500              9.9 ms\n"
        "├──   +12 ms  retry         after 500 ms, by the rule: Server Error\n"
        "├──  +512 ms  CLIENT GET    ConnectionLost     3 ms  resend_count=1\n"
        "├──  +520 ms  retry         at once: the connection may have been stale\n"
        "├──  +530 ms  CLIENT GET    429                5 ms  resend_count=2\n"
        "├──  +540 ms  retry         after 2 s, as Retry-After says\n"
        "├──  +545 ms  queued        for 1.9 s, its account was rate-limited\n"
        "├──  +2.54 s  lamella.unheard_of seconds=2\n"
        "└──  +2.54 s  CLIENT GET    200                5 ms  resend_count=3"
    )


def test_the_tree_of_a_call_that_failed() -> None:
    [trace] = traces(a_bad_call())
    assert text_of(report.tree(trace)) == (
        "lamella POST /accounting/invoices/{id}\n"
        "INTERNAL  failure after 1 attempt in 10 ms, 0 s of it in waits\n"
        "stopped: unsafe method\n"
        "path /accounting/invoices/7?limit=5\n"
        "trace 00000000000000000000000000000001\n"
        "├──    +1 ms  CLIENT POST   500                7 ms\n"
        "└──    +9 ms  stop          unsafe method"
    )


def test_the_most_interesting_calls_are_chosen() -> None:
    dull = call(30, -5, -1, lamella__outcome="success", lamella__attempts=2)
    sends = [send(31 + number, 30, number - 5, number - 4, http__response__status_code=200) for number in range(2)]
    single = call(40, -9, -8, lamella__outcome="success", lamella__attempts=1)
    shown = text_of(report.trees(replace(result(), spans=(dull, *sends, single, *a_good_call(), *a_bad_call()))))
    assert shown.count("lamella GET") == shown.count("lamella POST") == 1
    assert "4 attempts" in shown
    assert shown.index("A call that ended well") < shown.index("A call that failed")


def test_without_a_call_to_show() -> None:
    assert text_of(report.trees(replace(result(), spans=()))) == ""


def test_the_outcome() -> None:
    assert text_of(report.outcome(counting.totals(result()))) == (
        "Outcome\n"
        "calls                        2  for 3 accounts\n"
        "ended well                   1  50%\n"
        "failed                       1  below, by cause\n"
        "sends                        5  2.50 a call; the sandbox received 0\n"
        "retries                      3\n"
        "  after 429                  1\n"
        "  after 500                  1\n"
        "  after ConnectionLost       1\n"
        "waits                    2.5 s  in sum, of all calls\n"
        "  median                500 ms\n"
        "  longest                  2 s\n"
        "time                    2.56 s\n"
    )


def test_failures_by_cause() -> None:
    ended = (
        Ended(1, error("Server disconnected")),
        Ended(2, error("reset", StopReason.ATTEMPTS_USED_UP)),
        Ended(3, error("Connection reset by peer")),
        Ended(4),
    )
    shown = text_of(report.failures(counting.causes(replace(result(), ended=ended))))
    assert shown == (
        "Failures\n"
        "2 × Connection Lost, stopped: unsafe method\n"
        "    it said: Connection reset by peer\n"
        "    Look before you send it again.\n"
        "1 × Connection Lost, stopped: attempts used up\n"
        "    it said: reset\n"
        "    Look before you send it again.\n"
    )
    assert shown == text_of(report.failures(counting.causes(replace(result(), ended=ended[::-1]))))
    assert text_of(report.failures(counting.causes(replace(result(), ended=())))) == "Failures\nNone.\n"


def test_checks() -> None:
    shown = text_of(report.verdict((Check("All is well.", None), Check("Nothing is lost.", "1 call is"))))
    assert shown == "Checked\nok     All is well.\nFAILED Nothing is lost.\n       1 call is\n"


@pytest.mark.parametrize(
    ("delivery", "line"),
    [
        (
            Delivery("lamella-demo", "http://a", 9, 9, None),
            "9 spans of the service lamella-demo sent to http://a: all have arrived.",
        ),
        (Delivery("lamella-demo", "http://a", 9, 0, "refused"), "None of 9 spans arrived at http://a: refused."),
        (Delivery("lamella-demo", "http://a", 9, 4, "late"), "4 of 9 spans arrived at http://a: late."),
    ],
)
def test_delivery(delivery: Delivery, line: str) -> None:
    assert text_of(report.delivery(delivery), 120) == f"Spans\n{line}\n"


EVIL = "[bold red]x[/]\x1b[2J\x07\r\n\x9b31m:smile:\u202e"


@pytest.mark.parametrize("color", [False, True])
def test_a_text_from_elsewhere_is_only_text(color: bool) -> None:
    events = (event(EVIL, 1, x=EVIL), event("lamella.stop", 2, lamella__stop_reason=EVIL))
    ended = {"lamella__outcome": EVIL, "lamella__stop_reason": EVIL}
    spans = (
        call(10, 0, 5, *events, method=EVIL, **ended, url__full=f"http://h/{EVIL}"),
        send(11, 10, 1, 2, EVIL, error__type=EVIL),
    )
    hostile = replace(result(), spans=spans, ended=(Ended(1, error(EVIL)),))
    checks = (Check("x", EVIL),)
    for part in (report.trees(hostile), report.failures(counting.causes(hostile)), report.verdict(checks)):
        shown = text_of(part, 200, color=color)
        assert "[bold red]x[/]" in shown
        assert "smile" in shown
        for bad in ("\x1b[2J", "\x07", "\r", "\x9b", "\u202e"):
            assert bad not in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_longer_than_the_screen(width: int) -> None:
    for part in (
        report.trees(result()),
        report.outcome(counting.totals(result())),
        report.failures(counting.causes(result())),
        report.how_to_deliver("lamella-demo", "lamella demo"),
    ):
        assert max(map(len, text_of(part, width).splitlines())) <= width
