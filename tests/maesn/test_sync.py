"""A sync stores each record once, whatever the lists and the network do meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import Breaker, InternalServerError, Unauthorized, maesn
from lamella.batch import Batch, ItemOutcome, Journal, JournalError
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.sync import EmptyPage, Part, Progress, UnsteadyList
from lamella.sync.marks import Position, Wanted
from lamella.sync.page import Place
from lamella.sync.reading import ListToRead, PageToRead, Reading
from lamella.testing import Fault, FixedWindow, VirtualClock

Record = dict[str, Any]

RULES = maesn.RULES.scaled(0.0001)
START = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def at_work(
    path: Path, url: str, api_key: str = "api-key", rules: Any = RULES, **options: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, Journal]]:
    async with (
        maesn.session(api_key, None, url, rules=rules, breaker=Breaker(), **options) as session,
        Journal.open(path / "journal", batch="nightly") as journal,
    ):
        yield session, journal


async def stored(journal: Journal) -> dict[tuple[str, str, str], Any]:
    rows = await journal.read(
        lambda db: db.execute("SELECT account, resource, id, record FROM sync_records").fetchall()
    )
    found = {tuple(key): json.loads(record) for *key, record in rows}
    assert len(found) == len(rows)
    return found


def expected(sandbox: Sandbox, names: dict[str, str], resources: list[str]) -> dict[tuple[str, str, str], Any]:
    """What the API has, of the accounts that it lets in."""
    keys = {account.key for account in sandbox.accounts if account.state == "active"}
    return {
        (name, resource, record["id"]): record
        for name, key in names.items()
        if key in keys
        for resource in resources
        for record in sandbox.records(resource, key)
    }


def named(sandbox: Sandbox) -> dict[str, str]:
    return {f"account {number}": account.key for number, account in enumerate(sandbox.accounts, 1)}


@dataclass
class Lists:
    """An API with one list, which *meanwhile* may change between two requests; a page holds five records."""

    records: list[Record]
    meanwhile: Callable[[int], object] = lambda number: None
    pagination: Callable[[int], dict[str, Any]] = lambda total: {"total": total, "totalPages": -(-total // 5)}
    pages: list[int] = field(default_factory=list)
    """The pages that were asked for."""
    queries: list[dict[str, str]] = field(default_factory=list)
    now: datetime = START

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        page = int(request.query["page"])
        since = request.query.get("lastModifiedAt")
        found = [each for each in self.records if since is None or moment(each["updatedDate"]) >= moment(since)]
        self.pages.append(page)
        self.queries.append(dict(request.query))
        body = {"meta": {"pagination": self.pagination(len(found))}, "data": found[5 * page - 5 : 5 * page]}
        answer = web.Response(text=json.dumps(body), content_type="application/json")
        answer.headers["Date"] = self.now.strftime("%a, %d %b %Y %H:%M:%S GMT")
        self.meanwhile(len(self.pages))
        return answer


def moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def growing_by(lists: Lists, *numbers: int) -> Callable[[int], object]:
    """With each of the first requests the list gets so many records more."""

    def meanwhile(request: int) -> None:
        first = len(lists.records)
        more = numbers[request - 1] if request <= len(numbers) else 0
        lists.records += [record(number) for number in range(first, first + more)]

    return meanwhile


def record(number: int, updated: datetime | None = None) -> Record:
    changed = updated or START - timedelta(days=30, seconds=-number)
    return {"billId": f"b{number}", "number": number, "updatedDate": changed.isoformat()}


async def bills(path: Path, url: str, **options: Any) -> tuple[Part, dict[str, Any]]:
    """Sync the bills of one account, one page at a time; returns the part, and the records by their id."""
    async with at_work(path, url) as (session, journal):
        report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, limit=5, at_once=1, **options)
        kept = {name: each for (_, _, name), each in (await stored(journal)).items()}
        [part] = report.parts
        return part, kept


def by_id(records: list[Record]) -> dict[str, Record]:
    return {each["billId"]: each for each in records}


class TestARun:
    async def test_all_records_are_stored_once_and_unchanged(self, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
        accounts = [Account(f"key-{number}", records=number * 13 % 40) for number in range(8)]
        sandbox = await make_sandbox(accounts=accounts, chances={500: 0.05, Fault.CUT_BODY: 0.02})
        resources = ["contacts", "invoices"]
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            report = await maesn.sync(session, named(sandbox), resources, journal=journal, limit=5)
            assert await stored(journal) == expected(sandbox, named(sandbox), resources)
        assert report.done
        assert (report.run, report.resumed, report.failed) == (1, False, ())
        assert report.records == sum(2 * (account.records or 0) for account in accounts)
        assert report.pages == sum(2 * max(1, -(-(account.records or 0) // 5)) for account in accounts)
        assert [part.account for part in report.parts[:3]] == ["account 1", "account 1", "account 2"]
        assert [part.resource for part in report.parts[:3]] == ["contacts", "invoices", "contacts"]

    async def test_no_file_contains_an_account_key(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["bills"], journal=journal, output=tmp_path / "out.jsonl")
        written = b"".join((tmp_path / name).read_bytes() for name in ("journal", "out.jsonl"))
        assert b"account 1" in written
        assert sandbox.account_key.encode() not in written
        assert sandbox.api_key.encode() not in written

    async def test_the_output_contains_all_records(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["bills"], journal=journal, output=tmp_path / "out.jsonl")
            lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
            assert {(line["account"], line["resource"], line["id"]): line["record"] for line in lines} == await stored(
                journal
            )

    async def test_an_unusable_output_is_reported_before_anything_is_sent(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            with pytest.raises(ValueError, match=r"\.xls"):
                await maesn.sync(session, named(sandbox), ["bills"], journal=journal, output=tmp_path / "out.xls")
        assert not sandbox.received

    @pytest.mark.slow
    async def test_each_page_request_has_the_parameters_of_its_account(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(7)])
        north = maesn.Account("north", "key", company_id="c1", environment_name="live")
        async with at_work(tmp_path, await serve(lists)) as (session, journal):
            await maesn.sync(session, [north], ["bills"], journal=journal, limit=5)
        assert [(query["companyId"], query["environmentName"]) for query in lists.queries] == [("c1", "live")] * 2

    async def test_progress_grows_to_the_reported_values(self, sandbox: Sandbox, tmp_path: Path) -> None:
        seen: list[Part] = []
        first: list[Part | None] = []

        def see(progress: Progress) -> None:
            if progress.changed is None:
                first.append(progress.changed)
                assert not sandbox.received
            else:
                seen.append(progress.changed)
            assert progress.outage is None
            assert list(progress.parts) == [("account 1", "bills"), ("account 1", "items")]

        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            report = await maesn.sync(
                session, named(sandbox), ["bills", "items"], journal=journal, limit=50, on_progress=see
            )
        assert first == [None]
        for part in report.parts:
            of_it = [each for each in seen if each.resource == part.resource]
            assert of_it[-1] == part
            assert (part.pages, part.total_pages, part.running) == (5, 5, 0)
            assert [each.pages for each in of_it] == sorted(each.pages for each in of_it)
            assert max(each.running for each in of_it) > 1

    @pytest.mark.slow
    async def test_lists_are_read_concurrently(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["bills", "items"], journal=journal, limit=20, at_once=1)
        order = [(each.path.rpartition("/")[2], int(each.query["page"])) for each in sandbox.received]
        assert order[:2] == [("bills", 1), ("items", 1)]
        assert order.index(("items", 2)) < order.index(("bills", 10)) < order.index(("items", 12))

    async def test_an_older_position_does_not_replace_a_newer_one(self, sandbox: Sandbox, tmp_path: Path) -> None:
        """Pages end side by side, and what is told of them may come in another order."""
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            reading = Reading(session, journal, None, 1)
            of = ListToRead(
                Wanted("north", "bills"), maesn.source("bills", 5), None, Position(1, None, 0, None, 0, False)
            )
            progress = Progress(1, {of.wanted: of.part}, Batch(reading.read, []), resumed=False)
            reading.begin(progress)
            for number, stored, ended in ((1, 1, False), (3, 3, True), (2, 2, False)):
                reading.ended(
                    ItemOutcome(number, PageToRead(of, Place(number)), Position(1, None, stored, 3, 0, ended), tries=1)
                )
        [part] = progress.parts.values()
        assert (part.done, part.pages) == (True, 3)

    async def test_pages_in_flight_per_account_are_limited(self, sandbox: Sandbox, tmp_path: Path) -> None:
        most: Counter[str] = Counter()

        def see(progress: Progress) -> None:
            most["now"] = sum(part.running for part in progress.parts.values())
            most["ever"] = max(most["ever"], most["now"])

        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(
                session,
                named(sandbox),
                ["bills", "items", "offers"],
                journal=journal,
                limit=20,
                at_once_per_account=2,
                on_progress=see,
            )
        assert most == {"now": 0, "ever": 2}


class TestTheNextRun:
    async def test_the_next_run_reads_only_changes(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(12)])
        url = await serve(lists)
        part, _ = await bills(tmp_path, url)
        assert (part.since, part.records, part.done) == (None, 12, True)

        lists.pages.clear()
        lists.now += timedelta(days=1)
        lists.records[3] = record(3, START + timedelta(hours=1)) | {"number": 33}
        lists.records.append(record(12, START + timedelta(hours=2)))
        part, kept = await bills(tmp_path, url)
        # Those whose dates are within five minutes before the mark come again, and are as they were.
        assert part.since == (START - timedelta(days=30, seconds=-11, minutes=5)).isoformat(
            timespec="milliseconds"
        ).replace("+00:00", "Z")
        assert part.records == 2
        assert lists.pages == [1, 2, 3]
        assert kept == by_id(lists.records)

        part, _ = await bills(tmp_path, url)
        assert part.since == "2026-01-01T01:55:00.000Z"
        assert part.records == 0

    async def test_changes_during_a_run_are_read_by_the_next_one(self, serve: Serve, tmp_path: Path) -> None:
        """A newer record on a later page must not move the mark beyond an older one on an earlier page."""
        lists = Lists([record(number) for number in range(10)])

        def meanwhile(number: int) -> None:
            if number == 3:
                lists.records[0] = record(0, START + timedelta(minutes=10)) | {"number": 99}
                lists.records[9] = record(9, START + timedelta(minutes=20))
                lists.now += timedelta(minutes=30)

        lists.meanwhile = meanwhile
        url = await serve(lists)
        await bills(tmp_path, url)
        part, kept = await bills(tmp_path, url, since="2000-01-01")
        assert part.done
        assert kept["b0"]["number"] == 0
        part, kept = await bills(tmp_path, url)
        assert part.since == "2025-12-31T23:55:00.000Z"
        assert kept == by_id(lists.records)

    async def test_an_unknown_changed_record_may_replace_a_missing_one(self, serve: Serve, tmp_path: Path) -> None:
        """One is deleted from page 1 and another created: the count stays, and one is passed over."""
        lists = Lists([record(number) for number in range(10)])

        def meanwhile(number: int) -> None:
            if number == 1:
                lists.records = [*lists.records[1:], record(10, START + timedelta(minutes=1))]

        lists.meanwhile = meanwhile
        part, kept = await bills(tmp_path, await serve(lists))
        assert lists.pages == [1, 2, 1, 2]
        assert part.done
        assert kept == by_id([record(0), *lists.records])

    async def test_a_failed_page_keeps_the_mark(self, sandbox: Sandbox, tmp_path: Path) -> None:
        def failing(resource: str) -> None:
            sandbox.script(200, *[500] * 5, path=f"/accounting/{resource}")

        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            failing("bills")
            report = await maesn.sync(session, named(sandbox), ["bills"], journal=journal, at_once=1)
            [part] = report.failed
            assert isinstance(part.error, InternalServerError)
            assert (part.pages, part.total_pages, part.done, report.done) == (2, 3, False, False)
            report = await maesn.sync(session, named(sandbox), ["bills"], journal=journal)
            assert report.parts[0].since is None
            assert await stored(journal) == expected(sandbox, named(sandbox), ["bills"])

    async def test_since_overrides_the_mark(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(3)])
        url = await serve(lists)
        await bills(tmp_path, url)
        part, _ = await bills(tmp_path, url, since="2020-01-01")
        assert part.since == "2020-01-01"
        assert lists.queries[-1]["lastModifiedAt"] == "2020-01-01"

    async def test_a_gap_after_the_mark_stays_open(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(3)])
        url = await serve(lists)
        await bills(tmp_path, url)
        lists.now += timedelta(days=9)
        lists.records += [record(3, START + timedelta(days=1)), record(4, START + timedelta(days=5))]
        part, kept = await bills(tmp_path, url, since=START + timedelta(days=3))
        assert part.done
        assert "b3" not in kept
        _, kept = await bills(tmp_path, url)
        assert kept == by_id(lists.records)

    @pytest.mark.parametrize("says", [{"total": 0, "totalPages": 0}, {}])
    async def test_a_list_that_was_empty_is_read_from_its_beginning(
        self, serve: Serve, tmp_path: Path, says: dict[str, int]
    ) -> None:
        lists = Lists([], pagination=lambda _: says)
        url = await serve(lists)
        part, _ = await bills(tmp_path, url)
        assert (part.done, part.pages, part.total_pages) == (True, 1, 1)
        lists.records.append(record(1, START - timedelta(days=700)))
        part, kept = await bills(tmp_path, url)
        assert (part.since, len(kept)) == (None, 1)

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("date", [None, "0001-01-01T00:00:00Z", "soon", 17])
    async def test_undated_records_count_as_changed_when_read(self, serve: Serve, tmp_path: Path, date: object) -> None:
        lists = Lists([{"billId": "b1", "updatedDate": date}])
        part, _ = await bills(tmp_path, await serve(lists))
        assert part.done
        lists.records.clear()
        part, _ = await bills(tmp_path, await serve(lists))
        assert part.since == "2025-12-31T23:55:00.000Z"


class TestResuming:
    async def test_a_resumed_run_does_not_read_done_parts_again(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.script(200, 200, *[500] * 5, path="/accounting/bills")
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["items", "bills"], journal=journal, at_once=1)
            sandbox.received.clear()
            report = await maesn.sync(session, named(sandbox), ["items", "bills"], journal=journal, resume=True)
            assert [(each.path, each.query["page"]) for each in sandbox.received] == [("/accounting/bills", "3")]
            assert (report.run, report.resumed, report.done, report.records) == (1, True, True, 500)
            assert [(part.skipped, part.pages) for part in report.parts] == [(True, 3), (False, 3)]
            assert await stored(journal) == expected(sandbox, named(sandbox), ["items", "bills"])
            assert await journal.read(lambda db: db.execute("SELECT count(mark) FROM sync_parts").fetchall()) == [(2,)]

    async def test_resuming_a_finished_run_sends_nothing(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["items"], journal=journal)
            sandbox.received.clear()
            report = await maesn.sync(session, named(sandbox), ["items"], journal=journal, resume=True)
            assert report.done
            assert not sandbox.received
            report = await maesn.sync(session, named(sandbox), ["items", "bills"], journal=journal, resume=True)
            assert {each.path for each in sandbox.received} == {"/accounting/bills"}
            assert report.run == 1

    async def test_resume_without_a_previous_run_starts_the_first(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            report = await maesn.sync(session, named(sandbox), ["items"], journal=journal, resume=True)
            assert (report.run, report.resumed, report.done) == (1, False, True)

    @pytest.mark.slow
    async def test_resuming_with_another_page_size_reads_the_list_again(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.script(200, *[404] * 4, path="/accounting/bills")
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            await maesn.sync(session, named(sandbox), ["bills"], journal=journal, limit=50, since="2000-01-01")
            sandbox.received.clear()
            report = await maesn.sync(session, named(sandbox), ["bills"], journal=journal, limit=100, resume=True)
            assert (report.parts[0].pages, report.parts[0].since) == (3, "2000-01-01")
            assert len(sandbox.received) == 3
            assert await stored(journal) == expected(sandbox, named(sandbox), ["bills"])

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("sends", range(1, 12, 2))
    async def test_a_cancelled_run_keeps_stored_records(
        self, make_sandbox: MakeSandbox, tmp_path: Path, sends: int
    ) -> None:
        sandbox = await make_sandbox(accounts=3, records=23)
        resources = ["bills", "items"]
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):

            def see(progress: Progress) -> None:
                if len(sandbox.received) >= sends:
                    task.cancel()

            task = asyncio.ensure_future(
                maesn.sync(session, named(sandbox), resources, journal=journal, limit=5, on_progress=see)
            )
            with pytest.raises(asyncio.CancelledError):
                await task
            left = await maesn.plan(named(sandbox), resources, journal=journal, limit=5, resume=True)
            assert not all(part.done for part in left)
            before = len(sandbox.received)
            report = await maesn.sync(session, named(sandbox), resources, journal=journal, limit=5, resume=True)
            assert report.done
            assert await stored(journal) == expected(sandbox, named(sandbox), resources)
            assert len(sandbox.received) - before == 30 - sum(part.pages for part in left)


@pytest.mark.usefixtures("virtual_time")  # a list is read again after a pause
class TestAListThatMoves:
    async def test_a_growing_list_is_read_completely(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(10)])
        lists.meanwhile = growing_by(lists, 1, 5, 7)
        part, kept = await bills(tmp_path, await serve(lists))
        assert lists.pages == [1, 2, 3, 4, 5]
        assert (part.done, part.pages, part.records) == (True, 5, 23)
        assert kept == by_id(lists.records)

    async def test_a_record_that_shifts_to_the_next_page_is_stored_once(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(14)])

        def meanwhile(number: int) -> None:
            if number == 1:
                lists.records.insert(0, record(99))

        lists.meanwhile = meanwhile
        part, kept = await bills(tmp_path, await serve(lists))
        assert (part.done, part.records) == (True, 14)
        assert kept == by_id(lists.records[1:])  # what came at the front comes with the next run
        assert lists.pages == [1, 2, 3]

    async def test_records_that_shift_to_an_already_read_page_are_read(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(15)])

        def meanwhile(number: int) -> None:
            if number == 1:
                del lists.records[0]

        lists.meanwhile = meanwhile
        part, kept = await bills(tmp_path, await serve(lists))
        assert lists.pages == [1, 2, 3, 1, 2, 3]
        assert (part.done, part.pages, part.records) == (True, 3, 15)
        assert set(kept) == {f"b{number}" for number in range(15)}  # what was deleted stays

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("says", ["total", "totalPages", "nothing"])
    async def test_an_earlier_end_of_the_block_is_reported_everywhere(
        self, serve: Serve, tmp_path: Path, says: str
    ) -> None:
        lists = Lists([record(number) for number in range(15)])
        whole = lists.pagination
        lists.pagination = lambda total: {
            name: value for name, value in whole(total).items() if name == says or (says == "nothing" and total == 15)
        }
        if says == "total":
            lists.pagination = lambda total: {"total": total, "totalPages": 3}

        def meanwhile(number: int) -> None:
            if number == 1:
                del lists.records[:5]

        lists.meanwhile = meanwhile
        part, kept = await bills(tmp_path, await serve(lists))
        assert part.done
        assert set(kept) == {f"b{number}" for number in range(15)}

    async def test_a_shift_is_noticed_if_the_last_page_was_read_early(self, serve: Serve, tmp_path: Path) -> None:
        """Only the number of pages tells of it, and no page is asked for that is no more."""
        lists = Lists([record(number) for number in range(15)], pagination=lambda total: {"totalPages": -(-total // 5)})
        third = asyncio.Event()

        async def handle(request: web.Request) -> web.StreamResponse:
            if request.query["page"] == "2":
                await third.wait()
            answer = await lists(request)
            if request.query["page"] == "3" and not third.is_set():
                del lists.records[:5]
                third.set()
            return answer

        async with at_work(tmp_path, await serve(handle)) as (session, journal):
            report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, limit=5)
            assert report.done
            assert len(await stored(journal)) == 15

    @pytest.mark.slow
    async def test_a_late_response_to_an_earlier_reading_is_ignored(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(15)])
        third, again = asyncio.Event(), asyncio.Event()

        async def handle(request: web.Request) -> web.StreamResponse:
            page = request.query["page"]
            if page == "2" and not again.is_set():
                await third.wait()
                del lists.records[5:]
            if page == "1" and lists.queries:
                lists.records += [record(number) for number in range(15, 25)]
            answer = await lists(request)
            if page == "1" and len(lists.queries) > 2:
                again.set()
            if page == "3" and not again.is_set():
                third.set()
                await again.wait()
                await asyncio.sleep(0.01)
            return answer

        async with at_work(tmp_path, await serve(handle)) as (session, journal):
            report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, limit=5)
            assert report.done
            kept = {name for _, _, name in await stored(journal)}
        assert set(by_id(lists.records)) <= kept

    async def test_a_list_sorted_by_change_is_read_again(self, serve: Serve, tmp_path: Path) -> None:
        """A changed record goes to the end, and each one after it moves up: the sixth to a page that was read."""
        lists = Lists([record(number) for number in range(15)])

        def meanwhile(number: int) -> None:
            if number == 1:
                lists.records.append(lists.records.pop(0) | {"number": 99, "updatedDate": START.isoformat()})

        lists.meanwhile = meanwhile
        part, kept = await bills(tmp_path, await serve(lists))
        assert part.done
        assert kept == by_id(lists.records)

    @pytest.mark.slow
    async def test_a_list_that_always_changes_is_reported(self, serve: Serve, tmp_path: Path) -> None:
        lists = Lists([record(number) for number in range(60)])

        def meanwhile(number: int) -> None:
            del lists.records[0]

        lists.meanwhile = meanwhile
        url = await serve(lists)
        part, _ = await bills(tmp_path, url)
        assert isinstance(part.error, UnsteadyList)
        assert "bills shrank" in str(part.error)
        assert not part.done
        assert lists.pages.count(1) == 3
        lists.pages.clear()
        lists.meanwhile = lambda number: lists.records.pop() if number == 1 else None
        part, kept = await bills(tmp_path, url, resume=True)
        assert (part.done, part.since, part.error) == (True, None, None)
        assert by_id(lists.records).items() <= kept.items()

    async def test_the_newer_of_two_versions_is_stored(self, serve: Serve, tmp_path: Path) -> None:
        """Of two pages that are read side by side the older answer may come last."""
        old, new = record(1), record(1, START) | {"number": 2}
        lists = Lists([])
        answers = [[new, *(record(number) for number in range(2, 6))], [old, record(6)]]

        async def handle(request: web.Request) -> web.StreamResponse:
            page = int(request.query["page"])
            body = {"meta": {"pagination": {"total": 6, "totalPages": 2}}, "data": answers[page - 1]}
            return web.Response(text=json.dumps(body), content_type="application/json")

        _, kept = await bills(tmp_path, await serve(handle))
        assert kept["b1"] == new
        # A later run believes what the API says.
        lists.records = [old]
        part, kept = await bills(tmp_path, await serve(lists), since="2000-01-01")
        assert (part.records, kept["b1"]) == (1, old)

    @pytest.mark.parametrize("says", [{}, {"total": 10**30, "totalPages": -1}, {"total": "twelve", "totalPages": None}])
    async def test_without_a_valid_count_the_list_is_read_to_an_empty_page(
        self, serve: Serve, tmp_path: Path, says: dict[str, Any]
    ) -> None:
        lists = Lists([record(number) for number in range(12)], pagination=lambda total: says)
        part, kept = await bills(tmp_path, await serve(lists))
        assert lists.pages == [1, 2, 3, 4]
        assert (part.done, part.pages, part.total_pages) == (True, 3, 3)
        assert kept == by_id(lists.records)

    async def test_an_empty_page_in_the_middle_does_not_end_the_list(
        self, serve: Serve, tmp_path: Path, virtual_time: VirtualClock
    ) -> None:
        """It is read again, and as long as it stays empty the part is not done."""
        asked: list[int] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            page = int(request.query["page"])
            asked.append(page)
            body = {"meta": {"pagination": {"totalPages": 3}}, "data": [] if page == 2 else [record(page)]}
            return web.Response(text=json.dumps(body), content_type="application/json")

        part, kept = await bills(tmp_path, await serve(handle))
        assert (part.done, sorted(kept)) == (False, ["b1", "b3"])
        assert isinstance(part.error, EmptyPage)
        assert asked == [1, 2, 2, 2, 3]


class TestAFailure:
    async def test_a_rejected_account_fails_alone(self, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
        accounts = [Account("key-1", records=30), Account("key-2", state="expired"), Account("key-3", records=30)]
        sandbox = await make_sandbox(accounts=accounts)
        resources = ["bills", "items", "offers"]
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            report = await maesn.sync(
                session, named(sandbox), resources, journal=journal, limit=5, at_once_per_account=1
            )
            assert await stored(journal) == expected(sandbox, named(sandbox), resources)
        assert [(part.account, part.resource) for part in report.failed] == [("account 2", each) for each in resources]
        assert all(isinstance(part.error, Unauthorized) for part in report.failed)
        assert "authenticate again" in str(report.failed[0].error)
        assert [each.account for each in sandbox.received].count("key-2") == 1

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ([{"id": []}], "neither 'id' nor 'billId'"),
            ([{"billId": True}], "no usable 'billId': it must be text or a whole number, got bool"),
            (["b1"], "is not an object"),
            ({"billId": "b1"}, "holds no list of records"),
            ([{"billId": "b1", "amount": float("inf")}], "not JSON compliant"),
        ],
    )
    async def test_an_unstorable_answer_ends_its_part(
        self, serve: Serve, tmp_path: Path, data: object, said: str
    ) -> None:
        asked: list[str] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            asked.append(request.query["page"])
            bad = request.path.endswith("bills") and request.query["page"] == "2"
            good = [{"id": number} for number in [int(request.query["page"])] if number <= 20]
            body = {"meta": {"pagination": {"totalPages": 20}}, "data": data if bad else good}
            return web.Response(text=json.dumps(body), content_type="application/json")

        async with at_work(tmp_path, await serve(handle)) as (session, journal):
            report = await maesn.sync(
                session, {"north": "key"}, ["bills", "items"], journal=journal, limit=5, at_once=1
            )
        bills, items = report.parts
        assert isinstance(bills.error, ValueError)
        assert said in str(bills.error)
        assert (items.done, items.records) == (True, 20)
        is_record = isinstance(data, list) and said != "not JSON compliant"
        assert bills.records == (19 if is_record else 1), "the other pages are read for a record that is bad"
        if is_record:
            assert str(bills.error).startswith("record 1 on page 2 of bills ")
        assert len(asked) <= (42 if is_record else 2 + 4 + 21)  # some are taken before that is known

    async def test_text_with_lone_surrogates_is_stored_unchanged(self, serve: Serve, tmp_path: Path) -> None:
        strange = {"billId": "\ud800", "text": "\udfff\x00\u2028ß", "number": 10**40}
        part, kept = await bills(tmp_path, await serve(Lists([strange])))
        assert part.done
        assert kept == {"\\ud800": strange}

    async def test_a_journal_that_cannot_be_written_ends_the_sync(self, sandbox: Sandbox, tmp_path: Path) -> None:
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            [(pages,)] = await journal.read(lambda db: db.execute("PRAGMA page_count").fetchall())
            await journal.read(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 20}").fetchall())
            with pytest.raises(JournalError, match="disk is full"):
                await maesn.sync(session, named(sandbox), ["bills", "items"], journal=journal, limit=20)
            assert len(sandbox.received) < 26

    @pytest.mark.slow
    async def test_an_outage_pauses_the_sync(
        self, make_sandbox: MakeSandbox, virtual_time: VirtualClock, tmp_path: Path
    ) -> None:
        """Half a minute: nothing is lost, and what comes meanwhile is a few probes."""
        sandbox = await make_sandbox(accounts=20, records=50, latency=0.2)
        seen: set[str] = set()
        halfway = asyncio.Event()

        def see(progress: Progress) -> None:
            seen.add(type(progress.outage).__name__)
            if sum(part.pages for part in progress.parts.values()) > 200:
                halfway.set()

        async def outage() -> None:
            await halfway.wait()
            sandbox.set_outage(503)
            await asyncio.sleep(30)
            sandbox.set_outage(None)

        async with at_work(tmp_path, sandbox.url, sandbox.api_key, maesn.RULES) as (session, journal):
            down = asyncio.ensure_future(outage())
            report = await maesn.sync(
                session, named(sandbox), ["bills", "items"], journal=journal, limit=5, on_progress=see
            )
            await down
            assert report.done
            assert sum(part.running for part in report.parts) == 0
            assert await stored(journal) == expected(sandbox, named(sandbox), ["bills", "items"])
        began = next(each.at for each in sandbox.received if each.outcome == 503)
        during = [each for each in sandbox.received if began + 2 < each.at < began + 30]
        assert len(during) <= 3 * 28
        assert "NoneType" in seen
        assert len(seen) > 1


class TestArguments:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"accounts": {}}, "accounts must not be empty"),
            ({"resources": []}, "resources must not be empty"),
            ({"resources": ["bills", "bills"]}, "got 'bills' 2 times"),
            ({"resources": ["../auth"]}, "must be a list such as 'invoices', .*, got '../auth'"),
            ({"accounts": [maesn.Account("a", "k1"), maesn.Account("a", "k2")]}, "got 'a' 2 times"),
            ({"limit": 7}, "limit must be one of 5, 10, 20, 50, 100, got 7"),
            ({"since": "yesterday"}, "since must be ISO 8601"),
            ({"since": "2026-01-01", "resume": True}, "give only one of them"),
            ({"at_once": 0}, "at_once must be a whole number, 1 or more, got 0"),
            ({"at_once_per_account": 0}, "at_once_per_account must be a whole number, 1 or more, got 0"),
            ({"patience": -1}, "patience must be"),
        ],
    )
    async def test_bad_arguments_raise_before_anything_is_written(
        self, sandbox: Sandbox, tmp_path: Path, arguments: dict[str, Any], said: str
    ) -> None:
        given: dict[str, Any] = {"accounts": named(sandbox), "resources": ["bills"], **arguments}
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            with pytest.raises(ValueError, match=said):
                await maesn.sync(session, given.pop("accounts"), given.pop("resources"), journal=journal, **given)
            tables = "SELECT count(*) FROM sqlite_master WHERE name LIKE 'maesn%'"
            assert await journal.read(lambda db: db.execute(tables).fetchall()) == [(0,)]
        assert not sandbox.received

    @pytest.mark.parametrize(
        ("name", "key", "said"),
        [
            ("", "key", "must be a non-empty line of text"),
            ("a\nb", "key", "must be a non-empty line of text"),
            ("north", "", "the key of the account 'north'"),
            ("north", "secret\n", "the key of the account 'north'"),
            ("secret", "secret", "must differ from its key"),
        ],
    )
    def test_an_account_is_checked_and_its_key_is_not_shown(self, name: str, key: str, said: str) -> None:
        with pytest.raises(ValueError, match=said) as caught:
            maesn.Account(name, key)
        assert "secret" not in str(caught.value)

    def test_an_account_does_not_show_its_key(self) -> None:
        assert "secret" not in repr(maesn.Account("north", "secret"))

    async def test_a_plan_lists_what_would_be_read_and_writes_nothing(self, sandbox: Sandbox, tmp_path: Path) -> None:
        names = named(sandbox)
        assert await maesn.plan(names, ["bills"], journal=None, since="2026-01-01") == (
            Part("account 1", "bills", "2026-01-01"),
        )
        async with at_work(tmp_path, sandbox.url, sandbox.api_key) as (session, journal):
            assert await maesn.plan(names, ["bills"], journal=journal) == (Part("account 1", "bills", None),)
            await maesn.sync(session, names, ["bills"], journal=journal)
            before = await journal.read(lambda db: list(db.iterdump()))
            [bills, items] = await maesn.plan(names, ["bills", "items"], journal=journal)
            assert bills.since is not None
            assert (bills.pages, items.since) == (0, None)
            [bills, items] = await maesn.plan(names, ["bills", "items"], journal=journal, resume=True)
            assert (bills.skipped, bills.pages, items.skipped) == (True, 3, False)
            assert await journal.read(lambda db: list(db.iterdump())) == before


@pytest.mark.slow
@pytest.mark.parametrize("down", [0, 30], ids=["up all the time", "down for half a minute"])
async def test_hundreds_of_accounts_with_limits_and_faults_are_synced(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock, tmp_path: Path, down: float
) -> None:
    """500 accounts, 3 resources, up to 20 pages: all of the 497 that work, and few sends more than needed."""
    pages = [20 if number % 10 == 0 else 1 + number % 5 for number in range(500)]
    accounts = [Account(f"key-{number}", records=5 * many) for number, many in enumerate(pages)]
    for number in (17, 250, 499):
        accounts[number] = Account(f"key-{number}", state="expired")
    sandbox = await make_sandbox(
        accounts=accounts,
        limit=FixedWindow(20, 60),
        chances={500: 0.05, Fault.RESET_BEFORE_HEADERS: 0.005, Fault.CUT_BODY: 0.005},
        latency=0.05,
    )
    halfway = asyncio.Event()

    def see(progress: Progress) -> None:
        if len(sandbox.received) > 3500:
            halfway.set()

    async def outage() -> None:
        await halfway.wait()
        sandbox.set_outage(503)
        await asyncio.sleep(down)
        sandbox.set_outage(None)

    resources = ["bills", "contacts", "items"]
    # Of some 7,000 calls one fails five times by chance in one run of two hundred: the order of arrival is not seeded.
    async with at_work(tmp_path, sandbox.url, sandbox.api_key, maesn.RULES, attempts=8) as (session, journal):
        going_down = asyncio.ensure_future(outage())
        report = await maesn.sync(
            session, named(sandbox), resources, journal=journal, limit=5, on_progress=see if down else None
        )
        going_down.cancel()
        assert await stored(journal) == expected(sandbox, named(sandbox), resources)
    assert sorted({part.account for part in report.failed}) == ["account 18", "account 251", "account 500"]
    assert all(isinstance(part.error, Unauthorized) for part in report.failed)
    assert len(report.failed) == 9
    needed = report.pages + 3
    if not down:
        assert len(sandbox.received) <= 1.15 * needed
        return
    refused = [each.at for each in sandbox.received if each.outcome == 503]
    # What was under way meets it; from then on it is a few probes a second.
    assert len(refused) <= 1000 + 3 * down
    assert sum(at > refused[0] + 1 for at in refused) <= 3 * down
