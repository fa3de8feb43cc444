"""A dataset and the commits of its shards. The last commit of a shard is its state.

A worker that takes over a shard first makes a commit with the next epoch. The file name of a commit contains its
number, and a commit never replaces an existing file. A worker that was frozen in the meantime therefore cannot commit:
the next number that it knows is already in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from lamella.checks import check_whole
from lamella.dataset.storage import Storage, storage_at

_FORMAT: Final = 1
_ABOUT: Final = "dataset.json"
_NAME: Final = re.compile(r"commits/([0-9]{5})/([0-9]{12})\.json")
FILE_NAME: Final = re.compile(r"(?:data/[^/]+|journals)/([0-9]{5})-e([0-9]{8})-[0-9a-f]{16}\.[a-z]+")
_KEPT: Final = 2
"""How many commits of a shard are kept: a reader may still read the last but one."""
_TRIES: Final = 20

RUNS: Final = "runs"
SHARDS: Final = 64
_MOST_SHARDS: Final = 99_999
SUFFIXES: Final = (".jsonl", ".parquet")


class DatasetError(Exception):
    """A dataset cannot be opened, read or written. The message names the dataset and the cause."""


class TakenOver(DatasetError):
    """Another worker has taken over the shard. The uncommitted work of this worker is discarded."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset."""

    name: str
    """Relative to the dataset."""
    size: int
    """Bytes."""
    sha256: str
    rows: int | None = None
    """The number of records. None: the file does not contain records."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The state of a shard. Its files, marks and run change in one step."""

    shard: int
    number: int = 0
    """The number of the commit in its shard, from 1. 0: the shard has no commit."""
    epoch: int = 0
    """How many times a worker has taken the shard."""
    holder: str = ""
    """The worker that has the shard."""
    run: int = 0
    """The last run that has ended. The files hold its records. 0: no run has ended."""
    working: int | None = None
    """The current run. None: no run is in progress."""
    files: Mapping[str, tuple[File, ...]] = field(default_factory=dict)
    """The data files by table. The table of the records themselves is ``"records"``."""
    journal: File | None = None
    """The last copy of the shard's journal. During a run it is newer than the files."""
    version: int = 0
    """The version, in the journal, of the records in the files."""
    tables: str = ""
    """The definition of the typed tables."""
    marks: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    """The ISO 8601 time up to which each list is complete, by account and resource. None: it has no such time."""
    departed: tuple[str, ...] = ()
    """The accounts whose records are marked as deleted because the accounts have departed."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """The result of the last run that has ended."""

    @property
    def name(self) -> str:
        """The name of the file of this commit."""
        return f"commits/{self.shard:05d}/{self.number:012d}.json"

    def encode(self) -> bytes:
        """Return this commit as JSON."""
        found = asdict(self)
        if not self.departed:  # an earlier version of lamella does not know it
            del found["departed"]
        return json.dumps(found, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, content: bytes) -> Commit:
        """Return the commit that :meth:`encode` has written."""
        found = json.loads(content)
        found["files"] = {table: tuple(File(**each) for each in files) for table, files in found["files"].items()}
        found["journal"] = None if found["journal"] is None else File(**found["journal"])
        found["departed"] = tuple(found.get("departed", ()))
        return cls(**found)


class Dataset:
    """An existing dataset, as returned by :meth:`open` and :meth:`create`."""

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
            DatasetError: There is no dataset, or it has another format.
        """
        storage, name = storage_at(place), os.fspath(place)
        try:
            content = storage.read(_ABOUT)
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(f"{name}: is not a dataset: there is no {_ABOUT}") from None
        try:
            about = json.loads(content)
            found = about["format"]
            if found == _FORMAT:
                check_whole("shards", about["shards"], 1, _MOST_SHARDS)
                return cls(storage, name, about)
        except (ValueError, TypeError, KeyError):
            raise DatasetError(f"{name}: {_ABOUT} is damaged") from None
        raise DatasetError(f"{name}: is of format {found!r}, and this lamella's are of format {_FORMAT}")

    @classmethod
    def create(
        cls, place: str | os.PathLike[str], *, batch: str, shards: int | None = None, suffix: str | None = None
    ) -> Dataset:
        """Return the dataset at a path or URL. Create it if it does not exist.

        Args:
            place: The folder, which is created if needed, or an ``s3://`` URL.
            batch: The name of the API. A dataset holds the records of one API.
            shards: The number of shards, which cannot change. None means 64, or the number of the existing dataset.
            suffix: ``.jsonl`` or ``.parquet``. None means ``.jsonl``, or the suffix of the existing dataset.

        Raises:
            DatasetError: The existing dataset has another API, format, number of shards or suffix, or is damaged.
            ValueError: An argument is out of its range.
        """
        if shards is not None:
            check_whole("shards", shards, 1, _MOST_SHARDS)
        if suffix is not None and suffix not in SUFFIXES:
            raise ValueError(f"the files of a dataset must end in {' or '.join(SUFFIXES)}, not {suffix!r}")
        about = {
            "format": _FORMAT,
            "id": uuid4().hex,
            "shards": shards or SHARDS,
            "batch": batch,
            "suffix": suffix or SUFFIXES[0],
        }
        storage = storage_at(place)
        # Look again last: another process may have created it and committed a shard in the meantime.
        if not _exists(storage, _ABOUT) and storage.sizes("commits") and not _exists(storage, _ABOUT):
            raise DatasetError(f"{os.fspath(place)}: {_ABOUT} is missing, but commits exist; restore it from a backup")
        storage.put_new(_ABOUT, json.dumps(about, indent=2).encode())
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
        """Return the shard of an account. It is the same on each machine and never changes."""
        digest = hashlib.blake2b(account.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.shards

    def last(self, shard: int) -> Commit:
        """Return the last commit of a shard, or a commit with the number 0 if there is none."""
        for _ in range(_TRIES):
            number = self.last_number(shard)
            try:
                return self._read(shard, number) if number else Commit(shard)
            except FileNotFoundError:
                continue  # two newer commits were made in the meantime
        raise DatasetError(f"{self.place}: the commits of shard {shard} come faster than they can be read")

    def last_number(self, shard: int) -> int:
        """Return the number of the last commit of a shard, or 0 if there is none."""
        return max(self._numbers(shard), default=0)

    def check_commits(self) -> None:
        """Check that each shard with files has a commit: a worker commits its claim before it writes a file.

        Raises:
            DatasetError: The commits of a shard, or all of them, are missing.
        """
        # List the files first: a worker may claim its shard in the meantime.
        names = [name for folder in ("data", "journals") for name in self.storage.sizes(folder)]
        found = [(int(match[1]), match[0]) for match in map(FILE_NAME.fullmatch, names) if match is not None]
        ends = [name for name in self.storage.sizes(RUNS) if name.endswith(".ended.json")]
        shards = {shard for shard, _ in self._commits("commits")}
        lost = min((each for each in found if each[0] not in shards), default=None)
        if lost is not None:
            missing, why = f"commits/{lost[0]:05d} has no commit", f"{lost[1]} belongs to one"
        elif not shards and any(json.loads(self.storage.read(name)).get("parts") for name in ends):
            missing, why = "there is no commit", "a run has committed records"
        else:
            return
        raise DatasetError(f"{self.place}: {missing}, but {why}; restore the dataset from a backup")

    def all_last(self) -> Iterator[Commit]:
        """Yield the last commit of each shard that has one. A commit has the marks of all accounts of its shard."""
        shards = {shard for shard, _ in self._commits("commits")}
        return (self.last(shard) for shard in sorted(shards))

    def claim(self, shard: int, holder: str, run: int) -> tuple[Commit, Commit]:
        """Take over a shard for *run*. Return the previous commit and the new one.

        Raises:
            TakenOver: Another worker has claimed it at the same time.
        """
        for _ in range(_TRIES):
            before = self.last(shard)
            after = replace(before, number=before.number + 1, epoch=before.epoch + 1, holder=holder, working=run)
            if self.storage.put_new(after.name, after.encode()):
                self.check_holder(after)
                return before, after
        raise DatasetError(f"{self.place}: shard {shard} is claimed by others again and again")

    def commit(self, commit: Commit) -> Commit:
        """Write *commit* with the next number and return it.

        Raises:
            TakenOver: Another worker has already written a commit with that number.
        """
        after = replace(commit, number=commit.number + 1)
        if not self.storage.put_new(after.name, after.encode()):
            raise self._taken_over(after)
        self._check_last(after)
        return after

    def check_holder(self, commit: Commit) -> None:
        """Raise :class:`TakenOver` if a later commit exists."""
        if self.last_number(commit.shard) > commit.number:
            raise self._taken_over(commit)

    def put(self, path: Path, name: str, rows: int | None = None) -> File:
        """Copy a local file to the dataset, and return what a commit says about it."""
        self.storage.upload(path, name)
        return File(name, path.stat().st_size, _digest(path), rows)

    def fetch(self, file: File, path: Path) -> str | None:
        """Copy a file of a commit to the local file *path*. Return what is wrong with it, or None."""
        try:
            self.storage.download(file.name, path)
        except FileNotFoundError:
            return "is missing"
        return None if _digest(path) == file.sha256 else "is not as it was committed"

    def has(self, files: Mapping[str, tuple[File, ...]]) -> bool:
        """Return whether all files of a commit exist and have their size."""
        try:
            return all(self.storage.size(each.name) == each.size for of_table in files.values() for each in of_table)
        except FileNotFoundError:
            return False

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
        return [number for _, number in self._commits(f"commits/{shard:05d}")]

    def _commits(self, folder: str) -> list[tuple[int, int]]:
        """Return shard and number of each commit below *folder*, where other programs may leave files of their own."""
        found = map(_NAME.fullmatch, self.storage.sizes(folder))
        return [(int(name[1]), int(name[2])) for name in found if name is not None]

    def _read(self, shard: int, number: int) -> Commit:
        name = Commit(shard, number).name
        try:
            commit = Commit.decode(self.storage.read(name))
            if commit.name == name:
                return commit
            damage = f"damaged: it is a copy of {commit.name}"
        except (ValueError, TypeError, KeyError, AttributeError):
            damage = "damaged"
        raise DatasetError(f"{self.place}: {name} is {damage}")

    def _taken_over(self, commit: Commit) -> TakenOver:
        return TakenOver(f"{self.place}: another worker has taken over shard {commit.shard} (epoch {commit.epoch})")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exists(storage: Storage, name: str) -> bool:
    try:
        storage.size(name)
    except FileNotFoundError:
        return False
    return True
