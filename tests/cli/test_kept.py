"""The traces that are kept of a long run, and that nothing grows with it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind
from tests.cli.spans import a_bad_call, a_good_call

from lamella.cli.traces import Collector
from lamella.telemetry.names import EPISODE, OUTCOME

WELL = {OUTCOME: "success"}
BADLY = {OUTCOME: "failure"}
NO = Resource.get_empty()
"""Else each span would look for its own."""


def call(kept: Collector, number: int, sends: int, outcome: dict[str, str]) -> None:
    own = SpanContext(number + 1, 10 * number + 1, is_remote=False)
    for send in range(sends):
        context = SpanContext(number + 1, 10 * number + 2 + send, is_remote=False)
        kept.on_end(ReadableSpan("GET", context, own, NO, kind=SpanKind.CLIENT, start_time=100 * number + send))
    kept.on_end(ReadableSpan(f"call {number}", own, resource=NO, attributes=outcome, start_time=100 * number))


def kinds(kept: Collector) -> Counter[str]:
    return Counter(
        "failed" if not trace.succeeded else "well" if len(trace.attempts) == 1 else "retried" for trace in kept.traces
    )


def test_all_calls_are_kept_below_the_limit() -> None:
    kept = Collector(most=10)
    for span in (*a_bad_call(), *a_good_call()):
        kept.on_end(span)
    bad, good = kept.traces
    assert (good.succeeded, len(good.attempts), bad.succeeded, len(bad.attempts)) == (True, 4, False, 1)
    assert [send.start_time for send in good.attempts] == sorted(send.start_time or 0 for send in good.attempts)
    assert (kept.calls, kept.attempts, kept.spans, kept.note) == (2, 5, 7, "")
    assert kept.after == Counter({"500": 1, "ConnectionLost": 1, "429": 1})
    assert kept.waited == 2.5


@pytest.mark.parametrize("seed", range(3))
def test_failed_calls_are_kept_first_then_retried_ones(seed: int) -> None:
    ends = [(1, BADLY)] * 30 + [(2, WELL)] * 50 + [(1, WELL)] * 900
    random.Random(seed).shuffle(ends)
    kept = Collector(most=100)
    for number, (sends, outcome) in enumerate(ends):
        call(kept, number, sends, outcome)
        assert sum(map(len, kept._kept)) <= 100
    assert kinds(kept) == {"failed": 30, "retried": 50, "well": 20}
    assert kept.note == (
        "100 of 980 calls are shown: all 30 that failed, all 50 with more than one attempt and a sample of the others."
    )
    starts = [trace.call.start_time or 0 for trace in kept.traces]
    assert starts == sorted(starts)
    assert (kept.calls, kept.attempts, kept.spans) == (980, 30 + 100 + 900, 980 + 1030)


def test_a_random_sample_of_too_many_calls_is_kept() -> None:
    kept = Collector(most=100)
    for number in range(2000):
        call(kept, number, 1, BADLY if number % 2 else WELL)
    assert kinds(kept) == {"failed": 100}
    assert kept.note == "100 of 2,000 calls are shown: a sample of those that failed."
    thirds = Counter((trace.call.start_time or 0) // 66_700 for trace in kept.traces)
    assert min(thirds[third] for third in range(3)) > 15


def test_ended_calls_leave_no_state() -> None:
    kept = Collector(most=5)
    for number in range(200):
        call(kept, number, 3, WELL)
    kept.on_end(ReadableSpan(EPISODE, SpanContext(7, 7, is_remote=False)))
    assert not kept._open
    assert len(kept.traces) == 5
    assert kept.calls == 200
