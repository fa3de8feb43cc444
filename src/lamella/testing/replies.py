"""The answers of the sandbox, in the API's envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

__all__ = ("BODILESS", "Reply", "failure", "success")

BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_LOWEST_STATUS, _HIGHEST_STATUS = 200, 599
_LOWEST_ERROR = 400

_MESSAGES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "The request has parameters that cannot be accepted.",
    HTTPStatus.UNAUTHORIZED: "The account key is missing, unknown or expired.",
    HTTPStatus.FORBIDDEN: "The API key is missing or unknown, or this user may not do that.",
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests for this account.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong on our side.",
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
        if not _LOWEST_STATUS <= self.status <= _HIGHEST_STATUS:
            message = f"the status of a Reply must be {_LOWEST_STATUS} to {_HIGHEST_STATUS}, not {self.status!r}"
            raise ValueError(message)
        if not 0 <= self.delay < float("inf"):
            message = f"the delay of a Reply must be 0 or more seconds, not {self.delay!r}"
            raise ValueError(message)
        for name, value in self.headers.items():
            if not _is_line(name) or not _is_line(value):
                message = f"a header of a Reply must be one line of text, not {name!r}: {value!r}"
                raise ValueError(message)

    def encoded(self) -> bytes:
        """The bytes of the body."""
        match self.body:
            case bytes():
                return self.body
            case str():
                return self.body.encode()
            case None if self.status in BODILESS:
                return b""
            case None if self.status >= _LOWEST_ERROR:
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
    """What was asked for. `pagination` is for lists only."""
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
    """An error. `invalid`: (field, what is wrong with it); `downstream`: what the target system said.

    `message` None: the usual sentence for the status.
    """
    errors: dict[str, Any] = {
        "code": _code(status),
        "message": message or _MESSAGES.get(status, _phrase(status)),
    }
    if invalid:
        errors["validationErrors"] = [{"field": field, "message": text} for field, text in invalid]
    if downstream:
        errors["downstreamErrors"] = [{"code": _code(status), "message": text} for text in downstream]
    return Reply(status, headers or {}, {"meta": {"warnings": []}, "data": None, "errors": errors, "rawData": None})


_KNOWN = frozenset(map(int, HTTPStatus))


def _is_line(text: object) -> bool:
    return isinstance(text, str) and "\r" not in text and "\n" not in text


def _code(status: int) -> str:
    return HTTPStatus(status).name if status in _KNOWN else f"STATUS_{status}"


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in _KNOWN else f"Status {status}"
