"""What the workers of the tests import by its name: a session with short waits."""

from __future__ import annotations

from typing import Any

import aiohttp

from lamella import Breaker, maesn
from lamella.dataset import Process, Work
from lamella.sync import Report

RULES = maesn.RULES.scaled(0.0001)


def session(base_url: str | None = None) -> aiohttp.ClientSession:
    return maesn.session(base_url=base_url, rules=RULES, breaker=Breaker(), attempts=20)


SESSION = f"{__name__}:session"


async def read_nothing(*_: Any, **__: Any) -> Report:
    return Report(1, False, (), 0.0)


NOTHING = f"{__name__}:read_nothing"


async def read_until(_: Process, work: Work, *__: Any, **___: Any) -> Report:
    """Await the function that is given as the option "until"."""
    await work.options["until"]()
    return Report(1, False, (), 0.0)


UNTIL = f"{__name__}:read_until"


async def fail(*_: Any, **__: Any) -> Report:
    raise ValueError("refused: https://example.com/?access_token=a-secret")


FAILING = f"{__name__}:fail"
