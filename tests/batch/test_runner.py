from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.environment import HANGS

from lamella import HeaderAuth, RuleBook, Unauthorized, stack
from lamella.batch.journal import Counts, Journal
from lamella.batch.journal_errors import JournalError
from lamella.batch.outcome import AccountStopped, ItemOutcome
from lamella.batch.runner import Batch
from lamella.maesn.sandbox import Account, Sandbox
from lamella.testing import VirtualClock, run_virtual

KEY = "batch-4ccount-s3cret"


class Refused(Exception):
    """What an item may end in."""


async def double(item: int) -> int:
    return item * 2


async def collect(batch: Batch[Any, Any], outcomes: list[ItemOutcome[Any, Any]]) -> None:
    """For batches that do not end well: what was handed out until then."""
    async with batch:
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401 - those so far are wanted


async def collected(batch: Batch[Any, Any]) -> list[ItemOutcome[Any, Any]]:
    async with batch:
        return [outcome async for outcome in batch]


def alone() -> bool:
    """Whether nothing is left behind: no other task, and no timer."""
    loop: Any = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    return asyncio.all_tasks() == {asyncio.current_task()} and not timers


class Work:
    """Takes as long as it is told for each item, and keeps count of what goes on at a time."""

    def __init__(self, seconds: Callable[[int], float] = lambda _: 1.0) -> None:
        self.seconds = seconds
        self.now = 0
        self.most = 0
        self.begun: list[int] = []
        self.ended: list[int] = []

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds(item))
        finally:
            self.now -= 1
        self.ended.append(item)
        return item * 2


class Source:
    """Items from 0 on, which counts those that were taken."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        for item in range(self.size):
            self.taken += 1
            yield item

    async def later(self, seconds: float = 0.0) -> AsyncGenerator[int, None]:
        try:
            for item in range(self.size):
                await asyncio.sleep(seconds)
                self.taken += 1
                yield item
        finally:
            self.closed = True


# Every item, once


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 60),
    at_once=st.integers(1, 8),
    per_account=st.none() | st.integers(1, 4),
    in_order=st.booleans(),
    later=st.booleans(),
)
def test_every_item_has_one_outcome(
    seed: int, size: int, at_once: int, per_account: int | None, in_order: bool, later: bool
) -> None:
    draw = random.Random(seed)
    seconds = [draw.choice([0.0, 0.5, 1.0, draw.random() * 9]) for _ in range(size)]
    fails = [draw.random() < 0.3 for _ in range(size)]
    running: Counter[int] = Counter()
    source = Source(size)

    async def work(item: int) -> int:
        running[item % 3] += 1
        assert running[item % 3] <= (per_account or at_once)
        assert running.total() <= at_once
        await asyncio.sleep(seconds[item])
        running[item % 3] -= 1
        if fails[item]:
            raise Refused(item)
        return item * 2

    async def main() -> list[ItemOutcome[int, int]]:
        items = source.later(draw.random()) if later else source
        outcomes = []
        batch = Batch(
            work,
            items,
            at_once=at_once,
            account=lambda item: item % 3,
            at_once_per_account=per_account,
            in_order=in_order,
        )
        async with batch:
            async for outcome in batch:
                outcomes.append(outcome)
                assert source.taken - len(outcomes) <= at_once * 4
        assert alone()
        return outcomes

    outcomes = run_virtual(main())
    numbers = [outcome.number for outcome in outcomes]
    assert numbers == list(range(1, size + 1)) if in_order else sorted(numbers) == list(range(1, size + 1))
    for outcome in outcomes:
        assert outcome.item == outcome.number - 1
        assert (outcome.tries, outcome.paused) == (1, 0.0)
        assert outcome.done is not fails[outcome.item]
        assert outcome.value == (outcome.item * 2 if outcome.done else None)
        assert isinstance(outcome.error, Refused) is fails[outcome.item]


@pytest.mark.parametrize("later", [False, True], ids=["iterable", "async iterable"])
async def test_a_batch_uses_exactly_its_full_concurrency(virtual_time: VirtualClock, later: bool) -> None:
    work, source = Work(), Source(100)
    began = virtual_time.now
    outcomes = await collected(Batch(work, source.later() if later else source, at_once=10))
    assert len(outcomes) == 100
    assert work.most == 10
    assert virtual_time.now - began == 10


async def test_each_account_has_its_own_limit_of_concurrent_items(virtual_time: VirtualClock) -> None:
    work = Work()
    began = virtual_time.now
    batch = Batch(work, range(40), at_once=20, account=lambda item: item % 4, at_once_per_account=2)
    assert len(await collected(batch)) == 40
    assert work.most == 8
    assert virtual_time.now - began == 5


async def test_a_free_slot_is_used_at_once(virtual_time: VirtualClock) -> None:
    """One item takes all the time that there is; the others go by in the other place."""
    work = Work(lambda item: 100.0 if item == 0 else 10.0)
    began = virtual_time.now
    assert len(await collected(Batch(work, range(8), at_once=2))) == 8
    assert virtual_time.now - began == 100


async def test_an_item_begins_before_the_next_is_taken() -> None:
    """A source that takes its time, and the loop's with it, does not keep the first items waiting."""
    work = Work(lambda _: 0.0)

    def items() -> Iterator[int]:
        for item in range(20):
            yield item
            assert len(work.begun) >= item - 1

    assert len(await collected(Batch(work, items()))) == 20


