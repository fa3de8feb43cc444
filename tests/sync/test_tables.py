"""Typed columns and child tables of an output: exact values, and what does not fit is reported and lost nowhere."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.servers import Serve

from lamella import Source, stack, sync
from lamella.batch import Journal
from lamella.sync import SchemaMismatch, Table, export
from lamella.sync.tables import Type

TABLE = Table(
    {
        "number": "text",
        "total": "decimal(18, 2)",
        "paid": "boolean",
        "due": "date",
        "at": "timestamp",
        "to.city": "text",
    },
    {"lines": {"text": "text", "amount": "decimal(20, 6)", "count": "integer"}},
)
RECORDS = [
    (
        '{"id":"1","number":"A-1","total":99999999999999.99,"paid":true,"due":"2026-02-28","at":"2026-01-01T01:00:00+01:00",'
        '"to":{"city":"Köln"},"lines":[{"text":"x","amount":0.1,"count":2},{"text":"y","amount":"1e2","count":-1}]}'
    ),
    '{"id":"2","number":"A-2","total":100.10,"paid":false,"due":null,"at":"2026-01-01","lines":[]}',
    '{"id":"3"}',
]


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(tmp_path / "journal", batch="b") as journal:
        yield journal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


class Nights:
    """A list of records as text, and runs of a sync of it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.records = list(RECORDS)
        self.url = ""

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        records = self.records if request.query["page"] == "1" else []
        body = f'{{"data":[{",".join(records)}],"total":{len(self.records)}}}'
        return web.Response(text=body, content_type="application/json")

    async def run(self, output: Path, tables: Mapping[str, Table], **options: Any) -> sync.Report:
        async with aiohttp.ClientSession(self.url, middlewares=stack()) as session:
            sources = {"invoices": Source("invoices", total="total")}
            return await sync.run(
                session, sources, {"Ada": 1}, journal=self.journal, output=output, tables=tables, **options
            )


@pytest.fixture
async def nights(journal: Journal, serve: Serve) -> Nights:
    nights = Nights(journal)
    nights.url = await serve(nights)
    return nights


def sqlite_rows(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


async def test_sqlite_output_has_typed_tables(nights: Nights, folder: Path) -> None:
    path = folder / "out.db"
    report = await nights.run(path, {"invoices": TABLE})
    assert (report.done, report.misfits.count) == (True, 0)
    assert sqlite_rows(path, "SELECT * FROM invoices") == [
        ("Ada", "1", "A-1", "99999999999999.99", 1, "2026-02-28", "2026-01-01T00:00:00+00:00", "Köln"),
        ("Ada", "2", "A-2", "100.10", 0, None, "2026-01-01T00:00:00+00:00", None),
        ("Ada", "3", None, None, None, None, None, None),
    ]
    assert sqlite_rows(path, "SELECT * FROM invoices_lines") == [
        ("Ada", "1", 1, "x", "0.100000", 2),
        ("Ada", "1", 2, "y", "100.000000", -1),
    ]
    assert sqlite_rows(path, "SELECT record FROM records ORDER BY id") == [(record,) for record in RECORDS]


async def test_parquet_output_has_typed_tables(nights: Nights, folder: Path) -> None:
    await nights.run(folder / "out.parquet", {"invoices": TABLE})
    assert sorted(os.listdir(folder)) == ["out.invoices.parquet", "out.invoices_lines.parquet", "out.parquet"]
    found = pq.read_table(folder / "out.invoices.parquet")
    assert found.schema.field("total").type == pa.decimal128(18, 2)
    assert found.schema.field("at").type == pa.timestamp("us", tz="UTC")
    first, *_, last = found.to_pylist()
    assert first == {
        "account": "Ada", "id": "1", "number": "A-1", "total": Decimal("99999999999999.99"), "paid": True,
        "due": date(2026, 2, 28), "at": datetime(2026, 1, 1, tzinfo=UTC), "to.city": "Köln",
    }  # fmt: skip
    assert list(last.values()) == ["Ada", "3", *[None] * 6]
    lines = pq.read_table(folder / "out.invoices_lines.parquet").to_pylist()
    assert [(row["position"], row["amount"], row["count"]) for row in lines] == [
        (1, Decimal("0.100000"), 2),
        (2, Decimal("100.000000"), -1),
    ]
    assert pq.read_table(folder / "out.parquet").column("record").to_pylist() == RECORDS


@pytest.mark.parametrize("name", ["out.db", "out.parquet"])
async def test_without_records_the_tables_are_empty(journal: Journal, folder: Path, name: str) -> None:
    assert await export(journal, folder / name, {"invoices": TABLE}) == 0
    if name == "out.db":
        assert sqlite_rows(folder / name, "SELECT * FROM invoices_lines") == []
    else:
        assert pq.read_table(folder / "out.invoices_lines.parquet").num_rows == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["out.db", "out.parquet"])
