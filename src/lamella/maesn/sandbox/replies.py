"""The answers of the sandbox, in the API's envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from lamella.checks import check_seconds, check_whole

BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})

_MESSAGES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "The request has parameters that cannot be accepted.",
    HTTPStatus.UNAUTHORIZED: "The account key is missing, unknown or expired.",
    HTTPStatus.FORBIDDEN: "The API key is missing or unknown, or this user may not do that.",
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests for this account.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Internal error.",
    HTTPStatus.BAD_GATEWAY: "The target system gave no usable answer.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service is not available at the moment.",
    HTTPStatus.GATEWAY_TIMEOUT: "The target system took too long to answer.",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `body`: bytes or text as they are, anything else as JSON; None is the body that the API itself
    would send with this status. `delay`: seconds by the loop's clock before the first byte of the answer.

    Raises ValueError for a status outside 200 to 599, a delay below 0, or a header that is not one line of text.
    """

    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        check_whole("status", self.status, 200, 599)
        check_seconds("delay", self.delay, zero=True)
        for text in (*self.headers, *self.headers.values()):
            line: object = text
            if not isinstance(line, str) or "\r" in line or "\n" in line:
                raise ValueError(f"a header must be one line of text, got {line!r}")

    def encoded(self) -> bytes:
        """Return the bytes of the body."""
        match self.body:
            case bytes():
                return self.body
            case str():
                return self.body.encode()
            case None if self.status in BODILESS:
                return b""
            case None if self.status >= 400:
                return failure(self.status).encoded()
            case None:
                return success(None).encoded()
            case _:
                return json.dumps(self.body).encode()


def success(
    data: object,
    *,
    status: int = HTTPStatus.OK,
    pagination: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return a success. `pagination` is for lists only."""
    meta: dict[str, Any] = {"warnings": []}
    if pagination is not None:
        meta["pagination"] = dict(pagination)
    return Reply(status, headers or {}, {"meta": meta, "data": data, "errors": None, "rawData": None})


def failure(
    status: int,
    message: str | None = None,
    *,
    invalid: Sequence[tuple[str, str]] = (),
    downstream: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return an error. `invalid`: (field, what is wrong); `downstream`: messages of the target system.

    `message` None: the usual sentence for the status.
    """
    errors: dict[str, Any] = {"code": _code(status), "message": message or _MESSAGES.get(status, _phrase(status))}
    if invalid:
        errors["validationErrors"] = [{"field": field, "message": text} for field, text in invalid]
    if downstream:
        errors["downstreamErrors"] = [{"code": _code(status), "message": text} for text in downstream]
    return Reply(status, headers or {}, {"meta": {"warnings": []}, "data": None, "errors": errors, "rawData": None})


_KNOWN = frozenset(map(int, HTTPStatus))


def _code(status: int) -> str:
    return HTTPStatus(status).name if status in _KNOWN else f"STATUS_{status}"


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in _KNOWN else f"Status {status}"