@pytest.mark.sampled(1)
@pytest.mark.parametrize("later", [False, True], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
async def test_a_slow_consumer_applies_backpressure(tmp_path: Path, later: bool, journal: bool) -> None:
    source = Source(10_000)
    async with Journal.open(tmp_path / "journal", batch="b") as opened:
        batch = Batch(
            double,
            source.later() if later else source,
            at_once=3,
            journal=opened if journal else None,
            key=str,
        )
        async with batch:
            taken = 0
            async for _ in batch:
                taken += 1
                for _ in range(50):
                    await asyncio.sleep(0)
                if journal:
                    await asyncio.sleep(0.005)
                assert source.taken - taken <= 12
                if taken == 20:
                    async with asyncio.timeout(10):  # the journal writes in a thread, which a busy machine delays
                        while source.taken < 20 + 3:  # noqa: ASYNC110
                            await asyncio.sleep(0)
                    break
    assert source.taken >= 20 + 3


async def test_an_untaken_outcome_keeps_its_slot(virtual_time: VirtualClock) -> None:
    work = Work()
    async with Batch(work, range(100), at_once=3, grace=50) as batch:
        await asyncio.sleep(10)
        assert work.ended == work.begun == [0, 1, 2]
        await anext(batch)
        await asyncio.sleep(0.5)
        assert work.begun == [0, 1, 2, 3]
    # It was under way still; the outcomes that nobody will take are waited for by nobody.
    assert work.ended == work.begun == [0, 1, 2, 3]
    assert virtual_time.elapsed == 11


async def test_a_waiting_source_delays_no_outcome(virtual_time: VirtualClock, tmp_path: Path) -> None:
    """Though the journal is asked for many keys at a time."""
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        began = virtual_time.now
        async with Batch(double, Source(3).later(10), journal=journal, key=str) as batch:
            seen = [(outcome.item, round(virtual_time.now - began)) async for outcome in batch]
    assert seen == [(0, 10), (1, 20), (2, 30)]


@pytest.mark.parametrize("in_order", [False, True])
async def test_cancelling_the_wait_for_an_outcome_loses_none(virtual_time: VirtualClock, in_order: bool) -> None:
    outcomes: list[int] = []
    async with Batch(Work(), range(20), at_once=3, in_order=in_order) as batch:
        while len(outcomes) < 20:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    outcomes.append((await anext(batch)).item)
    assert sorted(outcomes) == list(range(20))
    assert virtual_time.elapsed == 7


async def test_several_tasks_can_take_outcomes(virtual_time: VirtualClock) -> None:
    """Each outcome is one of theirs, and all are told of the end: also who takes them when the block is left."""
    shares: list[list[int]] = [[], [], []]

    async def take(share: list[int]) -> None:
        async for outcome in batch:
            share.append(outcome.item)
            await asyncio.sleep(0.3)

    async with Batch(Work(), range(20), at_once=3) as batch:
        await asyncio.gather(*map(take, shares))
    assert all(shares)
    assert sorted(chain(*shares)) == list(range(20))
    async with asyncio.timeout(60):
        assert [outcome async for outcome in batch] == []

    async with Batch(Work(), range(20), at_once=3, grace=0) as batch:
        waiting = asyncio.create_task(take([]))
        await asyncio.sleep(0.5)
    await waiting
    assert alone()


async def test_in_order_a_slow_item_delays_outcomes_but_not_work(virtual_time: VirtualClock) -> None:
    work, source = Work(lambda item: 100.0 if item == 0 else 1.0), Source(50)
    began = virtual_time.now
    async with Batch(work, source, at_once=5, in_order=True) as batch:
        first = await anext(batch)
        assert (first.item, virtual_time.now - began) == (0, 100)
        assert work.ended == [*range(1, 20), 0]
        assert source.taken == 20
        assert [outcome.item async for outcome in batch] == list(range(1, 50))
    # The other 30 at 5 a second.
    assert virtual_time.now - began == 106


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["", *(pytest.param(how, marks=pytest.mark.slow) for how in ("journal", "done before", "in order"))]
)
async def test_memory_stays_flat(tmp_path: Path, how: str) -> None:
    """A second look after five times as many items finds no more than the first."""
    items = iter(range(5_500))
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        if how == "done before":
            await asyncio.gather(*(journal.end(str(item)) for item in range(5_500)))
        options: dict[str, Any] = {"journal": journal, "key": str} if how in {"journal", "done before"} else {}
        batch = Batch(
            double,
            items,
            at_once=20,  # what is under way is small beside what would pile up
            account=lambda item: item % 500,
            at_once_per_account=5,
            service=lambda item: item % 3,
            in_order=how == "in order",
            **options,
        )
        used = []
        tracemalloc.start()
        try:
            async with batch:
                count = 0
                async for _ in batch:
                    count += 1
                    if count in {1_000, 5_000}:
                        used.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    # A reference to each of the 4,000 in between would be more.
    assert used[1] - used[0] < 26_000


