from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from dataclasses import replace

import aiohttp
import anyio
import pytest
from multidict import CIMultiDict
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind
from tests.cli.conftest import SMALL, lamella, start
from typer.testing import CliRunner

from lamella import LamellaError, StopReason
from lamella.cli import demo
from lamella.cli.app import app
from lamella.cli.demo import Ended, Result, checks
from lamella.cli.plan import Planned
from lamella.cli.traces import attribute, context, traces
from lamella.testing import Fault, Received


def faults(result: Result) -> list[str]:
    return [check.fault for check in checks(result) if check.fault]


class TestARun:
    def test_all_is_in_order(self, result: Result) -> None:
        assert faults(result) == []

    def test_every_call_ended_well_or_says_why_it_stopped(self, result: Result) -> None:
        assert sorted(end.number for end in result.ended) == list(range(1, SMALL.calls + 1))
        reasons = Counter(end.error.stopped for end in result.ended if end.error)
        assert set(reasons) == {
            StopReason.ATTEMPTS_USED_UP,
            StopReason.WAIT_TOO_LONG,
            StopReason.NOT_RETRYABLE,
            StopReason.UNSAFE_METHOD,
        }

    def test_what_was_planned_came_about(self, result: Result) -> None:
        """A call that meets nothing can only fail where it is not let in, or at a limit."""
        calls = {call.number: call for call in result.planned}
        for end in result.ended:
            call = calls[end.number]
            if end.error is None or end.error.outcome == 429:
                continue
            hopeless = call.meets == (500,) * 5 or (call.method == "POST" and not call.headers and call.meets)
            refused = end.error.stopped is StopReason.NOT_RETRYABLE
            assert hopeless or refused, call

    def test_a_write_with_a_key_is_sent_again(self, result: Result) -> None:
        sends = Counter(
            received.headers["Idempotency-Key"]
            for received in result.received
            if "Idempotency-Key" in received.headers and received.outcome != 429
        )
        assert max(sends.values()) == 2

    def test_the_limits_were_met(self, result: Result) -> None:
        sources = {attribute(event, "lamella.wait_source") for trace in traces(result.spans) for event in trace.retries}
        assert {"rule", "immediate"} <= sources
        assert 429 in {received.outcome for received in result.received}

    async def test_a_call_that_gets_stuck_is_given_up_and_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        end_of = demo._end_of

        async def gets_stuck(call: Planned, session: aiohttp.ClientSession) -> Ended:
            if call.number == 3:
                await anyio.sleep_forever()
            return await end_of(call, session)

        monkeypatch.setattr(demo, "_end_of", gets_stuck)
        monkeypatch.setattr(demo, "_longest", lambda _: 1.0)
        stuck = await demo.run(replace(SMALL, calls=5), TracerProvider())
        assert sorted(end.number for end in stuck.ended) == [1, 2, 4, 5]
        assert faults(stuck) == ["1 call never ended", "5 calls, but 4 spans of calls"]


