"""A clock that was wrong for one run: its times in the journal do not hide records or comparisons from then on."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import Source, stack, sync
from lamella.batch import Journal
from lamella.sync import Part

NOW = "Sun, 04 Jan 2026 00:00:00 GMT"
FUTURE = "Thu, 01 Jan 2037 00:00:00 GMT"


class Api:
    """A list that can be filtered by its changes. Its records do not contain them."""

    def __init__(self) -> None:
        self.records = {1: "2026-01-01", 2: "2026-01-02"}
        self.date = NOW
        self.asked: list[str | None] = []

    async def __call__(self, request: web.Request) -> web.Response:
        self.asked.append(request.query.get("since"))
        found = [{"id": name} for name, changed in self.records.items() if changed >= (self.asked[-1] or "")]
        return web.json_response({"data": found, "total": len(found)}, headers={"Date": self.date})


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1767484800.0)  # NOW


async def run(url: str, folder: Path, full_every: float | None = None) -> tuple[Part, set[str]]:
    source = Source("rows", changed="at", since="since", total="total")
    async with (
        Journal.open(folder / "journal", batch="b") as journal,
        aiohttp.ClientSession(url, middlewares=stack()) as session,
    ):
        report = await sync.run(
            session, {"rows": source}, journal=journal, output=folder / "out.jsonl", full_every=full_every
        )
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    return report.parts[0], {json.loads(line)["id"] for line in lines}


async def test_a_mark_in_the_future_hides_no_records(serve: Serve, tmp_path: Path) -> None:
    api = Api()
    url = await serve(api)
    api.date = FUTURE
    await run(url, tmp_path)
    api.date = NOW
    api.records[3] = "2026-01-03"
    part, found = await run(url, tmp_path)
    assert (part.done, found) == (True, {"1", "2", "3"})
    await run(url, tmp_path)
    assert api.asked == [None, None, "2026-01-03T23:55:00.000Z"]


async def test_a_comparison_in_the_future_is_due_again(serve: Serve, tmp_path: Path) -> None:
    api = Api()
    url = await serve(api)
    for api.date in (FUTURE, NOW, NOW):
        await run(url, tmp_path, full_every=7 * 86400)
    assert [since is None for since in api.asked] == [True, True, False]


async def test_a_slow_clock_of_ours_does_not_repeat_whole_readings(serve: Serve, tmp_path: Path) -> None:
    api = Api()
    url = await serve(api)
    api.date = "Sun, 04 Jan 2026 14:00:00 GMT"  # our clock has the time of another zone
    for _ in range(2):
        await run(url, tmp_path, full_every=7 * 86400)
    assert api.asked == [None, "2026-01-04T13:55:00.000Z"]


async def test_a_clock_that_goes_back_by_hours_hides_no_records(serve: Serve, tmp_path: Path) -> None:
    api = Api()
    url = await serve(api)
    api.date = "Sun, 04 Jan 2026 14:00:00 GMT"
    await run(url, tmp_path)
    api.date = "Sun, 04 Jan 2026 02:00:00 GMT"
    api.records[3] = "2026-01-04T01:00:00Z"
    part, found = await run(url, tmp_path)
    assert (part.done, part.gap, found) == (True, True, {"1", "2"})
    part, found = await run(url, tmp_path)
    assert (part.done, part.gap, found) == (True, False, {"1", "2", "3"})
    await run(url, tmp_path)
    assert api.asked == [None, "2026-01-04T13:55:00.000Z", None, "2026-01-04T01:55:00.000Z"]


@pytest.mark.parametrize("date", ["Mon, 01 Jan 0001 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:01 GMT"])
async def test_a_mark_in_a_far_past_reads_the_whole_list(serve: Serve, tmp_path: Path, date: str) -> None:
    api = Api()
    url = await serve(api)
    for api.date in (date, date, NOW):
        part, _ = await run(url, tmp_path)
        assert part.done
    assert api.asked == [None, None, None]
