"""``lamella sync`` stores each record as it was sent, whatever its page is like, and names those that it cannot."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from tests.cli.conftest import lamella_to_a_full_disk
from tests.cli.serving import API_KEY, KEYS, answering, write_accounts
from typer.testing import CliRunner, Result

from lamella import maesn
from lamella.cli.app import app


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, in_own_folder: None, short_waits: None) -> None:
    write_accounts(tmp_path, "Ada")


def sync(url: str, *more: str) -> Result:
    arguments = ["sync", "--accounts", "accounts.csv", "--resource", "bills", "--base-url", url, *more]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    assert not [key for key in (API_KEY, *KEYS.values()) if key in shown.output]
    return shown


def words(shown: Result) -> str:
    return " ".join(shown.stdout.split())


def body(*records: str, total: int | None = None, more: str = "") -> str:
    count = len(records) if total is None else total
    return (
        f'{{"data": [{", ".join(records)}], "meta": {{{more}"pagination": {{"total": {count}, "totalPages": 1}}}}, '
        '"errors": null}'
    )


async def answer(request: web.Request, text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


NUMBERS = ("99999999999999.99", "12345678901234567.89", "100.10", "1e400", "-0", "0.1", "9" * 5000, "1E+2", "1.0e-400")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("output", ["out.jsonl", "out.db", "out.parquet"])
def test_a_number_is_stored_digit_by_digit(output: str) -> None:
    sent = [f'{{"billId":"b{number:02}","total":{text}}}' for number, text in enumerate(NUMBERS)]
    with answering(partial(answer, text=body(*sent))) as url:
        shown = sync(url, "--output", output)
    assert shown.exit_code == 0, shown.output
    path = Path(output)
    if path.suffix == ".jsonl":
        stored = [line.partition('"record":')[2][:-1] for line in path.read_text().splitlines()]
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path)) as db:
            stored = [text for (text,) in db.execute("SELECT record FROM records ORDER BY id")]
    else:
        stored = pq.read_table(path).column("record").to_pylist()
    assert stored == sent


LARGE = body(*(f'{{"billId":"b{number}","note":"{"x" * 500_000}"}}' for number in range(24))).encode()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("fault", ["stalls", "is cut", "is reset"])
def test_a_page_of_12_mib_has_a_timeout_and_is_retried(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(LARGE) > 12_000_000
    monkeypatch.setattr(maesn, "session", partial(maesn.session, attempt_timeout=2.0))
    asked = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.query["page"])
        headers = {"Content-Type": "application/json", "Content-Length": str(len(LARGE))}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if len(asked) > 1:
            await response.write(LARGE)
            return response
        await response.write(LARGE[:-100_000])
        if fault == "stalls":
            await asyncio.sleep(10)
        assert request.transport is not None
        if fault == "is reset":
            request.transport.abort()
        else:
            request.transport.close()
        return response

    with answering(handle) as url:
        shown = sync(url, "--output", "out.jsonl")
    assert (shown.exit_code, shown.stderr) == (0, ""), shown.output
    assert len(asked) == 2
    assert len(Path("out.jsonl").read_text().splitlines()) == 24


def test_a_warning_of_the_api_is_shown_once() -> None:
    text = body('{"billId":"b1"}', more='"warnings": [{"message": "bills of 2019 are archived"}], ')
    with answering(partial(answer, text=text)) as url:
        shown = sync(url, "--json")
    report = json.loads(shown.stdout)
    assert shown.exit_code == 0
    assert report["parts"][0]["warnings"] == ["bills of 2019 are archived"]
    assert shown.stderr.count("The API warns: bills of 2019 are archived.") == 1


def test_invalid_records_that_the_report_does_not_count_are_not_counted() -> None:
    with answering(partial(answer, text=body(*(["null"] * 30), '{"billId":"b1"}'))) as url:
        shown = sync(url)
    assert shown.exit_code == 1
    assert "the rest was: Ada: record 1 on page 1 of bills is not an object, Ada: record 2 on" in words(shown)
    assert "Ada: record 5 on page 1 of bills is not an object and more." in words(shown)


BAD = {
    "null": "record 3 on page 1 of bills is not an object",
    '"x"': "record 3 on page 1 of bills is not an object",
    '{"id":[],"total":1}': "record 3 on page 1 of bills has neither 'id' nor 'billId', so it cannot be identified",
    '{"billId":true}': "record 3 on page 1 of bills has no usable 'billId': it must be text or a whole number",
    '{"billId":"b00","total":2}': "record 3 on page 1 of bills has the same id 'b00' as record 1, but differs from it",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_record_is_reported_and_the_others_are_stored(bad: str) -> None:
    sent = [f'{{"billId":"b{number:02}","total":1}}' for number in range(99)]
    with answering(partial(answer, text=body(*sent[:2], bad, *sent[2:]))) as url:
        shown = sync(url, "--output", "out.jsonl", "--json")
        again = sync(url, "--resume")
    report = json.loads(shown.stdout)
    stored = [json.loads(line)["id"] for line in Path("out.jsonl").read_text().splitlines()]
    assert sorted(stored) == [f"b{number:02}" for number in range(99)]
    assert (shown.exit_code, again.exit_code, report["complete"]) == (1, 1, False)
    [part] = report["parts"]
    assert part["error"]["type"] == "BadRecord"
    assert BAD[bad] in part["bad_records"][0]
    assert "1 × Bad record" in words(again)
    assert BAD[bad] in words(again)


def test_equal_records_with_one_id_are_one_record() -> None:
    """The API counts two; both were read."""
    sent = ['{"billId":"b0","total":1}', '{"billId":"b1","total":1}', '{"billId":"b0","total":1}']
    with answering(partial(answer, text=body(*sent))) as url:
        shown = sync(url, "--output", "out.jsonl")
        again = sync(url)
    assert (shown.exit_code, again.exit_code) == (0, 0)
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


SCHEMA = """
[bills]
number = "text"
total = "decimal(18, 2)"

