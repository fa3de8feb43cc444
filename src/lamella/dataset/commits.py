"""A dataset: the shards that it remembers, and for each a chain of commits, of which the last one counts.

Who takes a shard over makes a commit with the next epoch, before anything else. A commit is a file whose name has its
number; it is written unless there is one of that name. So a worker that was frozen meanwhile, and comes back, cannot
commit: the number that it knows as the next one is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from lamella.checks import check_whole
from lamella.dataset.storage import Storage, storage_at

_FORMAT: Final = 1
_ABOUT: Final = "dataset.json"
_KEPT: Final = 2
"""Commits of a shard that stay: a reader may have just listed the last but one."""
_TRIES: Final = 20

SHARDS: Final = 64
SUFFIXES: Final = (".jsonl", ".parquet")


class DatasetError(Exception):
    """A dataset cannot be opened, read or written: which one, and what is wrong."""


class TakenOver(DatasetError):
    """Another worker has taken the shard over: what this one has not committed does not count."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset."""

    name: str
    """Relative to the dataset."""
    size: int
    """Bytes."""
    sha256: str
    rows: int | None = None
    """How many records are in it. None: it holds none."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The state of a shard. Its files, marks and run change in one step."""

    shard: int
    number: int = 0
    """Counts the commits of the shard. 0: there is none."""
    epoch: int = 0
    """Counts how often a worker has taken the shard."""
    holder: str = ""
    """That worker."""
    run: int = 0
    """The last run that has ended here, whose records the files hold. 0: none has."""
    working: int | None = None
    """The run that is under way. None: none is."""
    files: Mapping[str, tuple[File, ...]] = field(default_factory=dict)
    """The data files, by their table; of the records themselves ``"records"``."""
    journal: File | None = None
    """The last copy of the shard's journal. While a run is under way, it is ahead of the files."""
    version: int = 0
    """What the journal has counted as the version of the records in the files."""
    tables: str = ""
    """What the typed tables were made of."""
    marks: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """Up to when each list is complete, by account and resource (ISO 8601). None: a list without such a moment."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What has become of the last run that has ended."""

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"commits/{self.shard:05d}/{self.number:012d}.json"

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, content: bytes) -> Commit:
        """Return what :meth:`encode` has made."""
        found = json.loads(content)
        found["files"] = {table: tuple(File(**each) for each in files) for table, files in found["files"].items()}
        found["journal"] = None if found["journal"] is None else File(**found["journal"])
        return cls(**found)


