"""Responses of the sandbox in the API's envelope."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from lamella.checks import check_seconds, check_whole
from lamella.maesn.sandbox.choices import error_of
from lamella.maesn.sandbox.made import LONG_NUMBERS

BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True, slots=True)
class Reply:
    """One response. `body`: bytes or text as they are, anything else as JSON; None is the body that the API itself
    would send with this status. `delay`: seconds by the loop's clock before the first byte.

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
                return _encoded(self.body)


def success(
    data: object,
    *,
    status: int = HTTPStatus.OK,
    meta: Mapping[str, Any] | None = MappingProxyType({"warnings": []}),
) -> Reply:
    """Return a success in the envelope."""
    envelope = {"meta": None if meta is None else dict(meta), "data": data, "errors": None, "rawData": None}
    return Reply(status, {}, envelope)


def failure(
    status: int,
    message: str | None = None,
    *,
    invalid: Sequence[tuple[str, str]] = (),
    downstream: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Return an error. `invalid`: pairs of field and problem; `downstream`: messages of the target system.

    `message` None: the usual sentence for the status.
    """
    errors = error_of(status, message, invalid, downstream)
    return Reply(status, headers or {}, {"meta": {"warnings": []}, "data": None, "errors": errors, "rawData": None})


def _encoded(body: object) -> bytes:
    text = json.dumps(body)
    for short, long in LONG_NUMBERS.items():
        text = text.replace(short, long)
    return text.encode()
