"""A sync never hides records: with ``since`` and no mark, and where an account gets another company."""

from __future__ import annotations

import json
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.maesn.lists import START, ListServer, Record, numbered, record
from tests.servers import Serve

from lamella import NotFound, maesn
from lamella.batch import Journal
from lamella.maesn import Account
from lamella.sync import Report

RULES = maesn.RULES.scaled(0.0001)
OLD = START - timedelta(days=400)


async def synced(
    path: Path, url: str, *accounts: Account, resources: tuple[str, ...] = ("bills",), **options: Any
) -> Report:
    async with (
        maesn.session("api-key", None, url, rules=RULES) as session,
        Journal.open(path / "journal", batch="nightly") as journal,
    ):
        return await maesn.sync(
            session,
            accounts or [Account("north", "key")],
            resources,
            journal=journal,
            output=path / "out.jsonl",
            **options,
        )


def ids(path: Path, account: str = "north") -> list[str]:
    lines = map(json.loads, (path / "out.jsonl").read_text().splitlines())
    return [line["id"] for line in lines if line["account"] == account]


def old_and_new() -> list[Record]:
    return [*(record(number, OLD) for number in range(14)), *(record(number) for number in range(14, 20))]


class TestSinceWithoutAMark:
    async def test_after_since_without_a_mark_the_next_run_reads_all(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(old_and_new())
        url = await serve(server)
        report = await synced(tmp_path, url, since="2025-11-01")
        [part] = report.parts
        assert (report.done, part.done, part.gap, part.records) == (True, True, True, 6)
        report = await synced(tmp_path, url)
        [part] = report.parts
        assert (part.since, part.gap, part.records) == (None, False, 14)
        assert len(ids(tmp_path)) == 20
        [part] = (await synced(tmp_path, url)).parts
        assert part.since is not None, "now the mark is set"

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("runs", [2, 3])
    async def test_repeated_since_runs_do_not_set_the_mark(self, serve: Serve, tmp_path: Path, runs: int) -> None:
        server = ListServer(old_and_new())
        url = await serve(server)
        for _ in range(runs):
            [part] = (await synced(tmp_path, url, since="2025-11-01")).parts
            assert part.gap
        [part] = (await synced(tmp_path, url)).parts
        assert (part.since, part.gap, len(ids(tmp_path))) == (None, False, 20)

    async def test_a_resumed_run_remembers_the_gap(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(old_and_new())
        url = await serve(server)
        resources = ("bills", "items")
        server.instead = lambda server, page, given: 404 if len(server.pages) == 2 else None
        report = await synced(tmp_path, url, resources=resources, since="2025-11-01", at_once=1)
        assert [part.gap for part in report.parts] == [True, False], "a part that is not done is told as failed"
        server.records = [each | {"id": each["number"]} for each in server.records]
        report = await synced(tmp_path, url, resources=resources, resume=True)
        assert [(part.done, part.skipped, part.gap) for part in report.parts] == [
            (True, True, True),
            (True, False, True),
        ]

    async def test_another_page_size_does_not_remove_the_gap(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(old_and_new(), instead=lambda server, page, given: 404 if page == 2 else None)
        url = await serve(server)
        await synced(tmp_path, url, since="2025-11-01", limit=5)
        [part] = (await synced(tmp_path, url, resume=True, limit=10)).parts
        assert (part.done, part.gap, part.since) == (True, True, "2025-11-01")

    async def test_an_empty_list_also_has_a_gap(self, serve: Serve, tmp_path: Path) -> None:
        [part] = (await synced(tmp_path, await serve(ListServer(old_and_new())), since="2025-12-31")).parts
        assert (part.done, part.gap, part.records) == (True, True, 0)

    async def test_a_since_before_the_mark_leaves_no_gap(self, serve: Serve, tmp_path: Path) -> None:
        server = ListServer(old_and_new())
        url = await serve(server)
        [part] = (await synced(tmp_path, url)).parts
        assert not part.gap
        [part] = (await synced(tmp_path, url, since="2000-01-01")).parts
        assert not part.gap
        [part] = (await synced(tmp_path, url, since=START)).parts
        assert part.gap, "what was changed between the mark and that moment was not read"
        [part] = (await synced(tmp_path, url)).parts
        assert not part.gap


class Companies:
    """Each company has books of its own, and each account can ask for both."""

    def __init__(self) -> None:
        self.lists = {name: ListServer([record(number) for number in range(first, first + 8)]) for name, first in BOOKS}
        self.failing = False

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        asked = request.query.get("companyId", ""), request.query.get("environmentName", "")
        if self.failing:
            return web.json_response({}, status=404)
        return await self.lists[asked](request)

    @property
    def requests(self) -> int:
        return sum(len(each.pages) for each in self.lists.values())


BOOKS = [(("", ""), 0), (("4711", ""), 10), (("4712", ""), 20), (("4711", "test"), 30), (("4711", "production"), 40)]


def books(company: str, environment: str = "") -> list[str]:
    first = dict(BOOKS)[company, environment]
    return [f"b{number}" for number in range(first, first + 8)]


CHANGES = [
    (("4711", None), ("4712", None)),
    (("4711", None), (None, None)),
    ((None, None), ("4711", None)),
    (("4711", "test"), ("4711", "production")),
    (("4711", "test"), ("4711", None)),
    (("4711", None), ("4711", "test")),
]


class TestAnotherCompany:
    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(("before", "after"), CHANGES)
    @pytest.mark.parametrize("resume", [False, True])
    async def test_another_company_replaces_the_stored_records(
        self, serve: Serve, tmp_path: Path, before: Any, after: Any, resume: bool
    ) -> None:
        url = await serve(Companies())
        other = Account("south", "key-2", "4711")
        await synced(tmp_path, url, Account("north", "key", *before), other)
        report = await synced(tmp_path, url, Account("north", "key", *after), other, resume=resume)
        assert report.done
        north, south = report.parts
        assert (north.dropped, north.since, north.records) == (True, None, 8)
        assert not south.dropped
        assert ids(tmp_path) == books(after[0] or "", after[1] or "")
        assert ids(tmp_path, "south") == books("4711")
        report = await synced(tmp_path, url, Account("north", "key", *after), other)
        assert [part.dropped for part in report.parts] == [False, False]
        assert report.parts[0].since is not None

    async def test_the_same_company_drops_nothing(self, serve: Serve, tmp_path: Path) -> None:
        url = await serve(Companies())
        await synced(tmp_path, url, Account("north", "key"))
        report = await synced(tmp_path, url, Account("north", "another key", company_id="", environment_name=""))
        [part] = report.parts
        assert (part.dropped, part.since is not None) == (False, True)

    async def test_another_company_drops_all_lists_of_the_account(self, serve: Serve, tmp_path: Path) -> None:
        """Also those that this run does not read."""
        server = Companies()
        for each in server.lists.values():
            each.records = [record_ | {"id": record_["billId"]} for record_ in each.records]
        url = await serve(server)
        await synced(tmp_path, url, Account("north", "key", "4711"), resources=("bills", "items"))
        assert ids(tmp_path) == books("4711") * 2
        await synced(tmp_path, url, Account("north", "key", "4712"))
        assert ids(tmp_path) == books("4712")
        report = await synced(tmp_path, url, Account("north", "key", "4712"), resources=("items",))
        assert (report.parts[0].since, report.parts[0].dropped) == (None, False)
        assert ids(tmp_path) == books("4712") * 2

    async def test_nothing_is_reported_if_nothing_was_stored(self, serve: Serve, tmp_path: Path) -> None:
        server = Companies()
        url = await serve(server)
        server.failing = True
        report = await synced(tmp_path, url, Account("north", "key", "4711"))
        assert isinstance(report.parts[0].error, NotFound)
        server.failing = False
        report = await synced(tmp_path, url, Account("north", "key", "4712"))
        assert (report.parts[0].dropped, report.done, ids(tmp_path)) == (False, True, books("4712"))

    async def test_an_aborted_run_of_another_company_is_not_continued(self, serve: Serve, tmp_path: Path) -> None:
        """Half of the pages would be of one company and half of the other."""
        server = Companies()
        for each in server.lists.values():
            each.instead = lambda server, page, given: 404 if page == 2 and server is server_4711 else None
        server_4711 = server.lists["4711", ""]
        url = await serve(server)
        await synced(tmp_path, url, Account("north", "key", "4711"), limit=5)
        assert ids(tmp_path) == books("4711")[:5]
        await synced(tmp_path, url, Account("north", "key", "4712"), limit=5, resume=True)
        assert ids(tmp_path) == books("4712")

    async def test_a_plan_reports_another_company_and_drops_nothing(self, serve: Serve, tmp_path: Path) -> None:
        url = await serve(Companies())
        await synced(tmp_path, url, Account("north", "key", "4711"))
        async with Journal.open(tmp_path / "journal", batch="nightly") as journal:
            before = await journal.read(lambda db: list(db.iterdump()))
            for resume in (False, True):
                accounts = [Account("north", "key", "4712")]
                [part] = await maesn.plan(accounts, ["bills"], journal=journal, resume=resume)
                assert (part.dropped, part.since, part.skipped) == (True, None, False)
            assert await journal.read(lambda db: list(db.iterdump())) == before

    async def test_since_with_another_company_reports_the_gap(self, serve: Serve, tmp_path: Path) -> None:
        url = await serve(Companies())
        await synced(tmp_path, url, Account("north", "key", "4711"))
        [part] = (await synced(tmp_path, url, Account("north", "key", "4712"), since="2025-01-01")).parts
        assert (part.dropped, part.gap) == (True, True)


class TestAJournalOfAnEarlierLamella:
    async def test_records_of_an_older_journal_stay_and_lists_are_read_again(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        server = ListServer(numbered(20), instead=lambda *_: 404)
        url = await serve(server)
        async with Journal.open(tmp_path / "journal", batch="nightly") as journal:

            def fill(db: sqlite3.Connection) -> None:
                db.execute(
                    "CREATE TABLE maesn_records (account TEXT NOT NULL, resource TEXT NOT NULL, id TEXT NOT NULL,"
                    " updated INTEGER, record TEXT NOT NULL, walk INTEGER NOT NULL,"
                    " PRIMARY KEY (account, resource, id))"
                )
                db.execute("CREATE TABLE maesn_parts (account TEXT, resource TEXT, mark INTEGER)")
                kept = [("north", "bills", each["billId"], 1, json.dumps(each), 1) for each in numbered(3)]
                db.executemany("INSERT INTO maesn_records VALUES (?, ?, ?, ?, ?, ?)", kept)

            await journal.commit(fill)
        [part] = (await synced(tmp_path, url)).parts
        assert (part.done, ids(tmp_path)) == (False, ["b0", "b1", "b2"])
        server.instead = lambda *_: None
        [part] = (await synced(tmp_path, url)).parts
        assert (part.done, part.since, part.dropped, len(ids(tmp_path))) == (True, None, False, 20)
