"""Operations that do not concern records: authentication, the integrator's settings, webhooks, health."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote

from lamella.maesn.published.operations import Operation
from lamella.maesn.published.systems import NAMES
from lamella.maesn.sandbox.records import Table
from lamella.maesn.sandbox.replies import Reply, failure, success
from lamella.maesn.sandbox.requests import Received


class _Api(Protocol):
    def new_account(self) -> str: ...
    def table(self, account: str, name: str, kind: str = "") -> Table: ...


def answer_elsewhere(api: _Api, operation: Operation, values: tuple[str, ...], received: Received) -> Reply:
    """Return the response to a request outside ``/accounting/``."""
    if operation.path in {"auth/{targetSystem}", "auth/accounts/{targetSystem}", "auth/callback/{targetSystem}"}:
        [system] = values
        if system not in NAMES:
            return failure(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Target system {system!r} does not exist.", headers={"Allow": ""}
            )
        if operation.data == "html":
            url = f"https://login.example/{quote(system)}/authorize"
            return Reply(operation.status, {"Content-Type": "text/html; charset=utf-8"}, url)
        if operation.data == "accountKey":
            return Reply(operation.status, {}, {"accountKey": api.new_account()})
    if operation.path.startswith("webhooks"):
        return _webhooks(api, operation, values, received)
    if operation.many:
        return success(api.table(received.account or "", operation.path, operation.data).all()[:2], meta=None)
    if operation.data == "userInfo":
        return success(api.table(received.account or "", "user", "userInfo").create({"name": "Made up"}))
    return _plain(operation)


def _webhooks(api: _Api, operation: Operation, values: tuple[str, ...], received: Received) -> Reply:
    owner = received.account if operation.needs_account else None
    table = api.table(owner or "", f"webhooks of {owner or 'the integrator'}", "webhook")
    if operation.method == "GET":
        return success(table.all()[table.seeded :], meta=None)
    if operation.method == "DELETE":
        deleted = table.delete(values[0])
        return _plain(operation) if deleted else failure(HTTPStatus.NOT_FOUND, f"Webhook {values[0]!r} does not exist.")
    try:
        fields = json.loads(received.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("callbackUrl"), str):
        return failure(HTTPStatus.BAD_REQUEST, invalid=[("callbackUrl", "must be a URL")])
    return success(table.create(fields), status=operation.status)


def _plain(operation: Operation) -> Reply:
    if operation.envelope:
        return success({}, status=operation.status)
    if operation.data == "text":
        return Reply(operation.status, {}, '"done"')
    made = {"any": {"status": "ok"}, "url": {"url": "https://login.example/"}}
    return Reply(operation.status, {}, made.get(operation.data, {operation.data: f"made-up-{operation.data}"}))
