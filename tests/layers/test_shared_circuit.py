"""Breakers of several processes on one store: here each is a session of its own, with its own store client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.cancelling import cancelled_at
from tests.environment import HANGS
from tests.layers.test_breaker import CLASSIFY, Service, again, get
from tests.leftovers import tasks_of_lamella, timers_of_lamella
from tests.local_store import Database, LocalStore
from tests.sdk import Tracing
from tests.servers import Serve

from lamella import Breaker, CircuitOpen, RequestSpan, ServiceUnavailable, StopReason
from lamella.breaker.circuit import CircuitSettings, Permit
from lamella.breaker.fleet import SharedCircuit
from lamella.store.network import VERSION
from lamella.testing import VirtualClock, run_virtual

SECONDS = 0.25
"""Between two exchanges that are not urgent."""


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Process:
    """A session with a breaker, and the client of the store."""

    session: aiohttp.ClientSession
    store: LocalStore

    async def get(self, path: str = "/") -> int | type[BaseException]:
        return await get(self.session, path)


@dataclass
class Fleet:
    """Processes that call one service."""

    service: Service
    url: str
    stack: AsyncExitStack
    database: Database = field(default_factory=Database)

    async def process(self, *inner: aiohttp.ClientMiddlewareType, outer: Any = (), **options: Any) -> Process:
        """Start one more process."""
        store = await self.stack.enter_async_context(LocalStore(self.database))
        given = {"minimum": 4, "failures": 0.5, "window": 30.0, "open_for": 30.0, "probes": 1} | options
        layers = (*outer, Breaker(store=store, **given), *(inner or (CLASSIFY,)))
        timeout = aiohttp.ClientTimeout()
        session = aiohttp.ClientSession(self.url, timeout=timeout, middlewares=layers)
        return Process(await self.stack.enter_async_context(session), store)

    def state(self) -> dict[str, Any]:
        [text] = self.database.texts.values()
        state: dict[str, Any] = json.loads(text[VERSION:])["state"]
        return state


@pytest.fixture
async def fleet(serve: Serve, virtual_time: VirtualClock) -> AsyncIterator[Fleet]:
    service = Service()
    async with AsyncExitStack() as stack:
        yield Fleet(service, await serve(service), stack)


async def results(process: Process, number: int, path: str = "/") -> list[int | type[BaseException]]:
    return [await process.get(path) for _ in range(number)]


async def first_rejection(process: Process, pause: float = 0.05) -> float:
    """Return when a process that calls all the time is first rejected."""
    for _ in range(1000):
        if await process.get("/200") is CircuitOpen:
            return now()
        await asyncio.sleep(pause)
    raise AssertionError("it is never rejected")


async def test_a_call_to_a_working_service_does_not_wait_for_the_store(fleet: Fleet) -> None:
    fleet.database.slow = 0.1
    process = await fleet.process()
    began = now()
    assert await process.get() == 200  # it waits for the state
    assert now() - began == pytest.approx(0.2, abs=0.02)
    began, asked = now(), fleet.database.asked
    for _ in range(100):
        before = now()
        assert await process.get() == 200
        assert now() == before
        await asyncio.sleep(0.05)
    assert fleet.database.asked - asked <= (now() - began) / SECONDS + 1
    await asyncio.sleep(1)
    assert sum(fleet.state()["attempts"]) == 101


async def test_a_process_without_calls_does_not_ask_the_store(fleet: Fleet) -> None:
    process = await fleet.process()
    await process.get()
    await asyncio.sleep(1)
    asked = fleet.database.asked
    await asyncio.sleep(1000)
    assert fleet.database.asked == asked


async def test_an_open_circuit_stops_all_processes_soon(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    first, *others = [await fleet.process() for _ in range(3)]
    for each in (first, *others):
        await each.get()
    calling = [asyncio.create_task(first_rejection(each)) for each in others]
    await asyncio.sleep(1.03)
    began, failures = now(), 0
    while await first.get("/503") is ServiceUnavailable:
        failures += 1
        assert failures < 2000
        await asyncio.sleep(0.001)
    opened = now()
    rejected = await asyncio.gather(*calling)
    assert opened - began < 5
    assert all(opened - 0.05 <= at <= opened + SECONDS + 0.06 for at in rejected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_first_call_of_a_process_sees_that_the_circuit_is_open(fleet: Fleet) -> None:
    first = await fleet.process()
    assert await results(first, 5, "/503") == [ServiceUnavailable] * 4 + [CircuitOpen]
    second = await fleet.process()
    assert await second.get() is CircuitOpen
    asked = fleet.database.asked
    assert await results(second, 100) == [CircuitOpen] * 100
    assert fleet.database.asked == asked


async def test_after_a_pause_one_round_trip_shows_that_the_circuit_is_open(fleet: Fleet) -> None:
    first, second = await fleet.process(), await fleet.process()
    assert await second.get() == 200
    await asyncio.sleep(100)
    assert await results(first, 4, "/503") == [ServiceUnavailable] * 4
    assert await second.get() == 200
    await asyncio.sleep(0.01)
    assert await second.get() is CircuitOpen


async def test_results_of_all_processes_are_added(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleets = [await fleet.process(minimum=8) for _ in range(4)]
    for each in fleets:
        await each.get("/503")
    await asyncio.sleep(1)
    for each in fleets[:3]:
        await each.get("/503")
    await asyncio.sleep(1)
    assert not caplog.records
    assert await fleets[3].get("/503") is ServiceUnavailable
    await asyncio.sleep(0.01)
    assert await fleets[3].get() is CircuitOpen
    [record] = caplog.records
    assert "opened: 8 of 8 attempts failed in 30 s" in record.getMessage()


async def test_a_process_that_sees_only_failures_does_not_open_the_circuit_of_all(fleet: Fleet) -> None:
    well, badly = await fleet.process(), await fleet.process(again(2, wait=1), CLASSIFY)
    assert await results(well, 40, "/200") == [200] * 40
    await asyncio.sleep(0.15)
    assert await badly.get("/200") == 200
    await asyncio.sleep(0.2)  # meanwhile the other one reports its results
    outcomes = await asyncio.gather(*(badly.get("/503") for _ in range(6)))
    assert outcomes == [ServiceUnavailable] * 6
    assert fleet.service.sends == 41 + 12
    assert await badly.get("/200") == 200
    await asyncio.sleep(1)
    assert fleet.state()["since"] is None
    assert sum(fleet.state()["failures"]) > 6


async def test_one_process_that_fails_often_does_not_open_the_circuit_of_all(fleet: Fleet) -> None:
    well, badly = await fleet.process(), await fleet.process()
    for turn in range(25):
        await asyncio.gather(*(well.get("/200") for _ in range(30)))
        if turn > 5:
            await asyncio.gather(*(badly.get("/503") for _ in range(10)))
        await asyncio.sleep(0.05)
    assert await badly.get("/200") == 200
    assert fleet.state()["since"] is None


async def test_failures_in_a_row_of_all_processes_open_the_circuit_although_most_attempts_succeeded(
    fleet: Fleet,
) -> None:
    both = await fleet.process(), await fleet.process()
    await asyncio.gather(*(each.get("/200") for each in both for _ in range(100)))
    await asyncio.sleep(0.1)
    began = now()
    while await both[0].get("/503") is ServiceUnavailable:
        await both[1].get("/503")
        await asyncio.sleep(0.02)
    assert now() - began <= 1
    assert sum(fleet.state()["attempts"]) == 0


async def test_results_of_others_can_open_the_circuit_in_the_background(
    fleet: Fleet, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    span = RequestSpan(tracer_provider=tracing.provider, meter_provider=meters)
    first, second = [await fleet.process(outer=(span,), minimum=6, meter_provider=meters) for _ in range(2)]
    await asyncio.gather(first.get(), second.get())
    await asyncio.sleep(0.3)
    await asyncio.gather(*(each.get("/503") for each in (first, first, second, second)))
    await asyncio.sleep(SECONDS + 0.01)
    await asyncio.gather(first.get(), second.get())
    await asyncio.sleep(SECONDS + 0.01)
    assert [await first.get(), await second.get()] == [CircuitOpen] * 2
    assert [record.levelname for record in caplog.records if "opened" in record.getMessage()] == ["WARNING"]
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {each.name: each for each in data.resource_metrics[0].scope_metrics[0].metrics}
    points: Any = metrics["lamella.breaker.transitions"].data.data_points
    assert [point.value for point in points] == [1]
    assert not [event for call in tracing.spans for event in call.events if event.name == "lamella.circuit.open"]


async def test_all_processes_agree_on_probes(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lamella")
    fleets = [await fleet.process(probes=2) for _ in range(4)]
    assert await results(fleets[0], 4, "/503") == [ServiceUnavailable] * 4
    for each in fleets:
        assert await each.get() is CircuitOpen
    await asyncio.sleep(30)
    sends = fleet.service.sends
    fleet.service.go_on.clear()
    calls = asyncio.gather(*(each.get() for each in fleets for _ in range(10)))
    await asyncio.sleep(1)
    assert fleet.service.sends == sends + 2
    fleet.service.go_on.set()
    outcomes = await calls
    assert (outcomes.count(200), outcomes.count(CircuitOpen)) == (2, 38)
    await asyncio.sleep(SECONDS)
    # Each of them sees that it is closed.
    assert [await each.get() for each in fleets] == [200] * 4
    assert [record.getMessage().partition(": ")[0].rpartition(" ")[2] for record in caplog.records] == [
        "opened",
        "closed",
    ]


async def test_a_failed_probe_opens_the_circuit_of_all(fleet: Fleet) -> None:
    first, second = await fleet.process(), await fleet.process()
    assert await results(first, 4, "/503") == [ServiceUnavailable] * 4
    await second.get()
    await asyncio.sleep(30)
    assert await second.get("/503") is ServiceUnavailable
    sends = fleet.service.sends
    assert [await first.get(), await second.get()] == [CircuitOpen] * 2
    await asyncio.sleep(29)
    assert [await first.get(), await second.get()] == [CircuitOpen] * 2
    assert fleet.service.sends == sends


async def test_a_call_that_waits_for_a_retry_stops_when_another_process_opens_the_circuit(fleet: Fleet) -> None:
    first, second = await fleet.process(), await fleet.process(again(3, wait=10), CLASSIFY)
    waiting = [asyncio.ensure_future(second.session.get("/503").__aenter__()) for _ in range(3)]
    await asyncio.sleep(5)
    assert await results(first, 1, "/503") == [ServiceUnavailable]
    assert await first.get() is CircuitOpen
    sends, asked = fleet.service.sends, fleet.database.asked
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(each, "stopped", None) for each in done] == [StopReason.CIRCUIT_OPEN] * 3
    assert fleet.service.sends == sends
    assert fleet.database.asked - asked <= 2  # they ask together


async def test_a_process_reports_its_results_when_its_store_is_closed(fleet: Fleet) -> None:
    first, second = await fleet.process(), await fleet.process()
    await results(first, 3, "/503")
    await first.store.aclose()
    assert await second.get("/503") is ServiceUnavailable
    assert await second.get() is CircuitOpen


async def test_a_store_that_hangs_is_closed_without_the_results(fleet: Fleet) -> None:
    process = await fleet.process()
    await results(process, 3, "/503")
    fleet.database.hangs = True
    began = now()
    await process.store.aclose()
    assert now() - began <= 2
    assert not timers_of_lamella()
    fleet.database.hangs = False


@pytest.mark.parametrize("how", ["works", "fails", "hangs"])
async def test_nothing_is_left_when_the_calls_have_ended(fleet: Fleet, how: str) -> None:
    process = await fleet.process()
    await process.get()
    await asyncio.sleep(SECONDS)
    fleet.database.hangs = how == "hangs"
    fleet.database.fails = ConnectionError() if how == "fails" else None
    assert await results(process, 3, "/503") == [ServiceUnavailable] * 3
    await process.session.close()
    await asyncio.sleep(1.5)
    assert not tasks_of_lamella()
    assert not timers_of_lamella()
    fleet.database.hangs = False


async def test_nothing_is_left_when_the_store_is_closed(fleet: Fleet) -> None:
    process = await fleet.process()
    await results(process, 3, "/503")
    await process.session.close()
    await process.store.aclose()
    assert not tasks_of_lamella()
    assert not timers_of_lamella()


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_while_the_store_fails_each_process_uses_what_it_has_seen(
    fleet: Fleet, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await fleet.process(minimum=6), await fleet.process(minimum=6)
    await asyncio.gather(*(each.get(path) for each in (first, second) for path in ("/503", "/200")))
    await asyncio.sleep(1)
    await asyncio.gather(first.get("/200"), second.get("/200"))
    await asyncio.sleep(0.01)
    fleet.database.hangs = how == "hangs"
    fleet.database.fails = None if how == "hangs" else ConnectionError("redis://user:pa55word@redis.example")
    # It has seen two of four fail, and then one more succeed.
    began = now()
    assert await first.get("/503") is ServiceUnavailable
    assert now() - began <= (1.1 if how == "hangs" else 0.01)
    assert await first.get() is CircuitOpen
    began = now()
    assert await results(second, 20, "/200") == [200] * 20
    assert now() == began
    await asyncio.sleep(30)
    assert await first.get("/503") is ServiceUnavailable
    assert await first.get() is CircuitOpen
    warnings = [record for record in caplog.records if hasattr(record, "lamella.store_error")]
    assert len(warnings) == 2  # one for each process
    fleet.database.hangs, fleet.database.fails = False, None
    await asyncio.sleep(2)
    # It sees that the circuit of all is closed.
    assert await first.get("/200") == 200


async def test_results_from_while_the_store_failed_are_reported(fleet: Fleet) -> None:
    first, second = await fleet.process(minimum=10), await fleet.process(minimum=10)
    await asyncio.gather(first.get("/503"), second.get("/503"))
    await asyncio.sleep(1)
    fleet.database.fails = ConnectionError()
    for _ in range(4):
        await asyncio.gather(first.get("/503"), second.get("/503"))
        await asyncio.sleep(1)
    fleet.database.fails = None
    await asyncio.sleep(1)
    assert await results(first, 1, "/503") == [ServiceUnavailable]
    await second.get("/503")
    await asyncio.sleep(SECONDS + 0.01)
    assert [await first.get(), await second.get()] == [CircuitOpen] * 2


async def test_results_from_before_the_window_are_not_reported(fleet: Fleet) -> None:
    process = await fleet.process(window=10)
    await process.get("/503")
    await asyncio.sleep(1)
    fleet.database.fails = ConnectionError()
    assert await results(process, 2, "/503") == [ServiceUnavailable] * 2
    await asyncio.sleep(11)
    fleet.database.fails = None
    await process.get("/200")
    await asyncio.sleep(1)
    assert (sum(fleet.state()["attempts"]), sum(fleet.state()["failures"])) == (1, 0)


async def test_a_store_that_is_there_late_costs_no_call(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.database.hangs = True
    process = await fleet.process()
    began = now()
    assert await asyncio.gather(*(process.get("/503") for _ in range(3))) == [ServiceUnavailable] * 3
    assert now() - began == pytest.approx(SECONDS, abs=0.02)
    await asyncio.sleep(1)
    fleet.database.hangs = False
    await asyncio.sleep(5)
    assert await process.get("/503") is ServiceUnavailable
    assert await process.get() is CircuitOpen
    assert len([record for record in caplog.records if hasattr(record, "lamella.store_error")]) == 1


@pytest.mark.parametrize("which", ["the one that has opened it", "another", "a new one"])
async def test_a_circuit_that_the_store_has_lost_is_restored(fleet: Fleet, which: str) -> None:
    first, second = await fleet.process(), await fleet.process()
    assert await second.get() == 200
    await asyncio.sleep(100)
    assert await results(first, 4, "/503") == [ServiceUnavailable] * 4
    fleet.database.texts.clear()
    await asyncio.sleep(1)
    if which != "the one that has opened it":
        other = second if which == "another" else await fleet.process()
        assert await other.get() == 200  # it has not seen that the circuit is open
        await asyncio.sleep(1)
        assert fleet.state()["since"] is None
    await asyncio.sleep(29)
    assert await first.get("/503") is ServiceUnavailable
    assert fleet.state()["since"] is not None
    assert await first.get() is CircuitOpen
    await second.get()
    await asyncio.sleep(0.01)
    assert await second.get() is CircuitOpen


async def test_a_state_that_is_not_valid_is_reported_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    process = await fleet.process()
    await process.get()
    await asyncio.sleep(1)
    for key in fleet.database.texts:
        fleet.database.texts[key] = "0" * VERSION + '{"other": 1}'
    for _ in range(3):
        assert await process.get("/503") is ServiceUnavailable
        await asyncio.sleep(1)
    assert [record.getMessage() for record in caplog.records if "not valid" in record.getMessage()] == [
        "the state of a circuit in the store is not valid (KeyError)"
    ]
    assert len([record for record in caplog.records if "opened" in record.getMessage()]) == 1


async def _cancelled_at(step: int, process: Process, path: str) -> None:
    await cancelled_at(step, process.get(path))


@pytest.mark.parametrize("path", ["/200", "/503"])
async def test_a_probe_that_is_cancelled_at_any_await_is_released(fleet: Fleet, path: str) -> None:
    first, second = await fleet.process(open_for=30), await fleet.process(open_for=30)
    step, cancelled = 0, True
    while cancelled:
        step += 1
        assert await results(first, 4, "/503") == [ServiceUnavailable] * 4
        await second.get()
        await asyncio.sleep(30)
        task = asyncio.create_task(_cancelled_at(step, second, path))
        await asyncio.wait({task})
        cancelled = task.cancelled()
        await asyncio.sleep(0.1)
        assert not fleet.state()["probes"], f"a place is held after the cancellation at step {step}"
        await asyncio.sleep(30)
        assert await first.get("/200") == 200
        assert not tasks_of_lamella()
        await asyncio.sleep(30)
    assert step > 3


def test_a_breaker_can_be_used_in_another_loop(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    store = LocalStore(database)
    breaker = Breaker(store=store)

    async def fail(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise TimeoutError

    async def main(seconds: float) -> int:
        async with aiohttp.ClientSession(middlewares=(breaker, fail)) as session:
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await session.get("http://127.0.0.1:9/")
        await asyncio.sleep(seconds)
        [text] = database.texts.values()
        return sum(json.loads(text[VERSION:])["state"]["attempts"])

    assert run_virtual(main(0.1)) == 0
    assert run_virtual(main(1)) == 2
    assert not caplog.records


def test_a_loop_in_another_thread_does_not_lose_the_changes_of_this_one() -> None:
    database = Database()
    shared = SharedCircuit(LocalStore(database), "key", CircuitSettings(), lambda _: None)

    async def another() -> None:
        shared.at_once()

    async def main() -> None:
        database.hangs = True
        probe = Permit("", probe=1)
        first = asyncio.create_task(shared.ended("a", probe, works=True))
        await asyncio.sleep(0.01)  # its exchange has begun
        second = asyncio.create_task(shared.ended("b", probe, works=True))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(asyncio.run, another())
        database.hangs = False
        await asyncio.wait_for(asyncio.gather(first, second), HANGS)

    asyncio.run(main())
