"""A sandbox in a thread of its own, for commands that are run as their users run them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from tests.environment import HANGS

from lamella.maesn.sandbox import Account, Sandbox

__all__ = ["API_KEY", "KEYS", "answering", "served", "write_accounts"]

API_KEY = "4pi-k3y-of-nobody"
KEYS = {"Ada": "k3y-of-4da", "Bob": "k3y-of-b0b", "Eve": "k3y-of-3ve"}
"""Eve's has expired."""


@contextmanager
def served(**options: Any) -> Iterator[Sandbox]:
    """The sandbox while it is served."""
    chosen: dict[str, Any] = {
        "accounts": [
            Account(key, state="expired" if name == "Eve" else "active", records=45) for name, key in KEYS.items()
        ],
        "api_key": API_KEY,
    }
    sandbox = Sandbox(**(chosen | options))
    with _in_a_thread(sandbox):
        yield sandbox


@contextmanager
def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Iterator[str]:
    """A server with one handler for everything, while it is served: its URL."""
    urls: list[str] = []

    @asynccontextmanager
    async def serve() -> AsyncIterator[None]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await handler(cast(web.Request, request))

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.01)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            yield
        finally:
            await runner.cleanup()

    with _in_a_thread(serve()):
        yield urls[0]


@contextmanager
def _in_a_thread(served: AbstractAsyncContextManager[object]) -> Iterator[None]:
    loops: list[asyncio.AbstractEventLoop] = []
    is_up, is_over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with served:
            loops.append(asyncio.get_running_loop())
            is_up.set()
            await is_over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert is_up.wait(HANGS)
        yield
    finally:
        loops[0].call_soon_threadsafe(is_over.set)
        thread.join(HANGS)
        assert not thread.is_alive()


def write_accounts(folder: Path, *names: str) -> Path:
    """A file with the accounts of these names; of none: all."""
    path = folder / "accounts.csv"
    path.write_text("name,key\n" + "".join(f"{name},{KEYS[name]}\n" for name in names or KEYS), encoding="utf-8")
    path.chmod(0o600)
    return path
