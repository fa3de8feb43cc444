"""What holds of a dataset in each storage: a folder, and objects of S3 (tests/dask runs it there)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from lamella import dataset
from lamella.dataset import Commit, Dataset, DatasetError, TakenOver
from lamella.dataset.contents import name_of

__all__ = ["OfEachStorage"]


class OfEachStorage:
    """The tests; a subclass has the fixture *place*."""

    async def test_concurrent_creators_get_the_same_dataset(self, place: str) -> None:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: Dataset.create(place, batch="b", shards=7).id, range(16)))
        assert len(set(found)) == 1

    async def test_only_one_of_many_concurrent_commits_succeeds(self, place: str) -> None:
        made = Dataset.create(place, batch="b")
        _, claimed = made.claim(3, "one", 1)

        def commit(number: int) -> Commit | None:
            try:
                return made.commit(replace(claimed, holder=f"thread {number}"))
            except TakenOver:
                return None

        with ThreadPoolExecutor(8) as threads:
            won = [each for each in threads.map(commit, range(16)) if each is not None]
        assert [made.last(3)] == won

    async def test_the_last_of_many_claims_holds_the_shard(self, place: str) -> None:
        made = Dataset.create(place, batch="b")

        def claim(number: int) -> Commit | None:
            try:
                return made.claim(3, f"thread {number}", 1)[1]
            except TakenOver:  # at the same time
                return None

        with ThreadPoolExecutor(4) as threads:
            claims = [each for each in threads.map(claim, range(8)) if each is not None]
        assert max(claims, key=lambda each: each.epoch) == made.last(3)
        assert len({each.epoch for each in claims}) == len(claims)
        assert made.last(3).epoch == 8

    async def test_a_worker_whose_shard_was_taken_over_cannot_commit(self, place: str) -> None:
        made = Dataset.create(place, batch="b")
        _, frozen = made.claim(3, "frozen", 1)
        before, successor = made.claim(3, "successor", 1)
        assert before == frozen
        with pytest.raises(TakenOver, match="shard 3"):
            made.check_holder(frozen)
        with pytest.raises(TakenOver, match=r"shard 3 \(epoch 1\)"):
            made.commit(replace(frozen, run=1))
        assert made.commit(replace(successor, run=1)) == made.last(3)

    async def test_a_stale_worker_cannot_commit_after_old_commits_are_removed(self, place: str) -> None:
        made = Dataset.create(place, batch="b")
        _, frozen = made.claim(3, "frozen", 1)
        _, last = made.claim(3, "successor", 1)
        for _ in range(5):
            last = made.commit(last)
        assert frozen.number + 1 not in {int(name[-17:-5]) for name in made.storage.sizes("commits/00003")}
        with pytest.raises(TakenOver):
            made.commit(replace(frozen, run=1))
        assert made.last(3) == last

    async def test_a_dataset_that_has_lost_its_description_is_not_created_again(self, place: str) -> None:
        made = Dataset.create(place, batch="b", shards=7)
        made.claim(3, "one", 1)
        made.storage.remove("dataset.json")
        with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
            Dataset.create(place, batch="b", shards=8)

    async def test_clean_removes_only_obsolete_files(self, place: str, tmp_path: Path) -> None:
        made = Dataset.create(place, batch="b")
        local = tmp_path / "file"
        local.write_text('{"account":"a","resource":"r","id":"1","record":{}}\n')
        _, first = made.claim(3, "first", 1)
        old = made.put(local, name_of("records", first, "1" * 16, ".jsonl"), 1)
        lost = made.put(local, name_of("records", first, "2" * 16, ".jsonl"), 1)
        made.commit(replace(first, files={"records": (old,)}))
        _, second = made.claim(3, "second", 2)
        new = made.put(local, name_of("records", second, "3" * 16, ".jsonl"), 1)
        # Until its holder has committed, what it has written is not garbage, and the old file counts.
        assert dataset.clean(place, older_than=0) == [lost.name]
        assert dataset.files(place) == [made.storage.location(old.name)]
        made.commit(replace(second, files={"records": (new,)}))
        assert dataset.clean(place) == []  # it may still be read
        assert dataset.clean(place, older_than=0) == [old.name]
        assert dataset.files(place) == [made.storage.location(new.name)]
        assert set(made.storage.sizes("data")) == {new.name}

    async def test_a_stored_file_can_be_read(self, place: str, tmp_path: Path) -> None:
        storage = Dataset.create(place, batch="b").storage
        local, back = tmp_path / "file", tmp_path / "back"
        local.write_bytes(b"\0records\xff" * 100_000)
        storage.upload(local, "data/records/one.jsonl")
        storage.download("data/records/one.jsonl", back)
        assert back.read_bytes() == local.read_bytes()
        assert storage.sizes("data") == {"data/records/one.jsonl": local.stat().st_size}
        assert storage.size("data/records/one.jsonl") == local.stat().st_size
        assert 0 <= storage.age("data/records/one.jsonl") < 3600
        storage.remove("data/records/one.jsonl")
        storage.remove("data/records/one.jsonl")
        assert storage.sizes("data") == {}

    async def test_a_missing_file_raises_file_not_found(self, place: str, tmp_path: Path) -> None:
        storage = Dataset.create(place, batch="b").storage
        with pytest.raises(FileNotFoundError):
            storage.read("none")
        with pytest.raises(FileNotFoundError):
            storage.size("none")
        with pytest.raises(FileNotFoundError):
            storage.age("none")
        with pytest.raises(FileNotFoundError):
            storage.download("none", tmp_path / "back")