class TestTheChecks:
    """Each of them fails for what it is there to find."""

    def test_a_lost_call(self, result: Result) -> None:
        assert faults(replace(result, ended=result.ended[1:])) == ["1 call never ended"]

    def test_a_call_that_ended_twice(self, result: Result) -> None:
        assert faults(replace(result, ended=(*result.ended, result.ended[0]))) == ["1 call ended twice"]

    def test_a_call_that_ended_in_an_error_of_nobodys(self, result: Result) -> None:
        ended = (*result.ended[1:], Ended(result.ended[0].number, other="KeyError('data')"))
        assert faults(replace(result, ended=ended)) == ["1 call ended in KeyError('data')"]

    def test_a_call_that_does_not_say_why_it_stopped(self, result: Result) -> None:
        ended = (*result.ended[1:], Ended(result.ended[0].number, error=LamellaError()))
        assert faults(replace(result, ended=ended)) == ["1 call ended in LamellaError without a reason"]

    def test_a_call_without_a_span(self, result: Result) -> None:
        quiet = next(trace for trace in traces(result.spans) if len(trace.sends) == 1)
        gone = {context(quiet.call).span_id}
        spans = tuple(span for span in result.spans if context(span).span_id not in gone)
        assert f"{SMALL.calls} calls, but {SMALL.calls - 1} spans of calls" in faults(replace(result, spans=spans))

    def test_a_send_without_a_call(self, result: Result) -> None:
        nobody = SpanContext(7, 7, is_remote=False)
        stray = ReadableSpan("GET", nobody, parent=nobody, kind=SpanKind.CLIENT)
        assert faults(replace(result, spans=(*result.spans, stray))) == ["1 span of sends without a call"]

    def test_a_send_that_never_arrived(self, result: Result) -> None:
        answered = next(received for received in result.received if received.outcome == 200)
        received = tuple(other for other in result.received if other is not answered)
        assert faults(replace(result, received=received)) == ["1 send answered, but not received"]

    def test_a_send_that_got_no_answer_may_not_have_arrived(self, result: Result) -> None:
        broken = next(one for one in result.received if one.outcome is Fault.RESET_BEFORE_HEADERS)
        received = tuple(other for other in result.received if other is not broken)
        assert faults(replace(result, received=received)) == []

    def test_a_send_behind_the_back_of_the_layers(self, result: Result) -> None:
        get = next(received for received in result.received if received.method == "GET")
        assert faults(replace(result, received=(*result.received, get))) == ["1 send received twice"]
        unknown = _received(get, traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
        assert faults(replace(result, received=(*result.received, unknown))) == [
            "1 send received, but not sent by a layer"
        ]

    def test_without_ids_there_are_the_numbers(self, result: Result) -> None:
        received = tuple(_received(one) for one in result.received)
        assert faults(replace(result, received=received)) == []
        [fault] = faults(replace(result, received=(*received, *(one for one in received if one.method == "GET"))))
        assert fault.endswith("received")

    def test_a_write_that_was_sent_again(self, result: Result) -> None:
        write = next(one for one in result.received if one.method == "POST" and one.outcome == 500)
        assert "1 write sent again" in faults(replace(result, received=(*result.received, write)))

    def test_a_write_that_was_carried_out_twice(self, result: Result) -> None:
        assert faults(replace(result, duplicates=1)) == ["1 write carried out twice"]


def _received(one: Received, **headers: str) -> Received:
    kept = {name: value for name, value in one.headers.items() if name.lower() != "traceparent"}
    return replace(one, headers=CIMultiDict(kept | headers))


class TestTheCommand:
    def test_a_lost_call_is_exit_code_1(self, result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
        async def loses_one(*_: object) -> Result:
            return replace(result, ended=result.ended[1:])

        monkeypatch.setattr(demo, "run", loses_one)
        shown = CliRunner().invoke(app, ["demo"])
        assert shown.exit_code == 1
        assert "FAILED Every call has ended" in shown.stdout
        assert shown.stderr == "lamella: 1 call never ended\n"

    def test_in_a_pipe(self) -> None:
        arguments = ("--calls", "10", "--seed", "7", "--scale", "0.001")
        shown = lamella("demo", *arguments, PYTHONWARNINGS="error")
        assert (shown.stderr, shown.returncode) == ("", 0)
        assert "\x1b" not in shown.stdout
        assert "\r" not in shown.stdout
        rows = shown.stdout.splitlines()
        assert max(map(len, rows)) <= 80
        assert [row for row in rows if row != row.rstrip()] == []
        titles = ("Outcome", "Failures", "A call that ended well", "Checked", "Spans")
        assert [row for row in rows if row in titles] == list(titles)
        assert sum(row.startswith("ok ") for row in rows) == 4
        assert "  lamella demo --otlp http://localhost:4318" in rows

    @pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")
    def test_ctrl_c(self) -> None:
        with start("demo", "--scale", "0.05") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            time.sleep(0.7)
            process.send_signal(signal.SIGINT)
            errors = process.stderr.read()
            process.wait(10)
        assert process.returncode == 130
        assert errors.startswith("lamella: interrupted after ")
        assert errors.endswith(" of 300 calls\n")

    @pytest.mark.parametrize(
        "arguments", [["--calls", "0"], ["--accounts", "2"], ["--scale", "0"], ["--scale", "2"], ["--seed", "x"]]
    )
    def test_bad_arguments(self, arguments: list[str]) -> None:
        shown = CliRunner().invoke(app, ["demo", *arguments])
        assert shown.exit_code == 2
        assert arguments[0] in shown.stderr
