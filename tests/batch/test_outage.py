"""An outage pauses a batch; its items do not fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
import stamina
from aiohttp import web
from tests.batch.circuits import refused
from tests.servers import Serve
from yarl import URL

from lamella import (
    Backoff,
    Breaker,
    CertificateInvalid,
    ConnectFailed,
    ConnectTimeout,
    Failure,
    LamellaError,
    RetryBudget,
    Rule,
    RuleBook,
    StopReason,
    stack,
)
from lamella.batch.outage import Outage
from lamella.batch.outcome import AccountStopped, ItemOutcome
from lamella.batch.runner import Batch
from lamella.testing import VirtualClock, run_virtual

RULES = RuleBook(Rule(500, "Internal Server Error", retry=Backoff(initial=1, jitter=0)))
URL_ = URL("http://api.test/")


def failed(stopped: StopReason, first: float | None = 1.0) -> LamellaError:
    """A call that could not connect; *first*: the rule's first wait in seconds. None: it has none."""
    retry = None if first is None else Backoff(initial=first, jitter=0)
    error = ConnectFailed("GET", URL_, Rule(Failure.CONNECT_FAILED, "Connection Failed", retry=retry))
    error.stopped = stopped
    return error


def now() -> float:
    return asyncio.get_running_loop().time()


async def collected(batch: Batch[Any, Any]) -> list[ItemOutcome[Any, Any]]:
    async with batch:
        return [outcome async for outcome in batch]


class Service:
    """Is down from one second to another; takes a tenth of one for each answer."""

    def __init__(self, down: float, up: float) -> None:
        self.began = now()
        self.down, self.up = down, up
        self.sends: list[float] = []
        self.bodies: list[str] = []
        self.now = self.most = 0

    @property
    def at(self) -> float:
        return now() - self.began

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.sends.append(self.at)
        self.bodies.append(await request.text())
        self.now += 1
        if self.at >= self.up:
            self.most = max(self.most, self.now)
        await asyncio.sleep(0.1)
        self.now -= 1
        return web.Response(status=500 if self.down <= self.at < self.up else 200)

    def between(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.sends)


BREAKER: Any = {"minimum": 10, "window": 2, "open_for": 10, "probes": 3}


def layers(*more: Breaker, **options: Any) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    return stack(RULES, *more, throttle=False, **options)


def session(url: str, *more: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, timeout=aiohttp.ClientTimeout(), middlewares=more, connector=aiohttp.TCPConnector(limit=0)
    )


# With a real server


@pytest.mark.slow
@pytest.mark.parametrize("by", ["circuit", "budget"])
@pytest.mark.parametrize("down", [pytest.param(0.0, marks=pytest.mark.slow), 2.0])
async def test_an_outage_loses_no_item(virtual_time: VirtualClock, serve: Serve, by: str, down: float) -> None:
    """A minute without the service, with a breaker, or with a retry budget alone."""
    service = Service(down, 60)
    middlewares = (
        layers(Breaker(**BREAKER), retry_budget=None)
        if by == "circuit"
        else layers(retry_budget=RetryBudget(ratio=0.1, capacity=5))
    )
    async with session(await serve(service), *middlewares) as client:

        async def fetch(item: int) -> int:
            async with client.get("/", params={"item": item}) as response:
                return response.status

        outcomes = await collected(Batch(fetch, range(1000), at_once=20))
    assert all(outcome.done for outcome in outcomes)
    assert len(outcomes) == 1000
    # All that were under way have found out by then.
    assert max(service.between(second, second + 1) for second in range(int(down) + 5, 59)) <= 3
    assert service.between(down + 5, 60) <= 60
    assert max(outcome.tries for outcome in outcomes) > 1
    waited = [outcome.paused for outcome in outcomes if outcome.paused]
    assert 20 <= len(waited) <= 80 + 20
    assert max(waited) >= 40
    # 1,000 items (600 where 400 went before) take 5 s (3 s) at best; 10 s until it is noticed that it is back.
    assert service.most == 20
    assert service.at < 60 + 5 + 10 + 4