class Dataset:
    """A dataset that is there; :meth:`open` and :meth:`create` return one."""

    def __init__(self, storage: Storage, place: str, about: Mapping[str, Any]) -> None:
        self.storage = storage
        self.place = place
        self.id: str = about["id"]
        self.shards: int = about["shards"]
        self.batch: str = about["batch"]
        self.suffix: str = about["suffix"]

    def __repr__(self) -> str:
        return f"<Dataset {self.place!r}>"

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Dataset:
        """Return the dataset at a path or URL.

        Raises:
            DatasetError: There is none, or one of another format.
        """
        storage, name = storage_at(place), os.fspath(place)
        try:
            content = storage.read(_ABOUT)
        except FileNotFoundError:
            raise DatasetError(f"{name}: is not a dataset: there is no {_ABOUT}") from None
        try:
            about = json.loads(content)
            found = about["format"]
        except (ValueError, TypeError, KeyError):
            raise DatasetError(f"{name}: {_ABOUT} is damaged") from None
        if found != _FORMAT:
            raise DatasetError(f"{name}: is of format {found!r}, and this lamella's are of format {_FORMAT}")
        return cls(storage, name, about)

    @classmethod
    def create(
        cls, place: str | os.PathLike[str], *, batch: str, shards: int | None = None, suffix: str | None = None
    ) -> Dataset:
        """Return the dataset at a path or URL; make one if there is none.

        Args:
            place: The folder, which is made, or an ``s3://`` URL.
            batch: The name of the API. A dataset is of one.
            shards: How many there are. They stay as they are made. None means 64, or as many as there are.
            suffix: ``.jsonl`` or ``.parquet``. None means ``.jsonl``, or what is there.

        Raises:
            DatasetError: There is one of another API, format, number of shards or suffix.
            ValueError: An argument is out of its range.
        """
        if shards is not None:
            check_whole("shards", shards, 1, 99_999)
        if suffix is not None and suffix not in SUFFIXES:
            raise ValueError(f"the files of a dataset must end in {' or '.join(SUFFIXES)}, not {suffix!r}")
        about = {
            "format": _FORMAT,
            "id": uuid4().hex,
            "shards": shards or SHARDS,
            "batch": batch,
            "suffix": suffix or SUFFIXES[0],
        }
        storage_at(place).put_new(_ABOUT, json.dumps(about, indent=2).encode())
        found = cls.open(place)
        given = {"batch": batch, "shards": shards, "suffix": suffix}
        for name, value in given.items():
            if value is not None and getattr(found, name) != value:
                raise DatasetError(
                    f"{found.place}: is a dataset with {name} {getattr(found, name)!r}, not {value!r};"
                    " that stays as it was made: choose another place"
                )
        return found

    def shard_of(self, account: str) -> int:
        """Return the shard of an account: the same on each machine, and forever."""
        digest = hashlib.blake2b(account.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.shards

    def last(self, shard: int) -> Commit:
        """Return the last commit of a shard; where there is none, one with the number 0."""
        for _ in range(_TRIES):
            number = self.last_number(shard)
            try:
                return self._read(shard, number) if number else Commit(shard)
            except FileNotFoundError:
                continue  # two others came meanwhile
        raise DatasetError(f"{self.place}: the commits of shard {shard} come faster than they can be read")

    def last_number(self, shard: int) -> int:
        """Return the number of the last commit of a shard. 0: there is none."""
        return max(self._numbers(shard), default=0)

    def all_last(self) -> list[Commit]:
        """Return the last commit of each shard that has one."""
        shards = {int(name.split("/")[1]) for name in self.storage.sizes("commits") if name.endswith(".json")}
        return [self.last(shard) for shard in sorted(shards)]

    def claim(self, shard: int, holder: str, run: int) -> tuple[Commit, Commit]:
        """Take a shard over for *run*; return the last commit before, and the one that this has made.

        Raises:
            TakenOver: Another worker has claimed it at the same time.
        """
        for _ in range(_TRIES):
            before = self.last(shard)
            after = replace(before, number=before.number + 1, epoch=before.epoch + 1, holder=holder, working=run)
            if self.storage.put_new(after.name, after.encode()):
                self._check_last(after)
                return before, after
        raise DatasetError(f"{self.place}: shard {shard} is claimed by others again and again")

    def commit(self, commit: Commit) -> Commit:
        """Write a commit, made of the last one that its worker knows, with the next number; return it.

        Raises:
            TakenOver: There is another one after that.
        """
        after = replace(commit, number=commit.number + 1)
        if not self.storage.put_new(after.name, after.encode()):
            raise self._taken_over(after)
        self._check_last(after)
        return after

    def check_holder(self, commit: Commit) -> None:
        """Raise :class:`TakenOver` if there is a commit after this one."""
        if self.last_number(commit.shard) > commit.number:
            raise self._taken_over(commit)

    def put(self, path: Path, name: str, rows: int | None = None) -> File:
        """Copy a local file to the dataset, and return what a commit says about it."""
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                size += len(chunk)
        self.storage.upload(path, name)
        return File(name, size, digest.hexdigest(), rows)

    def _check_last(self, commit: Commit) -> None:
        """Check that the commit is the last one, and remove those that are no longer needed.

        The number may have been free only because the commits from it on had been removed: then there is a higher one.
        """
        numbers = self._numbers(commit.shard)
        if max(numbers, default=0) > commit.number:
            raise self._taken_over(commit)
        for number in numbers:
            if number <= commit.number - _KEPT:
                self.storage.remove(replace(commit, number=number).name)

    def _numbers(self, shard: int) -> list[int]:
        found = self.storage.sizes(f"commits/{shard:05d}")
        return [int(name[-17:-5]) for name in found if name.endswith(".json")]

    def _read(self, shard: int, number: int) -> Commit:
        name = Commit(shard, number).name
        try:
            return Commit.decode(self.storage.read(name))
        except (ValueError, TypeError, KeyError) as exc:
            raise DatasetError(f"{self.place}: {name} is damaged") from exc

    def _taken_over(self, commit: Commit) -> TakenOver:
        return TakenOver(f"{self.place}: another worker has taken over shard {commit.shard} (epoch {commit.epoch})")