# How it ends


async def test_no_items_give_no_outcomes() -> None:
    assert await collected(Batch(double, ())) == []


async def test_a_batch_needs_its_block_and_runs_once() -> None:
    batch = Batch(double, [1])
    with pytest.raises(RuntimeError, match="async with"):
        await anext(batch)
    assert len(await collected(batch)) == 1
    with pytest.raises(RuntimeError, match="once"):
        await batch.__aenter__()


@pytest.mark.parametrize("in_order", [False, True])
async def test_leaving_early_gives_running_items_their_grace(virtual_time: VirtualClock, in_order: bool) -> None:
    work, source = Work(lambda item: item + 1), Source(1000)
    async with Batch(work, source.later(), at_once=4, grace=2.5, in_order=in_order) as batch:
        async for _ in batch:
            break
    # When 0 had ended, 1 to 3 were under way; 3 takes too long.
    assert work.begun == [0, 1, 2, 3]
    assert work.ended == [0, 1, 2]
    assert source.closed
    assert alone()
    assert virtual_time.elapsed == 3.5


async def test_an_abandoned_async_generator_is_closed(virtual_time: VirtualClock) -> None:
    source = Source(1000)
    items = source.later()  # held: else it would be closed when it is forgotten
    async with Batch(double, items, at_once=2):
        await asyncio.sleep(1)
    assert source.taken == 8
    assert source.closed
    await items.aclose()


async def test_without_grace_a_batch_ends_at_once(virtual_time: VirtualClock) -> None:
    work = Work(lambda item: 100.0 * item)
    async with Batch(work, range(9), at_once=4, grace=0) as batch:
        await anext(batch)
    assert work.ended == [0]
    assert alone()
    assert virtual_time.elapsed == 0


async def test_an_exception_of_the_consumer_is_raised_unchanged(virtual_time: VirtualClock) -> None:
    work = Work(lambda item: 1.0 + item)

    async def consume() -> None:
        async with Batch(work, range(100), at_once=4) as batch:
            async for _ in batch:
                raise Refused("enough")

    with pytest.raises(Refused, match="enough"):
        await consume()
    assert work.ended == work.begun == [0, 1, 2, 3]
    assert alone()
    assert virtual_time.elapsed == 4