@pytest.mark.slow
async def test_an_item_has_an_outcome_after_its_patience_ends(virtual_time: VirtualClock, serve: Serve) -> None:
    """Also for those that were never tried."""
    service = Service(0, 1e9)
    async with session(await serve(service), *layers(Breaker(**BREAKER))) as client:

        async def fetch(item: int) -> int:
            async with client.get("/", params={"item": item}) as response:
                return response.status

        batch = Batch(fetch, range(60), at_once=12, patience=100)
        outcomes = await collected(batch)
    assert sorted(outcome.item for outcome in outcomes) == list(range(60))
    assert not any(outcome.done for outcome in outcomes)
    assert all(isinstance(outcome.error, LamellaError) for outcome in outcomes)
    untried = [outcome for outcome in outcomes if outcome.tries == 0]
    assert len(untried) > 12
    assert all(outcome.paused == 100 for outcome in untried)
    assert all(outcome.paused <= 100 + 1e-6 for outcome in outcomes)  # sums of moments of a clock are rounded
    # Twice: those for which there is room, and those that come after them.
    assert 200 <= service.at < 260
    assert len(service.sends) < 80


async def test_in_the_outage_of_one_service_the_items_of_others_continue(
    virtual_time: VirtualClock, serve: Serve
) -> None:
    down, up = Service(0, 100), Service(0, 0)
    urls = [await serve(down), await serve(up)]
    ended: list[tuple[int, float]] = []
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(),
        middlewares=layers(Breaker(minimum=3, open_for=10), retry_budget=None, attempts=None, deadline=1000),
    ) as client:

        async def fetch(item: int) -> None:
            async with client.get(urls[item >= 12]):
                ended.append((item, up.at))

        # The first twelve would have all four places, if those that wait kept them.
        batch = Batch(fetch, range(100), at_once=4, service=lambda item: item >= 12)
        outcomes = await collected(batch)
    assert all(outcome.done for outcome in outcomes)
    assert max(at for item, at in ended if item >= 12) < 20
    assert min(at for item, at in ended if item < 12) >= 100
    assert len(up.sends) == 88


async def test_outage_is_visible_as_long_as_items_wait(virtual_time: VirtualClock) -> None:
    """Known at 2 s; the probe from 13 to 14 s is well, and so are two more, and then the next two."""
    start = now()
    told: list[LamellaError] = []
    seen: dict[int, LamellaError | None] = {}

    async def work(item: int) -> None:
        await asyncio.sleep(1)
        if item % 2 and 1 < now() - start < 12:
            told.append(refused(5))
            raise told[-1]

    batch = Batch(work, range(40), at_once=4, service=lambda item: item % 2)
    assert batch.outage is None

    async def look_on() -> None:
        for second in range(30):
            await asyncio.sleep(start + second + 0.5 - now())
            seen[second] = batch.outage

    looking = asyncio.create_task(look_on())
    assert all(outcome.done for outcome in await collected(batch))
    await looking
    assert [second for second, error in seen.items() if error is not None] == list(range(2, 16))
    assert seen[2] is told[0]
    assert seen[12] is told[-1] is not told[0]


async def test_outage_is_visible_until_its_last_items_are_done(virtual_time: VirtualClock) -> None:
    """Though there were not enough of them to try as many at a time as are allowed."""
    tries: Counter[int] = Counter()

    async def work(item: int) -> None:
        await asyncio.sleep(1)
        tries[item] += 1
        if tries[item] == 1:
            raise refused(5)

    batch = Batch(work, range(4), at_once=100)
    async with batch:
        outages = [batch.outage async for _ in batch]
    # When the first is done, two are tried and one waits.
    assert [outage is None for outage in outages] == [False, True, True, True]
    assert batch.outage is None


@pytest.fixture
def without_stamina() -> Iterator[None]:
    stamina.set_active(False)
    yield
    stamina.set_active(True)


async def writes_in_an_outage(serve: Serve) -> tuple[Service, list[ItemOutcome[int, int]]]:
    service = Service(0, 40)
    async with session(await serve(service), *layers(Breaker(**BREAKER))) as client:

        async def write(item: int) -> int:
            async with client.post("/", data=str(item)) as response:
                return response.status

        return service, await collected(Batch(write, range(400), at_once=20))


