"""The contenders: each calls one function for so many items, a hundred at a time, and adds up what it returns.

The page prints these functions. What is imported is imported inside, so that each process has only its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["CONTENDERS", "Contender"]

AT_ONCE = 100


async def work(item: int) -> int:
    """What is done for an item: nothing, so that what is measured is what stands around it."""
    return item


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to call a function for many items. `packages` are those whose versions matter."""

    name: str
    packages: tuple[str, ...]
    run: Callable[[int], Awaitable[int]]
    rounds: int = 3


async def lamella(items: int) -> int:
    """`lamella.batch`: the outcomes as they come, and an error is one of them."""
    from lamella.batch import Batch

    total = 0
    async with Batch(work, range(items), at_once=AT_ONCE) as batch:
        async for outcome in batch:
            total += outcome.value or 0
    return total


async def lamella_journal(items: int) -> int:
    """`lamella.batch` with a journal: the end of each item is on disk before its outcome comes."""
    from lamella.batch import Batch, Journal

    total = 0
    with TemporaryDirectory() as folder:
        async with Journal.open(Path(folder) / "journal", batch="benchmark") as journal:
            async with Batch(work, range(items), at_once=AT_ONCE, journal=journal, key=str) as batch:
                async for outcome in batch:
                    total += outcome.value or 0
    return total


async def gather(items: int) -> int:
    """`asyncio.gather` with a semaphore: a task for each item, and all values at the end."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(item: int) -> int:
        async with room:
            return await work(item)

    return sum(await asyncio.gather(*map(one, range(items))))


async def aiometer_amap(items: int) -> int:
    """`aiometer.amap`: the values as they come; an error ends all."""
    import aiometer

    total = 0
    async with aiometer.amap(work, range(items), max_at_once=AT_ONCE) as values:
        async for value in values:
            total += value
    return total


async def aiometer_each(items: int) -> int:
    """`aiometer.run_on_each`: no values."""
    import aiometer

    total = 0

    async def one(item: int) -> None:
        nonlocal total
        total += await work(item)

    await aiometer.run_on_each(one, range(items), max_at_once=AT_ONCE)
    return total


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("lamella", ("lamella", "anyio"), lamella),
        Contender("lamella, journal", ("lamella", "anyio"), lamella_journal),
        Contender("asyncio.gather", (), gather),
        Contender("aiometer.amap", ("aiometer", "anyio"), aiometer_amap, rounds=1),
        Contender("aiometer.run_on_each", ("aiometer", "anyio"), aiometer_each, rounds=1),
    )
}
