"""Carry out asynchronous operations: the API answers 202 with a task id, and the task is polled until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import aiohttp
import anyio
from opentelemetry.trace import TracerProvider
from yarl import URL

from lamella import scope
from lamella._aiohttp import middlewares_of
from lamella.classify.failures import ERROR_STATUS, error_messages, secrets_of_answer
from lamella.classify.judge import api_error
from lamella.maesn.published.operations import at_path
from lamella.maesn.rules import RULES
from lamella.pipeline import layers_in
from lamella.redaction import redact_text
from lamella.sync import AnswerFailed
from lamella.sync.source import at
from lamella.telemetry.call_span import RequestSpan
from lamella.telemetry.names import TASK_POLLS, TASK_SPAN, TASK_STATUS
from lamella.telemetry.tracing import Tracing

_DEADLINE: Final = 600.0
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 30.0
_GROWTH: Final = 1.5
_DONE: Final = frozenset({"FINISHED", "SUCCESS"})
_FAILED: Final = frozenset({"FAILED", "PARTIAL_SUCCESS", "CANCELLED_SUCCESSFULLY", "CANCEL_FAILED", "DELETED"})
_OF_LISTS: Final = ("companyId", "page", "limit")
"""Parameters of a list request that are repeated when its task is polled."""


class Task(NamedTuple):
    """The result of an operation."""

    data: Any
    """``data`` of the response, or ``responseData`` of the task."""
    status: str | None = None
    """The id of the task. None if the operation was answered at once."""
    task_id: str | None = None
    information: tuple[str, ...] = ()
    """Messages of the target system."""


class TaskFailed(AnswerFailed):
    """A task ended unsuccessfully. Part of it may have been carried out; see *task*."""

    def __init__(self, task: Task) -> None:
        said = "; ".join(task.information)
        ValueError.__init__(self, f"the task {task.task_id!r} ended in {task.status}{f': {said}' if said else ''}")
        self.task = task


class TaskUnfinished(TimeoutError):
    """A task was not done in time and is still running. :func:`finished` waits for it by *task_id*."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id!r} was not done by the deadline and is still running")
        self.task_id = task_id


async def task(
    session: aiohttp.ClientSession, method: str, url: str | URL, *, deadline: float = _DEADLINE, **request: Any
) -> Task:
    """Carry out an operation that may be asynchronous, wait until it is done, and return the result.

    A span ``lamella maesn task`` encloses all calls. An operation that is answered at once takes one call.

    Args:
        session: One made by :func:`lamella.maesn.session`, or with its layers and the same base URL.
        method: For example ``"POST"``.
        url: For example ``"accounting/expenses/async"``.
        deadline: Maximum time in seconds for the whole operation, waits included. Inside :func:`lamella.deadline` the
            earlier end applies.
        request: Further arguments of ``session.request``.

    Raises:
        TaskFailed: The task ended unsuccessfully.
        TaskUnfinished: The task was not done in time.
        lamella.LamellaError: A call failed.
    """
    with scope.deadline(deadline), _operation(session) as note:
        async with session.request(method, url, **request) as response:
            await _raise_for_status(response)
            answer = await response.json()
            if response.status != HTTPStatus.ACCEPTED:
                return Task(at(answer, "data"))
            task_id = _id_in(answer)
        return await _result(session, task_id, _kept(request.get("params")), note)


async def finished(
    session: aiohttp.ClientSession, task_id: str, *, company_id: str | None = None, deadline: float = _DEADLINE
) -> Task:
    """Wait until a task is done and return its result. Arguments and errors are those of :func:`task`."""
    query = {} if company_id is None else {"companyId": company_id}
    with scope.deadline(deadline), _operation(session) as note:
        return await _result(session, task_id, query, note)


async def _result(session: aiohttp.ClientSession, task_id: str, query: Mapping[str, str], note: _Note) -> Task:
    async with _ended(session, task_id, query, note) as response:
        await _raise_for_status(response)
        return _task(response, task_id, await response.json())


