"""The spans of a long run: all are counted, and those that are worth a look are kept."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind

from lamella.cli.traces import Trace, attribute, context, number, text
from lamella.telemetry.names import ERROR_TYPE, OUTCOME, WAIT

__all__ = ["KeptTraces"]

_FAILED, _RETRIED, _WELL = range(3)


class KeptTraces(SpanProcessor):
    """Counts all calls and their sends, and keeps the traces of *most* calls.

    Those that failed come first, then those that were sent more than once; of whatever there are too many of, it keeps
    a sample.
    """

    def __init__(self, most: int = 2000) -> None:
        self.spans = 0
        self.sends = 0
        self.waited = 0.0
        """Seconds between the sends, of all calls in sum."""
        self.after: Counter[str] = Counter()
        """How many retries there were after each kind of failure."""
        self._most = most
        self._ends: Counter[int] = Counter()
        """How many calls there were of each kind."""
        self._kept: tuple[list[Trace], ...] = ([], [], [])
        self._open: dict[int, list[ReadableSpan]] = {}
        """The sends of the calls that have not ended, by the id of the call's span."""
        self._random = random.Random(0)
        self._lock: Final = threading.Lock()

    @property
    def calls(self) -> int:
        """How many have ended."""
        return self._ends.total()

    @property
    def traces(self) -> tuple[Trace, ...]:
        """Those that are kept, in the order in which they began."""
        with self._lock:
            kept = [trace for some in self._kept for trace in some]
        return tuple(sorted(kept, key=lambda trace: trace.call.start_time or 0))

    @property
    def note(self) -> str:
        """Which calls are kept. Empty: all."""
        if self.calls <= self._most:
            return ""
        shown = []
        for kind, name in ((_FAILED, "that failed"), (_RETRIED, "that were sent more than once"), (_WELL, "others")):
            if len(self._kept[kind]) < self._ends[kind]:
                shown.append(f"a sample of {'the' if kind == _WELL else 'those'} {name}")
                break
            if self._ends[kind]:
                shown.append(f"all {self._ends[kind]:,} {name}")
        *most, last = shown
        return (
            f"{self._most:,} of {self.calls:,} calls are shown: {' and '.join(filter(None, [', '.join(most), last]))}."
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span."""
        with self._lock:
            self.spans += 1
            if span.kind is SpanKind.CLIENT and span.parent is not None:
                self.sends += 1
                self._open.setdefault(span.parent.span_id, []).append(span)
            elif attribute(span, OUTCOME) is not None:
                sends = self._open.pop(context(span).span_id, [])
                self._take(Trace(span, tuple(sorted(sends, key=lambda send: send.start_time or 0))))

    def _take(self, trace: Trace) -> None:
        for event in trace.retries:
            self.after[text(event, ERROR_TYPE)] += 1
            self.waited += number(event, WAIT)
        kind = _WELL if trace.succeeded and len(trace.sends) == 1 else _RETRIED if trace.succeeded else _FAILED
        self._ends[kind] += 1
        kept = self._kept[kind]
        if sum(map(len, self._kept)) < self._most:
            kept.append(trace)
        elif others := next((some for some in self._kept[:kind:-1] if some), None):
            self._drop_one(others)
            kept.append(trace)
        elif kept:
            # Each of its kind with the same chance (reservoir sampling).
            place = self._random.randrange(self._ends[kind])
            if place < len(kept):
                kept[place] = trace

    def _drop_one(self, traces: list[Trace]) -> None:
        place = self._random.randrange(len(traces))
        traces[place] = traces[-1]
        traces.pop()
