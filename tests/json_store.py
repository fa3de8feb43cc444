"""A store for many processes, as a network would have it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, TypeVarTuple, cast

__all__ = ["AHEAD", "JsonStore"]

S = TypeVar("S")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

AHEAD = 1e6
"""By how many seconds the clock of a store is ahead of the loop's."""


class JsonStore:
    """A store whose states are texts, whose updates take time, and whose clock is not the loop's.

    It compares and swaps: now and then another process was faster, and the change is applied again to the newer state.
    """

    def __init__(self, *, slow: float = 0.004, seed: int = 0, ahead: float = AHEAD) -> None:
        self.texts: dict[str, str] = {}
        self.ahead = ahead
        self.asked = 0
        self.again = 0
        self.slow = slow
        self.random = random.Random(seed)
        self.fails: Callable[[], object] | None = None
        """What it does instead of an update. None: it updates."""

    async def update(self, key: str, new: Callable[[], S], change: Callable[[S, float, *Ts], R], *args: *Ts) -> R:
        self.asked += 1
        if self.fails is not None:
            answer: Any = self.fails()
            answer = await answer if asyncio.isfuture(answer) or asyncio.iscoroutine(answer) else answer
            return cast(R, answer)
        await self.wait()
        if self.random.random() < 0.3:
            self.again += 1
            change(self.state(key, new), self.now(), *args)
            await self.wait()
        state = self.state(key, new)
        result = change(state, self.now(), *args)
        self.texts[key] = json.dumps(asdict(state))  # type: ignore[call-overload]
        await self.wait()
        return result

    def state(self, key: str, new: Callable[[], S]) -> S:
        text = self.texts.get(key)
        return new() if text is None else type(new())(**json.loads(text))

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead

    async def wait(self) -> None:
        if self.slow:
            await asyncio.sleep(self.slow * self.random.random())
