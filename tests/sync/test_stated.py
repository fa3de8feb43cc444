"""Statements of failure in an answer with a successful status, and fields that look like one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

import lamella
from lamella import Source, stack, sync
from lamella.batch import Journal

FAILURES: list[dict[str, Any]] = [
    *({"success": value} for value in (False, "false", 0, "no", "failed")),
    *({"ok": False}, {"isSuccessful": False}, {"meta": {"success": False}}, {"status": {"ok": "False"}}),
    *({"status": value} for value in ("error", "FAILED", "partial_success", 500, "503", {"error_code": 1001})),
    *({"code": 429}, {"statusCode": "404"}, {"result": "error"}, {"meta": {"status": "failed"}}),
    *({name: True} for name in ("hasErrors", "is_error", "failed", "partial", "incomplete_results")),
    *({"errorCode": 17}, {"error_code": "E17"}, {"errorMessage": "down"}, {"errmsg": "down"}),
    *({"meta": {"partial": "true"}}, {"timed_out": True}, {"failed": 3}),
    *({"Errors": ["down"]}, {"ERROR": {"code": 7}}, {"fault": {"faultstring": "down"}}, {"exception": "down"}),
    *({"errorMessages": ["down"]}, {"error_count": 2}, {"responseStatus": "FAILURE"}, {"status": "timeout"}),
    *({"state": "FAILED"}, {"type": "error"}),
]
OTHERS: list[dict[str, Any]] = [
    *({"success": True}, {"success": "true"}, {"success": None}, {"ok": 1}, {"status": "ok"}, {"status": "active"}),
    *({"status": 200}, {"code": 0}, {"statusCode": "200"}, {"result": 450}, {"message": "3 records"}),
    *({"state": "complete"}, {"type": "list"}, {"type": 500}),
    *({"errorCode": 0}, {"error_code": "00000"}, {"errmsg": "ok"}, {"errorMessage": ""}, {"errorMessage": None}),
    *({"hasErrors": False}, {"failed": 0}, {"failed": []}, {"partial": None}, {"incomplete": "false"}),
    *({"description": "error"}, {"reason": "failed"}, {"nested": {"success": False}}),
    *({"errors": ["of Source.errors"]}, {"Errors": {}}, {"Error": {"code": 0}}, {"fault": None}, {"exceptions": []}),
    *({"errorCount": 0}, {"complete": False}, {"isLast": False}),
]


@pytest.mark.parametrize("answer", FAILURES, ids=repr)
def test_a_statement_of_failure_is_found(answer: dict[str, Any]) -> None:
    assert sync.failure_in({"message": "why", **answer})


@pytest.mark.parametrize("answer", OTHERS, ids=repr)
def test_other_fields_are_not_a_statement_of_failure(answer: dict[str, Any]) -> None:
    assert sync.failure_in(answer) is None


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(middlewares=stack()) as made:
        yield made


async def read(session: aiohttp.ClientSession, tmp_path: Path, source: Source) -> tuple[sync.Part, list[Any] | str]:
    async with Journal.open(tmp_path / "journal", batch="api") as journal:
        report = await sync.run(session, {"items": source}, journal=journal)
    try:
        return report.parts[0], [each async for each in lamella.records(session, source)]
    except sync.AnswerFailed as exc:
        return report.parts[0], str(exc)


async def test_a_source_can_state_what_a_failure_is(
    serve: Serve, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"answer": {"status": "error", "data": [{"id": 1}]}, "errors": []})

    url = await serve(handle)
    part, found = await read(session, tmp_path, Source(url, sync.Pagination(), records="answer.data"))
    assert (type(part.error), found) == (sync.AnswerFailed, str(part.error))
    assert "status is" in str(part.error)
    source = Source(url, sync.Pagination(), records="answer.data", failure=lambda _: None)
    part, found = await read(session, tmp_path, source)
    assert (part.done, found) == (True, [{"id": 1}])


@pytest.mark.parametrize("records", ["errors", "failed", "error.items"])
async def test_records_are_not_errors(
    serve: Serve, session: aiohttp.ClientSession, tmp_path: Path, records: str
) -> None:
    async def handle(request: web.Request) -> web.Response:
        body: Any = [{"id": 1, "error": "a record"}]
        for name in reversed(records.split(".")):
            body = {name: body}
        return web.json_response(body)

    part, found = await read(session, tmp_path, Source(await serve(handle), sync.Pagination(), records=records))
    assert (part.done, found) == (True, [{"id": 1, "error": "a record"}])
