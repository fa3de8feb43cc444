"""Every fault, with the requests and layers that it can meet: what has to come of it does, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

import pytest
from tests.credentials import SHAPES, spellings
from tests.faults.calls import LAYERS, REQUESTS
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.cells import Scene, cells, sampled
from tests.sdk import Metering
from tests.texts import texts_of

from lamella.testing import VirtualClock

# aiohttp asks a decompressor whether it has ended for deflate alone; nothing else can know that a gzip is cut.
_NOT_OURS = {"a cut gzip": "aiohttp takes a gzip that is cut for a whole one"}


@pytest.fixture(autouse=True)
def _quick_collection() -> None:
    """Keep what there was before away from the collection that the test makes at its end."""
    gc.freeze()


@pytest.mark.parametrize("part", ["sample", pytest.param("rest", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=fault.name,
            marks=[pytest.mark.xfail(reason=_NOT_OURS[fault.name], strict=True)] if fault.name in _NOT_OURS else [],
        )
        for fault in FAULTS
    ],
)
async def test_every_cell_of_the_fault_matrix_ends_as_expected(
    fault: Fault, part: str, virtual_time: VirtualClock, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (None, "lamella", "stamina", "aiohttp.client", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    unhandled: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    red: dict[str, list[str]] = {}
    secrets: set[str] = set()
    scene = Scene(fault, metering.provider)
    sample = sampled(fault)
    for cell in sample if part == "sample" else [cell for cell in cells(fault) if cell not in sample]:
        seen, wrong = await scene.run(cell)
        secrets.add(cell.secret)
        logged = {("log", text) for record in caplog.records for text in _of_log(record)}
        wrong += [f"{cell.secret[:20]!r} is shown by the {place}" for place in shows(cell.secret, scene.shown(seen))]
        wrong += [f"{cell.secret[:20]!r} is shown by a {place}" for place in shows(cell.secret, logged)]
        caplog.clear()
        if wrong:
            red[str(cell)] = wrong
    await scene.close()
    gc.collect()
    measured = [(name, text) for name, metric in metering.metrics.items() for text in _of_metric(metric)]
    assert measured
    assert not {place for secret in secrets for place in shows(secret, measured)}
    assert not unhandled
    assert not red, "\n" + "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in red.items())


@cache
def _ways(secret: str) -> frozenset[str]:
    return frozenset(way for way in spellings(secret) if len(way) >= 4)


def shows(secret: str, texts: Iterable[tuple[str, str]]) -> set[str]:
    """The places that show *secret*, in whatever spelling."""
    found = list(texts)
    everything = "\n".join(text for _, text in found)
    if not any(way in everything for way in _ways(secret)):
        return set()
    return {place for place, text in found if any(way in text for way in _ways(secret))}


def _of_log(record: logging.LogRecord) -> Iterator[str]:
    yield record.getMessage()
    yield from (str(value) for name, value in vars(record).items() if name.startswith("lamella.") or name == "args")


def _of_metric(metric: Any) -> list[str]:
    return [text for point in metric.data.data_points for text in texts_of(point.attributes)]


def test_the_matrix_finds_a_planted_secret() -> None:
    for secret in SHAPES.values():
        assert shows(secret, [("log", f"a {quote(secret)} b"), ("span", "c")]) == {"log"}


def test_the_matrix_covers_the_documented_combinations() -> None:
    every = [cell for fault in FAULTS for cell in cells(fault)]
    assert len({(cell.fault.name, str(cell)) for cell in every}) == len(every)
    assert {cell.request.method for cell in every} >= {"GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "POST"}
    assert len({(cell.fault.phase, cell.fault.end) for cell in every}) >= 14


def test_the_sample_has_each_fault_each_request_and_each_set_of_layers() -> None:
    sample = [cell for fault in FAULTS for cell in sampled(fault)]
    assert {cell.fault.name for cell in sample} == {fault.name for fault in FAULTS}
    assert {cell.request.name for cell in sample} == {request.name for request in REQUESTS}
    assert {cell.layers.name for cell in sample} == {layers.name for layers in LAYERS}
    assert {cell.always for cell in sample} == {True, False}
