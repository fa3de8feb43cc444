"""Operations that are answered with a task."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from tests.sdk import Tracing

from lamella import NotFound, deadline, maesn
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.sync import AnswerFailed
from lamella.testing import VirtualClock

POLL = "/accounting/asyncTask/*"


def state(status: str | None, data: object = None, *notes: dict[str, str | None]) -> Reply:
    task = {"status": status, "information": list(notes), "responseData": data}
    return Reply(200, {}, {"meta": None, "data": task, "errors": None})


def connect(sandbox: Sandbox, **options: Any) -> aiohttp.ClientSession:
    return maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url, **options)


async def test_task_waits_until_a_write_is_done(sandbox: Sandbox, virtual_time: VirtualClock, tracing: Tracing) -> None:
    async with connect(sandbox, tracer_provider=tracing.provider) as session:
        done = await maesn.task(
            session, "POST", "accounting/contacts/async", json={"companyName": "Alder"}, params={"companyId": "c1"}
        )
    assert [done.data] == sandbox.created("contacts")
    assert (done.status, done.information) == ("FINISHED", ("The task is done.",))
    assert [received.method for received in sandbox.received] == ["POST", "GET", "GET", "GET"]
    assert [received.query.get("companyId") for received in sandbox.received] == ["c1"] * 4
    assert 2.4 < virtual_time.elapsed < 3
    # One operation: all calls are inside of one span.
    [whole] = [span for span in tracing.spans if span.parent is None]
    assert whole.name == "lamella maesn task"
    assert dict(whole.attributes or {}) == {"lamella.task.polls": 3, "lamella.task.status": "FINISHED"}
    assert len({span.context.trace_id for span in tracing.spans if span.context}) == 1
    assert len([span for span in tracing.spans if span.parent and span.parent.span_id == whole.context.span_id]) == 4


async def test_task_sends_a_form(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    form = aiohttp.FormData()
    form.add_field("expense", json.dumps({"description": "tea"}), content_type="application/json")
    form.add_field("files", b"%PDF", filename="tea.pdf")
    async with connect(sandbox) as session:
        done = await maesn.task(session, "POST", "accounting/expenses/async", data=form)
    assert (done.data["description"], done.data["files"]) == ("tea", ["tea.pdf"])


async def test_an_immediate_response_needs_no_task(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    async with connect(sandbox) as session:
        done = await maesn.task(session, "POST", "accounting/contacts", json={"companyName": "Alder"})
    assert (done.data["companyName"], done.status, done.task_id) == ("Alder", None, None)
    assert len(sandbox.received) == 1


async def test_pages_waits_for_the_task_of_a_list(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(records=45, later={"openItems"})
    async with connect(sandbox) as session:
        found = [record async for record in maesn.records(session, "openItems", limit=20)]
    assert found == sandbox.records("openItems")
    polls = [received for received in sandbox.received if "asyncTask" in received.path]
    assert {(poll.query["page"], poll.query["limit"]) for poll in polls} == {("1", "20"), ("2", "20"), ("3", "20")}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (state("FAILED", None, {"message": "no such supplier", "type": "error"}), "ended in FAILED: no such supplier"),
        (state("PARTIAL_SUCCESS", {"id": "1"}), "ended in PARTIAL_SUCCESS"),
        (state("FINISHED", None, {"message": "refused", "type": "Error"}), "ended in FINISHED: refused"),
        (state("DELETED"), "ended in DELETED"),
    ],
)
async def test_a_failed_task_raises(sandbox: Sandbox, virtual_time: VirtualClock, reply: Reply, said: str) -> None:
    sandbox.script(reply, path=POLL)
    async with connect(sandbox) as session:
        with pytest.raises(maesn.TaskFailed, match=said) as caught:
            await maesn.task(session, "POST", "accounting/contacts/async", json={})
    assert isinstance(caught.value, AnswerFailed)
    assert caught.value.task.task_id == "task-1"


async def test_a_list_with_a_failed_task_raises(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(later={"openItems"})
    sandbox.script(state("FAILED"), path=POLL)
    async with connect(sandbox) as session:
        with pytest.raises(maesn.TaskFailed):
            [record async for record in maesn.records(session, "openItems")]
        sandbox.script(state("FINISHED"), path=POLL)
        with pytest.raises(ValueError, match="page 1 of openItems holds no list of records, but NoneType"):
            [record async for record in maesn.records(session, "openItems")]


async def test_an_unfinished_task_raises_at_the_deadline(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(*[state("IN_PROGRESS")] * 5, state(None), path=POLL)
    async with connect(sandbox) as session:
        with pytest.raises(maesn.TaskUnfinished) as caught:
            await maesn.task(session, "POST", "accounting/contacts/async", json={}, deadline=10)
        assert virtual_time.elapsed <= 10
        with deadline(3), pytest.raises(maesn.TaskUnfinished):
            await maesn.finished(session, caught.value.task_id)
        done = await maesn.finished(session, caught.value.task_id, deadline=100)
    assert [done.data] == sandbox.created("contacts")
    assert len([received for received in sandbox.received if received.method == "POST"]) == 1


async def test_a_rate_limit_does_not_count_against_the_waits_of_a_list(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(records=1, later={"openItems"})
    sandbox.script(429, 429, 429, 429, path="/accounting/openItems")
    sandbox.script(200, 429, 429, 429, 429, path=POLL)
    async with connect(sandbox) as session:
        assert len([record async for record in maesn.records(session, "openItems")]) == 1
        assert virtual_time.elapsed > 1800
        sandbox.script(*[state("IN_PROGRESS")] * 100, path=POLL)
        began = virtual_time.elapsed
        with pytest.raises(maesn.TaskUnfinished):
            [record async for record in maesn.records(session, "openItems")]
        assert 560 < virtual_time.elapsed - began < 601


async def test_a_202_without_task_id_raises(sandbox: Sandbox, virtual_time: VirtualClock) -> None:
    sandbox.script(Reply(202, {}, {"data": {"taskId": None}}))
    async with connect(sandbox) as session:
        with pytest.raises(ValueError, match="response with status 202 has no taskId"):
            await maesn.task(session, "POST", "accounting/contacts/async", json={})


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_an_unknown_task_raises(sandbox: Sandbox, raise_errors: bool) -> None:
    async with connect(sandbox, raise_errors=raise_errors) as session:
        with pytest.raises(NotFound):
            await maesn.finished(session, "of somebody else/../x")
        with pytest.raises(ValueError, match=r"a task id must be a path segment, got '\.\.'"):
            await maesn.finished(session, "..")
    [received] = sandbox.received
    assert received.path.startswith("/accounting/asyncTask/of")
