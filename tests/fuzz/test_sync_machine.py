"""Nights of a sync with a source that does whatever a source can do: nothing is lost without a word."""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from tests.examples import examples
from tests.servers import serving

from lamella import HTTP_RULES, Buffer, Source, Timeout, stack, sync
from lamella.batch import Journal
from lamella.sync import Cursor, LinkHeader, NextUrl, Numbered, Offset, Part
from lamella.testing import VirtualTimeLoop

SIZE: Final = 3
WAYS: Final = {
    "numbers": Numbered(page_size=SIZE),
    "offsets": Offset(page_size=SIZE),
    "a cursor": Cursor("next", "start", page_size=SIZE),
    "a header": LinkHeader(page_size=SIZE),
    "a URL": NextUrl("url", page_size=SIZE),
}
ALL: Final = "2000-01-01T00:00:00Z"
NUMBERS: Final = ("1.10", "1e400", "12345678901234567.89", "-0", "9" * 30, "0.10000000000000000555")
WRONG_DATES: Final = ("null", '"soon"', '"0001-01-01"', '"2999-01-01T00:00:00Z"', "17", '"2001-01-01T00:00:00Z"')


@dataclass
class Row:
    """A record of the source."""

    number: int
    changed: datetime
    text: str
    born: int
    """Which request it came before."""


