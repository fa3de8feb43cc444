"""A sync stores each record as the API sent it: each digit of a number, each escape, each key, in every format."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from tests.cli.serving import API_KEY, KEYS, served, write_accounts
from tests.examples import examples
from tests.servers import Handler, Serve
from typer.testing import CliRunner

from lamella import maesn
from lamella.batch import Journal
from lamella.cli.app import app
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.sync import Part
from lamella.sync.decode import split

RULES = maesn.RULES.scaled(1e-5)
SUFFIXES = [".jsonl", ".sqlite", ".parquet"]

NUMBERS = [
    "99999999999999.99",
    "100.10",
    "12345678901234567.89",
    "0.1000000000000000055511151231257827021181583404541015625",
    "9007199254740993",
    "123456789012345678901234567890",
    "9" * 4300,
    "9" * 5000,
    "-" + "1234567890" * 2000,
    "0." + "0123456789" * 500,
    "-0",
    "-0.0",
    "0.00",
    "1E5",
    "1e5",
    "1e+05",
    "1.0e-10",
    "1.50E-7",
    "5e-324",
    "2.5e-400",
    "1.7976931348623159e308",
    "1e400",
    "-1e400",
    "1e99999999999999999999",
]
PLACES = {
    "value": '{"billId":"b1","total":%s}',
    "in a list": '{"billId":"b1","lines":[[%s],[0,%s,"x"]]}',
    "in an object": '{"billId":"b1","tax":{"parts":[{"amount":%s}]},"n":%s}',
}
RECORDS = [
    r'{"billId":"b1","caf\u00e9":"caf\u00e9 café"}',
    r'{"billId":"b1","url":"https:\/\/example.com\/a"}',
    r'{"billId":"b1","face":"\ud83d\ude00 \uD83D\uDE00 😀"}',
    r'{"billId":"b1","half":"\ud800","halves":"\udfff\ud800"}',
    r'{"billId":"b1","control":"\u0000\r\n\t\b\f"}',
    r'{"billId":"b1","says":"\"total\" : 100.10 , [ 1.0 ]  {\\\"a\" : 1 }\\"}',
    r'{"z":1,"billId":"b1","a":2,"":3," ":4}',
    r'{"billId":"b0","billId":"b1","total":1.10,"total":1.1}',
    r'{"billId":"b1","data":[{"billId":"b2","data":[1.10]}],"meta":{"pagination":{"totalPages":7.0}}}',
    r'{"bill\u0049d":"b1"}',
    r'{"billId":"b1","empty":[{},[],"",null,true,false]}',
]


def numbered(records: Iterable[str]) -> dict[str, str]:
    """These records with ids that differ, by their ids."""
    names = (f"b{number:02}" for number in itertools.count())
    return {name: record.replace('"b1"', f'"{name}"') for name, record in zip(names, records, strict=False)}


def page(*records: str) -> str:
    return f'{{"meta":{{"pagination":{{"total":{len(records)},"totalPages":1}}}},"data":[{",".join(records)}]}}'


def answering(*bodies: str | bytes, charset: str = "utf-8") -> Handler:
    """Answer for the first page with each of the *bodies* in turn, then always with the last; other pages are empty."""
    rest = list(bodies)

    async def handle(request: web.Request) -> web.StreamResponse:
        body: str | bytes = '{"data":[]}'
        if request.query["page"] == "1":
            body = rest.pop(0) if len(rest) > 1 else rest[0]
        encoded = body.encode(charset) if isinstance(body, str) else body
        return web.Response(body=encoded, headers={"Content-Type": f"application/json; charset={charset}"})

    return handle


async def synced(url: str, folder: Path, suffix: str = ".jsonl", **options: Any) -> tuple[Part, list[tuple[str, str]]]:
    """Sync the bills of one account; return the part, and the id and the text of each record in the output."""
    output = folder / f"records{suffix}"
    async with (
        maesn.session("api-key", None, url, rules=RULES) as session,
        Journal.open(folder / "journal", batch="nightly") as journal,
    ):
        report = await maesn.sync(session, {"north": "key"}, ["bills"], journal=journal, output=output, **options)
    [part] = report.parts
    return part, list(rows(output, "north", "bills"))


def rows(output: Path, account: str, resource: str) -> Iterator[tuple[str, str]]:
    """The id and the text of each record in an output."""
    if output.suffix == ".jsonl":
        for line in output.read_bytes().decode().split("\n")[:-1]:
            name = json.loads(line, parse_int=str)["id"]
            before = f'{{"account":"{account}","resource":"{resource}","id":{json.dumps(name)},"record":'
            assert line.startswith(before)
            assert line.endswith("}}")
            yield name, line[len(before) : -1]
    elif output.suffix == ".sqlite":
        with closing(sqlite3.connect(output)) as db:
            assert db.execute("SELECT DISTINCT account, resource FROM records").fetchall() == [(account, resource)]
            yield from db.execute("SELECT id, record FROM records ORDER BY id").fetchall()
    else:
        for row in pq.read_table(output).to_pylist():
            assert (row["account"], row["resource"]) == (account, resource)
            yield row["id"], row["record"]


def without_space(text: str) -> str:
    """JSON without the white space between its tokens: letter by letter, unlike the code under test."""
    kept, in_string, is_escaped = [], False, False
    for letter in text:
        if in_string:
            in_string = is_escaped or letter != '"'
            is_escaped = letter == "\\" and not is_escaped
        elif letter in " \t\n\r":
            continue
        else:
            in_string = letter == '"'
        kept.append(letter)
    return "".join(kept)


class TestNumbers:
    @pytest.mark.sampled
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("place", PLACES)
    async def test_each_number_is_stored_digit_by_digit(
        self, serve: Serve, tmp_path: Path, place: str, suffix: str
    ) -> None:
        records = numbered(PLACES[place].replace("%s", literal) for literal in NUMBERS)
        part, found = await synced(await serve(answering(page(*records.values()))), tmp_path, suffix)
        assert (part.error, part.done, part.records) == (None, True, len(NUMBERS))
        assert dict(found) == records

    @pytest.mark.parametrize("literal", ["9" * 5000, "1e400", "1e99999999999999999999"], ids=lambda text: text[:20])
    async def test_a_number_that_python_cannot_hold_does_not_end_its_part(
        self, serve: Serve, tmp_path: Path, literal: str
    ) -> None:
        body = (
            f'{{"meta":{{"pagination":{{"totalPages":1}},"cost":{literal}}},"data":[{{"billId":"b1"}}],"n":{literal}}}'
        )
        part, found = await synced(await serve(answering(body)), tmp_path)
        assert (part.error, part.done) == (None, True)
        assert found == [("b1", '{"billId":"b1"}')]

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        "literal", ["17", "9007199254740993", "12345678901234567890123", "9" * 5000, "-" + "7" * 5000]
    )
    async def test_a_number_as_id_is_the_same_id_in_the_next_run(
        self, serve: Serve, tmp_path: Path, literal: str
    ) -> None:
        other = f"{literal[:-1]}5"  # as a float it would be the same
        records = [f'{{"billId":{literal},"total":1.10}}', f'{{"billId":{other},"total":1.10}}']
        url = await serve(answering(page(*records)))
        await synced(url, tmp_path)
        part, found = await synced(url, tmp_path, since="2000-01-01")
        assert (part.error, part.records) == (None, 0)
        assert dict(found) == {literal: records[0], other: records[1]}

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_the_command_stores_numbers_digit_by_digit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MAESN_API_KEY", API_KEY)
        write_accounts(tmp_path, "Ada")
        records = numbered(PLACES["in an object"].replace("%s", literal) for literal in NUMBERS)
        with served() as sandbox:
            sandbox.script(Reply(body=page(*records.values())), account=KEYS["Ada"])
            options = ["--accounts", "accounts.csv", "--resource", "bills", "--base-url", sandbox.url]
            shown = CliRunner().invoke(app, ["sync", *options, "--output", f"records{suffix}"])
        assert shown.exit_code == 0, shown.output
        assert dict(rows(Path(f"records{suffix}"), "Ada", "bills")) == records

    @pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 38), reason="this SQLite has no operator ->")
    async def test_sqlite_can_read_a_number_exactly(self, serve: Serve, tmp_path: Path) -> None:
        """docs/how-to/sync.md says so."""
        await synced(await serve(answering(page('{"billId":"b1","total":12345678901234567.10}'))), tmp_path, ".sqlite")
        with closing(sqlite3.connect(tmp_path / "records.sqlite")) as db:
            assert db.execute("SELECT record -> '$.total' FROM bills").fetchall() == [("12345678901234567.10",)]


class TestText:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    async def test_each_text_is_stored_letter_by_letter(self, serve: Serve, tmp_path: Path, suffix: str) -> None:
        records = numbered(RECORDS)
        part, found = await synced(await serve(answering(page(*records.values()))), tmp_path, suffix)
        assert (part.error, part.done) == (None, True)
        assert dict(found) == records

    @pytest.mark.parametrize("suffix", SUFFIXES)
    async def test_only_space_between_tokens_is_removed(self, serve: Serve, tmp_path: Path, suffix: str) -> None:
        wide = {
            name: json.dumps(json.loads(record), indent="\t").replace("\n", "\r\n").replace('":', '"\n : ')
            for name, record in numbered(RECORDS).items()
        }
        part, found = await synced(await serve(answering(page(*wide.values()))), tmp_path, suffix)
        assert (part.error, part.done) == (None, True)
        assert dict(found) == {name: without_space(record) for name, record in wide.items()}
        assert [json.loads(record) for _, record in found] == [json.loads(record) for record in wide.values()]

    @pytest.mark.parametrize(
        ("charset", "sent"),
        [
            ("utf-8", '{"billId":"b1","name":"Müller 😀","total":1.10}'),
            ("utf-8-sig", '{"billId":"b1","name":"Müller 😀","total":1.10}'),
            ("utf-16", '{"billId":"b1","name":"Müller 😀","total":1.10}'),
            ("latin-1", '{"billId":"b1","name":"Müller","total":1.10}'),
        ],
    )
    async def test_text_in_any_encoding_is_stored(self, serve: Serve, tmp_path: Path, charset: str, sent: str) -> None:
        part, found = await synced(await serve(answering(page(sent), charset=charset)), tmp_path)
        assert part.error is None
        assert found == [("b1", sent)]

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    async def test_an_encoding_of_json_need_not_be_stated(self, serve: Serve, tmp_path: Path, encoding: str) -> None:
        sent = '{"billId":"b1","name":"Müller 😀","total":1.10}'
        part, found = await synced(await serve(answering(page(sent).encode(encoding))), tmp_path)
        assert (part.error, found) == (None, [("b1", sent)])

    async def test_a_byte_order_mark_is_not_part_of_the_answer(self, serve: Serve, tmp_path: Path) -> None:
        sent = '{"billId":"b1","total":1.10}'
        part, found = await synced(await serve(answering(b"\xef\xbb\xbf" + page(sent).encode())), tmp_path)
        assert (part.error, found) == (None, [("b1", sent)])

    async def test_an_unescaped_lone_surrogate_is_escaped(self, serve: Serve, tmp_path: Path) -> None:
        """UTF-7 can encode it; SQLite and UTF-8 cannot."""
        body = page('{"billId":"b1","half":"HALF"}').encode().replace(b"HALF", b"+2AA-")
        part, found = await synced(await serve(answering(body, charset="utf-7")), tmp_path)
        assert part.error is None
        assert found == [("b1", r'{"billId":"b1","half":"\ud800"}')]

    def test_a_text_full_of_escapes_needs_no_extra_memory(self) -> None:
        text = b'{"billId":"' + rb"\\" * 500_000 + b'"}'
        tracemalloc.start()
        try:
            assert split(b"[%s]" % text, "", compact=True).records == [text]
            [_, peak] = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(text)


class TestThePage:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        "body",
        [
            '{"data":[%s],"meta":{"pagination":{"totalPages":1}}}',
            '\r\n { "meta" : { "pagination" : { "totalPages" : 1 } } ,\n\t"data" : [ %s ] } \n',
            r'{"meta":{"pagination":{"totalPages":1}},"d\u0061ta":[%s]}',
            '{"meta":{"pagination":{"totalPages":1},"data":[1]},"data":[%s],"rawData":[{"billId":"b3","data":[2]}]}',
            '{"rawData":"\\"data\\":[","meta":{"pagination":{"totalPages":1}},"data":[%s],"errors":null}',
        ],
    )
    async def test_the_records_are_found_at_any_place_in_the_answer(
        self, serve: Serve, tmp_path: Path, body: str
    ) -> None:
        records = ['{"billId":"b1","total":100.10}', '{"billId":"b2","total":[]}']
        part, found = await synced(await serve(answering(body.replace("%s", " ,\n".join(records)))), tmp_path)
        assert (part.error, part.done) == (None, True)
        assert found == [("b1", records[0]), ("b2", records[1])]

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        "body",
        [
            '{"data":[{"billId":"b3"}],"meta":{"pagination":{"totalPages":1}},"data":[{"billId":"b1"}]}',
            '{"data":[{"billId":"b1"}],"meta":{"pagination":{"total":0}},"data":[]}',
            '{"data":5,"meta":{"pagination":{"totalPages":1}},"data":[{"billId":"b1"}]}',
            r'{"data":[{"billId":"b1"}],"d\u0061ta":[]}',
            '{"errors":["down"],"data":[{"billId":"b1"}],"errors":null}',
        ],
    )
    async def test_a_name_that_occurs_twice_in_the_answer_loses_no_record_silently(
        self, serve: Serve, tmp_path: Path, body: str
    ) -> None:
        part, found = await synced(await serve(answering(body)), tmp_path)
        assert str(part.error) == "page 1 of bills is not readable JSON (a name occurs twice)"
        assert (part.done, found) == (False, [])

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        "body",
        [
            *(
                body % constant
                for constant in ("NaN", "Infinity", "-Infinity")
                for body in ('{"data":[{"billId":"b1","total":%s}]}', '{"data":[{"billId":"b1"}],"meta":{"total":%s}}')
            ),
            *(
                f'{{"data":[{{"billId":"b1","total":{number}}}]}}'
                for number in ("01", "1.", ".5", "+1", "1e", "0x10", "1_000", "--1", "1,5", "\u0661", "1 0")
            ),
            '{"data":[{"billId":"b1"},]}',
            '{"data":[,{"billId":"b1"}]}',
            '{"data":[{"billId":"b1"} {"billId":"b2"}]}',
            '{"data":[{"billId":"b1"}',
            '{"data":[{"billId":"b1"}]',
            '{"data":[{"billId":"b1"}],}',
            '{"data":[{"billId":"b1"}] "meta":{}}',
            '{"data":[{"billId":"b1"}]}}',
            '{"data":[{"billId":"b1"}]} 5',
            '{"data" [{"billId":"b1"}]}',
            '{data:[{"billId":"b1"}]}',
            '{5:5,"data":[{"billId":"b1"}]}',
            '{"data":[{"billId":"b1","line":"a\nb"}]}',
            '{"data":[{"billId":"b1","bad":"\\x"}]}',
            '{"data":[{"billId":"b1"\xa0}]}',
            '{"data":[{"billId":"b1","deep":' + "[" * 100_000 + "]" * 100_000 + "}]}",
        ],
        ids=lambda body: body[:60],
    )
    async def test_invalid_json_is_an_error_and_nothing_is_stored(
        self, serve: Serve, tmp_path: Path, body: str
    ) -> None:
        part, found = await synced(await serve(answering(body)), tmp_path)
        assert isinstance(part.error, ValueError)
        assert "page 1 of bills is not readable JSON" in str(part.error)
        assert (part.done, found) == (False, [])


class TestWhetherItHasChanged:
    async def test_an_equal_text_is_not_a_change(self, serve: Serve, tmp_path: Path) -> None:
        url = await serve(answering(page(*numbered(RECORDS).values())))
        first, before = await synced(url, tmp_path)
        again, after = await synced(url, tmp_path, since="2000-01-01")
        assert (first.records, again.records) == (len(RECORDS), 0)
        assert before == after

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        ("before", "after", "changed"),
        [
            ('{"billId":"b1","total":1.10}', '{ "billId": "b1",\n "total": 1.10 }', 0),
            ('{"billId":"b1","total":99999999999999.99}', '{"billId":"b1","total":99999999999999.98}', 1),
            ('{"billId":"b1","total":1e400}', '{"billId":"b1","total":2e400}', 1),
            ('{"billId":"b1","total":0}', '{"billId":"b1","total":-0}', 1),
            ('{"billId":"b1","note":"a b"}', '{"billId":"b1","note":"a  b"}', 1),
        ],
    )
    async def test_another_number_or_letter_is_a_change_but_space_is_not(
        self, serve: Serve, tmp_path: Path, before: str, after: str, changed: int
    ) -> None:
        url = await serve(answering(page(before), page(after)))
        await synced(url, tmp_path)
        part, found = await synced(url, tmp_path, since="2000-01-01")
        assert (part.records, found) == (changed, [("b1", without_space(after))])

    async def test_an_older_journal_is_updated_once(self, serve: Serve, tmp_path: Path) -> None:
        """It holds what was read as Python's values, and written anew."""
        records = [
            '{"billId":"b1","total":99999999999999.99}',
            '{"billId":"b2","name":"M\\u00fcller"}',
            '{"billId":"b3","total":1.5,"name":"Müller"}',
        ]
        url = await serve(answering(page(*records)))
        await synced(url, tmp_path)

        def as_before(db: sqlite3.Connection) -> None:
            for name, record in db.execute("SELECT id, record FROM sync_records").fetchall():
                text = json.dumps(json.loads(record), ensure_ascii=False, separators=(",", ":"))
                db.execute("UPDATE sync_texts SET record = ? WHERE id = ?", (text, name))

        async with Journal.open(tmp_path / "journal", batch="nightly") as journal:
            await journal.commit(as_before)
        part, found = await synced(url, tmp_path, since="2000-01-01")
        assert (part.done, part.records) == (True, 2)
        assert [text for _, text in found] == records
        part, _ = await synced(url, tmp_path, since="2000-01-01")
        assert part.records == 0


