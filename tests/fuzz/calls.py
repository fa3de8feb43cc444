"""Calls of a layer for which no socket is opened."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from types import coroutine
from typing import Any, TypeVar

import aiohttp

_T = TypeVar("_T")


class Answer:
    """As much of a response as the layers look at."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}

    def release(self) -> None:
        """Nobody will read it."""


class _Taken(Exception):
    """A request has been made, and is not to be sent."""


async def request_of(session: aiohttp.ClientSession, path: str) -> aiohttp.ClientRequest:
    """A real request, as a layer is given it."""
    taken: list[aiohttp.ClientRequest] = []

    async def take(request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        taken.append(request)
        raise _Taken

    with suppress(_Taken):
        await session.get(path, middlewares=(take,))
    return taken[0]


async def driven(work: Coroutine[Any, Any, _T], is_abandoned: Callable[[], bool]) -> _T | None:
    """Run *work*; when its task is cancelled and it *is_abandoned*, throw it away where it stands."""
    return await _driven(work, is_abandoned)  # from 3.12 on a task takes no generator


@coroutine
def _driven(work: Coroutine[Any, Any, _T], is_abandoned: Callable[[], bool]) -> Generator[Any, Any, _T | None]:
    resume: Callable[[], Any] = partial(work.send, None)
    while True:
        try:
            waits_for = resume()
        except StopIteration as end:
            result: _T = end.value
            return result
        try:
            yield waits_for
        except BaseException as exc:  # noqa: BLE001 - handed on
            if is_abandoned():
                work.close()
                return None
            resume = partial(work.throw, exc)
        else:
            resume = partial(work.send, None)
