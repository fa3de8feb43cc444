"""The span processor of examples/observability that samples by how a call ended."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from examples.observability.keep_bad_calls import KeepBadCalls
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.servers import Serve, Statuses

from lamella import At, Backoff, HeaderAuth, LamellaError, Rule, RuleBook, Slot, stack

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
EXAMPLE = Path(__file__).parents[2] / "examples" / "observability" / "keep_bad_calls.py"


class Kept:
    """A provider with the processor, and what comes through it."""

    def __init__(self, share: float = 0.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = KeepBadCalls(SimpleSpanProcessor(self.exporter), share)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.processor)

    @property
    def names(self) -> list[str]:
        names = [span.name for span in self.exporter.get_finished_spans()]
        self.exporter.clear()
        return names


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    assert not vars(kept.processor)["_open"]  # nothing is left of calls that have ended


@pytest.mark.parametrize(
    ("statuses", "names"),
    [
        ((200,), []),
        ((404,), ["GET", "lamella GET"]),
        ((429, 200), ["GET", "GET", "lamella GET"]),
        ((429,) * 5, ["GET"] * 5 + ["lamella GET"]),
    ],
)
async def test_a_call_that_was_retried_or_failed_is_kept_whole(
    serve: Serve, kept: Kept, statuses: tuple[int, ...], names: list[str]
) -> None:
    layers = stack(RULES, tracer_provider=kept.provider)
    async with aiohttp.ClientSession(await serve(Statuses(*statuses)), middlewares=layers) as session:
        with kept.provider.get_tracer("the user's").start_as_current_span("job"):
            with suppress(LamellaError):
                await session.get("/")
            assert kept.names == names
    assert kept.names == ["job"]


async def test_a_cancelled_call_is_not_kept(serve: Serve, kept: Kept) -> None:
    async def never(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        await asyncio.get_running_loop().create_future()
        return await handler(request)

    layers = stack(RULES, At(Slot.INNERMOST, never), tracer_provider=kept.provider)
    async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session._request("GET", "/"), 0.02)
    assert kept.names == []


@pytest.mark.parametrize("status", [200, 404])
async def test_spans_inside_a_kept_call_are_kept(serve: Serve, kept: Kept, status: int) -> None:
    """Also a call that a token function makes: if that one fails, the outer call is kept."""
    url = await serve(Statuses(status))

    async def token() -> str:
        async with aiohttp.ClientSession(url, middlewares=stack(RULES, tracer_provider=kept.provider)) as session:
            with kept.provider.get_tracer("the user's").start_as_current_span("token"), suppress(LamellaError):
                await session.get("/")
        return "a-token"

    auth = HeaderAuth({"Authorization": token})
    layers = stack(RULES, auth=auth, tracer_provider=kept.provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/")
    assert kept.names == ([] if status == 200 else ["GET", "lamella GET", "token", "GET", "lamella GET"])


@pytest.mark.parametrize("status", [200, 404])
async def test_a_task_that_outlives_a_failed_call_is_kept_with_it(serve: Serve, kept: Kept, status: int) -> None:
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        with kept.provider.get_tracer("the user's").start_as_current_span("later"):
            await ended.wait()

    async def begin(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        tasks.append(asyncio.create_task(later()))
        return await handler(request)

    layers = stack(RULES, At(Slot.RETRY, begin), tracer_provider=kept.provider)
    async with aiohttp.ClientSession(await serve(Statuses(status)), middlewares=layers) as session:
        with suppress(LamellaError):
            await session.get("/")
    ended.set()
    await tasks[0]
    assert kept.names == ([] if status == 200 else ["GET", "lamella GET", "later"])


@pytest.mark.parametrize("outer", [200, 404])
@pytest.mark.parametrize("inner", [200, 404])
async def test_a_call_that_outlives_its_outer_call_is_kept_by_its_own_outcome(
    serve: Serve, kept: Kept, outer: int, inner: int
) -> None:
    """As a token that is renewed in the background: it is kept for what it has come to itself, too."""
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def renew() -> None:
        url = await serve(Statuses(inner))
        async with aiohttp.ClientSession(url, middlewares=stack(RULES, tracer_provider=kept.provider)) as session:
            with kept.provider.get_tracer("the user's").start_as_current_span("renewal"):
                for _ in range(2):  # the first one ends before the call around it
                    with suppress(LamellaError):
                        await session.post("/")
                    await ended.wait()

    async def begin(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        tasks.append(asyncio.create_task(renew()))
        await asyncio.sleep(0.05)
        return await handler(request)

    layers = stack(RULES, At(Slot.RETRY, begin), tracer_provider=kept.provider)
    async with aiohttp.ClientSession(await serve(Statuses(outer)), middlewares=layers) as session:
        with suppress(LamellaError):
            await session.get("/")
    is_kept = 404 in (outer, inner)
    assert kept.names == ["POST", "lamella POST", "GET", "lamella GET"] * is_kept
    ended.set()
    await tasks[0]
    assert kept.names == ["POST", "lamella POST", "renewal"] * is_kept


async def test_a_failed_call_is_kept_if_its_outer_call_ended_earlier(serve: Serve, kept: Kept) -> None:
    begun, answered = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            begun.set()
            await answered.wait()
        return web.Response(status=404 if request.method == "POST" else 200)

    url = await serve(answer)

    async def renew() -> None:
        async with aiohttp.ClientSession(url, middlewares=stack(RULES, tracer_provider=kept.provider)) as session:
            with suppress(LamellaError):
                await session.post("/")

    async def begin(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        tasks.append(asyncio.create_task(renew()))
        await begun.wait()
        return await handler(request)

    layers = stack(RULES, At(Slot.RETRY, begin), tracer_provider=kept.provider)
    async with aiohttp.ClientSession(url, middlewares=layers) as session:
        await session.get("/")
    assert kept.names == []
    answered.set()
    await tasks[0]
    assert kept.names == ["POST", "lamella POST"]


@pytest.mark.parametrize(("trace_id", "shown"), [(2**62, True), (2**63 + 2**62, False)])
async def test_a_fraction_of_successful_calls_is_kept_by_trace_id(serve: Serve, trace_id: int, shown: bool) -> None:
    kept = Kept(share=0.5)
    layers = stack(RULES, tracer_provider=kept.provider)
    job = trace.NonRecordingSpan(trace.SpanContext(trace_id, 2, False, trace.TraceFlags(1)))
    async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
        with trace.use_span(job):
            await session.get("/")
            await session.get("/")
    assert kept.names == ["GET", "lamella GET"] * 2 * shown


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    name = "lamella GET /accounting/invoices"
    assert capsys.readouterr().out.splitlines() == [f"{name} success 2", f"{name} failure 1"]
