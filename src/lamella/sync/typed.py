"""The tables of a schema in an output: in the SQLite file itself, or as Parquet files beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from decimal import Decimal
from glob import escape
from pathlib import Path
from typing import Any, Final

from lamella import whole_file
from lamella.sync.tables import OWN, Misfit, Row, Table, Type, rows_of

_GROUP_ROWS: Final = 20_000
"""Rows in a row group of Parquet, which is kept in memory."""

_KEY: Final = b"lamella"
"""In the metadata of the file of a table: the name of the output beside which lamella wrote it."""
_SQLITE: Final = {"integer": "INTEGER", "boolean": "INTEGER"}
"""All other types are TEXT: SQLite would convert a decimal to a float."""

Write = Callable[[Sequence[tuple[str | None, ...]]], None]
"""Receives rows of ``records``: account, resource, id, record, and possibly deleted."""
OnMisfit = Callable[[Misfit], object]
Empty = dict[tuple[str, str], dict[int, str]]
"""The columns without a value so far, of resources with records: by resource and child, the name by place."""


def names_of_empty(db: sqlite3.Connection, tables: Mapping[str, Table], empty: Empty) -> tuple[str, ...]:
    """Return the names of the columns without a value, and of the tables whose lists no run has read."""
    read = {resource for (resource,) in db.execute("SELECT DISTINCT resource FROM sync_parts")}
    columns = (
        ".".join(filter(None, (resource, child, name)))
        for (resource, child), names in empty.items()
        for name in names.values()
    )
    return (*columns, *(name for name in tables if name not in read))


def names_of(tables: Mapping[str, Table]) -> Iterator[tuple[str, str, str, Mapping[str, Type]]]:
    """Yield the name of each table, its resource, the name of its child list (or empty text), and its columns."""
    for resource, table in tables.items():
        for child, types in table.types.items():
            yield f"{resource}_{child}" if child else resource, resource, child, types


def files_beside(path: Path, tables: Mapping[str, Table]) -> dict[str, Path]:
    """Return the Parquet file of each table: ``out.invoices.parquet`` beside ``out.parquet``."""
    return {name: path.with_name(f"{path.stem}.{name}{path.suffix}") for name, *_ in names_of(tables)}


def stale(path: str | os.PathLike[str], tables: Mapping[str, Table]) -> tuple[str, ...]:
    """Return the names of files beside a Parquet output whose tables only an earlier schema states."""
    output = Path(path)
    if output.suffix.lower() != ".parquet":
        return ()
    beside = set(output.parent.glob(f"{escape(output.stem)}.*{output.suffix}")) - {
        output,
        *files_beside(output, tables).values(),
    }
    return tuple(sorted(each.name for each in beside if _is_of(output, each)))


def _is_of(output: Path, path: Path) -> bool:
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        with path.open("rb") as file:  # pyarrow rejects a name that is not UTF-8
            return bool(read_schema(file).metadata.get(_KEY) == os.fsencode(output.name))
    except (OSError, pa.ArrowException, AttributeError):  # it is not Parquet, or has no metadata
        return False


def sqlite_tables(db: sqlite3.Connection, tables: Mapping[str, Table], on_misfit: OnMisfit, empty: Empty) -> Write:
    """Create the tables in *db* and return a function that fills them."""
    inserts = {}
    for name, resource, child, types in names_of(tables):
        own = ["account TEXT NOT NULL", "id TEXT NOT NULL", *(["position INTEGER NOT NULL"] if child else [])]
        columns = [*own, *(f'"{column}" {_SQLITE.get(kind.kind, "TEXT")}' for column, kind in types.items())]
        key = ", ".join(OWN[: 3 if child else 2])
        db.execute(f'CREATE TABLE "{name}" ({", ".join(columns)}, PRIMARY KEY ({key}))')
        places = ", ".join("?" * len(columns))
        inserts[resource, child] = f'INSERT INTO "{name}" VALUES ({places})'  # noqa: S608 - a plain word

    def insert(found: Mapping[tuple[str, str], list[tuple[Any, ...]]]) -> None:
        for key, rows in found.items():
            db.executemany(inserts[key], [tuple(map(_plain, row)) for row in rows])

    return _writer(tables, insert, on_misfit, empty)


@contextmanager
def parquet_tables(path: Path, tables: Mapping[str, Table], on_misfit: OnMisfit, empty: Empty) -> Iterator[Write]:
    """Yield a function that fills a file for each table. At the end the files replace the existing ones."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {
        "text": pa.string(),
        "integer": pa.int64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    files = files_beside(path, tables)
    held: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    writers: dict[tuple[str, str], Any] = {}
    with ExitStack() as stack:
        for name, resource, child, types in names_of(tables):
            own = [(column, pa.int64() if column == "position" else pa.string()) for column in OWN[: 3 if child else 2]]
            columns = [
                (column, pa.decimal128(kind.digits, kind.scale) if kind.kind == "decimal" else kinds[kind.kind])
                for column, kind in types.items()
            ]
            temporary = stack.enter_context(whole_file.replacing(files[name], mode=whole_file.PRIVATE))
            file = stack.enter_context(temporary.open("wb"))
            schema = pa.schema([*own, *columns], {_KEY: os.fsencode(path.name)})
            writers[resource, child] = stack.enter_context(ParquetWriter(file, schema, compression="zstd"))
            held[resource, child] = []

        def write_group(key: tuple[str, str]) -> None:
            writer, rows = writers[key], held[key]
            values = zip(*rows, strict=True) if rows else ([] for _ in writer.schema)
            arrays = [pa.array(column, kind.type) for column, kind in zip(values, writer.schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema))
            rows.clear()

        def take(found: Mapping[tuple[str, str], list[tuple[Any, ...]]]) -> None:
            for key, rows in found.items():
                held[key] += rows
                if len(held[key]) >= _GROUP_ROWS:
                    write_group(key)

        yield _writer(tables, take, on_misfit, empty)
        for key in held:
            write_group(key)  # even an empty one: some readers need a group


def _writer(
    tables: Mapping[str, Table],
    take: Callable[[Mapping[tuple[str, str], list[tuple[Any, ...]]]], None],
    on_misfit: OnMisfit,
    empty: Empty,
) -> Write:
    """Return a function that passes the rows of each table to *take*, except those of deleted records."""
    begun: set[str] = set()

    def begin(resource: str, table: Table) -> None:
        begun.add(resource)
        for child, types in table.types.items():
            empty[resource, child] = dict(enumerate(types, 3 if child else 2))

    def write(rows: Sequence[tuple[str | None, ...]]) -> None:
        found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
        for account, resource, name, record, *mark in rows:
            table = tables.get(resource or "")
            if table is None or (mark and mark[0]):
                continue
            if resource not in begun:
                begin(str(resource), table)
            for row in rows_of(table, str(resource), str(account), str(name), str(record)):
                if isinstance(row, Row):
                    found.setdefault((str(resource), row.child), []).append(row.values)
                    without = empty[str(resource), row.child]
                    for place in [place for place in without if row.values[place] is not None]:
                        del without[place]
                else:
                    on_misfit(row)
        take(found)

    return write


def _plain(value: Any) -> Any:
    """Convert a value for SQLite."""
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, date) else value  # a datetime is also a date