async def test_a_possibly_executed_write_is_never_repeated(virtual_time: VirtualClock, serve: Serve) -> None:
    service, outcomes = await writes_in_an_outage(serve)
    assert Counter(service.bodies) == {str(item): 1 for item in range(400)}
    lost = [outcome for outcome in outcomes if not outcome.done]
    # Those under way when it began, and a probe now and then.
    assert 10 <= len(lost) <= 20 + 5
    assert all(isinstance(outcome.error, LamellaError) for outcome in lost)
    assert any(outcome.done and outcome.tries > 1 for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.usefixtures("without_stamina")
async def test_a_possibly_executed_write_is_not_repeated_without_stamina(
    virtual_time: VirtualClock, serve: Serve
) -> None:
    """Then every call stops since its attempts are used up, whatever its method."""
    service, outcomes = await writes_in_an_outage(serve)
    assert Counter(service.bodies) == {str(item): 1 for item in range(400)}
    assert any(outcome.done and outcome.tries > 1 for outcome in outcomes)
    lost = [outcome.error for outcome in outcomes if isinstance(outcome.error, LamellaError)]
    assert {error.stopped for error in lost} == {StopReason.ATTEMPTS_USED_UP}


async def test_leaving_a_batch_in_an_outage_leaves_nothing_behind(virtual_time: VirtualClock) -> None:
    calls = 0

    async def work(item: int) -> None:
        nonlocal calls
        calls += 1
        if item == 0:
            return
        await asyncio.sleep(20 if item == 2 else 1)
        raise refused()

    began = virtual_time.now
    async with Batch(work, range(100), at_once=4, grace=50) as batch:
        await anext(batch)
        await asyncio.sleep(5)
    # The last one to end tells of the outage when nobody waits for its end any more.
    assert virtual_time.now - began == 20
    assert calls == 5
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Which error names it

USED_UP = StopReason.ATTEMPTS_USED_UP


def pool_timeout(stopped: StopReason) -> ConnectTimeout:
    error = ConnectTimeout("GET", URL_, Rule(Failure.CONNECT_FAILED, "Connection Failed", retry=Backoff(initial=1)))
    error.in_pool, error.stopped = True, stopped
    return error


async def test_outage_is_the_last_service_failure_and_not_the_open_circuit() -> None:
    """Also by one that came before it, of a call that had used up its attempts."""
    outage = Outage(1)
    first, second = failed(USED_UP), failed(StopReason.CIRCUIT_OPEN)
    assert not outage.leave(outage.enter(), first)
    assert (outage.active, outage.error) == (False, None)
    assert outage.leave(outage.enter(), refused())
    assert outage.error is first
    assert outage.leave(outage.enter(), second)
    assert outage.leave(outage.enter(), refused())
    assert outage.error is second
    outage.close()


async def test_a_failure_before_a_success_is_not_the_cause_of_an_outage() -> None:
    outage = Outage(1)
    open_circuit = refused()
    outage.leave(outage.enter(), failed(USED_UP))
    outage.leave(outage.enter(), None)
    outage.leave(outage.enter(), open_circuit)
    assert outage.error is open_circuit
    outage.close()


async def test_a_wait_in_the_pool_neither_begins_nor_extends_an_outage(virtual_time: VirtualClock) -> None:
    outage = Outage(1)
    assert not outage.leave(outage.enter(), pool_timeout(USED_UP))
    assert not outage.active
    assert outage.leave(outage.enter(), refused(10))
    known = outage.error
    await asyncio.sleep(11)
    # It says nothing about the service: the item is tried again, and the next probe does not wait.
    assert outage.leave(outage.enter(), pool_timeout(USED_UP))
    assert outage.error is known
    async with asyncio.timeout(1):
        await outage.wait()
    outage.close()


async def test_a_final_failure_during_an_outage_is_not_retried(virtual_time: VirtualClock) -> None:
    outage = Outage(1)
    final = CertificateInvalid("GET", URL_, Rule(Failure.CERTIFICATE_INVALID, "Certificate Invalid"))
    final.stopped = StopReason.NOT_RETRYABLE
    assert outage.leave(outage.enter(), refused(10))
    await asyncio.sleep(11)
    assert not outage.leave(outage.enter(), final)
    async with asyncio.timeout(1):
        await outage.wait()
    outage.close()


async def test_a_rejected_item_fails_with_the_failure_of_the_service(
    virtual_time: VirtualClock,
) -> None:
    cause = failed(StopReason.CIRCUIT_OPEN)
    began = now()

    async def work(item: int) -> None:
        raise cause if item == 0 and now() == began else refused()

    outcomes = await collected(Batch(work, range(4), at_once=2, patience=100))
    assert [outcome.error for outcome in outcomes] == [cause] * 4


# How it finds out


def probes_until(up: float, error: Callable[[], LamellaError], seconds: float = 0.0) -> list[float]:
    """When items were tried of a batch of one at a time whose service is back after *up* seconds."""
    at: list[float] = []

    async def work(_: int) -> None:
        at.append(now())
        await asyncio.sleep(seconds)
        if now() < up:
            raise error()

    async def main() -> None:
        outcomes = await collected(Batch(work, range(3), at_once=1))
        assert all(outcome.done for outcome in outcomes)

    run_virtual(main())
    return at


def test_the_circuit_determines_the_time_of_a_probe() -> None:
    assert probes_until(60, lambda: refused(25)) == [0, 25, 50, 75, 75, 75]


def test_without_a_circuit_the_rule_determines_growing_pauses() -> None:
    budget = StopReason.RETRY_BUDGET_EMPTY
    assert probes_until(40, lambda: failed(budget, 2)) == [0, 2, 6, 14, 22, 30, 38, 46, 46, 46]


def test_the_pause_is_some_seconds_by_default() -> None:
    assert probes_until(16, lambda: failed(StopReason.CIRCUIT_OPEN, None)) == [0, 5, 15, 35, 35, 35]
    # A circuit that is half-open, with all of its places taken, may say "now".
    assert probes_until(16, lambda: refused(0)) == [0, 5, 15, 35, 35, 35]


def test_retry_after_determines_the_time_of_a_probe() -> None:
    def error() -> LamellaError:
        error = failed(StopReason.RETRY_BUDGET_EMPTY, 2)
        error.retry_after = 30
        return error

    assert probes_until(40, error) == [0, 30, 60, 60, 60]


async def test_a_recovered_service_is_not_overloaded(virtual_time: VirtualClock) -> None:
    """One at a time, two, four, eight, and then as many as are allowed."""
    began: Counter[float] = Counter()
    start = now()

    async def work(_: int) -> None:
        if now() < start + 5:
            raise refused(5)
        began[now() - start] += 1
        await asyncio.sleep(1)

    assert all(outcome.done for outcome in await collected(Batch(work, range(60), at_once=10)))
    assert list(began.values())[:6] == [1, 2, 4, 8, 10, 10]
    assert all(later - sooner == 1 for sooner, later in pairwise(began))


async def test_only_items_tried_since_the_last_failure_count(virtual_time: VirtualClock) -> None:
    outage = Outage(100)
    first, second = outage.enter(), outage.enter()
    assert outage.leave(first, refused(5))
    # It had begun before: neither a longer outage nor its end.
    await asyncio.sleep(4)
    assert outage.leave(second, refused(5))
    await asyncio.wait_for(outage.wait(), 1.5)
    probe = outage.enter()
    assert probe.probe
    assert outage.leave(probe, refused(5))
    third = outage.enter()
    assert not outage.leave(first, None)
    assert outage.active
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outage.wait(), 4.5)
    outage.give_back(third)
    outage.close()


