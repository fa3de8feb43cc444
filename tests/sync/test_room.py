"""How many pages of a sync are in flight: few large ones, and many that only wait."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import Forbidden, Source, stack, sync
from lamella.batch import Journal
from lamella.sync.room import Room
from lamella.testing import VirtualClock

MIB = 2**20


async def synced(url: str, folder: Path, accounts: int, *, at_once: int | None = None) -> sync.Report:
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        Journal.open(folder / "journal", batch="b") as journal,
        aiohttp.ClientSession(url, middlewares=stack(), connector=connector) as session,
    ):
        source, named = Source("rows", total="total"), {f"account {number}": number for number in range(accounts)}
        return await sync.run(session, {"rows": source}, named, journal=journal, at_once=at_once)


async def test_the_number_grows_with_small_pages_up_to_the_maximum() -> None:
    room = Room(500)
    numbers = [room.number]
    while numbers[-1] < 500:
        with room.holding(200, running=numbers[-1]):
            pass
        numbers.append(room.number)
    assert len(numbers) < 100
    assert numbers == sorted(numbers)


async def test_the_number_of_large_pages_becomes_what_fits() -> None:
    room = Room(500)
    held = [room.holding(MIB, running=32) for _ in range(32)]
    for each in held:
        each.__enter__()
    assert room.number == 4
    for each in held:
        each.__exit__(None, None, None)
    assert room.number == 4, "too many were held lately"
    for _ in range(100):
        with room.holding(MIB // 2, running=room.number):
            pass
    assert 4 < room.number < 500, "and it grows slowly"


async def test_the_number_does_not_grow_if_fewer_are_in_flight() -> None:
    room = Room(500)
    for _ in range(100):
        with room.holding(100, running=7):
            pass
    assert room.number == 16


async def test_a_failed_page_is_no_longer_held() -> None:
    room = Room(500)
    for _ in range(100):
        with pytest.raises(OSError, match="full"), room.holding(MIB, running=room.number):
            raise OSError("the disk is full")
    assert room.number > 16


@pytest.mark.parametrize("at_most", [1, 3, 32])
async def test_the_number_stays_within_the_maximum(at_most: int, virtual_time: VirtualClock) -> None:
    room = Room(at_most)
    for _ in range(10):
        with room.holding(100, running=at_most):
            pass
        await asyncio.sleep(2)
        room.grow_if_idle()
        assert room.number == at_most
    with room.holding(900 * MIB, running=at_most):
        assert room.number == min(at_most, 4)


async def test_pages_that_wait_do_not_keep_others_from_beginning(
    serve: Serve, tmp_path: Path, virtual_time: VirtualClock
) -> None:
    """The first accounts wait for a minute. All others are done long before."""
    loop = asyncio.get_running_loop()
    began, ends = loop.time(), []
    received = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal received
        received += 1
        await asyncio.sleep(60 if received <= 60 else 0)
        ends.append(loop.time() - began)
        return web.json_response({"data": [{"id": 1}], "total": 1})

    report = await synced(await serve(answer), tmp_path, accounts=200)
    assert report.done
    assert sum(end < 10 for end in ends) == 140
    assert max(ends) < 70


@pytest.mark.slow
async def test_pages_in_memory_are_bounded(serve: Serve, tmp_path: Path, virtual_time: VirtualClock) -> None:
    """All pages in flight arrive together. If all began at once, they would take 83 MB."""
    text = "x" * 2_000
    records = ",".join(f'{{"id":{number},"text":"{text}"}}' for number in range(100))

    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text=f'{{"data":[{records}],"total":100}}', content_type="application/json")

    url = await serve(answer)
    tracemalloc.start()
    try:
        report = await synced(url, tmp_path, accounts=200, at_once=200)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.done
    assert peak < 30 * MIB


async def test_few_lists_are_open_at_a_time(serve: Serve, tmp_path: Path) -> None:
    """Each open list takes memory. So the first ones are read to their ends before the last ones begin."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": request.query["page"]}], "total": 3, "pages": 3})

    most = 0

    def look(progress: sync.Progress) -> None:
        nonlocal most
        most = max(most, sum(part.pages > 0 and not part.done for part in progress.parts.values()))

    named = {f"account {number}": number for number in range(200)}
    async with (
        Journal.open(tmp_path / "journal", batch="b") as journal,
        aiohttp.ClientSession(await serve(answer), middlewares=stack()) as session,
    ):
        source = Source("rows", total="total", total_pages="pages")
        report = await sync.run(session, {"rows": source}, named, journal=journal, at_once=4, on_progress=look)
    assert report.done
    assert 60 < most <= 64 + 4 * 4 + 4, "the batch takes four times as many pages ahead"


async def test_at_the_maximum_the_batch_limits_the_pages() -> None:
    """Pages of an account that has enough in flight wait in the batch. Those of others must still begin."""
    room = Room(40)
    assert [room.admits(15), room.admits(16)] == [True, False]
    while room.number < 40:
        with room.holding(100, running=room.number):
            pass
    assert room.admits(160)
    with room.holding(MIB * 3, running=40):
        assert not room.admits(40)


async def test_the_lists_of_an_account_do_not_begin_together(serve: Serve, tmp_path: Path) -> None:
    """Pages of one account that are sent together exceed its rate limit together, and each is refused."""
    begun: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        begun.append(request.query["account"])
        return web.json_response({"data": [{"id": 1}], "total": 1})

    sources = {
        name: Source(name, total="total", params=lambda account: {"account": account}) for name in ("first", "second")
    }
    named = {f"account {number}": str(number) for number in range(30)}
    async with (
        Journal.open(tmp_path / "journal", batch="b") as journal,
        aiohttp.ClientSession(await serve(answer), middlewares=stack()) as session,
    ):
        report = await sync.run(session, sources, named, journal=journal, at_once=1)
    assert report.done
    assert begun == [*named.values(), *named.values()]


async def test_only_the_first_errors_keep_their_traceback_and_response(serve: Serve, tmp_path: Path) -> None:
    """With many accounts whose key was revoked, all of them would take 30 kB for each part."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"message": "no access"}, status=403, headers={"X-Request-Id": "7"})

    report = await synced(await serve(answer), tmp_path, 25)
    errors = [part.error for part in report.failed]
    assert len(errors) == 25
    assert [type(error) for error in errors] == [Forbidden] * 25
    assert len({re.sub(r"in [0-9.]+ m?s", "", str(error)) for error in errors}) == 1
    assert sum(error is not None and error.__traceback__ is not None for error in errors) == 10
    found = [(error.details, error.request_id, bool(error.body)) for error in errors if isinstance(error, Forbidden)]
    assert sorted(found) == [(("no access",), "7", False)] * 15 + [(("no access",), "7", True)] * 10


async def test_so_do_errors_of_other_kinds(serve: Serve, tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"nothing": "that is a list"})

    report = await synced(await serve(answer), tmp_path, 25)
    errors = [part.error for part in report.failed]
    assert len(set(map(str, errors))) == 1
    assert sum(error is not None and error.__traceback__ is not None for error in errors) == 10
