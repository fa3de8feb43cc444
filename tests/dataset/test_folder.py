"""A dataset in a folder: its commits, what may be removed, and what verify() finds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.dataset.conftest import SyncTo, expected_of, records_in
from tests.dataset.storages import OfEachStorage

from lamella import dataset
from lamella.dataset import Dataset, DatasetError, TakenOver
from lamella.dataset.contents import name_of
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox


class TestInAFolder(OfEachStorage):
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "out")


def test_an_account_stays_in_its_shard_on_each_machine_and_forever(tmp_path: Path) -> None:
    made = Dataset.create(tmp_path, batch="b", shards=64)
    assert [made.shard_of(name) for name in ("north", "south", "größe")] == [21, 7, 41]


def test_the_accounts_are_spread_evenly(tmp_path: Path) -> None:
    made = Dataset.create(tmp_path, batch="b", shards=10)
    shards = [made.shard_of(f"account {number}") for number in range(10_000)]
    assert all(900 <= shards.count(shard) <= 1100 for shard in range(10))


def test_other_users_cannot_read_a_dataset(tmp_path: Path) -> None:
    made = Dataset.create(tmp_path / "out", batch="b")
    made.claim(1, "one", 1)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_partial_file_of_a_killed_process_is_ignored_and_removed(tmp_path: Path) -> None:
    made = Dataset.create(tmp_path, batch="b")
    made.claim(1, "one", 1)
    left = tmp_path / "commits" / "00001" / ".lamella-0123456789abcdef"
    left.write_text("{")
    assert len(dataset.shards(tmp_path)) == 1
    assert dataset.clean(tmp_path, older_than=0) == ["commits/00001/.lamella-0123456789abcdef"]


def test_a_commit_whose_response_was_lost_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def as_nfs(*paths: Path) -> None:
        link(*paths)
        raise FileExistsError

    made = Dataset.create(tmp_path, batch="b")
    _, claimed = made.claim(1, "one", 1)
    monkeypatch.setattr(os, "link", as_nfs)
    assert made.commit(claimed) == made.last(1)
    with pytest.raises(TakenOver):
        made.commit(claimed)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "is not a dataset"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 9}', "is of format 9"),
        ('{"format": 1, "id": "x", "shards": 0, "batch": "b", "suffix": ".jsonl"}', "damaged"),
        ('{"format": 1, "id": "x", "shards": "4", "batch": "b", "suffix": ".jsonl"}', "damaged"),
    ],
)
def test_a_folder_without_dataset_is_not_opened(tmp_path: Path, content: str | None, what: str) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=what):
        dataset.files(tmp_path)


def test_a_file_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"file: is not a dataset: there is no dataset\.json"):
        dataset.files(tmp_path / "file")


def test_files_of_other_programs_among_the_commits_are_ignored(tmp_path: Path) -> None:
    made = Dataset.create(tmp_path, batch="b")
    _, claimed = made.claim(1, "one", 1)
    for name in ("index.json", "00001/index.json", "00001/000000000009 (copy).json", "notes/000000000001.json"):
        path = tmp_path / "commits" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert made.commit(claimed) == made.last(1)
    assert [each.shard for each in dataset.shards(tmp_path)] == [1]
    assert dataset.verify(tmp_path) == []
    assert dataset.clean(tmp_path, older_than=0) == []


class TestDamage:
    """What the next run does with files that were removed or changed by hand."""

    @pytest.fixture
    async def sandbox(self, make_sandbox: MakeSandbox, sync_to: SyncTo) -> Sandbox:
        sandbox = await make_sandbox(accounts=[Account("key-1", records=7), Account("key-2", records=3)])
        await sync_to(sandbox, shards=1)
        return sandbox

    @pytest.mark.parametrize("size", [None, 100])
    async def test_a_removed_or_truncated_data_file_is_replaced(
        self, sandbox: Sandbox, sync_to: SyncTo, tmp_path: Path, size: int | None
    ) -> None:
        [file] = dataset.files(tmp_path / "out")
        os.unlink(file) if size is None else os.truncate(file, size)
        assert (await sync_to(sandbox, shards=1)).done
        assert dataset.verify(tmp_path / "out") == []
        assert records_in(tmp_path / "out") == expected_of(sandbox)

    async def test_resuming_replaces_a_removed_data_file(
        self, sandbox: Sandbox, sync_to: SyncTo, tmp_path: Path
    ) -> None:
        [file] = dataset.files(tmp_path / "out")
        os.unlink(file)
        assert (await sync_to(sandbox, shards=1, resume=True)).done
        assert dataset.verify(tmp_path / "out") == []
        assert records_in(tmp_path / "out") == expected_of(sandbox)

    @pytest.mark.parametrize(
        "content", ["{", "null", '"x"', '{"files": 3}', '{"files": {}, "journal": {"a": 1}}', "copy"]
    )
    async def test_a_damaged_commit_is_named(
        self, sandbox: Sandbox, sync_to: SyncTo, tmp_path: Path, content: str
    ) -> None:
        *_, before, last = sorted((tmp_path / "out" / "commits" / "00000").iterdir())
        last.write_text(before.read_text() if content == "copy" else content)
        with pytest.raises(DatasetError, match=rf"commits/00000/{last.name} is damaged"):
            dataset.verify(tmp_path / "out")
        with pytest.raises(DatasetError, match=rf"commits/00000/{last.name} is damaged"):
            await sync_to(sandbox, shards=1, resume=True)

    @pytest.mark.parametrize("change", ["remove", "empty", "alter"])
    async def test_a_removed_or_changed_journal_fails_its_shard(
        self, sandbox: Sandbox, sync_to: SyncTo, tmp_path: Path, change: str
    ) -> None:
        [journal] = (tmp_path / "out" / "journals").iterdir()
        if change == "remove":
            journal.unlink()
        else:
            content = journal.read_bytes()
            assert b"companyName" in content
            journal.write_bytes(b"" if change == "empty" else content.replace(b"companyName", b"companyNaem"))
        report = await sync_to(sandbox, shards=1)
        [(shard, error)] = report.errors
        assert (shard, report.done) == (0, False)
        assert f"journals/{journal.name} is {'missing' if change == 'remove' else 'not as it was committed'}" in error
        assert records_in(tmp_path / "out") == expected_of(sandbox)

    @pytest.mark.parametrize("left", ["files and folder", "files", "runs"])
    async def test_missing_commits_are_reported_and_nothing_is_removed(
        self, sandbox: Sandbox, sync_to: SyncTo, tmp_path: Path, left: str
    ) -> None:
        place = tmp_path / "out"
        for folder in ["commits"] if left != "runs" else ["commits", "data", "journals"]:
            shutil.rmtree(place / folder)
        if left == "files and folder":
            (place / "commits" / "00000").mkdir(parents=True)
        before = sorted(place.rglob("*"))
        what = "there is no commit, but a run has" if left == "runs" else "commits/00000 has no commit, but data"
        for use in (dataset.verify, dataset.files, dataset.shards):
            with pytest.raises(DatasetError, match=what):
                use(place)
        for resume in (False, True):
            with pytest.raises(DatasetError, match=what):
                await sync_to(sandbox, shards=1, resume=resume)
        assert dataset.clean(place, older_than=0) == []
        assert sorted(place.rglob("*")) == before

    async def test_the_missing_commits_of_one_shard_are_reported(
        self, make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path
    ) -> None:
        await sync_to(await make_sandbox(accounts=[Account(f"key-{number}", records=3) for number in range(9)]))
        [first, *_] = dataset.shards(tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "commits" / f"{first.shard:05d}")
        with pytest.raises(DatasetError, match=f"commits/{first.shard:05d} has no commit"):
            dataset.verify(tmp_path / "out")


class TestVerify:
    @pytest.fixture
    async def place(self, make_sandbox: MakeSandbox, sync_to: SyncTo, tmp_path: Path) -> Path:
        await sync_to(await make_sandbox(accounts=[Account("key-1", records=7), Account("key-2", records=3)]), shards=1)
        return tmp_path / "out"

    def test_verify_finds_no_fault_in_a_valid_dataset(self, place: Path) -> None:
        assert dataset.verify(place) == []
        [commit] = dataset.shards(place)
        assert [file.rows for file in commit.files["records"]] == [20]
        assert set(commit.marks) == {"account 0", "account 1"}

    def test_verify_finds_a_missing_file(self, place: Path) -> None:
        [file] = dataset.files(place)
        os.unlink(file)
        assert dataset.verify(place)[0].what == "is missing"

    def test_verify_finds_a_changed_file(self, place: Path) -> None:
        [file] = dataset.files(place)
        content = Path(file).read_bytes()
        Path(file).write_bytes(content.replace(b"account 0", b"account 9", 1))
        assert dataset.verify(place)[0].what == "is not as it was committed"

    def test_verify_finds_records_that_differ_from_the_journal(self, place: Path, tmp_path: Path) -> None:
        self._with_lines(place, tmp_path, lambda lines: lines[:-1])
        assert "has 20 records, and the data files 19" in str(dataset.verify(place))

    def test_verify_finds_a_duplicate_record(self, place: Path, tmp_path: Path) -> None:
        self._with_lines(place, tmp_path, lambda lines: [*lines, lines[0]])
        assert "has a record twice: ('account 0', 'bills'" in str(dataset.verify(place)[0])

    def test_verify_finds_marks_that_differ_from_the_journal(self, place: Path) -> None:
        made = Dataset.open(place)
        commit = made.last(0)
        made.commit(replace(commit, marks={**commit.marks, "account 0": {"bills": "2030-01-01T00:00:00Z"}}))
        assert [fault.what for fault in dataset.verify(place)] == ["has other marks than its commit"]

    @staticmethod
    def _with_lines(place: Path, tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
        """Commit a data file with other lines."""
        made = Dataset.open(place)
        commit = made.last(0)
        [file] = commit.files["records"]
        lines = made.storage.read(file.name).decode().splitlines(keepends=True)
        changed = change(lines)
        assert json.loads(changed[0])
        (tmp_path / "changed").write_text("".join(changed))
        put = made.put(tmp_path / "changed", name_of("records", commit, "0" * 16, ".jsonl"), len(changed))
        made.commit(replace(commit, files={"records": (put,)}))