async def test_a_final_failure_still_counts_for_the_outage(virtual_time: VirtualClock) -> None:
    outage = Outage(1)
    assert not outage.leave(outage.enter(), failed(StopReason.UNSAFE_METHOD))
    assert not outage.enter().probe
    outage.leave(outage.enter(), refused(5))
    await outage.wait()
    # A POST found out: it is not made again, and the others go on waiting.
    assert not outage.leave(outage.enter(), failed(StopReason.UNSAFE_METHOD, 3))
    assert outage.active
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outage.wait(), 2.5)
    await outage.wait()
    # An error of the function's own says nothing of the service; the next one may try at once.
    assert not outage.leave(outage.enter(), ValueError())
    assert outage.active
    await asyncio.wait_for(outage.wait(), 0.001)
    assert not outage.leave(outage.enter(), None)
    assert not outage.enter().probe
    outage.close()


async def test_a_cancelled_waiter_does_not_use_up_a_permit(virtual_time: VirtualClock) -> None:
    outage = Outage(1)
    outage.leave(outage.enter(), refused(5))
    waiting = [asyncio.create_task(outage.wait()) for _ in range(3)]
    await asyncio.sleep(1)
    # In the same instant: before it has noticed, its place in the queue is the first.
    waiting[0].cancel()
    outage._go()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting[0].cancelled()
    assert waiting[1].done()
    entered = outage.enter()
    # And one that was woken and cancelled passes it on.
    assert not waiting[2].done()
    fourth = asyncio.create_task(outage.wait())
    await asyncio.sleep(0)
    outage.leave(entered, ValueError())
    waiting[2].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting[2].cancelled()
    await asyncio.wait_for(fourth, 0.001)
    outage.close()


