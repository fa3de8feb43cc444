"""``lamella demo``: many calls through the whole stack to a server that misbehaves, and whether all was in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final

import aiohttp
import anyio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id

from lamella import LamellaError, maesn
from lamella.cli import counting
from lamella.cli.check import Check
from lamella.cli.html import Page
from lamella.cli.plan import Planned, Settings, make_plan, make_sandbox
from lamella.cli.stamina_hooks import no_stamina_hooks
from lamella.cli.traces import attribute, context, traces
from lamella.cli.words import count, duration
from lamella.telemetry.names import STATUS
from lamella.testing import Received

__all__ = ["SERVICE", "Ended", "Result", "checks", "page", "run"]

SERVICE: Final = "lamella-demo"
"""The service's name on the spans."""

_AT_ONCE = 32
_ATTEMPTS = 5
_ATTEMPT_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended: well (both are None), in an error of lamella's, or in something else, which is a bug."""

    number: int
    error: LamellaError | None = None
    other: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What the calls have come to, as the caller, the spans and the sandbox saw it. ``took`` is in seconds."""

    settings: Settings
    planned: tuple[Planned, ...]
    ended: tuple[Ended, ...]
    spans: tuple[ReadableSpan, ...]
    received: tuple[Received, ...]
    duplicates: int
    took: float


async def run(settings: Settings, provider: TracerProvider, on_ended: Callable[[], object] = lambda: None) -> Result:
    """Make the calls, a few at a time; *on_ended* is called after each."""
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    sandbox = make_sandbox(settings)
    planned = make_plan(settings, sandbox)
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    ended: list[Ended] = []

    async def make(call: Planned, session: aiohttp.ClientSession) -> None:
        async with limiter:
            if call.meets:
                sandbox.script(*call.meets, method=call.method, path=call.path, account=call.account)
            ended.append(await _end_of(call, session))
            on_ended()

    started = time.perf_counter()
    with no_stamina_hooks():
        async with (
            sandbox,
            maesn.session(
                sandbox.api_key,
                sandbox.account_key,
                sandbox.url,
                rules=maesn.RULES.scaled(settings.scale),
                attempts=_ATTEMPTS,
                attempt_timeout=_ATTEMPT_TIMEOUT,
                tracer_provider=provider,
            ) as session,
        ):
            with anyio.move_on_after(_longest(settings)):
                async with anyio.create_task_group() as tasks:
                    for call in planned:
                        tasks.start_soon(make, call, session)
    return Result(
        settings=settings,
        planned=planned,
        ended=tuple(ended),
        spans=memory.get_finished_spans(),
        received=tuple(sandbox.received),
        duplicates=sandbox.duplicates,
        took=time.perf_counter() - started,
    )


def _longest(settings: Settings) -> float:
    """Seconds after which whatever still goes on is stuck: more than all the tries and waits that there can be."""
    backoffs = [rule.retry for rule in maesn.RULES.scaled(settings.scale) if rule.retry]
    waits = max(sum(backoff.ceiling(number) for number in range(1, _ATTEMPTS)) for backoff in backoffs)
    # Retry-After is in whole seconds, so a wait can be one longer.
    return (_ATTEMPTS * (_ATTEMPT_TIMEOUT + 1) + waits) * ceil(settings.calls / _AT_ONCE)


async def _end_of(call: Planned, session: aiohttp.ClientSession) -> Ended:
    try:
        with maesn.account(call.account):
            async with session.request(
                call.method, call.path, params=call.params, headers=call.headers, json=call.body
            ) as response:
                answer = await response.json()
        return Ended(call.number, other=None if answer["data"] else "an answer without data")
    except LamellaError as error:
        return Ended(call.number, error)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is no end that a call may have
        return Ended(call.number, other=repr(exc))


def checks(result: Result) -> tuple[Check, ...]:
    """Whether no call was lost and nothing was sent that should not have been, by what the sandbox received."""
    return (
        Check("Every call has ended: well, or in an error that says why it stopped.", _lost(result)),
        Check("Every call has one span, and every send has one.", _untraced(result)),
        Check("What the sandbox received is what was sent.", _miscounted(result)),
        Check("No write that may have been carried out was sent again.", _repeated(result)),
    )


def page(result: Result) -> Page:
    """What goes on the demo's page. The numbers on it are those of the screen."""
    settings = result.settings
    return Page(
        name="lamella demo",
        title=f"{settings.calls} calls",
        about=f"{settings.calls} calls for {settings.accounts} accounts to a server that misbehaves, by the seed "
        f"{settings.seed}. A minute of the rules took {duration(60 * settings.scale)}.",
        totals=counting.totals(result),
        causes=counting.causes(result),
        checks=checks(result),
        traces=tuple(traces(result.spans)),
    )


def _lost(result: Result) -> str | None:
    faults = Counter(
        {
            "never ended": len({call.number for call in result.planned} - {end.number for end in result.ended}),
            "ended twice": len(result.ended) - len({end.number for end in result.ended}),
        }
    )
    for end in result.ended:
        if end.other is not None:
            faults[f"ended in {end.other}"] += 1
        elif end.error is not None and end.error.stopped is None:
            faults[f"ended in {type(end.error).__name__} without a reason"] += 1
    return "; ".join(f"{count(many, 'call')} {fault}" for fault, many in faults.items() if many) or None


def _untraced(result: Result) -> str | None:
    found = traces(result.spans)
    sends = sum(span.kind is SpanKind.CLIENT for span in result.spans)
    if len(found) != len(result.planned):
        return f"{count(len(result.planned), 'call')}, but {count(len(found), 'span')} of calls"
    stray = sends - sum(len(trace.sends) for trace in found)
    return f"{count(stray, 'span')} of sends without a call" if stray else None


def _miscounted(result: Result) -> str | None:
    """Each send has its span's id on it. A send without an answer may have got lost on its way."""
    sends = {
        format_span_id(context(span).span_id): attribute(span, STATUS) is not None
        for span in result.spans
        if span.kind is SpanKind.CLIENT
    }
    answered = {name for name, is_answered in sends.items() if is_answered}
    arrived = Counter(_span_id(received) for received in result.received)
    if None in arrived:
        # OTEL_PROPAGATORS of the environment can take the ids away: then there are the numbers.
        if len(answered) <= arrived.total() <= len(sends):
            return None
        return f"{count(len(sends), 'send')}, {len(answered)} of them answered, but {arrived.total()} received"
    faults = {
        "received twice": [name for name, times in arrived.items() if times > 1],
        "received, but not sent by a layer": arrived.keys() - sends.keys(),
        "answered, but not received": answered - arrived.keys(),
    }
    return "; ".join(f"{count(len(names), 'send')} {fault}" for fault, names in faults.items() if names) or None


def _span_id(received: Received) -> str | None:
    parts = received.headers.get("traceparent", "").split("-")
    return parts[2] if len(parts) == 4 else None


def _repeated(result: Result) -> str | None:
    writes: dict[tuple[str | None, str, bytes], list[Received]] = {}
    for received in result.received:
        if received.method == "POST" and "Idempotency-Key" not in received.headers:
            writes.setdefault((received.account, received.path, received.body), []).append(received)
    # Only a 429 says for sure that nothing has been done yet.
    repeated = sum(any(send.outcome != 429 for send in sends[:-1]) for sends in writes.values())
    faults = {"sent again": repeated, "carried out twice": result.duplicates}
    return "; ".join(f"{count(many, 'write')} {fault}" for fault, many in faults.items() if many) or None