class TestFromPython:
    async def test_numbers_are_floats_unless_the_caller_says(self, serve: Serve) -> None:
        body = page('{"total":99999999999999.99,"lines":[{"amount":100.10}],"many":12345678901234567890}')
        async with maesn.session("api-key", "key", await serve(answering(body)), rules=RULES) as session:
            [plain] = [each async for each in maesn.records(session, "bills")]
            [exact] = [each async for each in maesn.records(session, "bills", parse_float=Decimal)]
            [found] = [each async for each in maesn.pages(session, "bills", parse_float=str)]
        assert plain == {"total": 99999999999999.99, "lines": [{"amount": 100.1}], "many": 12345678901234567890}
        assert str(exact["total"]) == "99999999999999.99"
        assert str(exact["lines"][0]["amount"]) == "100.10"
        assert exact["many"] == 12345678901234567890
        assert found.records == [
            {"total": "99999999999999.99", "lines": [{"amount": "100.10"}], "many": 12345678901234567890}
        ]

    async def test_a_page_has_the_text_of_each_record(self, serve: Serve) -> None:
        records = ['{ "billId": "b1",\n "total": 1E400 }', '{"billId":"caf\\u00e9"}']
        async with maesn.session("api-key", "key", await serve(answering(page(*records))), rules=RULES) as session:
            [found] = [each async for each in maesn.pages(session, "bills")]
        assert list(found.texts) == records
        assert "1E400" not in repr(found)

    @pytest.mark.parametrize("literal", ["1e99999999999999999999", "1.5"])
    async def test_unreadable_json_is_reported(self, serve: Serve, literal: str) -> None:
        def parse(text: str) -> Decimal:
            return Decimal(text if "e" in text else "no number")

        body = page(f'{{"total":{literal}}}')
        async with maesn.session("api-key", "key", await serve(answering(body)), rules=RULES) as session:
            with pytest.raises(ValueError, match=r"page 1 of bills is not readable JSON \(InvalidOperation\)"):
                [each async for each in maesn.records(session, "bills", parse_float=parse)]

    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
    async def test_a_number_that_json_lacks_is_reported(self, serve: Serve, constant: str) -> None:
        body = page(f'{{"total":{constant}}}')
        async with maesn.session("api-key", "key", await serve(answering(body)), rules=RULES) as session:
            with pytest.raises(ValueError, match=rf"\({constant} is not JSON compliant\)"):
                [each async for each in maesn.records(session, "bills")]


