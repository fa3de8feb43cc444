"""A session that notes in a file where it is opened and closed; a worker imports it by its name."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from tests.dataset import workers


@asynccontextmanager
async def session(base_url: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    _note("opens")
    async with workers.session(base_url) as made:
        yield made
    _note("closes")


def _note(what: str) -> None:
    with open(os.environ["LAMELLA_TEST_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(f"{threading.current_thread().name} {what}\n")