@dataclass
class Hostile:
    """The source. Each of *tricks* is played with one request, in their order."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    rows: list[Row] = field(default_factory=list)
    tricks: list[tuple[str, int]] = field(default_factory=list)
    counts: bool = True
    named: bool = True
    dated: bool = True
    requests: int = 0
    made: int = 0

    def make(self, *, amount: str = "1.10", date: str | None = None, born: int = 0) -> Row:
        self.made += 1
        shown = json.dumps(self.now.isoformat()) if date is None else date
        return Row(self.made, self.now, self.text(self.made, amount, shown), born)

    def text(self, number: int, amount: str, date: str) -> str:
        name = f'"id":{number},' if self.named else ""
        return f'{{{name}"n":{number},"amount":{amount}' + (f',"at":{date}}}' if self.dated else "}")

    def change(self, row: Row, amount: str) -> None:
        row.changed = self.now
        row.text = self.text(row.number, amount, json.dumps(self.now.isoformat()))
        row.born = self.requests

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.now += timedelta(seconds=2)
        trick, at = self.tricks.pop(0) if self.tricks else ("", 0)
        query = request.query
        if trick == "fails":
            return web.Response(status=500 + at % 4)
        if trick == "refuses":
            return web.Response(status=404)
        if trick in {"stalls", "is slow"}:
            await asyncio.sleep(600 if trick == "stalls" else 40)
        size = max(1, int(query["limit"]) - (trick == "caps"))
        start = int(query.get("start") or query.get("offset") or (int(query.get("page", 1)) - 1) * SIZE)
        since = query.get("since")
        found = [row for row in self.rows if since is None or row.changed >= datetime.fromisoformat(since)]
        shown = [row.text for row in found[start : start + size]]
        total, after = len(found), start + size
        more = after < total
        pages = -(-total // SIZE)
        if trick == "empties":
            shown = []
        elif trick == "repeats":
            shown = [row.text for row in found[:size]]
        elif trick == "skips":
            shown = shown[1:]
        elif trick == "spoils":
            bad = "null", '"x"', '{"id":"\udcff"}', *(("{}", '{"id":null}') if self.named else ())
            shown = [*shown[:-1], bad[at % len(bad)]]
        elif trick == "doubles" and self.named and len(shown) > 1:  # else nothing shows it
            shown = [*shown[:-1], shown[0].replace('"n":', '"m":')]
        elif trick == "counts more":
            total += at + 1
        elif trick == "counts less":
            total = max(0, total - at - 1)
        elif trick == "counts fewer pages":
            pages = max(0, pages - at - 1)
        elif trick == "counts more pages":
            pages += at + 1
        url = f"{request.path}?limit={query['limit']}&start={after}" + (
            f"&since={since.replace('+', '%2B')}" if since else ""
        )
        counts = (f'"{total}"', f'"{pages}"') if trick == "quotes" else (total, pages)
        meta = f'"total":{counts[0]},"pages":{counts[1]},' if self.counts and trick != "counts nothing" else ""
        error = ('"errors":["down"],', '"failure":"down",', '"errors":{"a":[true]},')[at % 3] if trick == "errs" else ""
        here = json.dumps(str(after)) if more else "null", json.dumps(url) if more else "null"
        body = f'{{{meta}{error}"next":{here[0]},"url":{here[1]},"data":[{",".join(shown)}]}}'.encode(
            "utf-8", "surrogateescape"
        )
        self.move(trick, at)
        headers = {"Content-Type": "application/json", "Date": f"{self.now:%a, %d %b %Y %H:%M:%S GMT}"}
        if more:
            headers["Link"] = f'<{url}>; rel="next"'
        if trick == "cuts":
            response = web.StreamResponse(headers=headers | {"Content-Length": str(len(body))})
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(body=body, headers=headers)

    def move(self, trick: str, at: int) -> None:
        """Change the list, when the answer was made."""
        row = self.rows[at % len(self.rows)] if self.rows else None
        if trick == "inserts":
            self.rows.insert(at % (len(self.rows) + 1), self.make(born=self.requests))
        elif row is None:
            return
        elif trick == "deletes":
            self.rows.remove(row)
        elif trick == "replaces":
            self.rows.remove(row)
            self.rows.append(self.make(born=self.requests))
        elif trick == "changes":
            self.change(row, NUMBERS[at % len(NUMBERS)])
        elif trick == "moves":
            self.rows.remove(row)
            self.rows.append(row)
        elif trick == "changes and moves":
            self.rows.remove(row)
            self.change(row, "3.0")
            self.rows.append(row)
        elif trick == "turns around":
            self.rows.reverse()


MOVES: Final = ("inserts", "deletes", "replaces", "changes", "moves", "changes and moves", "turns around")
ANSWERS: Final = (
    *("fails", "refuses", "stalls", "caps", "empties", "repeats", "skips", "spoils", "doubles", "errs", "cuts"),
    *("counts more", "counts more pages", "counts fewer pages", "counts nothing", "quotes", "is slow", ""),
)


def tricks(*names: str) -> Any:
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 20)), min_size=1, max_size=5)


TRICKS: Final = tricks(*MOVES) | tricks(*MOVES, "", "") | tricks(*ANSWERS) | tricks(*MOVES, *ANSWERS)
LIES: Final = tricks("counts less", *ANSWERS)
"""Fewer than there are, and nothing that moves: else nothing would tell of it."""


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


class SyncMachine(RuleBasedStateMachine):
    """Nights, and what happens on the days between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.opened = AsyncExitStack()
        self.api = Hostile()
        self.folder = tempfile.TemporaryDirectory()
        self.deleted: set[int] = set()
        """What the output marks as deleted."""
        self.stored: dict[int, set[str]] = {}

    @initialize(
        way=st.sampled_from(list(WAYS)),
        counts=st.sampled_from([True, True, True, False]),
        dates=st.lists(st.sampled_from((None, None, None, None, *WRONG_DATES)), min_size=4, max_size=14)
        | st.integers(0, 14).map(lambda many: [None] * many),
        named=st.sampled_from([True, True, False]),
        dated=st.sampled_from([True, True, False]),
    )
    def begin(self, way: str, counts: bool, dates: list[str | None], named: bool = True, dated: bool = True) -> None:
        self.api.counts, self.api.named, self.api.dated = counts, named, dated
        self.api.rows = [
            self.api.make(amount=NUMBERS[number % len(NUMBERS)], date=date) for number, date in enumerate(dates)
        ]
        self.api.now += timedelta(days=1)
        counted = {"total": "total", "total_pages": "pages"} if counts else {}
        changed = {"changed": "at", "since": "since"} if dated else {}
        of: dict[str, Any] = {"id": "id" if named else None, "errors": ("errors", "failure"), **counted, **changed}
        self.source = Source("list", WAYS[way], **of)
        self.url = self.loop.run_until_complete(self.opened.enter_async_context(serving(self.api)))

    @rule(tricks=TRICKS | LIES, how=st.sampled_from(["", "", "resume", "all", "compare"]))
    def night(self, tricks: list[tuple[str, int]], how: str) -> None:
        self.api.tricks = list(tricks)
        stored_before = self.stored
        before = {row.number: row.text for row in self.api.rows}
        self.api.requests = 0
        for row in self.api.rows:
            row.born = 0
        part, stored = self.run(
            resume=how == "resume", since=ALL if how == "all" else None, full_every=0 if how == "compare" else None
        )
        throughout = {row.number: row.text for row in self.api.rows if row.born == 0}
        assert throughout.items() <= before.items()
        assert self.deleted.isdisjoint(throughout), "what is there is not marked as deleted"
        if part.done and not part.skipped and part.total is not None:
            # Without dates, nothing shows that a record has taken the place of one that was never stored.
            known = {n: text for n, text in throughout.items() if self.api.dated or text in stored_before.get(n, ())}
            assert {number: text for number, text in known.items() if text not in stored.get(number, ())} == {}
        assert self.api.requests < 200

    @rule(since=st.booleans())
    def quiet_night(self, since: bool) -> None:
        self.api.tricks = []
        part, stored = self.run(since=ALL if since else None)
        assert part.done
        if since or self.api.counts:
            assert self.lacking(stored) == {}

    @rule()
    def quiet_comparison(self) -> None:
        """All that the source has is stored, and all else is marked, or it is said that this is not proved."""
        self.api.tricks = []
        part, stored = self.run(full_every=0)
        there = {row.number: row.text for row in self.api.rows}
        assert part.done
        assert part.compared == self.api.counts
        assert self.lacking(stored) == {}
        assert self.deleted.isdisjoint(there)
        if part.compared:
            assert self.deleted == stored.keys() - there.keys()
            assert {n: texts for n, texts in stored.items() if n in there and len(texts) > 1} == {}
            assert not part.unmet

    def lacking(self, stored: dict[int, set[str]]) -> dict[int, str]:
        return {row.number: row.text for row in self.api.rows if row.text not in stored.get(row.number, ())}

    @rule(many=st.integers(0, 5), at=st.integers(0, 20))
    def day(self, many: int, at: int) -> None:
        self.api.now += timedelta(hours=8)
        for number in range(many):
            self.api.move((*MOVES, "inserts", "changes")[(at + number) % 9], at + 3 * number)

    def run(self, **options: Any) -> tuple[Part, dict[int, set[str]]]:
        self.api.now += timedelta(hours=1)
        if not self.api.dated:
            options.pop("since", None)
        return self.loop.run_until_complete(self._run(**options))

    async def _end(self) -> None:
        await self.opened.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:  # answers that stalled
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _run(self, **options: Any) -> tuple[Part, dict[int, set[str]]]:
        layers = stack(HTTP_RULES, Timeout(60), Buffer(), attempts=3, throttle=False, spans=False)
        output = Path(self.folder.name, "out.jsonl")
        async with (
            aiohttp.ClientSession(self.url, middlewares=layers, timeout=aiohttp.ClientTimeout()) as session,
            Journal.open(Path(self.folder.name, "journal"), batch="machine") as journal,
        ):
            report = await sync.run(session, {"list": self.source}, journal=journal, output=output, **options)
        [part] = report.parts
        stored = self.stored = dict[int, set[str]]()
        self.deleted = set[int]()
        for line in lines_of(output):
            text = line.partition('"record":')[2][:-1]
            record = json.loads(text)
            number = record.get("id", record.get("n"))
            stored.setdefault(number, set()).add(text)
            if '"deleted":' in line.partition('"record":')[0]:
                self.deleted.add(number)
        return part, stored

    def teardown(self) -> None:
        self.loop.run_until_complete(self._end())
        self.loop.close()
        self.folder.cleanup()