# Any JSON

DIGITS = st.text("0123456789", min_size=1, max_size=30)
NUMBER = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    DIGITS | st.integers(4000, 6000).map("7".__mul__),
    st.just("") | DIGITS.map(".{}".format),
    st.just("") | st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), DIGITS),
)
ESCAPE = st.sampled_from(list('"\\/bfnrt')).map("\\{}".format) | st.integers(0, 0xFFFF).map("\\u{:04x}".format)
LETTER = st.characters(min_codepoint=0x20, exclude_characters='"\\\u0085\u2028\u2029', exclude_categories=["Cs"])
STRING = st.lists(LETTER | ESCAPE | st.sampled_from([*" :,[]{}", "data"]), max_size=8).map(
    lambda of: f'"{"".join(of)}"'
)
SPACE = st.just("") | st.text(" \t\n\r", max_size=3)


def spaced(*tokens: Any) -> Any:
    """These tokens, which may be strategies, with any white space around them."""
    parts = [part for token in tokens for part in (SPACE, st.just(token) if isinstance(token, str) else token)]
    return st.tuples(*parts, SPACE).map("".join)


def many(item: Any, first: str, last: str) -> Any:
    return st.tuples(SPACE, st.lists(item, max_size=4).map(",".join)).map(lambda of: f"{first}{of[1] or of[0]}{last}")


