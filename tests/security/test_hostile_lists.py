"""A server that answers a list with whatever it likes: there is a ValueError that says so, and nothing is used up."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import CHARACTERS
from tests.security.shown import links
from tests.servers import Serve

from lamella import maesn
from lamella.batch import Journal
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import run_virtual

RULES = maesn.RULES.scaled(1e-5)
LAST = Reply(200, {}, {"data": []})
MB = 2**20


def session_of(sandbox: Sandbox) -> aiohttp.ClientSession:
    return maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, rules=RULES)


async def read(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    return [record async for record in maesn.records(session, "invoices")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Log in, please: zq-said</html>",
        b'{"data": [',
        b'{"zq-said": ' + b"[" * 100_000,
        b'{"data": ' + b'{"a":' * 100_000,
        b'{"data": [' + b"9" * 5000 + b"]}",
        b"\xff\xfe\x00zq-said",
        '{"data": ["zq-said"]'.encode("utf-16"),
        b'{"data": {"zq-said": 1}}',
        b'{"data": null, "meta": null}',
        b'["zq-said"]',
        b"5",
        b"NaN",
        b'{"data": "zq-said", "data": 5}',
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_a_response_without_a_list_is_reported_and_not_retried(sandbox: Sandbox, body: bytes) -> None:
    sandbox.script(Reply(200, {"Content-Type": "text/html"}, body))
    async with session_of(sandbox) as session:
        with pytest.raises(ValueError, match=r"page 1 of invoices (holds no list|is not readable JSON)") as caught:
            await read(session)
    assert len(str(caught.value)) < 100
    assert not any("zq-said" in f"{link!s}{link!r}{vars(link)}" for link in links(caught.value))


PAGES: tuple[object, ...] = ("many", -1, 0, 1.5, True, None, {}, 10**6 + 1, 2**53, 10**400)
METAS: tuple[object, ...] = (None, 5, "x", [], [[]], {"pagination": 5}, {"pagination": [1]})


@pytest.mark.parametrize("meta", [*METAS, *({"pagination": {"totalPages": pages}} for pages in PAGES)])
async def test_implausible_page_counts_are_ignored(sandbox: Sandbox, meta: object) -> None:
    data = [{"invoiceId": "1"}]
    sandbox.script(Reply(200, {}, {"meta": meta, "data": data}), Reply(200, {}, {"meta": meta, "data": []}))
    async with session_of(sandbox) as session:
        assert await read(session) == data
    assert len(sandbox.received) <= 2


async def test_a_list_of_9_quadrillion_pages_is_read_to_its_end_and_resumed(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whoever believed it would make a list of all the pages that are missing."""
    many = {"meta": {"pagination": {"totalPages": 2**53 - 1}}}
    records = [{"invoiceId": str(number)} for number in range(3)]
    sandbox.script(*(Reply(200, {}, {**many, "data": [record]}) for record in records), 401)
    async with session_of(sandbox) as session, Journal.open(tmp_path / "journal", batch="b") as journal:
        first = await maesn.sync(session, {"north": sandbox.account_key}, ["invoices"], journal=journal)
        assert [part.error is None for part in first.parts] == [False]
        sandbox.script(*[Reply(200, {}, {**many, "data": []})] * 3)  # page 4 twice and page 5, as without a count
        again = await maesn.sync(session, {"north": sandbox.account_key}, ["invoices"], journal=journal, resume=True)
    assert again.done
    assert again.records == 3
    assert len(sandbox.received) == 7


async def test_an_endless_page_is_not_read_completely(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lamella.sync.page"], "_LONGEST", 12 * MB)
    sent = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"data": [')
        try:
            while sent < 1000 * MB:
                await response.write(b"1," * (MB // 2))
                sent += MB
        except ConnectionError:
            pass
        return response

    async with maesn.session("key", "key", await serve(pour), rules=RULES) as session:
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="page 1 of invoices is longer than 12 MiB"):
                await read(session)
            [_, peak] = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(session.connector, aiohttp.TCPConnector)
        assert not session.connector._acquired
    assert sent < 40 * MB
    assert peak < 60 * MB


async def test_gzip_does_not_bypass_the_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lamella.sync.page"], "_LONGEST", 12 * MB)

    packed = gzip.compress(b'{"data": [' + b" " * (50 * MB) + b"]}", 1)
    assert len(packed) < MB

    async def bomb(request: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})

    async with maesn.session("key", "key", await serve(bomb), rules=RULES) as session:
        with pytest.raises(ValueError, match="longer than 12 MiB"):
            await read(session)


async def test_the_last_of_duplicate_json_keys_applies(sandbox: Sandbox) -> None:
    sandbox.script(Reply(200, {}, b'{"data": 5, "data": [{"invoiceId": "1", "invoiceId": "2"}]}'), LAST)
    async with session_of(sandbox) as session:
        assert await read(session) == [{"invoiceId": "2"}]


async def test_the_content_of_a_record_is_only_data(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """SQL, paths, control characters, halves of characters: in the file they are what they were."""
    texts = ["'; DROP TABLE sync_records; --", "../../etc/passwd", "\x1b[2J\n\r\0", "\ud800", "\u202e", "</script>"]
    records = [{"invoiceId": text, "note": text} for text in texts]
    sandbox = await make_sandbox()
    sandbox.script(Reply(200, {}, {"data": records, "meta": {"pagination": {"totalPages": 1}}}))
    output = tmp_path / "records.jsonl"
    async with session_of(sandbox) as session, Journal.open(tmp_path / "journal", batch="b") as journal:
        report = await maesn.sync(session, {"north": sandbox.account_key}, ["invoices"], journal=journal, output=output)
    assert report.done
    lines = output.read_bytes().splitlines()
    assert sorted(json.loads(line)["record"]["note"] for line in lines) == sorted(texts)
    assert sorted(os.listdir(tmp_path)) == ["journal", "records.jsonl"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["data", "meta", "pagination", "totalPages", "total", "id", "x"]), inner)
    ),
    max_leaves=12,
)


@given(body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_every_bad_answer_raises_a_documented_error(body: bytes) -> None:
    async def main() -> None:
        async with Sandbox() as sandbox, session_of(sandbox) as session:
            sandbox.script(*[Reply(200, {}, body)] * 3, Reply(200, {}, {"data": []}))
            try:
                await read(session)
            except ValueError as exc:
                assert "page" in str(exc)  # noqa: PT017 - it need not raise

    run_virtual(main())