TestSync = SyncMachine.TestCase
TestSync.settings = examples(40, stateful_step_count=6)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_the_sync_machine_runs_for_longer(part: int) -> None:
    """In parts, so that each processor takes some."""

    class Part(SyncMachine):
        """Of this one hypothesis keeps the seed."""

    seed(part)(Part)
    run_state_machine_as_test(Part, settings=examples(100, stateful_step_count=8))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("tricks", [[("replaces", 0)], [("deletes", 1)], [("turns around", 0)], [("moves", 2)] * 3])
def test_a_record_that_shifts_to_an_already_read_page_is_found(
    way: str, tricks: list[tuple[str, int]], named: bool
) -> None:
    machine = SyncMachine()
    machine.begin(way=way, counts=True, dates=[None] * 10, named=named)
    for _ in range(2):
        machine.night(tricks, "")
    machine.quiet_night(since=False)
    machine.teardown()


def test_a_record_with_two_contents_is_read_again() -> None:
    """A run of everything stores one of the two, and fails. The next run from the mark must not be done without it."""
    machine = SyncMachine()
    machine.begin(way="numbers", counts=True, dates=[None] * 4)
    machine.day(1, 7)
    machine.quiet_night(since=False)
    machine.night([("doubles", 0)], "all")
    machine.night([], "")
    machine.quiet_night(since=False)
    machine.teardown()
