"""Test your own code with lamella's fixtures: `pytest examples/test_with_pytest.py`.

`sandbox` is a server like Maesn's on a free port, `virtual_time` a loop in which a wait of minutes takes none, and
`no_waits` takes the waits of retries out. They come with the package.
"""

from __future__ import annotations

import pytest

from lamella import TooManyRequests, maesn
from lamella.maesn.sandbox import Sandbox
from lamella.testing import VirtualClock


@pytest.mark.asyncio
async def test_my_sync_waits_as_long_as_the_guide_says(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(429, 429)
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        invoices = [invoice async for invoice in maesn.records(session, "invoices")]
    assert len(invoices) == 250
    assert virtual_time.elapsed > 60 + 120 - 1


@pytest.mark.asyncio
async def test_my_sync_gives_up_in_the_end(sandbox: Sandbox, no_waits: None) -> None:
    sandbox.script(*[429] * 5)
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        with pytest.raises(TooManyRequests, match="5 attempts"):
            await session.get("/accounting/invoices")
