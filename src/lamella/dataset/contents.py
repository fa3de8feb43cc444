"""List the data files of a dataset, verify them and remove obsolete ones."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from lamella.checks import check_seconds
from lamella.dataset.commits import FILE_NAME, Commit, Dataset, DatasetError, File
from lamella.dataset.storage import is_temporary
from lamella.sync.decode import text_of
from lamella.sync.stored import has_table

RECORDS: Final = "records"
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file of a dataset."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def name_of(table: str, commit: Commit, token: str, suffix: str) -> str:
    """Return the name of a data file, or of a journal if *table* is ``""``. *token* makes the name unique."""
    folder = f"data/{table}" if table else "journals"
    return f"{folder}/{commit.shard:05d}-e{commit.epoch:08d}-{token}{suffix}"


def epoch_of(name: str) -> int:
    """Return the epoch of the worker that has written a file with a name of :func:`name_of`."""
    found = FILE_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not the name of a data file or a journal")
    return int(found[2])


def files(place: str | os.PathLike[str], table: str = RECORDS) -> list[str]:
    """Return the current data files as paths or URLs, for pyarrow, DuckDB and pandas.

    Other files in the folder were never committed or are obsolete. A replaced file is kept for a day.

    Args:
        place: The folder or the URL of the dataset.
        table: ``"records"``, or the name of a typed table.

    Raises:
        DatasetError: There is no dataset, or commits are missing.
    """
    dataset = Dataset.open(place)
    dataset.check_commits()
    return [
        dataset.storage.location(each.name) for commit in dataset.all_last() for each in commit.files.get(table, ())
    ]


def shards(place: str | os.PathLike[str]) -> list[Commit]:
    """Return the last commit of each shard that has one.

    Raises:
        DatasetError: There is no dataset, or commits are missing.
    """
    dataset = Dataset.open(place)
    dataset.check_commits()
    return list(dataset.all_last())


def verify(place: str | os.PathLike[str]) -> list[Fault]:
    """Read all current files and return the faults. The list is empty if the dataset is valid.

    Each file must exist and be unchanged since its commit. The data files must contain each record of the journal once,
    in the shard of its account. The marks of a commit must be equal to those of its journal.

    Raises:
        DatasetError: There is no dataset, or a commit is missing or damaged.
    """
    dataset = Dataset.open(place)
    dataset.check_commits()
    return [fault for commit in dataset.all_last() for fault in _faults(dataset, commit)]


def clean(place: str | os.PathLike[str], *, older_than: float = DAY) -> list[str]:
    """Remove the obsolete files and return their names.

    These are replaced files, and files of workers that have lost their shard. A running worker loses nothing: the files
    that it has not committed yet have the current epoch of its shard. Files of a shard without a commit are kept.

    Args:
        place: The folder or the URL of the dataset.
        older_than: The minimum age of a removed file in seconds. A reader may still use newer files.

    Raises:
        DatasetError: There is no dataset.
    """
    check_seconds("older_than", older_than, zero=True)
    dataset = Dataset.open(place)
    last = {commit.shard: (commit.epoch, _referenced(commit)) for commit in dataset.all_last()}
    storage = dataset.storage
    names = [name for folder in ("data", "journals", "commits") for name in storage.sizes(folder)]
    removed = []
    for name in names:
        if _is_garbage(name, last):
            try:
                if storage.age(name) >= older_than:
                    storage.remove(name)
                    removed.append(name)
            except FileNotFoundError:
                continue  # another process has removed it
    return removed


def _is_garbage(name: str, last: Mapping[int, tuple[int, set[str]]]) -> bool:
    found = FILE_NAME.fullmatch(name)
    if found is None:
        return is_temporary(name)
    epoch, referenced = last.get(int(found[1]), (0, set[str]()))
    return int(found[2]) < epoch and name not in referenced


def _referenced(commit: Commit) -> set[str]:
    names = {each.name for of_table in commit.files.values() for each in of_table}
    return names if commit.journal is None else names | {commit.journal.name}


def _faults(dataset: Dataset, commit: Commit) -> Iterator[Fault]:
    with TemporaryDirectory(prefix="lamella-") as folder:
        keys: set[tuple[str, str, str]] = set()
        for table, of_table in commit.files.items():
            for each in of_table:
                path = Path(folder, "data")
                fault = _fetch(dataset, each, path)
                if fault is None and table == RECORDS:
                    fault = _of_records(dataset, commit, each, path, keys)
                if fault is not None:
                    yield fault
        if commit.journal is not None:
            path = Path(folder, "journal")
            fault = _fetch(dataset, commit.journal, path) or _of_journal(commit, commit.journal, path, keys)
            if fault is not None:
                yield fault


def _fetch(dataset: Dataset, file: File, path: Path) -> Fault | None:
    what = dataset.fetch(file, path)
    return None if what is None else Fault(file.name, what)


def _of_records(
    dataset: Dataset, commit: Commit, file: File, path: Path, keys: set[tuple[str, str, str]]
) -> Fault | None:
    rows = 0
    for key in _keys(path, dataset.suffix):
        rows += 1
        if key in keys:
            return Fault(file.name, f"has a record twice: {key!r}")
        if dataset.shard_of(key[0]) != commit.shard:
            return Fault(file.name, f"has a record of an account of another shard: {key!r}")
        keys.add(key)
    return None if rows == file.rows else Fault(file.name, f"has {rows} records, and {file.rows} were committed")


def _keys(path: Path, suffix: str) -> Iterator[tuple[str, str, str]]:
    if suffix == ".parquet":
        try:
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError as exc:
            raise DatasetError("pyarrow is missing: pip install 'lamella[parquet]'") from exc
        with ParquetFile(path) as opened:
            for batch in opened.iter_batches(columns=["account", "resource", "id"]):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            found = json.loads(line)
            yield found["account"], found["resource"], found["id"]


def _of_journal(commit: Commit, file: File, path: Path, keys: set[tuple[str, str, str]]) -> Fault | None:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            return Fault(file.name, "is damaged")
        if commit.working is not None:
            return None  # it is ahead of the files
        if marks_of(db) != commit.marks:
            return Fault(file.name, "has other marks than its commit")
        stored = (
            set(db.execute("SELECT account, resource, id FROM sync_records"))
            if has_table(db, "sync_records")
            else set()
        )
        if stored != keys:
            return Fault(file.name, f"has {len(stored)} records, and the data files {len(keys)}, or other ones")
    return None


def marks_of(db: sqlite3.Connection) -> dict[str, dict[str, str | None]]:
    """Return up to when each list in a journal is complete, by account and resource."""
    found: dict[str, dict[str, str | None]] = {}
    if has_table(db, "sync_parts"):
        rows: list[tuple[str, str, Any]] = db.execute(
            "SELECT account, resource, mark FROM sync_parts ORDER BY account, resource"
        ).fetchall()
        for account, resource, mark in rows:
            found.setdefault(account, {})[resource] = None if mark is None else text_of(mark)
    return found