@pytest.mark.parametrize("how", ["task", "scope", "timeout"])
async def test_a_cancelled_batch_finishes_running_items(virtual_time: VirtualClock, how: str) -> None:
    work = Work(lambda item: 10.0 + item)

    async def main() -> None:
        async with Batch(work, range(100), at_once=3, grace=11.5) as batch:
            async for _ in batch:
                pass

    if how == "scope":
        with anyio.move_on_after(5) as scope:
            await main()
        assert scope.cancelled_caught
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await main()
    else:
        task = asyncio.create_task(main())
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
    assert work.begun == [0, 1, 2]
    assert work.ended == [0, 1, 2]
    assert virtual_time.elapsed == 12
    task_now = asyncio.current_task()
    assert task_now is not None
    assert not task_now.cancelling()
    assert alone()


async def test_a_second_cancellation_ends_a_batch_at_once(virtual_time: VirtualClock) -> None:
    work = Work(lambda _: 100.0)
    task = asyncio.create_task(collected(Batch(work, range(9), at_once=3, grace=50)))
    await asyncio.sleep(5)
    task.cancel()
    await asyncio.sleep(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert virtual_time.elapsed == 10
    assert (work.begun, work.ended, work.now) == ([0, 1, 2], [], 0)
    assert alone()


@pytest.mark.parametrize("in_order", [False, True])
async def test_stop_begins_nothing_and_yields_outcomes_of_begun_items(
    virtual_time: VirtualClock, in_order: bool
) -> None:
    # One account: 1 waits for 0, and is not begun; 2 goes on.
    work = Work(lambda item: {0: 3.0, 2: 5.0, 3: 1.0}.get(item, 1.0))
    batch = Batch(
        work,
        range(9),
        at_once=3,
        account=lambda item: 0 if item < 2 else item,
        at_once_per_account=1,
        in_order=in_order,
    )
    outcomes = []
    async with batch:
        async for outcome in batch:
            outcomes.append(outcome.item)
            batch.stop()
    assert sorted(outcomes) == sorted(work.begun) == sorted(work.ended)
    assert 1 not in work.begun
    assert len(outcomes) > 1
    if in_order:
        assert outcomes == sorted(outcomes)
    assert virtual_time.elapsed <= 8


@pytest.mark.parametrize("later", [False, True], ids=["iterable", "async iterable"])
@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
async def test_an_exception_of_the_source_is_raised_after_the_taken_items(
    tmp_path: Path, later: bool, journal: bool
) -> None:
    def broken() -> Iterator[int]:
        yield from range(7)
        raise Refused("no more")

    async def broken_later() -> AsyncIterator[int]:
        for item in broken():
            yield item

    outcomes: list[ItemOutcome[int, int]] = []
    async with Journal.open(tmp_path / "journal", batch="b") as opened:
        items = broken_later() if later else broken()
        batch = Batch(double, items, at_once=2, journal=opened if journal else None, key=str)
        with pytest.raises(Refused, match="no more"):
            await collect(batch, outcomes)
    assert sorted(outcome.item for outcome in outcomes) == list(range(7))
    assert alone()


async def test_an_invalid_source_is_reported() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        await collected(Batch(double, 7))  # type: ignore[arg-type]


async def test_an_unreported_exception_is_raised_at_the_end_of_the_block() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise Refused("no more")

    with pytest.raises(Refused, match="no more"):
        async with Batch(double, broken()) as batch:
            await anext(batch)


async def test_an_item_without_account_fails_alone() -> None:
    def account(item: int) -> int:
        return 1 // item

    outcomes = await collected(Batch(double, [1, 0, 2], account=account, in_order=True))
    assert [outcome.value for outcome in outcomes] == [2, None, 4]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert outcomes[1].tries == 0


@pytest.mark.parametrize("where", ["function", "sink"])
async def test_an_unexpected_cancelled_error_is_an_error(where: str) -> None:
    async def cancelled(of: Any) -> None:
        if getattr(of, "item", of) == 3:
            raise asyncio.CancelledError

    none = SimpleNamespace(function=double, sink=None)
    setattr(none, where, cancelled)
    outcomes = await collected(Batch(none.function, range(9), at_once=1, sink=none.sink))
    assert [outcome.done for outcome in outcomes] == [item != 3 for item in range(9)]
    error = outcomes[3].error
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_second_signal_ends_the_process(kind: type[BaseException]) -> None:
    work = Work(lambda _: 100.0)

    async def ends(item: int) -> int:
        if item == 3:
            await asyncio.sleep(1)
            raise kind
        return await work(item)

    async def main() -> None:
        # What a program raises that is told to end is asyncio's to say.
        with suppress(BaseExceptionGroup):
            await collected(Batch(ends, range(9), at_once=4))

    with pytest.raises(kind):
        run_virtual(main())
    assert work.begun == [0, 1, 2]
    assert work.ended == []
    assert work.now == 0


def test_an_interruption_while_an_outcome_waits_is_raised_alone() -> None:
    raised: list[BaseException] = []

    async def ends(item: int) -> None:
        await asyncio.sleep(item)
        if item == 2:
            raise KeyboardInterrupt

    async def main() -> None:
        try:
            async with Batch(ends, range(4), at_once=4) as batch:
                await anext(batch)
                await asyncio.sleep(100)
        except BaseException as error:
            raised.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main())
    [group] = raised
    assert isinstance(group, BaseExceptionGroup)
    assert group.split(KeyboardInterrupt)[1] is None