async def test_misfits_are_reported_and_no_record_is_lost(nights: Nights, folder: Path, name: str) -> None:
    nights.records += [
        '{"id":"4","number":7,"total":1.005,"paid":"yes","due":"soon","at":1,"lines":{"text":"x"}}',
        '{"id":"5","total":"1e400","lines":[{"count":1.5},null,{"count":9223372036854775808}]}',
        f'{{"id":"6","number":"\\ud800","total":{"9" * 5000}}}',
    ]
    path = folder / name
    report = await nights.run(path, {"invoices": TABLE})
    assert report.done
    assert report.misfits.count == 11
    assert report.misfits.first[:2] == (
        "invoices.number of Ada 4 is not of type text",
        "invoices.total of Ada 4 is not of type decimal(18, 2)",
    )
    assert "invoices.lines of Ada 4 is not of type list" in report.misfits.first
    assert "invoices.lines[3].count of Ada 5 is not of type integer" in report.misfits.first
    if name == "out.db":
        assert len(sqlite_rows(path, "SELECT * FROM records")) == 6
        assert len(sqlite_rows(path, "SELECT * FROM invoices WHERE total IS NULL")) == 4
        assert len(sqlite_rows(path, "SELECT * FROM invoices_lines")) == 5
    else:
        assert pq.read_table(path).column("record").to_pylist() == nights.records
        assert pq.read_table(folder / "out.invoices.parquet").num_rows == 6
    again = await nights.run(path, {"invoices": TABLE})
    assert again.misfits == report.misfits  # until it fits
    with pytest.raises(SchemaMismatch, match=r"11 values do not fit: invoices\.number of Ada 4 is not of type text; "):
        await export(nights.journal, path, {"invoices": TABLE})
    nights.records[3:] = []
    fitting = await nights.run(path, {"invoices": Table({"number": "text"})}, full_every=0)
    assert fitting.misfits.count == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["out.db", "out.parquet"])
async def test_an_up_to_date_output_is_rewritten_only_for_other_tables(nights: Nights, folder: Path, name: str) -> None:
    path = folder / name
    tables = {"invoices": TABLE}
    stamps = []
    for wanted in (tables, tables, {"invoices": Table({"number": "text"})}, {}):
        await nights.run(path, wanted)
        stamps.append(path.stat().st_ino)
    assert [one == other for one, other in pairwise(stamps)] == [True, False, False]
    if name == "out.parquet":
        await nights.run(path, tables)
        before = path.stat().st_ino
        (folder / "out.invoices.parquet").unlink()
        await nights.run(path, tables)
        assert path.stat().st_ino != before
        assert (folder / "out.invoices.parquet").exists()


