"""What the API no longer has is marked where a complete comparison shows it, and nowhere else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import Source, stack, sync
from lamella.batch import Journal, JournalError
from lamella.sync import Numbered, Part
from lamella.testing import VirtualClock

SIZE = 5


@dataclass
class Books:
    """A list with pages of five. *moves* are called after the requests of these numbers, from 1."""

    ids: list[int]
    counts: bool = True
    total: int | None = None
    """What it says instead of the number of records."""
    old: dict[int, str] = field(default_factory=dict)
    """Other dates than the common one."""
    moves: dict[int, Callable[[], Any]] = field(default_factory=dict)
    queries: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        query = dict(request.query)
        self.queries.append(query)
        page = int(query["page"])
        found = [{"id": name, "at": self.old.get(name, "2026-01-01T00:00:00Z")} for name in self.ids]
        found = [row for row in found if str(row["at"]) >= query.get("since", "")]
        body: dict[str, Any] = {"data": found[(page - 1) * SIZE : page * SIZE]}
        if self.counts:
            body["total"] = len(found) if self.total is None else self.total
        if move := self.moves.get(len(self.queries)):
            move()
        return web.json_response(body, headers={"Date": "Fri, 02 Jan 2026 00:00:00 GMT"})

    def replace(self, one: int, other: int, old: str | None = None) -> None:
        self.ids.remove(one)
        self.ids.append(other)
        if old is not None:
            self.old[other] = old


@dataclass
class Nights:
    """Runs of a sync of one list."""

    url: str
    folder: Path
    since: str | None = "since"

    async def __call__(self, output: str = "out.jsonl", **options: Any) -> Part:
        total = {"total": "total"}
        source = Source("books", Numbered(page_size=SIZE), changed="at", since=self.since, **total)  # type: ignore[arg-type]
        async with (
            Journal.open(self.folder / "journal", batch="b") as journal,
            aiohttp.ClientSession(self.url, middlewares=stack()) as session,
        ):
            report = await sync.run(session, {"books": source}, journal=journal, output=self.folder / output, **options)
        [part] = report.parts
        return part

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def deleted(self) -> set[str]:
        """What the output marks."""
        return {line["id"] for line in self.lines() if "deleted" in line}


@pytest.fixture
def books() -> Books:
    return Books(list(range(12)))


@pytest.fixture
async def nights(books: Books, serve: Serve, tmp_path: Path) -> Nights:
    return Nights(await serve(books), tmp_path)


async def test_a_comparison_marks_deleted_records_and_unmarks_restored_ones(books: Books, nights: Nights) -> None:
    await nights()
    books.ids.remove(3)
    part = await nights()
    assert (part.compared, part.deleted, nights.deleted) == (False, 0, set())  # it asked for what has changed
    part = await nights(full_every=0)
    assert (part.compared, part.deleted, part.deleted_ids, nights.deleted) == (True, 1, ("3",), {"3"})
    assert len(nights.lines()) == 12
    [line] = [line for line in nights.lines() if "deleted" in line]
    assert line["deleted"] == "2026-01-02T00:00:00.000Z"
    assert list(line) == ["account", "resource", "id", "deleted", "record"]
    again = await nights(full_every=0)
    assert (again.compared, again.deleted, nights.deleted) == (True, 0, {"3"})
    books.ids.append(3)
    back = await nights(full_every=0)
    assert (back.compared, back.records, nights.deleted) == (True, 1, set())


async def test_all_outputs_mark_deleted_records(books: Books, nights: Nights) -> None:
    await nights()
    books.ids.remove(3)
    await nights(full_every=0, output="out.db")
    await nights(output="out.parquet")
    with closing(sqlite3.connect(nights.folder / "out.db")) as db:
        found = db.execute("SELECT id, deleted FROM records WHERE deleted IS NOT NULL").fetchall()
        assert found == [("3", "2026-01-02T00:00:00.000Z")]
        assert db.execute("SELECT count(*) FROM records").fetchone() == (12,)
        assert db.execute("SELECT count(*) FROM books").fetchone() == (11,)  # the view has what is there
    rows = pq.read_table(nights.folder / "out.parquet").to_pylist()
    assert {row["id"]: row["deleted"] for row in rows if row["deleted"]} == {"3": "2026-01-02T00:00:00.000Z"}
    assert len(rows) == 12


async def test_without_a_total_nothing_is_marked(books: Books, nights: Nights) -> None:
    books.counts = False
    await nights()
    books.ids.remove(3)
    part = await nights(full_every=0)
    assert (part.done, part.compared, part.deleted, part.unmet, nights.deleted) == (True, False, 0, 1, set())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("total", [5, 10, 12])
async def test_with_a_wrong_total_nothing_is_marked(books: Books, nights: Nights, total: int) -> None:
    await nights()
    books.ids.remove(3)
    books.total = total
    part = await nights(full_every=0)
    assert (part.compared, part.deleted, nights.deleted) == (False, 0, set())


async def test_a_full_last_page_is_followed_by_another_read(books: Books, nights: Nights) -> None:
    await nights()
    books.ids = books.ids[:10]
    part = await nights(full_every=0)
    assert (part.compared, nights.deleted) == (True, {"10", "11"})
    assert [query["page"] for query in books.queries[-3:]] == ["1", "2", "3"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("old", [None, "2001-01-01T00:00:00Z"])
async def test_a_record_that_moves_to_a_read_page_is_not_marked(books: Books, nights: Nights, old: str | None) -> None:
    """One is deleted and another one created while the list is read, so that the count stays: 5 is passed over."""
    await nights()
    books.moves[len(books.queries) + 1] = lambda: books.replace(0, 12, old)
    part = await nights(full_every=0)
    assert nights.deleted == {"0"}
    assert (part.done, part.compared, part.deleted) == (True, True, 1)
    assert {line["id"] for line in nights.lines()} == set(map(str, range(13)))


async def test_full_runs_mark_a_moved_record_only_after_two_misses(books: Books, nights: Nights) -> None:
    nights.since = None
    await nights()
    books.moves[len(books.queries) + 1] = lambda: books.replace(0, 12, "2001-01-01T00:00:00Z")
    part = await nights()
    assert (part.done, part.compared, part.unmet, nights.deleted) == (True, False, 1, set())
    part = await nights()
    assert (part.compared, part.unmet, nights.deleted) == (True, 0, {"0"})


async def test_a_suddenly_empty_list_is_read_twice(books: Books, nights: Nights) -> None:
    await nights()
    books.ids, kept = [], books.ids
    before = len(books.queries)
    books.moves[before + 1] = lambda: books.ids.extend(kept)
    part = await nights(full_every=0)
    assert (part.compared, part.deleted, nights.deleted) == (True, 0, set())
    books.ids.clear()
    part = await nights(full_every=0)
    assert (part.compared, part.deleted, len(nights.deleted)) == (True, 12, 12)


async def test_a_comparison_that_fails_marks_nothing(books: Books, nights: Nights, virtual_time: VirtualClock) -> None:
    await nights()
    books.ids.remove(3)
    books.total = 20
    part = await nights(full_every=0)
    assert not part.done
    assert (part.compared, part.deleted, nights.deleted) == (False, 0, set())


async def test_records_missed_by_an_earlier_run_are_reported(books: Books, nights: Nights) -> None:
    await nights()
    books.old[77] = "2001-01-01T00:00:00Z"  # it appears late, with an old date
    books.ids += [77, 78]
    books.old[78] = "2026-01-01T12:00:00Z"
    part = await nights()
    assert (part.missing, part.records) == (0, 1)
    part = await nights(full_every=0)
    assert (part.compared, part.missing, part.missing_ids, part.records) == (True, 1, ("77",), 1)
    part = await nights(full_every=0)
    assert (part.missing, part.missing_ids, part.records) == (0, (), 0)


async def test_full_every_reads_everything_when_it_is_due(
    books: Books, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1767312000.0  # 2026-01-02, as the API says
    monkeypatch.setattr("time.time", lambda: now)
    asked = []
    for days in (0, 1, 6, 8, 9):
        now = 1767312000.0 + days * 86400
        books.queries.clear()
        await nights(full_every=7 * 86400)
        asked.append("since" in books.queries[0])
    assert asked == [False, True, True, False, False]  # the API's clock stays, so that it is due again


async def test_a_failed_comparison_is_due_again(books: Books, nights: Nights, virtual_time: VirtualClock) -> None:
    await nights()
    books.total = 99
    assert not (await nights(full_every=0)).done
    books.total = None
    books.queries.clear()
    assert (await nights(resume=True)).compared
    assert "since" not in books.queries[0]


async def test_a_plan_shows_due_comparisons(books: Books, nights: Nights) -> None:
    await nights()
    source = Source("books", Numbered(page_size=SIZE), changed="at", since="since", total="total")
    async with Journal.open(nights.folder / "journal", batch="b") as journal:
        [part] = await sync.plan({"books": source}, journal=journal, full_every=0)
        [other] = await sync.plan({"books": source}, journal=journal, full_every=1e9)
    assert part.since is None
    assert other.since is not None


async def test_a_journal_without_deletion_marks_is_converted(books: Books, nights: Nights) -> None:
    await nights()
    with closing(sqlite3.connect(nights.folder / "journal")) as db:
        for name in ("verify", "exact", "full"):
            db.execute(f"ALTER TABLE sync_parts DROP COLUMN {name}")
        db.execute("DROP TABLE sync_deleted")
        db.execute("DROP TABLE sync_departed")
        db.commit()
    books.ids.remove(3)
    part = await nights(full_every=0)
    assert (part.compared, nights.deleted) == (True, {"3"})


async def test_an_older_journal_can_be_planned_and_resumed(
    books: Books, nights: Nights, virtual_time: VirtualClock
) -> None:
    """A dry run only looks at it; a walk that is resumed has no values in the new columns."""
    books.total = 99
    assert not (await nights()).done
    books.total = None
    with closing(sqlite3.connect(nights.folder / "journal")) as db:
        for name in ("fresh", "missing", "deleted", "unmet", "nameless", "least", "compared", "verify", "full"):
            db.execute(f"ALTER TABLE sync_parts DROP COLUMN {name}")
        db.commit()
    source = Source("books", Numbered(page_size=SIZE), changed="at", since="since", total="total")
    async with Journal.open(nights.folder / "journal", batch="b") as journal:
        [planned] = await sync.plan({"books": source}, journal=journal, resume=True)
    assert (planned.missing, planned.deleted, planned.nameless) == (0, 0, 0)
    part = await nights(resume=True)
    assert (part.done, part.missing, part.deleted) == (True, 0, 0)


async def of_accounts(nights: Nights, *names: str, output: str = "out.jsonl", **options: Any) -> sync.Report:
    source = Source("books", Numbered(page_size=SIZE), changed="at", since="since", total="total")
    async with (
        Journal.open(nights.folder / "journal", batch="b") as journal,
        aiohttp.ClientSession(nights.url, middlewares=stack()) as session,
    ):
        return await sync.run(
            session,
            {"books": source},
            dict.fromkeys(names),
            journal=journal,
            output=nights.folder / output,
            **options,
        )


class TestAnAccountThatLeaves:
    async def test_a_departed_account_is_reported_and_kept(self, nights: Nights) -> None:
        assert (await of_accounts(nights, "a", "b")).departed == ()
        report = await of_accounts(nights, "a")
        assert report.departed == ("b",)
        assert len(nights.lines()) == 24
        assert nights.deleted == set()

    async def test_a_departed_account_is_marked(self, nights: Nights) -> None:
        await of_accounts(nights, "a", "b")
        assert (await of_accounts(nights, "a", departed="mark")).departed == ("b",)
        assert {line["account"] for line in nights.lines() if "deleted" in line} == {"b"}
        assert sum("deleted" in line for line in nights.lines()) == 12
        assert (await of_accounts(nights, "a")).departed == ()
        assert sum("deleted" in line for line in nights.lines()) == 12
        back = await of_accounts(nights, "a", "b")
        assert (back.departed, nights.deleted, len(nights.lines())) == ((), set(), 24)

    async def test_a_departed_account_is_forgotten(self, nights: Nights) -> None:
        await of_accounts(nights, "a", "b")
        await of_accounts(nights, "a", departed="forget")
        assert {line["account"] for line in nights.lines()} == {"a"}
        assert (await of_accounts(nights, "a")).departed == ()
        back = await of_accounts(nights, "a", "b")
        assert [part.records for part in back.parts] == [0, 12]

    async def test_more_accounts_than_stay_are_not_forgotten(self, books: Books, nights: Nights) -> None:
        """The accounts may be cut off. Marking can be undone, and shows that they are complete."""
        await of_accounts(nights, "a", "b", "c")
        asked, before = len(books.queries), nights.lines()
        with pytest.raises(sync.TooManyDeparted) as caught:
            await of_accounts(nights, "a", departed="forget")
        assert str(caught.value) == (
            "departed='forget' would remove the records of 2 accounts, more than the 1 that stay. "
            "If the accounts are complete, run once with departed='mark' first"
        )
        assert (len(books.queries), nights.lines()) == (asked, before)
        await of_accounts(nights, "a", departed="mark")
        assert sum("deleted" in line for line in nights.lines()) == 24
        assert (await of_accounts(nights, "a", departed="forget")).departed == ("b", "c")
        assert {line["account"] for line in nights.lines()} == {"a"}

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("output", ["out.db", "out.parquet"])
    async def test_a_departed_account_is_in_no_typed_table(self, nights: Nights, output: str) -> None:
        def counts() -> list[int]:
            """Rows of all records, of those that are marked, and of the typed table."""
            path = nights.folder / output
            if output == "out.parquet":
                records, typed = pq.read_table(path), pq.read_table(nights.folder / "out.books.parquet")
                return [len(records), len(records) - records.column("deleted").null_count, len(typed)]
            with closing(sqlite3.connect(path)) as db:
                sql = "SELECT count(*), count(deleted), (SELECT count(*) FROM books) FROM records"
                return list(db.execute(sql).fetchone())

        tables = {"books": sync.Table({"at": "timestamp"})}
        found = []
        for names, how in (
            ("ab", "keep"),
            ("a", "keep"),
            ("a", "mark"),
            ("ab", "mark"),
            ("a", "forget"),
            ("ab", "keep"),
        ):
            report = await of_accounts(nights, *names, output=output, departed=how, tables=tables)
            assert (report.done, report.misfits.count) == (True, 0)
            found.append(counts())
        assert found == [[24, 0, 24], [24, 0, 24], [24, 12, 12], [24, 0, 24], [12, 0, 12], [24, 0, 24]]

    async def test_an_unknown_value_of_departed_is_rejected(self, nights: Nights) -> None:
        with pytest.raises(ValueError, match="departed must be one of keep, mark, forget, got 'drop'"):
            await of_accounts(nights, "a", departed="drop")
        with pytest.raises((ValueError, JournalError), match="full_every must be"):
            await of_accounts(nights, "a", full_every=-1)
