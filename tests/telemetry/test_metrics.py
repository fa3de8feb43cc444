"""Values of metrics, exact against a scripted server in virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider, UpDownCounter
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from tests.sdk import Metering
from tests.servers import Serve, Statuses, serving

from lamella import AttemptSpan, Backoff, Breaker, LamellaError, Limit, Rule, RuleBook, TooManyRequests, maesn, stack
from lamella.maesn.sandbox import Reply, Sandbox, Step
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import Fault, VirtualClock

Connect = Callable[..., aiohttp.ClientSession]
RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))


@pytest.fixture
async def slow(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> Sandbox:
    """A server that takes half a second for each answer."""
    return await make_sandbox(latency=0.5)


@pytest.fixture
def connect(slow: Sandbox, metering: Metering) -> Connect:
    def connect(**options: Any) -> aiohttp.ClientSession:
        return maesn.session(slow.api_key, slow.account_key, slow.url, meter_provider=metering.provider, **options)

    return connect


def counts(metering: Metering, name: str) -> list[tuple[Any, ...]]:
    """Status or outcome, type of error, count and sum of each point of a histogram."""
    points = []
    for point in metering.metrics[name].data.data_points:
        assert isinstance(point, HistogramDataPoint)
        given = point.attributes or {}
        key = given.get("http.response.status_code", given.get("lamella.outcome"))
        points.append((key, given.get("error.type"), point.count, point.sum))
    return sorted(points, key=str)


async def test_two_rate_limits_before_a_success_are_counted(
    slow: Sandbox, connect: Connect, metering: Metering, virtual_time: VirtualClock
) -> None:
    slow.script(429, 429)
    async with connect() as session:
        await session.get("/accounting/invoices")
    took = virtual_time.elapsed
    assert counts(metering, "http.client.request.duration") == [
        (200, None, 1, pytest.approx(0.5)),
        (429, "429", 2, pytest.approx(1.0)),
    ]
    [(_, _, _, waited)] = counts(metering, "lamella.call.wait")
    assert 180 <= waited <= 198
    assert counts(metering, "lamella.call.wait") == [("success", None, 1, pytest.approx(took - 1.5))]
    assert counts(metering, "lamella.call.duration") == [("success", None, 1, pytest.approx(took))]
    assert metering.value("lamella.calls.waiting") == metering.value("lamella.attempts.active") == 0
    assert "lamella.call.stops" not in metering.metrics


async def test_metric_attributes_are_few_and_contain_no_url(
    slow: Sandbox, connect: Connect, metering: Metering
) -> None:
    slow.script(500)
    async with connect(attempts=1) as session:
        with pytest.raises(LamellaError):
            await session.get("/accounting/invoices/secret-id?limit=5")
    server = {"http.request.method": "GET", "server.address": "127.0.0.1", "server.port": int(slow.url[-5:])}
    failed = {**server, "lamella.outcome": "failure", "error.type": "500"}
    answer = {"http.response.status_code": 500, "network.protocol.version": "1.1", "error.type": "500"}
    assert [attributes for attributes, _ in metering.points("http.client.request.duration")] == [{**server, **answer}]
    assert [attributes for attributes, _ in metering.points("lamella.call.duration")] == [failed]
    assert "lamella.call.wait" not in metering.metrics  # it did not wait
    rule = maesn.RULES.rule_for(500).title
    stop = {**failed, "lamella.stop_reason": "attempts_used_up", "lamella.rule": rule}
    assert metering.points("lamella.call.stops") == [(stop, 1)]
    assert metering.points("lamella.attempts.active") == [(server, 0)]


@pytest.mark.parametrize(
    ("step", "options", "reason", "type_"),
    [
        (404, {}, "not_retryable", "404"),
        (500, {"attempts": 1}, "attempts_used_up", "500"),
        (429, {"deadline": 30}, "deadline", "429"),
        (Fault.RESET_BEFORE_HEADERS, {"attempts": 1}, "attempts_used_up", "ConnectionLost"),
        (Fault.SILENCE, {"attempts": 1, "attempt_timeout": 3}, "attempts_used_up", "AttemptTimeout"),
    ],
)
async def test_an_abandoned_call_is_counted_by_reason(
    slow: Sandbox, connect: Connect, metering: Metering, step: Step, options: dict[str, int], reason: str, type_: str
) -> None:
    slow.script(step)
    async with connect(**options) as session:
        with pytest.raises(LamellaError):
            await session.get("/accounting/invoices")
    [(attributes, count)] = metering.points("lamella.call.stops")
    assert (attributes["lamella.stop_reason"], attributes["error.type"], count) == (reason, type_, 1)
    [(_, error, sends, took)] = counts(metering, "http.client.request.duration")
    assert (error, sends) == (type_, 1)
    assert took == pytest.approx(3 if step is Fault.SILENCE else 0.5)
    assert metering.value("lamella.attempts.active") == metering.value("lamella.calls.waiting") == 0


async def test_an_error_that_is_not_raised_is_measured_anyway(
    slow: Sandbox, connect: Connect, metering: Metering
) -> None:
    slow.script(400)
    async with connect(raise_errors=False) as session:
        assert (await session.get("/accounting/invoices")).status == 400
    assert counts(metering, "lamella.call.duration") == [("failure", "400", 1, pytest.approx(0.5))]
    assert counts(metering, "http.client.request.duration") == [(400, "400", 1, pytest.approx(0.5))]


@pytest.mark.parametrize("ends", ["well", "badly", "cancelled"])
async def test_gauges_count_attempts_in_flight(slow: Sandbox, connect: Connect, metering: Metering, ends: str) -> None:
    """In flight during a send, waiting during a wait, and neither afterwards."""
    slow.script(429, Reply(200 if ends == "well" else 404))

    def now() -> tuple[float, float]:
        return metering.value("lamella.attempts.active"), metering.value("lamella.calls.waiting")

    async with connect() as session:
        call = asyncio.create_task(session._request("GET", "/accounting/invoices"))
        await asyncio.sleep(0.25)
        assert now() == (1, 0)
        await asyncio.sleep(30)
        assert now() == (0, 1)
        if ends == "cancelled":
            call.cancel()
        [error] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(error, {"badly": LamellaError, "cancelled": asyncio.CancelledError}.get(ends, object))
    assert now() == (0, 0)


async def test_a_cancelled_attempt_is_measured(slow: Sandbox, connect: Connect, metering: Metering) -> None:
    async with connect() as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session._request("GET", "/accounting/invoices"), 0.25)
    assert metering.value("lamella.attempts.active") == 0
    assert counts(metering, "lamella.call.duration") == [("cancelled", None, 1, pytest.approx(0.25))]
    assert "http.client.request.duration" not in metering.metrics
    [(attributes, _)] = metering.points("lamella.call.stops")
    assert (attributes["lamella.stop_reason"], "error.type" in attributes) == ("cancelled", False)


@pytest.mark.slow
async def test_concurrent_calls_add_up_in_metrics(slow: Sandbox, connect: Connect, metering: Metering) -> None:
    slow.script(*[500] * 20)
    async with connect() as session:
        calls = [asyncio.create_task(session._request("GET", "/accounting/invoices")) for _ in range(20)]
        await asyncio.sleep(10)
        assert metering.value("lamella.calls.waiting") == 20
        await asyncio.gather(*calls)
    assert [count for *_, count, _ in counts(metering, "lamella.call.duration")] == [20]
    assert metering.count("http.client.request.duration") == 40
    assert metering.value("lamella.calls.waiting") == metering.value("lamella.attempts.active") == 0


async def test_metrics_use_the_global_provider_by_default(slow: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    async with aiohttp.ClientSession(slow.url, middlewares=(AttemptSpan(),)) as session:
        await session.get("/auth/datev")
    provider.shutdown()
    data = Metering(provider, reader)
    # Layers of other tests may be alive still, and report what they have.
    assert set(data.metrics) >= {"http.client.request.duration", "lamella.attempts.active"}
    assert data.value("lamella.attempts.active") == 0


def test_the_layers_of_all_stacks_share_the_instruments_of_a_provider() -> None:
    asked: list[str] = []

    class Counting(MeterProvider):
        def get_meter(self, name: str, *args: Any, **options: Any) -> metrics.Meter:
            asked.append(name)
            return super().get_meter(name, *args, **options)

    provider = Counting()
    for _ in range(2):
        stack(Breaker(), meter_provider=provider)
    assert asked == ["lamella"]
    gone = weakref.ref(provider)
    provider.shutdown()
    del provider
    gc.collect()
    assert gone() is None


async def test_the_error_type_of_a_call_is_the_same_as_of_its_attempt(
    slow: Sandbox, connect: Connect, metering: Metering
) -> None:
    slow.script(429, 429)
    async with connect(attempts=2) as session:
        with pytest.raises(TooManyRequests) as caught:
            await session.get("/accounting/invoices")
    records = caught.value.attempts
    assert metering.count("http.client.request.duration") == len(records) == 2
    assert metering.value("lamella.call.wait") == pytest.approx(sum(record.waited for record in records))
    assert metering.value("http.client.request.duration") == pytest.approx(sum(record.took for record in records))


class TestGauges:
    """They are read when somebody collects, and cost a call nothing else."""

    async def test_gauges_record_nothing_on_the_call_path(
        self, serve: Serve, metering: Metering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def add(*_: object, **__: object) -> None:
            pytest.fail("a call has recorded a gauge")

        monkeypatch.setattr(UpDownCounter, "add", add)
        layers = stack(RULES, meter_provider=metering.provider)
        async with aiohttp.ClientSession(await serve(Statuses(429)), middlewares=layers) as session:
            await session.get("/")
        assert [value for _, value in metering.points("lamella.attempts.active")] == [0]
        assert [value for _, value in metering.points("lamella.calls.waiting")] == [0]

    async def test_gauges_sum_all_sessions_and_drop_closed_ones(self, serve: Serve, metering: Metering) -> None:
        async def never(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(3600)
            raise AssertionError

        url = await serve(never)
        other = MeterProvider([InMemoryMetricReader()])

        async def use() -> None:
            async with AsyncExitStack() as sessions:
                calls = []
                for provider in (metering.provider, metering.provider, other):
                    session = aiohttp.ClientSession(url, middlewares=stack(RULES, meter_provider=provider))
                    await sessions.enter_async_context(session)
                    calls += [asyncio.create_task(session._request("GET", "/")) for _ in range(3)]
                await asyncio.sleep(0.05)
                assert metering.value("lamella.attempts.active") == 6
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                assert [value for _, value in metering.points("lamella.attempts.active")] == [0]

        await use()
        other.shutdown()
        gc.collect()
        assert "lamella.attempts.active" not in metering.metrics

    @pytest.mark.slow
    async def test_gauges_work_in_several_threads(self, metering: Metering) -> None:
        """Each thread has a loop and layers of its own, and all of them are collected meanwhile."""

        async def work() -> None:
            server = Statuses()
            async with serving(server) as url:
                layers = stack(RULES, meter_provider=metering.provider)
                async with aiohttp.ClientSession(url, middlewares=layers) as session:
                    for _ in range(20):
                        await asyncio.gather(*(session._request("GET", "/") for _ in range(5)))
                    assert metering.value("lamella.attempts.active") >= 0

        await asyncio.gather(*(asyncio.to_thread(asyncio.run, work()) for _ in range(4)))
        assert metering.value("lamella.attempts.active") == 0
        assert metering.count("http.client.request.duration") == 400

    async def test_a_gauge_counts_queued_calls(
        self, serve: Serve, metering: Metering, virtual_time: VirtualClock
    ) -> None:
        layers = stack(RULES, limits=Limit(1, per=60), meter_provider=metering.provider)
        async with aiohttp.ClientSession(await serve(Statuses()), middlewares=layers) as session:
            calls = [asyncio.create_task(session._request("GET", "/")) for _ in range(3)]
            await asyncio.sleep(1)
            assert metering.value("lamella.calls.queued") == 2
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert [value for _, value in metering.points("lamella.calls.queued")] == [0]


class TestManyServers:
    async def test_servers_beyond_max_servers_are_counted_as_other(self, serve: Serve, metering: Metering) -> None:
        urls = [await serve(Statuses()) for _ in range(4)]
        layers = stack(RULES, Breaker(), max_servers=2, meter_provider=metering.provider)
        async with aiohttp.ClientSession(middlewares=layers) as session:
            for url in urls * 2:
                await session.get(url)
        for name in ("http.client.request.duration", "lamella.call.duration", "lamella.attempts.active"):
            found = [attributes for attributes, _ in metering.points(name)]
            servers = {(attributes["server.address"], attributes.get("server.port")) for attributes in found}
            known = {("127.0.0.1", int(url.rpartition(":")[2])) for url in urls[:2]}
            assert servers == known | {("_OTHER", None)}
            assert {attributes["http.request.method"] for attributes in found} == {"GET"}

    async def test_max_servers_applies_to_queue_and_circuit_metrics(self, serve: Serve, metering: Metering) -> None:
        layers = stack(
            RULES,
            Breaker(minimum=1),
            max_servers=1,
            limits=Limit(1, per=0.02),
            attempts=1,
            meter_provider=metering.provider,
        )
        async with aiohttp.ClientSession(middlewares=layers) as session:
            for url in [await serve(Statuses(200, 500)) for _ in range(2)]:
                await asyncio.gather(*(session._request("GET", url) for _ in range(2)), return_exceptions=True)
        names = ("lamella.queue.wait", "lamella.calls.queued", "lamella.breaker.transitions")
        for name in names:
            found = [attributes["server.address"] for attributes, _ in metering.points(name)]
            assert found == ["127.0.0.1", "_OTHER"], name

    @pytest.mark.parametrize("value", [0, -1, 1.5, True])
    def test_bad_metric_settings_are_rejected(self, value: Any) -> None:
        with pytest.raises(ValueError, match="max_servers must be a whole number, 1 or more"):
            stack(RULES, max_servers=value)