VALUE = st.recursive(
    NUMBER | STRING | st.sampled_from(["null", "true", "false"]),
    lambda inner: many(spaced(inner), "[", "]") | many(spaced(STRING, ":", inner), "{", "}"),
    max_leaves=10,
)
RECORD = st.lists(spaced(STRING, ":", VALUE), max_size=4).map(",".join)


@examples(15)
@given(records=st.lists(RECORD, min_size=1, max_size=20), suffix=st.sampled_from(SUFFIXES))
def test_any_record_is_stored_token_by_token(records: list[str], suffix: str) -> None:
    sent = {
        f"b{number:02}": f'{{{record}{"," * bool(record)} "billId": "b{number:02}"\n}}'
        for number, record in enumerate(records)
    }

    async def main() -> None:
        async with Sandbox() as sandbox:
            sandbox.script(Reply(body=page(*sent.values())))
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / f"records{suffix}"
                async with (
                    maesn.session(sandbox.api_key, None, sandbox.url, rules=RULES) as session,
                    Journal.open(Path(folder) / "journal", batch="nightly") as journal,
                ):
                    names = {"north": sandbox.account_key}
                    report = await maesn.sync(session, names, ["bills"], journal=journal, output=output)
                assert [part.error for part in report.parts] == [None]
                found = dict(rows(output, "north", "bills"))
        assert found == {name: without_space(record) for name, record in sent.items()}

    asyncio.run(main())


