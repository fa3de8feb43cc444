"""What is shown, line by line, for spans and errors that are given."""

from __future__ import annotations

import pytest
from tests.cli.spans import GET, a_bad_call, a_good_call, attempt, call, event, text_of, traces
from yarl import URL

from lamella import ConnectionLost, Rule, StopReason
from lamella.cli import report
from lamella.cli.causes import Cause, causes_of
from lamella.cli.otlp import Delivery
from lamella.cli.report import Check, Total
from lamella.cli.traces import interest, tree
from lamella.rules import Failure
from lamella.sync import Part

TOTALS = (Total("calls", "2", "for 3 accounts"), Total("retries", "3"), Total("after ConnectionLost", "1", nested=True))


def error(reason: str = "reset", stopped: StopReason = StopReason.UNSAFE_METHOD) -> ConnectionLost:
    rule = Rule(Failure.CONNECTION_LOST, "Connection Lost", hint="Look before you send it again.")
    lost = ConnectionLost("POST", URL(GET), rule, reason)
    lost.stopped = stopped
    return lost


def causes(*errors: Exception) -> tuple[Cause, ...]:
    return causes_of([Part("Ada", f"list {number}", None, error=error) for number, error in enumerate(errors)])


def test_the_report_shows_the_tree_of_a_successful_call() -> None:
    [trace] = traces(a_good_call())
    assert text_of(tree(trace)) == (
        "lamella GET /accounting/invoices/{id}\n"
        "INTERNAL  success after 4 attempts in 2.55 s, 2.5 s of it in waits\n"
        "path /accounting/invoices/7?limit=5\n"
        "trace 00000000000000000000000000000001\n"
        "├──  +1.5 ms  CLIENT GET    500              9.9 ms\n"
        "├──   +12 ms  retry         after 500 ms, by the rule: Server Error\n"
        "├──  +512 ms  CLIENT GET    ConnectionLost     3 ms  resend_count=1\n"
        "├──  +520 ms  retry         at once: the connection may have been stale\n"
        "├──  +530 ms  CLIENT GET    429                5 ms  resend_count=2\n"
        "├──  +540 ms  retry         after 2 s, by Retry-After\n"
        "├──  +545 ms  queued        for 1.9 s, the account was rate-limited\n"
        "├──  +2.54 s  lamella.unheard_of seconds=2\n"
        "└──  +2.54 s  CLIENT GET    200                5 ms  resend_count=3"
    )


def test_the_report_shows_the_tree_of_a_failed_call() -> None:
    [trace] = traces(a_bad_call())
    assert text_of(tree(trace)) == (
        "lamella POST /accounting/invoices/{id}\n"
        "INTERNAL  failure after 1 attempt in 10 ms, 0 s of it in waits\n"
        "stopped: unsafe method\n"
        "path /accounting/invoices/7?limit=5\n"
        "trace 00000000000000000000000000000001\n"
        "├──    +1 ms  CLIENT POST   500                7 ms\n"
        "└──    +9 ms  stop          unsafe method"
    )


def test_the_report_shows_the_most_interesting_call() -> None:
    dull = call(30, -5, -1, lamella__outcome="success", lamella__attempts=2)
    sends = [attempt(31 + number, 30, number - 5, number - 4, http__response__status_code=200) for number in range(2)]
    single = call(40, -9, -8, lamella__outcome="success", lamella__attempts=1)
    found = traces((dull, *sends, single, *a_good_call(), *a_bad_call()))
    assert max(found, key=interest).call.name == "lamella GET /accounting/invoices/{id}"
    assert len(max(found, key=interest).attempts) == 4


def test_the_report_shows_the_outcome() -> None:
    assert text_of(report.outcome(TOTALS)) == (
        "Outcome\ncalls                   2  for 3 accounts\nretries                 3\n  after ConnectionLost  1\n"
    )


def test_the_report_groups_failures_by_cause() -> None:
    errors = (
        error("Server disconnected"),
        error("reset", StopReason.ATTEMPTS_USED_UP),
        error("Connection reset by peer"),
    )
    shown = text_of(report.failures(causes(*errors)))
    assert shown == (
        "Failures\n"
        "2 × Connection Lost, stopped: unsafe method\n"
        "    Ada\n"
        "    it said: Connection reset by peer\n"
        "    Look before you send it again.\n"
        "1 × Connection Lost, stopped: attempts used up\n"
        "    Ada\n"
        "    it said: reset\n"
        "    Look before you send it again.\n"
    )
    assert shown == text_of(report.failures(causes(*errors[::-1])))
    assert text_of(report.failures(())) == "Failures\nNone.\n"


def test_checks() -> None:
    shown = text_of(report.verdict((Check("All is well.", None), Check("Nothing is lost.", "1 call is"))))
    assert shown == "Checked\nok     All is well.\nFAILED Nothing is lost.\n       1 call is\n"


@pytest.mark.parametrize(
    ("delivery", "line"),
    [
        (
            Delivery("http://a", 9, 9, None),
            "9 spans of the service lamella-sync sent to http://a: all arrived.",
        ),
        (Delivery("http://a", 9, 0, "refused"), "None of 9 spans arrived at http://a: refused."),
        (Delivery("http://a", 9, 4, "late"), "4 of 9 spans arrived at http://a: late."),
    ],
)
def test_delivery(delivery: Delivery, line: str) -> None:
    assert text_of(report.titled("Spans", delivery), 120) == f"Spans\n{line}\n"


EVIL = "[bold red]x[/]\x1b[2J\x07\r\n\x9b31m:smile:\u202e"


@pytest.mark.parametrize("color", [False, True])
def test_external_text_in_the_report_is_printed_as_plain_text(color: bool) -> None:
    events = (event(EVIL, 1, x=EVIL), event("lamella.stop", 2, lamella__stop_reason=EVIL))
    ended = {"lamella__outcome": EVIL, "lamella__stop_reason": EVIL}
    [trace] = traces(
        (
            call(10, 0, 5, *events, method=EVIL, **ended, url__full=f"http://h/{EVIL}"),
            attempt(11, 10, 1, 2, EVIL, error__type=EVIL),
        )
    )
    checks = (Check("x", EVIL),)
    for part in (tree(trace), report.failures(causes(error(EVIL))), report.verdict(checks)):
        shown = text_of(part, 200, color=color)
        assert "[bold red]x[/]" in shown
        assert "smile" in shown
        for bad in ("\x1b[2J", "\x07", "\r", "\x9b", "\u202e"):
            assert bad not in shown


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_longer_than_the_screen(width: int) -> None:
    for part in (
        *map(tree, traces((*a_good_call(), *a_bad_call()))),
        report.outcome(TOTALS),
        report.failures(causes(error())),
    ):
        assert max(map(len, text_of(part, width).splitlines())) <= width