async def test_a_tried_item_fails_with_its_own_last_error(virtual_time: VirtualClock) -> None:
    errors: dict[int, LamellaError] = {}

    async def work(item: int) -> None:
        errors[item] = refused(7)
        raise errors[item]

    outcomes = await collected(Batch(work, range(4), at_once=2, patience=20, in_order=True))
    assert all(outcome.paused == 20 for outcome in outcomes)
    assert outcomes[0].error is errors[0]
    assert outcomes[1].error is errors[1]


async def test_a_probe_from_before_the_last_failure_does_not_end_the_outage(virtual_time: VirtualClock) -> None:
    outage = Outage(100)
    outage.leave(outage.enter(), refused(5))
    await outage.wait()
    outage.leave(outage.enter(), None)
    first, second = outage.enter(), outage.enter()
    outage.leave(first, refused(5))
    outage.leave(second, None)
    await outage.wait()
    only = outage.enter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(outage.wait(), 100)
    outage.give_back(only)
    outage.close()


async def test_a_closed_outage_begins_no_pause(virtual_time: VirtualClock) -> None:
    outage = Outage(100)
    entered = outage.enter()
    outage.close()
    assert not outage.leave(entered, refused(5))
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
    await asyncio.wait_for(outage.wait(), 0.001)


@pytest.mark.parametrize("at_once", [2, 3])
async def test_stopping_an_account_also_stops_its_waiting_items(virtual_time: VirtualClock, at_once: int) -> None:
    """A probe that is not made after all leaves its place to another; what was tried before is tried again."""
    start = now()
    tried: Counter[int] = Counter()

    async def work(item: int) -> None:
        tried[item] += 1
        if item == 0:
            await asyncio.sleep(3)
            raise KeyError("logged out")
        await asyncio.sleep(0.1)  # until as many as may have begun
        if now() < start + 15:
            raise refused(10)

    outcomes = await collected(
        Batch(work, range(8), at_once=at_once, account=lambda item: item % 2, stop_on=KeyError, in_order=True)
    )
    # With three at once, 2 was tried before its account was stopped.
    ends = [KeyError, AccountStopped if at_once == 2 else type(None), AccountStopped, AccountStopped]
    assert [type(outcome.error) for outcome in outcomes[::2]] == ends
    assert all(outcome.done for outcome in outcomes[1::2])
    assert tried == {0: 1, 1: 3, 3: 1, 5: 1, 7: 1} | ({} if at_once == 2 else {2: 2})
    assert 20 <= now() - start <= 21


async def test_a_known_cause_replaces_an_open_circuit() -> None:
    """The calls that have opened the circuit wait between their attempts: they end later than one that it rejects."""
    outage = Outage(2)
    first, second = outage.enter(), outage.enter()
    assert outage.leave(first, refused())
    assert type(outage.error).__name__ == "CircuitOpen"
    assert outage.leave(second, failed(StopReason.CIRCUIT_OPEN))
    assert type(outage.error).__name__ == "ConnectFailed"
    outage.close()
