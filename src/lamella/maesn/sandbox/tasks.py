"""Simulate asynchronous operations: a 202 with the id of a task, which the client polls until it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from lamella.maesn.sandbox.choices import TASK_POLLS
from lamella.maesn.sandbox.replies import Reply, failure, success


@dataclass(slots=True)
class _Task:
    account: str
    result: Callable[[Mapping[str, str]], Reply]
    """Returns the response that a synchronous operation would have sent, given the query of the poll."""
    polls: int = 0


class Tasks:
    """The tasks of a sandbox."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}

    def begin(self, account: str, result: Callable[[Mapping[str, str]], Reply]) -> Reply:
        """Begin a task and return the response with its id."""
        task_id = f"task-{len(self._tasks) + 1}"
        self._tasks[task_id] = _Task(account, result)
        return success({"taskId": task_id}, status=HTTPStatus.ACCEPTED)

    def answer(self, account: str, task_id: str, query: Mapping[str, str]) -> Reply:
        """Return the state of a task."""
        task = self._tasks.get(task_id)
        if task is None or task.account != account:
            return failure(HTTPStatus.NOT_FOUND, f"Task {task_id!r} does not exist.")
        task.polls += 1
        if task.polls <= TASK_POLLS:
            return success(_state("IN_PROGRESS", [], None))
        reply = task.result(query)
        if reply.status >= HTTPStatus.BAD_REQUEST:
            return reply
        body: dict[str, Any] = reply.body
        note = {"filename": None, "message": "The task is done.", "timestamp": None, "type": "information"}
        return success(_state("FINISHED", [note], body["data"]), meta=body["meta"])


def _state(status: str, information: list[dict[str, str | None]], data: object) -> dict[str, object]:
    return {"status": status, "information": information, "responseData": data}