@asynccontextmanager
async def fetch(
    session: aiohttp.ClientSession, url: URL, query: Mapping[str, str] | None
) -> AsyncIterator[tuple[aiohttp.ClientResponse, str | None]]:
    """Request a page of a list, and wait for the task if the API answers with one.

    Waits between polls add up to 600 s at most, not counting time in the throttle's queue.
    """
    found, _ = at_path(url.path)
    if "GET" in found and not found["GET"].may_be_later:
        async with session.get(url, params=query) as response:
            yield response, None
        return
    with _operation(session) as note:
        async with session.get(url, params=query) as response:
            if response.status != HTTPStatus.ACCEPTED:
                yield response, None
                return
            task_id = _id_in(await response.json())
        async with _ended(session, task_id, _kept(query), note) as response:
            yield response, "data.responseData"


class _Note:
    """What the span of an operation records."""

    __slots__ = ("polls", "status")

    def __init__(self) -> None:
        self.polls = 0
        self.status: str | None = None


@contextmanager
def _operation(session: aiohttp.ClientSession) -> Iterator[_Note]:
    """Enclose the calls made inside in a span, if the session records spans."""
    note = _Note()
    spans = next((layer for layer in layers_in(middlewares_of(session)) if isinstance(layer, RequestSpan)), None)
    provider = None if spans is None else spans.shared.get("tracer_provider")
    if spans is None or not (provider is None or isinstance(provider, TracerProvider)):
        yield note
        return
    tracing = Tracing(provider)
    if tracing.silent:
        yield note
        return
    with tracing.around(TASK_SPAN) as span:
        try:
            yield note
        finally:
            span.set_attribute(TASK_POLLS, note.polls)
            if note.status is not None:
                span.set_attribute(TASK_STATUS, note.status)


@asynccontextmanager
async def _ended(
    session: aiohttp.ClientSession, task_id: str, query: Mapping[str, str], note: _Note
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Poll a task until it is done; yield the last response, with its body read unless its status is an error.

    Raises:
        TaskUnfinished: The next poll would come after the deadline or, without a deadline, after waits of 600 s.
    """
    # One path segment, so that an id cannot lead to another path.
    if not task_id.strip("."):
        raise ValueError(f"a task id must be a path segment, got {task_id!r}")
    url, wait = URL(f"accounting/asyncTask/{quote(task_id, safe='')}", encoded=True), _FIRST_WAIT
    waited = 0.0
    while True:
        async with session.get(url, params=query) as response:
            note.polls += 1
            if response.status >= ERROR_STATUS:
                yield response
                return
            found = _task(response, task_id, await response.json())
            note.status = found.status
            if found.status in _DONE:
                yield response
                return
            del found
        end = scope.inherited()
        left = _DEADLINE - waited if end is None else end - asyncio.get_running_loop().time()
        if left <= wait:
            raise TaskUnfinished(task_id)
        await anyio.sleep(wait)
        waited += wait
        wait = min(wait * _GROWTH, _LONGEST_WAIT)


def _task(response: aiohttp.ClientResponse, task_id: str, answer: object) -> Task:
    """Return the task that a response describes, or raise TaskFailed if it failed."""
    status, secrets = at(answer, "data.status"), secrets_of_answer(response)
    notes = at(answer, "data.information")
    notes = [note for note in notes if isinstance(note, dict)] if isinstance(notes, list) else []
    information = tuple(redact_text(str(note["message"]), secrets) for note in notes if note.get("message"))
    shown = redact_text(str(status), secrets) if status is not None else None
    found = Task(at(answer, "data.responseData"), shown, task_id, information)
    is_error = status in _DONE and any(str(note.get("type")).strip().lower() == "error" for note in notes)
    if status in _FAILED or is_error or error_messages(response, at(answer, "errors")) is not None:
        raise TaskFailed(found)
    return found


def _id_in(answer: object) -> str:
    found = at(answer, "data.taskId")
    if not isinstance(found, str | int) or not str(found).strip():
        raise ValueError("response with status 202 has no taskId")
    return str(found)


def _kept(query: object) -> dict[str, str]:
    return {name: str(query[name]) for name in _OF_LISTS if query.get(name)} if isinstance(query, Mapping) else {}


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status >= ERROR_STATUS:  # a session with raise_errors=False
        raise await api_error(response, RULES)
