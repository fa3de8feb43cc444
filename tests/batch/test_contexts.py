"""Each item of a batch runs in a copy of the context in which the batch was entered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.batch.circuits import refused

from lamella.batch import Batch, ItemOutcome, Journal
from lamella.testing import VirtualClock

_item: ContextVar[int | None] = ContextVar("item", default=None)
_outer: ContextVar[str] = ContextVar("outer", default="default")


async def collected(batch: Batch[Any, Any]) -> list[ItemOutcome[Any, Any]]:
    async with batch:
        return [outcome async for outcome in batch]


class Items:
    """An async source of items."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items = items

    async def __aiter__(self) -> AsyncIterator[int]:
        for item in self._items:
            yield item


@pytest.mark.parametrize(
    "options", [{}, {"account": lambda item: item % 3, "at_once_per_account": 2}, {"in_order": True}]
)
@pytest.mark.parametrize("source", [range, lambda count: Items(range(count))], ids=["iterable", "async"])
async def test_context_variables_of_an_item_are_not_visible_to_others(
    virtual_time: VirtualClock, options: dict[str, Any], source: Any
) -> None:
    """Not by those that run at the same time, nor by those that the same worker takes later, nor by the consumer."""

    async def work(item: int) -> tuple[int | None, str]:
        seen = _item.get(), _outer.get()
        _item.set(item)
        _outer.set("changed")
        await asyncio.sleep(0.1 + item % 7 / 100)
        assert _item.get() == item
        if item % 5 == 0:
            raise LookupError
        return seen

    _outer.set("the caller's")
    outcomes = await collected(Batch(work, source(40), at_once=4, **options))
    assert {outcome.value for outcome in outcomes if outcome.error is None} == {(None, "the caller's")}
    assert len(outcomes) == 40
    assert (_item.get(), _outer.get()) == (None, "the caller's")


async def test_a_retried_item_begins_with_a_fresh_context(virtual_time: VirtualClock) -> None:
    seen: list[int | None] = []

    async def work(item: int) -> None:
        seen.append(_item.get())
        _item.set(item)
        await asyncio.sleep(0.1)
        if asyncio.get_running_loop().time() < end:
            raise refused(5.0)

    end = virtual_time.now + 20
    outcomes = await collected(Batch(work, range(30), at_once=4))
    assert all(outcome.done for outcome in outcomes)
    assert len(seen) > 30
    assert set(seen) == {None}


async def test_the_sink_is_called_in_the_context_of_its_item(virtual_time: VirtualClock, tmp_path: Path) -> None:
    pairs: list[tuple[int, int | None]] = []

    async def work(item: int) -> None:
        _item.set(item)

    async def sink(outcome: ItemOutcome[int, None]) -> None:
        pairs.append((outcome.item, _item.get()))

    async with Journal.open(tmp_path / "journal", batch="contexts") as journal:
        await collected(Batch(work, range(20), at_once=3, sink=sink, journal=journal, key=str))
    assert sorted(pairs) == [(item, item) for item in range(20)]


async def test_items_run_in_the_context_in_which_the_batch_is_entered(virtual_time: VirtualClock) -> None:
    """Not that in which it was made, nor that in which its outcomes are taken."""

    async def work(item: int) -> str:
        await asyncio.sleep(0.1)
        return _outer.get()

    _outer.set("made")
    batch = Batch(work, range(10), at_once=2)
    _outer.set("entered")
    async with batch:
        _outer.set("iterated")
        outcomes = [outcome async for outcome in batch]
    assert {outcome.value for outcome in outcomes} == {"entered"}


@pytest.mark.parametrize("at_once", [1, 3])
async def test_leaving_the_block_leaves_no_task_behind(virtual_time: VirtualClock, at_once: int) -> None:
    """Each item has a task of its own: all of them end, by a cancellation as well as by leaving the block."""

    async def work(item: int) -> None:
        await asyncio.sleep(1)

    async with Batch(work, range(100), at_once=at_once) as batch:
        async for _ in batch:
            break
    with anyio.move_on_after(2.5) as scope:
        await collected(Batch(work, range(100), at_once=at_once, grace=0.5))
    assert scope.cancelled_caught
    assert asyncio.all_tasks() == {asyncio.current_task()}
