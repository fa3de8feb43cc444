"""Every fault, with every request and every set of layers: what has to come of it, does, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import Tracing
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.cells import Scene, cells
from tests.telemetry.conftest import Metering
from tests.telemetry.test_leaks import leaks, shown

from lamella.testing import VirtualClock


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_each_cell_ends_as_it_has_to(
    fault: Fault, virtual_time: VirtualClock, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    red = {}
    scene = Scene(fault, metering.provider, virtual_time)
    for cell in cells(fault):
        _, wrong = await scene.run(cell)
        if wrong:
            red[str(cell)] = wrong
    await scene.close()
    assert not red, "\n" + "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in red.items())
