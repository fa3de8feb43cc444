"""The benchmark of waiting calls measures all that it names."""

from __future__ import annotations

import pytest
from benchmarks.costs.held import HELD, bytes_held

from lamella.testing import VirtualClock


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", HELD)
async def test_bytes_of_waiting_calls_are_measured(virtual_time: VirtualClock, what: str) -> None:
    assert await bytes_held(what, 200) > 0