CTRL_C = """
import asyncio, signal, sys
from lamella.batch.journal import Journal
from lamella.batch.runner import Batch

is_interrupted = asyncio.Event()

async def work(item):
    print("begun", item, flush=True)
    if item < 2:
        await is_interrupted.wait()
    else:
        await asyncio.sleep(3600)

async def main():
    async with Journal.open(sys.argv[1], batch="b") as journal:
        async with Batch(work, range(99), at_once=3, grace=0.5, journal=journal, key=str) as batch:
            try:
                async for outcome in batch:
                    print("outcome", outcome.item, flush=True)
            finally:
                is_interrupted.set()

# In the background of a shell Ctrl-C is ignored, which a child inherits.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
"""


def test_ctrl_c_lets_running_items_end_and_records_them(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "error", "-c", CTRL_C, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(3)]
            os.kill(process.pid, signal.SIGINT)
            rest, errors = process.communicate(timeout=HANGS)
        finally:
            process.kill()
    assert sorted(lines) == ["begun 0", "begun 1", "begun 2"]
    assert rest == ""
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0

    async def recorded() -> tuple[Counts, set[str]]:
        async with Journal.open(path, batch="b") as journal:
            return await journal.counts(), await journal.ended(map(str, range(99)))

    assert run_virtual(recorded()) == (Counts(2, 0), {"0", "1"})


# stop_on


async def test_stop_on_ends_only_the_account_of_an_item(virtual_time: VirtualClock) -> None:
    begun = []

    async def work(item: int) -> None:
        begun.append(item)
        await asyncio.sleep(1)
        if item == 4:
            raise Refused("go away")

    outcomes = await collected(
        Batch(
            work,
            range(40),
            at_once=4,
            account=lambda item: item % 2,
            at_once_per_account=1,
            stop_on=Refused,
            in_order=True,
        )
    )
    assert len(outcomes) == 40
    assert [outcome.item for outcome in outcomes if outcome.done] == sorted([0, 2, *range(1, 40, 2)])
    assert sorted(begun) == sorted([0, 2, 4, *range(1, 40, 2)])
    for outcome in outcomes:
        if outcome.item % 2 == 0 and outcome.item > 4:
            assert isinstance(outcome.error, AccountStopped)
            assert outcome.error.__cause__ is outcomes[4].error
            assert outcome.tries == 0
    assert virtual_time.elapsed == 20


