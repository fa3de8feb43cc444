"""The queue of an account: no call is forgotten, none is overtaken, none passes while the account is blocked."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from asyncio import timeouts
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from lamella import Limit
from lamella.call import Call
from lamella.rules import Backoff
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket, VirtualTimeLoop, run_virtual
from lamella.testing import Limit as ServersLimit
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.permits import answered, next_permit, refused
from lamella.throttle.queue import PLACE, WAITING, Queue, waiting_of
from lamella.throttle.usage import InFlight, Usage, earliest, record, wait_for

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """In virtual time; afterwards no timer is left that would do anything."""

    async def and_look() -> T:
        result = await main
        left = [timer for timer in timers() if not timer.cancelled()]
        assert left == []
        return result

    return run_virtual(and_look())


def timers() -> list[asyncio.TimerHandle]:
    return list(vars(asyncio.get_running_loop())["_scheduled"])


def now() -> float:
    return asyncio.get_running_loop().time()


def is_reached(moment: float) -> bool:
    """Return whether a timer for *moment* may have fired: asyncio fires timers up to one tick of the clock early."""
    return now() + time.get_clock_info("monotonic").resolution >= moment


@dataclass
class Account:
    """What a ``Throttle`` does with a queue, and a server of its own; the store takes *slow* seconds on each way."""

    limit: ServersLimit | None = None
    stated: Limit | None = None
    slow: float = 0.0
    estimate: RateEstimate = field(default_factory=RateEstimate)
    usage: Usage = field(default_factory=Usage)
    queued: int = 0
    asking: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(0))
    sent: list[Call] = field(default_factory=list)
    """In the order in which they got their permits."""
    waiting: dict[Call, float] = field(default_factory=dict)
    """Since when they wait."""
    overtaken: list[str] = field(default_factory=list)
    opens: float = 0.0
    watched: bool = True
    """Whether to look out for calls that were overtaken, which takes its time."""

    def __post_init__(self) -> None:
        self.queue = Queue(self.ask, self.count)
        self.limiter = self.limit.limiter() if self.limit else None
        self.limits = (self.stated,) if self.stated else ()

    def count(self, _call: Call, number: int) -> None:
        self.queued += number

    async def store(self) -> None:
        if self.slow:
            await asyncio.sleep(self.slow * self.random.random())

    async def ask(self, call: Call, queue: Queue, ahead: int) -> Permit | Wait:
        if ahead:
            await self.store()
            if self.stated is None:
                return Wait(None, blocked=False)
            used = InFlight(queue.in_flight, queue.points)
            return Wait(earliest(self.usage, now(), used, self.limits, ahead), blocked=False)
        self.asking += 1
        began = now()
        assert self.asking == 1, "two ask at once, with the same attempts in flight"
        try:
            await self.store()
            waiting = waiting_of(call)
            waited = now() - waiting[0] if waiting else 0.0
            asked = Asked(self.stated is None, queue.waiting, waited)
            answer = wait_for(
                self.usage, now(), InFlight(queue.in_flight, queue.points), self.limits, 1.0
            ) or next_permit(self.estimate, now(), queue.sent_at, 60.0, asked)
            if isinstance(answer, Permit):
                assert is_reached(self.opens), "a permit while the account is blocked"
                assert PLACE.of(call) is not None
                for other, since in self.waiting.items() if self.watched else ():
                    place = PLACE.of(other)
                    if other is not call and since < began and place < PLACE.of(call):
                        self.overtaken.append(f"{PLACE.of(call)} came before {place}")
            await self.store()
            return answer
        finally:
            self.asking -= 1

    async def send(self, call: Call, latency: float, status: int | None = None) -> int | Wait:
        """Return the status of one attempt, by default what the limit says, or a Wait if its permit comes too late."""
        self.waiting[call] = now()
        WAITING.take(call)
        try:
            answer = await self.queue.enter(call)
        finally:
            del self.waiting[call]
        if isinstance(answer, Wait):
            return answer
        self.sent.append(call)
        try:
            try:
                await asyncio.sleep(latency / 2)
                if status is None:
                    status = 429 if self.limiter and self.limiter.allow(now()) > 0 else 200
                await asyncio.sleep(latency / 2)
            except BaseException:
                self.estimate.record(now())
                record(self.usage, now(), self.limits, 1.0)
                raise
            await self.store()
            if status == 429:
                wait = refused(self.estimate, now(), answer, Backoff(60), None)
                if wait is not None and wait.seconds is not None:
                    self.opens = now() + wait.seconds
                    self.queue.block(self.opens)
            else:
                answered(self.estimate, now(), answer, self.queue.in_flight - 1, learns=self.stated is None)
                record(self.usage, now(), self.limits, 1.0)
            return status
        finally:
            self.queue.end(answer)

    def is_at_rest(self) -> None:
        assert (self.queue.in_flight, self.queue.waiting, self.queued, self.asking) == (0, 0, 0, 0)


def call(deadline: float | None = None) -> Call:
    made = Call(cast(aiohttp.ClientRequest, None))  # which a queue does not look at
    made.deadline = deadline
    return made


def slow() -> Account:
    """One that was refused before, and whose answers take their time: one call goes after the other."""
    return Account(estimate=RateEstimate(generation=1, max_in_flight=1.0, fastest=50.0, untouched=False))


async def block(account: Account) -> None:
    """Let one call be refused, so that the account is blocked for a minute."""
    assert await account.send(call(), 0.0, 429) == 429
    assert account.queue.blocked_until == now() + 60


def test_a_call_with_a_free_permit_does_not_wait() -> None:
    async def main() -> None:
        account = Account()
        first = call()
        assert await account.send(first, 0.5) == 200
        assert now() == 0.5
        assert (waiting_of(first), first.queued, account.queue.queued) == (None, 0.0, 0)
        account.is_at_rest()

    run(main())


def test_all_calls_wait_while_the_account_is_blocked_and_go_in_order() -> None:
    async def main() -> None:
        account = Account()
        await block(account)
        calls = [call() for _ in range(20)]
        tasks = [asyncio.create_task(account.send(each, 0.1)) for each in calls]
        await asyncio.sleep(30)
        assert (len(account.sent), account.queue.waiting, account.queue.queued, account.queued) == (1, 20, 20, 20)
        assert {waiting_of(each) for each in calls} == {(0.0, 60.0)}
        assert await asyncio.gather(*tasks) == [200] * 20
        assert account.queue.waiting == 0
        assert account.sent[1:] == calls
        assert all(each.queued >= 60 for each in calls)
        account.is_at_rest()

    run(main())


@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_a_retried_call_keeps_its_place_before_younger_ones(slow: float) -> None:
    """Also one that did not have to wait the first time."""

    async def main() -> None:
        account = Account(slow=slow)
        refused_call = call()
        assert await account.send(refused_call, 0.1, 429) == 429
        younger = [call() for _ in range(5)]
        tasks = [asyncio.create_task(account.send(each, 0.1)) for each in younger]
        await asyncio.sleep(50)
        tasks.append(asyncio.create_task(account.send(refused_call, 0.1)))
        await asyncio.gather(*tasks)
        assert account.sent[1:] == [refused_call, *younger]
        assert account.overtaken == []
        account.is_at_rest()

    run(main())


@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_concurrent_calls_do_not_both_take_the_last_permit(slow: float) -> None:
    """While one waits for a slow store, the other does not know of it yet."""

    async def main() -> None:
        account = Account(SlidingWindow(1, 60), Limit(1, 60), slow=slow)
        assert await asyncio.gather(*(account.send(call(), 0.1) for _ in range(3))) == [200] * 3
        assert now() > 120
        account.is_at_rest()

    run(main())


def test_a_call_whose_permit_would_come_too_late_does_not_wait_for_it() -> None:
    async def main() -> None:
        account = Account()
        await block(account)
        hasty, patient = call(60.0), call(60.1)
        assert await account.send(hasty, 0.0) == Wait(60.0, blocked=True)
        assert (now(), waiting_of(hasty)) == (0.0, None)
        assert await account.send(patient, 0.0) == 200
        account.is_at_rest()

    run(main())


def test_a_call_behind_others_fails_at_once_if_its_permit_is_too_late() -> None:
    async def main() -> None:
        account = Account()
        await block(account)
        first = asyncio.create_task(account.send(call(), 0.0))
        await asyncio.sleep(10)
        assert await account.send(call(59.0), 0.0) == Wait(50.0, blocked=True)
        assert now() == 10
        assert await first == 200
        account.is_at_rest()

    run(main())


def test_with_a_stated_limit_the_place_in_the_queue_is_considered() -> None:
    async def main() -> None:
        account = Account(stated=Limit(10, 60))
        tasks = [asyncio.create_task(account.send(call(), 0.0)) for _ in range(25)]  # the last five: after two minutes
        await asyncio.sleep(1)
        assert await account.send(call(119.0), 0.0) == Wait(119.0, blocked=False)
        late = asyncio.create_task(account.send(call(121.0), 0.0))
        await asyncio.sleep(0)
        assert account.queue.waiting == 16
        again = call(59.0)
        PLACE.set(again, -1)  # a retry: only the next window is too late for it
        assert await account.send(again, 0.0) == Wait(59.0, blocked=False)
        assert await asyncio.gather(*tasks, late) == [200] * 26
        account.is_at_rest()

    run(main())


def test_a_new_refusal_ends_the_wait_of_calls_with_earlier_deadlines() -> None:
    async def main() -> None:
        account = slow()
        on_its_way = asyncio.create_task(account.send(call(), 50.0, 429))
        await asyncio.sleep(1)
        calls = [call(end) for end in (None, 100.0, 110.0, 111.0)]
        first, second, third, fourth = (asyncio.create_task(account.send(each, 0.0)) for each in calls)
        await asyncio.sleep(1)
        assert account.queue.waiting == 4
        assert account.queue.blocked_until == 0
        # At 110 there would be no time left for the third.
        assert [await second, await third] == [Wait(60.0, blocked=True)] * 2
        assert now() == 50
        await on_its_way
        assert {waiting_of(calls[0]), waiting_of(calls[3])} == {(1.0, 110.0)}
        assert [await first, await fourth] == [200, 200]
        assert now() == 110
        assert [each.queued for each in calls] == [109, 49, 49, 109]
        account.is_at_rest()

    run(main())


def test_a_refusal_seen_by_another_process_ends_the_wait() -> None:
    """Another process was refused: the first in the queue finds it out when it asks."""

    async def main() -> None:
        account = slow()
        busy = asyncio.create_task(account.send(call(), 50.0))
        await asyncio.sleep(0)
        first = asyncio.create_task(account.send(call(), 0.0))
        second = asyncio.create_task(account.send(call(100.0), 0.0))
        await asyncio.sleep(10)
        account.estimate.blocked_until = account.opens = 300.0
        assert await second == Wait(250.0, blocked=True)
        assert now() == 50
        await asyncio.gather(busy, first)
        assert now() == 300
        account.is_at_rest()

    run(main())


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("slow", [0.0, 0.2])
def test_a_cancelled_call_leaves_nothing_behind_and_the_next_one_is_sent(which: int, slow: float) -> None:
    async def main() -> None:
        account = Account(slow=slow)
        await account.send(call(), 0.0, 429)
        tasks = [asyncio.create_task(account.send(call(), 0.1)) for _ in range(3)]
        await asyncio.sleep(30)
        assert account.queued == 3
        tasks[which].cancel()
        await asyncio.sleep(1)
        assert tasks[which].cancelled()
        assert (account.queued, account.queue.waiting) == (2, 2)
        await asyncio.sleep(60)
        assert [task.result() for task in tasks if not task.cancelled()] == [200, 200]
        account.is_at_rest()

    run(main())


def test_a_call_cancelled_at_any_time_leaves_the_queue() -> None:
    """At each step of the loop from its first to its last."""

    async def at(steps: int) -> bool:
        account = Account(slow=0.2, random=random.Random(steps))
        account.estimate.max_in_flight = 1.0
        first = asyncio.create_task(account.send(call(), 0.3))
        other = asyncio.create_task(account.send(call(), 0.3))
        last = asyncio.create_task(account.send(call(), 0.3))
        for _ in range(steps):
            await asyncio.sleep(0.01)
        over = other.done()
        other.cancel()
        await asyncio.wait([first, other, last], timeout=60)
        assert first.done()
        assert last.done()
        account.is_at_rest()
        return over

    steps = 0
    while not run(at(steps)):
        steps += 1
    assert steps > 50


def test_an_error_of_the_probe_is_the_callers_and_the_next_call_probes() -> None:
    async def main() -> None:
        asked: list[Call] = []

        async def ask(asking: Call, queue: Queue, ahead: int) -> Permit | Wait:
            asked.append(asking)
            await asyncio.sleep(1)
            if len(asked) == 1:
                raise LookupError
            return Permit(0, now())

        queue = Queue(ask, lambda *_: None)
        first = asyncio.create_task(queue.enter(call()))
        await asyncio.sleep(0)
        assert isinstance(await queue.enter(call()), Permit)
        with pytest.raises(LookupError):
            await first
        assert (queue.in_flight, queue.waiting) == (1, 0)

    run(main())


def burden(calls: int) -> float:
    """Return the CPU time to queue so many calls, with a deadline each; to cancel them; and to send them."""

    async def main() -> None:
        account = Account(stated=Limit(calls // 10, 60), watched=False)
        await block(account)
        for order in (1, -1):
            tasks = [asyncio.create_task(account.send(call(1e9), 0.0)) for _ in range(calls)]
            await asyncio.sleep(0)
            assert account.queued == calls
            for task in tasks[calls // 2 :]:
                task.cancel()
            for number, task in enumerate(tasks[: calls // 2][::order]):
                task.cancel()
                if not number % 10:
                    await asyncio.sleep(0)
            await asyncio.wait(tasks)
            account.is_at_rest()
        tasks = [asyncio.create_task(account.send(call(1e9), 0.0)) for _ in range(calls)]
        assert await asyncio.gather(*tasks) == [200] * calls
        assert now() < 60 * 11.1
        account.is_at_rest()

    began = time.process_time()
    run(main())
    return time.process_time() - began


@pytest.mark.slow
def test_ten_thousand_queued_calls_cost_little_time() -> None:
    """Ten times as many take some ten times as long: with anything quadratic in it, it would be a hundred times."""
    assert burden(10_000) < 40 * min(burden(1000) for _ in range(3))


def test_cancelled_calls_behind_a_waiting_one_do_not_accumulate() -> None:
    async def main() -> None:
        account = Account()
        await block(account)
        first = asyncio.create_task(account.send(call(), 0.0))
        for _ in range(1000):
            task = asyncio.create_task(account.send(call(), 0.0))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert len(account.queue.waiters) <= 3
        assert await first == 200
        account.is_at_rest()

    run(main())


def test_a_retry_is_woken_after_a_younger_call_has_its_answer() -> None:
    async def main() -> None:
        younger, older = call(), call()
        PLACE.set(older, -1)

        async def ask(asking: Call, queue: Queue, ahead: int) -> Permit | Wait:
            await asyncio.sleep(1)
            return Wait(1000.0, blocked=False) if asking is younger else Permit(0, now())

        queue = Queue(ask, lambda *_: None)
        waits = asyncio.create_task(queue.enter(younger))
        await asyncio.sleep(0.5)
        assert isinstance(await queue.enter(older), Permit)
        assert now() == 2
        assert queue.blocked_until == 0.0  # the younger waited for the rate
        waits.cancel()
        await asyncio.wait([waits])

    run(main())


def test_ask_gets_the_number_of_calls_before() -> None:
    """Those that are younger do not, and those that have left the queue; but one that asks just now does."""

    async def main() -> None:
        told: list[int] = []

        async def ask(asking: Call, queue: Queue, ahead: int) -> Permit | Wait:
            told.append(ahead)
            await asyncio.sleep(1)
            return Wait(None, blocked=False)

        async def comes(place: int | None = None) -> None:
            calls.append(call(1e9))
            if place is not None:
                PLACE.set(calls[-1], place)
            tasks.append(asyncio.create_task(queue.enter(calls[-1])))
            await asyncio.sleep(0)

        queue = Queue(ask, lambda *_: None)
        calls: list[Call] = []
        tasks: list[asyncio.Task[Permit | Wait]] = []
        await comes(-50)
        await comes()
        tasks[-1].cancel()
        await asyncio.wait(tasks[-1:])
        await comes(-60)  # the first asks already
        assert told == [0, 1, 1]
        await asyncio.sleep(10)
        told.clear()
        for place in (None, None, None, -55, None):
            await comes(place)
        assert told == [2, 3, 4, 1, 6]
        for leaves in (tasks[-1], tasks[-3]):
            leaves.cancel()
            await asyncio.wait([leaves])
        youngest = PLACE.of(calls[-1])
        await comes(10**12)  # its place is from another queue
        await comes(youngest)
        assert told[5:] == [5, 5]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert (queue.waiting, queue.in_flight) == (0, 0)

    run(main())


def test_a_call_with_an_immediate_permit_is_counted() -> None:
    async def main() -> None:
        account = Account()
        at_once, other = call(), call()
        for each in (at_once, other):
            assert not account.queue.waiting
            account.queue.start(each, Permit(0, now()))
        assert account.queue.in_flight == 2
        assert PLACE.of(at_once) < PLACE.of(other)
        for _ in range(2):
            account.queue.end(Permit(0, now()))
        account.is_at_rest()

    run(main())


def test_calls_left_after_many_cancellations_keep_their_order() -> None:
    async def main() -> None:
        account = Account()
        await block(account)
        places = random.Random(0).sample(range(-100, 0), 100)
        calls = [call() for _ in places]
        for each, place in zip(calls, places, strict=True):
            PLACE.set(each, place)
        tasks = [asyncio.create_task(account.send(each, 0.0)) for each in calls]
        await asyncio.sleep(1)
        for task in tasks[:60]:
            task.cancel()
        await asyncio.wait(tasks)
        assert [PLACE.of(each) for each in account.sent[1:]] == sorted(places[60:])
        account.is_at_rest()

    run(main())


def test_calls_left_in_a_closed_loop_end_silently() -> None:
    loop = VirtualTimeLoop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    tasks: list[asyncio.Task[int | Wait]] = []

    async def main() -> None:
        account = Account()
        await block(account)
        tasks.extend(asyncio.create_task(account.send(call(), 0.0)) for _ in range(3))
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    loop.close()
    tasks.clear()
    gc.collect()  # what goes wrong here, pytest makes a warning of, and so a failure
    assert told == ["Task was destroyed but it is pending!"] * 3


@dataclass(frozen=True)
class Plan:
    """What becomes of one call."""

    comes: float
    latency: float
    statuses: tuple[int | None, ...]
    """Of its attempts. None: what the limit says."""
    patience: float | None
    """For how long it may wait in all."""
    cancelled: float | None
    """How long after it came."""


PLANS = st.lists(
    st.builds(
        Plan,
        comes=st.sampled_from([0.0, 0.0, 0.1, 1.0, 30.0, 59.9, 60.0, 61.0, 150.0]),
        latency=st.sampled_from([0.0, 0.1, 5.0, 70.0]),
        statuses=st.lists(st.sampled_from([None, None, 200, 500, 429]), min_size=1, max_size=3).map(tuple),
        patience=st.sampled_from([None, None, 0.05, 10.0, 60.0, 200.0]),
        cancelled=st.sampled_from([None, None, None, 0.0, 0.05, 1.0, 45.0, 60.0, 100.0]),
    ),
    min_size=1,
    max_size=14,
)


@examples(300)
@given(
    plans=PLANS,
    limit=st.sampled_from([None, FixedWindow(3, 60), SlidingWindow(2, 60), TokenBucket(0.1, 4)]),
    stated=st.sampled_from([None, None, Limit(3, 60)]),
    slow=st.sampled_from([0.0, 0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_no_queued_call_is_ever_forgotten(
    plans: list[Plan], limit: ServersLimit | None, stated: Limit | None, slow: float, seed: int
) -> None:
    """Successes, 429s, 500s, cancellations and deadlines, in any order."""

    async def live(account: Account, plan: Plan) -> None:
        await asyncio.sleep(plan.comes)
        mine = call(None if plan.patience is None else now() + plan.patience)
        try:
            async with timeouts.timeout_at(mine.deadline):
                for number, status in enumerate(plan.statuses):
                    if isinstance(answer := await account.send(mine, plan.latency, status), Wait):
                        assert mine.deadline is not None
                        assert answer.seconds is not None
                        assert now() + answer.seconds >= mine.deadline
                        return
                    if answer == 200:
                        return
                    await asyncio.sleep(60 * 2**number if answer == 429 else 15)
        except TimeoutError:
            assert mine.deadline is not None
            assert is_reached(mine.deadline)

    async def main() -> None:
        account = Account(limit, stated, slow, random=random.Random(seed))
        tasks = [asyncio.create_task(live(account, plan)) for plan in plans]
        for task, plan in zip(tasks, plans, strict=True):
            if plan.cancelled is not None:
                timer = asyncio.get_running_loop().call_later(plan.comes + plan.cancelled, task.cancel)
                task.add_done_callback(lambda _, timer=timer: timer.cancel())  # type: ignore[misc]
        await asyncio.wait(tasks, timeout=200_000)
        assert all(task.done() for task in tasks), "somebody waits for ever"
        for task, plan in zip(tasks, plans, strict=True):
            assert not task.cancelled() or plan.cancelled is not None
            assert task.cancelled() or task.exception() is None
        account.is_at_rest()
        assert account.overtaken == []

    run(main())


@pytest.mark.slow
@examples(100)
@given(
    plans=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.3, 1.0, 5.0]),
            st.sampled_from([0.0, 0.02, 0.1, 0.15, 0.3, 1.0, 30.0, 1000.0]),
            st.sampled_from([1, 1, 2, 5, 30, 100]),
        ),
        min_size=1,
        max_size=8,
    ),
    slow=st.sampled_from([0.0, 0.0, 0.001]),
)
def test_without_refusals_no_call_waits_long_for_slow_ones(plans: list[tuple[float, float, int]], slow: float) -> None:
    """So many calls, which come together and take as long."""

    async def main() -> None:
        account = Account(slow=slow, watched=False)
        calls: list[Call] = []

        async def live(comes: float, latency: float) -> None:
            await asyncio.sleep(comes)
            calls.append(call())
            assert await account.send(calls[-1], latency) == 200

        await asyncio.gather(*(live(comes, latency) for comes, latency, number in plans for _ in range(number)))
        # With a slow store one asks after the other.
        assert max(each.queued for each in calls) <= 0.7 + 1e-3 + 2 * slow * len(calls)
        account.is_at_rest()

    run(main())


@examples(100)
@given(
    polls=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 30.0, 61.0, 100.0]), st.integers(1, 12)), max_size=4),
    before=st.integers(0, 12),
    comes=st.sampled_from([0.0, 0.2, 62.0, 130.0, 300.0]),
    limit=st.sampled_from([None, FixedWindow(3, 60), SlidingWindow(8, 60), TokenBucket(0.1, 5), FixedWindow(30, 60)]),
    statuses=st.lists(st.sampled_from([429, 429, 500, None]), max_size=3),
)
def test_calls_without_a_response_do_not_block_others_forever(
    polls: list[tuple[float, int]],
    before: int,
    comes: float,
    limit: ServersLimit | None,
    statuses: list[int | None],
) -> None:
    """Whatever was refused, and whatever was learned: each poll takes its share of the limit once, and no more."""

    async def main() -> None:
        account = Account(limit, watched=False)

        async def until_it_passes(mine: Call, latency: float, *statuses: int | None) -> None:
            for number in range(1000):
                status = statuses[number] if number < len(statuses) else None
                if await account.send(mine, latency, status) == 200:
                    return
                await asyncio.sleep(60)

        async def poll(comes: float) -> None:
            await asyncio.sleep(comes)
            await until_it_passes(call(), 1e9)

        await asyncio.gather(*(until_it_passes(call(), 0.05) for _ in range(before)))
        began = now()
        tasks = [asyncio.create_task(poll(comes)) for comes, number in polls for _ in range(number)]
        await asyncio.sleep(comes)
        async with asyncio.timeout(3 * 3600):
            await until_it_passes(call(), 0.05, *statuses)
        assert now() - began < 2 * 3600
        for task in tasks:
            task.cancel()
        await asyncio.wait([*tasks, asyncio.create_task(asyncio.sleep(0))])
        account.is_at_rest()

    run(main())
