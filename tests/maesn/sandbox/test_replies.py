from __future__ import annotations

import json
import math

import pytest

from lamella.maesn.sandbox import Reply
from lamella.maesn.sandbox.replies import failure, success


def test_success() -> None:
    pagination = {"total": 1, "perPage": 5, "currentPage": 1, "totalPages": 1}
    assert json.loads(success([1], meta={"warnings": [], "pagination": pagination}).encoded()) == {
        "meta": {"warnings": [], "pagination": pagination},
        "data": [1],
        "errors": None,
        "rawData": None,
    }


def test_failure() -> None:
    reply = failure(400, invalid=[("page", "is odd")], downstream=["no"])
    payload = json.loads(reply.encoded())
    message = payload["errors"].pop("message")
    assert message
    assert payload == {
        "meta": {"warnings": []},
        "data": None,
        "errors": {
            "code": "BAD_REQUEST",
            "validationErrors": [{"field": "page", "message": "is odd"}],
            "downstreamErrors": [{"code": "BAD_REQUEST", "message": "no"}],
        },
        "rawData": None,
    }


@pytest.mark.parametrize(("status", "code"), [(429, "TOO_MANY_REQUESTS"), (418, "IM_A_TEAPOT"), (599, "STATUS_599")])
def test_every_error_has_a_code_and_a_message(status: int, code: str) -> None:
    errors = json.loads(failure(status).encoded())["errors"]
    assert errors["code"] == code
    assert errors["message"]


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (Reply(body=b"\x00"), b"\x00"),
        (Reply(body="é"), "é".encode()),
        (Reply(body={"a": [1]}), b'{"a": [1]}'),
        (Reply(body=b""), b""),
        (Reply(204), b""),
        (Reply(), success(None).encoded()),
        (Reply(503), failure(503).encoded()),
    ],
    ids=repr,
)
def test_body(reply: Reply, body: bytes) -> None:
    assert reply.encoded() == body


@pytest.mark.parametrize("status", [100, 199, 600, 0])
def test_rejects_a_status(status: int) -> None:
    with pytest.raises(ValueError, match=f"status must be a whole number from 200 to 599, got {status}"):
        Reply(status)


@pytest.mark.parametrize("delay", [-1, math.inf, math.nan])
def test_rejects_a_delay(delay: float) -> None:
    with pytest.raises(ValueError, match="delay must be a finite number of seconds, 0 or more, got "):
        Reply(delay=delay)


@pytest.mark.parametrize("headers", [{"Retry-After": 5}, {"A": "b\r\nC: d"}, {"A\n": "b"}])
def test_rejects_a_header(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a header must be one line of text, got "):
        Reply(headers=headers)