@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
@pytest.mark.parametrize("later", [False, True], ids=["iterable", "async iterable"])
async def test_stop_on_without_accounts_ends_the_batch(tmp_path: Path, later: bool, journal: bool) -> None:
    async def work(item: int) -> None:
        if item == 5:
            raise Refused("go away")

    source = Source(100_000)
    async with Journal.open(tmp_path / "journal", batch="b") as opened:
        # What is done already is handed out meanwhile.
        for item in [2, 8, 9, 10, 11, 12]:
            await opened.end(str(item))
        outcomes = await collected(
            Batch(
                work,
                source.later() if later else source,
                at_once=4,
                stop_on=(Refused, KeyError),
                journal=opened if journal else None,
                key=str,
            )
        )
    assert source.taken < 60
    assert sorted(outcome.item for outcome in outcomes) == list(range(source.taken))
    errors = Counter(type(outcome.error) for outcome in outcomes)
    assert errors[Refused] == 1
    assert set(errors) <= {type(None), Refused, AccountStopped}
    assert alone() or journal


async def test_items_taken_before_stop_on_have_an_outcome(tmp_path: Path) -> None:
    async def work(_: int) -> None:
        raise Refused("go away")

    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        for item in range(1, 8):
            await journal.end(str(item))
        async with Batch(work, range(100), at_once=2, stop_on=Refused, journal=journal, key=str) as batch:
            first = await anext(batch)
            await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                outcomes = [first, *[outcome async for outcome in batch]]
    assert sorted(outcome.item for outcome in outcomes) == list(range(len(outcomes)))
    assert 8 <= len(outcomes) <= 16
    assert sum(outcome.skipped for outcome in outcomes) == 7


async def test_a_rejected_account_costs_one_call_and_shows_no_key() -> None:
    accounts = (Account(KEY, state="expired"), Account("works"))
    async with Sandbox(accounts=accounts) as sandbox:
        keys = {account.key: {"X-ACCOUNT-KEY": account.key} for account in accounts}
        auth = HeaderAuth({"X-API-KEY": sandbox.api_key}, origin=sandbox.url)
        async with aiohttp.ClientSession(sandbox.url, middlewares=stack(RuleBook(), auth=auth)) as session:

            async def fetch(item: tuple[str, int]) -> int:
                async with session.get("/accounting/invoices", headers=keys[item[0]]) as response:
                    return response.status

            outcomes = await collected(
                Batch(
                    fetch,
                    [(account.key, page) for page in range(5) for account in accounts],
                    account=lambda item: item[0],
                    at_once_per_account=1,
                    stop_on=Unauthorized,
                )
            )
    refused = [outcome for outcome in outcomes if not outcome.done]
    assert len(refused) == 5
    assert Counter(type(outcome.error) for outcome in refused) == {Unauthorized: 1, AccountStopped: 4}
    assert sum(request.account == KEY for request in sandbox.received) == 1
    for outcome in refused:
        assert KEY not in f"{outcome.error} {outcome.error!r}"
    assert "failed with Unauthorized: GET " in str(refused[-1].error)


# The journal


async def test_done_items_are_skipped_and_failed_ones_retried(tmp_path: Path) -> None:
    down = True
    called: list[int] = []

    async def work(item: int) -> int:
        called.append(item)
        if down and item % 4 == 0:
            raise Refused(f"not now: {item}")
        return item * 2

    async def run() -> list[ItemOutcome[int, int]]:
        async with Journal.open(tmp_path / "journal", batch="b") as journal:
            outcomes = await collected(
                Batch(work, range(200), at_once=5, journal=journal, key=str, keep=str, in_order=True)
            )
            assert await journal.counts() == Counts(150, 50) if down else Counts(200, 0)
            if down:
                assert [text async for _, text in journal.failures()] == [f"not now: {n}" for n in range(0, 200, 4)]
            else:
                assert dict([row async for row in journal.results()]) == {str(n): str(n * 2) for n in range(200)}
            return outcomes

    first = await run()
    assert [outcome.done for outcome in first] == [bool(item % 4) for item in range(200)]
    assert not any(outcome.skipped for outcome in first)
    called.clear()
    down = False
    second = await run()
    assert sorted(called) == list(range(0, 200, 4))
    assert [outcome.number for outcome in second] == list(range(1, 201))
    assert [outcome.skipped for outcome in second] == [bool(item % 4) for item in range(200)]
    assert all(outcome.done for outcome in second)