ENVELOPE = many(spaced(st.sampled_from(['"data"', '"meta"', r'"d\u0061ta"', '"x"']), ":", VALUE), "{", "}")


@given(
    text=spaced(ENVELOPE | VALUE),
    at=st.none() | st.integers(0, 200),
    cut=st.integers(0, 2),
    put=st.sampled_from(["", "", *'{}[]",:0 ', "\\", "\xa0", "NaN"]),
)
@example('{"data":[],"data":[1,]}', None, 0, "")
@example('{"data":[1],"data":{}}', None, 0, "")
def test_a_page_has_the_values_of_json_loads(text: str, at: int | None, cut: int, put: str) -> None:
    """Also where a letter of it is missing or too many."""

    def no_constant(constant: str) -> None:
        raise ValueError(constant)

    def loads(text: str | bytes) -> Any:
        return json.loads(text, parse_int=Decimal, parse_float=str, parse_constant=no_constant)

    if at is not None:
        text = text[:at] + put + text[at + cut :]
    try:
        expected = loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - which one depends on where it is noticed
            split(text.encode(), "data")
        return
    answer, texts, *_ = split(text.encode(), "data")
    compacted = split(text.encode(), "data", compact=True)
    assert (compacted.answer, compacted.records is None) == (answer, texts is None)
    assert list(map(loads, compacted.records or ())) == list(map(loads, texts or ()))
    data = expected.get("data") if isinstance(expected, dict) else None
    assert texts is None if not isinstance(data, list) else [loads(each) for each in texts or ()] == data
    assert all(each == each.strip() and each in text.encode() for each in texts or ())
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        assert {name: type(value) for name, value in answer.items() if name != "data"} == {
            name: float if isinstance(value, str) and isinstance(answer[name], float) else type(answer[name])
            for name, value in expected.items()
            if name != "data"
        }