async def test_a_column_that_is_always_empty_is_named(nights: Nights, folder: Path) -> None:
    table = Table({"number": "text", "totl": "decimal(18, 2)"}, {"lines": {"amuont": "integer"}, "line": {"x": "text"}})
    for _ in range(2):
        report = await nights.run(folder / "out.db", {"invoices": table, "others": TABLE})
        assert report.misfits.empty == ("invoices.totl", "invoices.lines.amuont", "invoices.line.x", "others")
        assert report.misfits.count == 0
    assert (await nights.run(folder / "out.parquet", {"invoices": TABLE})).misfits.empty == ()


async def test_a_file_of_an_earlier_schema_is_named_until_it_is_removed(nights: Nights, folder: Path) -> None:
    (folder / "out.other.parquet").write_text("of somebody else")
    assert (await nights.run(folder / "out.parquet", {"invoices": TABLE})).misfits.stale == ()
    assert (await nights.run(folder / "out.a.parquet", {"invoices": TABLE})).misfits.stale == ()
    for tables in ({"invoices": Table({"number": "text"})}, {}, {}):
        beside = (() if tables else ("out.invoices.parquet",)) + ("out.invoices_lines.parquet",)
        assert (await nights.run(folder / "out.parquet", tables)).misfits.stale == beside
    (folder / "out.invoices_lines.parquet").unlink()
    assert (await nights.run(folder / "out.parquet", {"invoices": Table({"number": "text"})})).misfits.stale == ()


async def test_a_deleted_record_is_in_no_typed_table(nights: Nights, folder: Path) -> None:
    path = folder / "out.db"
    await nights.run(path, {"invoices": TABLE})
    del nights.records[0]
    await nights.run(path, {"invoices": TABLE}, full_every=0)
    assert sqlite_rows(path, "SELECT id FROM invoices") == [("2",), ("3",)]
    assert sqlite_rows(path, "SELECT * FROM invoices_lines") == []
    assert len(sqlite_rows(path, "SELECT * FROM records")) == 3