async def test_an_item_is_done_after_its_sink_returns(tmp_path: Path) -> None:
    confirmed: list[int] = []

    async with Journal.open(tmp_path / "journal", batch="b") as journal:

        async def sink(outcome: ItemOutcome[int, int]) -> None:
            assert not await journal.is_done(str(outcome.item))
            if outcome.item == 2:
                raise Refused("the disk is full")
            assert outcome.value is not None
            confirmed.append(outcome.value)

        def keep(value: int) -> str:
            if value == 6:
                raise KeyError("cannot be kept")
            return str(value)

        outcomes = await collected(
            Batch(double, range(5), journal=journal, key=str, keep=keep, sink=sink, in_order=True)
        )
        assert [outcome.value for outcome in outcomes] == [0, 2, None, None, 8]
        assert isinstance(outcomes[2].error, Refused)
        assert isinstance(outcomes[3].error, KeyError)
        # What cannot be recorded is not given to the sink: it would get it again next time.
        assert sorted(confirmed) == [0, 2, 8]
        assert await journal.ended(map(str, range(5))) == {"0", "1", "4"}
        assert await journal.counts() == Counts(3, 2)


async def test_a_journal_that_cannot_be_written_ends_the_batch_and_loses_no_outcome(tmp_path: Path) -> None:
    source = Source(1000)
    outcomes: list[ItemOutcome[int, int]] = []

    async def work(item: int) -> int:
        if item == 5:
            raise Refused("by itself")
        return item * 2

    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        write = journal.end

        async def end(key: str, *, result: str | None = None, error: str | None = None) -> None:
            if int(key) >= 4:
                raise JournalError("the disk is full")
            await write(key, result=result, error=error)

        journal.end = end  # type: ignore[method-assign]
        with pytest.raises(JournalError, match="full"):
            await collect(Batch(work, source, at_once=2, journal=journal, key=str, in_order=True), outcomes)
        assert await journal.counts() == Counts(4, 0)
    assert [outcome.value for outcome in outcomes[:5]] == [0, 2, 4, 6, 8]
    assert [outcome.done for outcome in outcomes[:5]] == [True] * 4 + [False]
    assert isinstance(outcomes[4].error, JournalError)
    assert all(isinstance(outcome.error, Refused) for outcome in outcomes[5:])
    assert source.taken < 20


async def test_a_journal_that_cannot_be_read_ends_the_batch(tmp_path: Path) -> None:
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        pass
    called: list[int] = []

    async def work(item: int) -> None:
        called.append(item)

    with pytest.raises(JournalError, match="closed"):
        await collected(Batch(work, range(9), journal=journal, key=str))
    assert called == []


@pytest.mark.parametrize(("error", "text"), [(TimeoutError(), "TimeoutError()"), (ValueError("\ud800"), "\\ud800")])
async def test_any_error_can_be_recorded(tmp_path: Path, error: Exception, text: str) -> None:
    async def work(_: int) -> None:
        raise error

    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        [outcome] = await collected(Batch(work, [1], journal=journal, key=str))
        assert outcome.error is error
        assert [row async for row in journal.failures()] == [("1", text)]


# Arguments


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"at_once": 0}, "at_once must be a whole number, 1 or more, got 0"),
        ({"at_once_per_account": 0, "account": str}, "at_once_per_account must be a whole number, 1 or more, got 0"),
        ({"at_once_per_account": 1}, "at_once_per_account requires account"),
        ({"patience": -1}, "patience must be a finite number of seconds, 0 or more, got -1"),
        ({"patience": float("inf")}, "patience must be a finite number"),
        ({"grace": float("nan")}, "grace must be a finite number of seconds, 0 or more, got nan"),
        ({"journal": object()}, "journal requires key"),
        ({"keep": str}, "keep requires journal"),
    ],
)
def test_a_bad_argument_raises_value_error(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Batch(double, (), **options)


def test_a_batch_can_be_created_without_a_loop() -> None:
    batch = Batch(double, [1, 2], in_order=True)
    assert [outcome.value for outcome in run_virtual(collected(batch))] == [2, 4]