[bills.lineItems]
amount = "decimal(18, 2)"
"""
TYPED = '{"billId":"b0","number":"A-1","total":99999999999999.99,"lineItems":[{"amount":0.10},{"amount":7}]}'


class TestASchema:
    def test_a_schema_creates_typed_columns_and_child_tables(self) -> None:
        Path("schema.toml").write_text(SCHEMA)
        with answering(partial(answer, text=body(TYPED))) as url:
            for output in ("out.db", "out.parquet"):
                shown = sync(url, "--output", output, "--schema", "schema.toml")
                assert (shown.exit_code, shown.stderr) == (0, ""), shown.output
        with closing(sqlite3.connect("out.db")) as db:
            assert db.execute("SELECT * FROM bills").fetchall() == [("Ada", "b0", "A-1", "99999999999999.99")]
            assert db.execute("SELECT position, amount FROM bills_lineItems").fetchall() == [(1, "0.10"), (2, "7.00")]
        [row] = pq.read_table("out.bills.parquet").to_pylist()
        assert row["total"] == Decimal("99999999999999.99")
        assert pq.read_table("out.bills_lineItems.parquet").num_rows == 2

    def test_misfits_of_a_schema_are_reported_and_lose_no_record(self) -> None:
        Path("schema.toml").write_text(SCHEMA)
        text = body(TYPED, '{"billId":"b1","number":5,"total":1.005}')
        with answering(partial(answer, text=text)) as url:
            shown = sync(url, "--output", "out.db", "--schema", "schema.toml", "--json")
            again = sync(url, "--output", "out.db", "--schema", "schema.toml")
        report = json.loads(shown.stdout)
        assert (shown.exit_code, again.exit_code) == (1, 1)
        assert (report["misfits"], report["exit_code"], report["complete"]) == (2, 1, True)
        assert report["misfit_texts"][0] == "bills.number of Ada b1 is not of type text"
        assert (
            "2 values do not fit: bills.number of Ada b1 is not of type text; "
            "bills.total of Ada b1 is not of type decimal(18, 2)" in (words(again))
        )
        assert again.stderr == "lamella: all records are stored, but 2 values do not fit schema.toml: see above\n"
        with closing(sqlite3.connect("out.db")) as db:
            assert db.execute("SELECT count(*) FROM records").fetchone() == (2,)

    def test_a_schema_with_a_wrong_name_is_reported(self) -> None:
        Path("schema.toml").write_text('[bils]\nnumber = "text"\n')
        with answering(partial(answer, text=body(TYPED))) as url:
            shown = sync(url, "--output", "out.db", "--schema", "schema.toml")
        assert shown.exit_code == 0
        told = "Tables and columns of the schema without a value: bils. Check their names."
        assert told in words(shown)

    def test_a_value_of_another_shape_is_reported(self) -> None:
        Path("schema.toml").write_text('[bills]\n"contact.name" = "text"\ntotal = "decimal(18, 2)"\n')
        texts = ('{"billId":"b0","contact":["Ada"],"total":1}', '{"billId":"b1","contact":null,"total":1,"total":2}')
        with answering(partial(answer, text=body(*texts))) as url:
            shown = sync(url, "--output", "out.db", "--schema", "schema.toml")
        assert shown.exit_code == 1
        assert (
            "2 values do not fit: bills.contact.name of Ada b0 is not of type text; "
            "bills.total of Ada b1 is not of type decimal(18, 2)" in words(shown)
        )
        with closing(sqlite3.connect("out.db")) as db:
            assert db.execute("SELECT record FROM records ORDER BY id").fetchall() == [(text,) for text in texts]

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        ("text", "output", "told"),
        [
            (SCHEMA, "out.jsonl", "--output: typed tables need an output in .sqlite, .sqlite3, .db or .parquet"),
            (SCHEMA, "", "--schema defines typed columns: it needs --output FILE with .sqlite, .db or .parquet"),
            ("", "out.db", "--schema: schema.toml: contains no tables"),
            ("bills", "out.db", "--schema: schema.toml: is not valid TOML"),
            ("bills = 7", "out.db", "--schema: schema.toml: bills must be a table of columns"),
            (
                "[bills]\na = 7",
                "out.db",
                "--schema: schema.toml: bills must contain the types of its columns as strings",
            ),
            ('[bills]\na = "money"', "out.db", "--schema: schema.toml: the type of a column must be one of text"),
            (None, "out.db", "--schema: schema.toml: cannot be read: No such file"),
        ],
    )
    def test_a_wrong_schema_is_rejected(self, text: str | None, output: str, told: str) -> None:
        if text is not None:
            Path("schema.toml").write_text(text)
        shown = sync("http://127.0.0.1:9", "--schema", "schema.toml", *(["--output", output] if output else []))
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert shown.stderr.startswith(f"lamella: {told}")


def test_an_answer_with_two_lists_of_one_name_fails() -> None:
    """JSON readers keep one of the two; the records of the other would be lost."""
    text = body('{"billId":"b0"}', total=0).replace('"errors"', '"data": [], "errors"')
    with answering(partial(answer, text=text)) as url:
        shown = sync(url)
    assert shown.exit_code == 1
    assert "page 1 of bills is not readable JSON (a name occurs twice)" in words(shown)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("more", [("--json", "--quiet"), (), ("--json",)])
def test_a_full_disk_of_the_shown_text_is_named(more: tuple[str, ...]) -> None:
    write_accounts(Path())
    with answering(partial(answer, text=body('{"billId":"a"}', '{"billId":"b"}', '{"billId":"c"}'))) as url:
        arguments = ("--accounts", "accounts.csv", "--resource", "bills", "--journal", "j", "--base-url", url)
        result = lamella_to_a_full_disk("sync", *arguments, "--output", "out.jsonl", *more)
    assert result.returncode == 1
    assert "lamella: stdout cannot be written: No space left on device; continue with: lamella sync" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    assert len(Path("out.jsonl").read_text(encoding="utf-8").splitlines()) == 9


@pytest.mark.sampled(1)
@pytest.mark.parametrize("arguments", [("explain", "429"), ("--version",), ("--help",)])
def test_every_command_names_a_full_disk(arguments: tuple[str, ...]) -> None:
    result = lamella_to_a_full_disk(*arguments)
    assert (result.returncode, result.stderr) == (1, "lamella: stdout cannot be written: No space left on device\n")