async def test_tables_need_a_supporting_format(nights: Nights, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"typed tables need an output in .*\.parquet"):
        await nights.run(folder / "out.jsonl", {"invoices": TABLE})
    with pytest.raises(ValueError, match="tables need an output"):
        await nights.run(None, {"invoices": TABLE})  # type: ignore[arg-type]
    (folder / "out.invoices.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        await nights.run(folder / "out.parquet", {"invoices": TABLE})


@pytest.mark.parametrize(
    ("columns", "children", "why"),
    [
        ({"a": "money"}, {}, "the type of a column must be one of text, integer, .*, got 'money'"),
        ({"a": "decimal(39, 2)"}, {}, "a decimal must have 1 to 38 digits"),
        ({"a": "decimal(2, 3)"}, {}, "a decimal must have 1 to 38 digits"),
        ({"account": "text"}, {}, "a column must have a name of its own, not account, id, position, got 'account'"),
        ({"a": "text", "A": "text"}, {}, "a column must have a name of its own"),
        ({'a"b': "text"}, {}, "a column must have a name of its own"),
        ({}, {"line items": {"a": "text"}}, "a child table must have a plain name"),
        ({}, {"lines": {"a": "int"}}, "the type of a column"),
    ],
)
def test_a_bad_schema_is_rejected(columns: dict[str, str], children: dict[str, dict[str, str]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Table(columns, children)


@pytest.mark.parametrize("name", ["records", "a b", "", "x_y"])
async def test_a_bad_table_name_is_rejected(journal: Journal, folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a table must have a plain name of its own"):
        await export(journal, folder / "out.db", {name: TABLE})


WHOLE = ["1.0", "1E+2", "-0", "-0.0", "9223372036854775807.000", "10e-1"]


@pytest.mark.parametrize("name", ["out.db", "out.parquet"])
async def test_a_whole_number_may_have_a_point_or_an_exponent(nights: Nights, folder: Path, name: str) -> None:
    nights.records = [f'{{"id":"{number}","n":{text}}}' for number, text in enumerate(WHOLE)]
    report = await nights.run(folder / name, {"invoices": Table({"n": "integer"})})
    assert (report.done, report.misfits.first) == (True, ())
    if name == "out.db":
        found = [n for (n,) in sqlite_rows(folder / name, "SELECT n FROM invoices ORDER BY id")]
    else:
        found = pq.read_table(folder / "out.invoices.parquet").column("n").to_pylist()
    assert found == [1, 100, 0, 0, 2**63 - 1, 1]


SHAPES = {
    '"to":"Köln"': "to.city of Ada 1 is not of type text",
    '"to":[{"city":"Köln"}]': "to.city of Ada 1 is not of type text",
    '"to":{"city":"Köln"},"to":{"city":"Bonn"}': "to.city of Ada 1 is not of type text",
    '"total":1,"total":2': "total of Ada 1 is not of type decimal(18, 2)",
    '"lines":[],"lines":[{"count":1}]': "lines of Ada 1 is not of type list",
    '"lines":[{"count":1,"count":1}]': "lines[1].count of Ada 1 is not of type integer",
    '"lines":[7]': "lines[1].text of Ada 1 is not of type text",
    '"lines":[["x"]]': "lines[1].text of Ada 1 is not of type text",
    '"at":"2026-01-01T00:00:00.1234567Z"': "at of Ada 1 is not of type timestamp",
    '"at":"2026-01-01T00:00:00,123456001"': "at of Ada 1 is not of type timestamp",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("members", SHAPES)
async def test_a_value_of_another_shape_is_a_misfit(nights: Nights, folder: Path, members: str) -> None:
    """Not an unreported null, and not one of two values."""
    nights.records = [f'{{"id":"1",{members}}}']
    report = await nights.run(folder / "out.db", {"invoices": TABLE})
    assert report.misfits.first[:1] == (f"invoices.{SHAPES[members]}",)
    assert sqlite_rows(folder / "out.db", 'SELECT total, "at", "to.city" FROM invoices') == [(None, None, None)]
    assert sqlite_rows(folder / "out.db", "SELECT record FROM records") == [(nights.records[0],)]


async def test_zeros_after_the_microseconds_change_nothing(nights: Nights, folder: Path) -> None:
    nights.records = ['{"id":"1","at":"2026-01-01T00:00:00.1234560Z"}']
    report = await nights.run(folder / "out.db", {"invoices": Table({"at": "timestamp"})})
    assert report.misfits.count == 0
    assert sqlite_rows(folder / "out.db", 'SELECT "at" FROM invoices') == [("2026-01-01T00:00:00.123456+00:00",)]


@pytest.mark.parametrize("text", ["1.5", "1e19", "9223372036854775808", "-9223372036854775809.0", "1e400", "1e-400"])
async def test_another_number_is_not_an_integer(nights: Nights, folder: Path, text: str) -> None:
    nights.records = [f'{{"id":"1","n":{text}}}']
    report = await nights.run(folder / "out.db", {"invoices": Table({"n": "integer"})})
    assert report.misfits.count == 1
    assert sqlite_rows(folder / "out.db", "SELECT n FROM invoices") == [(None,)]


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(1, 38), st.integers(0, 38))
def test_a_decimal_is_exact_or_does_not_fit(number: Decimal, digits: int, scale: int) -> None:
    kind = Type("decimal", digits, min(scale, digits))
    try:
        found = kind.value(number)
    except ValueError:
        fits = number.as_tuple().exponent
        assert isinstance(fits, int)
        whole = abs(number) < Decimal(10) ** (digits - kind.scale)
        small, one = abs(number) < Decimal(10) ** 15, Decimal(1).scaleb(-kind.scale)
        rest = small and number == number.quantize(one, context=Context(prec=100))
        assert not (whole and rest and kind.scale < 10)
        return
    assert found == number
    assert found.as_tuple().exponent == -kind.scale
    assert len(found.as_tuple().digits) <= digits
