"""Find messages, code and request ID in an error response of any shape. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

ERROR_BYTES = 64 * 1024
"""Maximum size of the body that an error keeps, in bytes."""

_MOST_MESSAGES = 20
_DEEPEST = 6


class Said(NamedTuple):
    """The content of an error body. Missing parts are empty or None."""

    payload: Any = None
    """The body as JSON."""
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


def parse(body: bytes) -> Said:
    """Parse *body*, which may be anything."""
    try:
        payload = json_in(body)
    except (ValueError, RecursionError):
        return Said()
    if not isinstance(payload, _NESTED):
        return Said(payload)
    found = _Found([], [], [])
    # A top-level list is a list of errors only if its items look like errors.
    errors = (
        [item for item in payload if isinstance(item, dict) and "message" in item] if isinstance(payload, list) else []
    )
    if errors:
        _gather(found, errors, found.details)
    else:
        _gather(found, payload, None)
    return Said(payload, *map(tuple, found))


def json_in(body: bytes | str) -> Any:
    """Return *body* as JSON, in any of its encodings.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    # Detecting the encoding takes longer than parsing. (UTF-16 and UTF-32 have a zero in the first four bytes.)
    if isinstance(body, bytes) and body.isascii() and b"\0" not in body[:4]:
        body = body.decode("ascii")
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        # A wrong charset garbles a few letters, not the structure.
        assert isinstance(body, bytes)  # noqa: S101 - a text needs no decoding
        return json_in(body.decode("utf-8", "replace"))


# Roles of fields by name. "errors" and "message" hold messages, or objects that contain messages. In a mapping of field
# names to problems, "message" is a field name. "field" names the subject of the message.
_KINDS: Final = {
    **dict.fromkeys(("error", "errors", "message", "messages"), "errors"),
    **dict.fromkeys(("detail", "details", "title", "errormessage", "errordescription", "msg"), "message"),
    **dict.fromkeys(("code", "errorcode", "errornumber"), "code"),
    **dict.fromkeys(("field", "fieldname", "param", "parameter", "property", "propertyname", "target"), "field"),
}
_MESSAGES: Final = frozenset({"errors", "message"})
_OF_ERRORS: Final = frozenset({"errors", "validation", "downstream"})
# Made once, because isinstance would otherwise build the union on each call.
_NESTED = (list, dict)
_NUMBER = (int, float)


class _Found(NamedTuple):
    """The messages of each kind."""

    details: list[str]
    validation: list[str]
    downstream: list[str]


def _gather(
    found: _Found, value: Any, group: list[str] | None, label: str = "", depth: int = 0, *, fields: bool = True
) -> None:
    """Add each message in *value* to its group, whatever the shape; *group* is None outside errors.

    With *fields*, an object that has neither message nor code is one message for each of its fields.
    """
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for item in value:
            _gather(found, item, group, label, depth + 1, fields=fields)
    elif isinstance(value, dict):
        _gather_object(found, value, group, label, depth=depth, fields=fields)
    elif group is not None and (text := _text(value)):
        _add(group, label, text)


def _gather_object(
    found: _Found, value: dict[str, Any], group: list[str] | None, label: str, *, depth: int, fields: bool
) -> None:
    codes: list[str] = []
    about: list[str] = []
    said: list[str] = []
    texts = {"code": codes, "field": about, "message": said, "errors": said}
    kinds = {key: _kind(key) for key in value}
    for key, kind in kinds.items():
        if kind in texts and (text := _text(value[key])):
            texts[kind].append(text)
    is_error = group is None or codes or said or not _OF_ERRORS.isdisjoint(kinds.values())
    if is_error and group is not None:
        if codes or said:
            _add(group, label, ": ".join(about + codes + said))
        elif about:
            label = about[0]
    for key, kind in kinds.items():
        part = value[key]
        if kind == "validation":
            _gather(found, part, found.validation, "", depth + 1)
        elif kind == "downstream":
            _gather(found, part, found.downstream, "", depth + 1)
        elif group is None:
            if kind in _MESSAGES:
                _gather(found, part, found.details, label, depth + 1)
        elif not is_error:
            if fields:
                _gather(found, part, group, f"{label}: {key}" if label else key, depth + 1)
        elif kind in _MESSAGES and isinstance(part, _NESTED):
            _gather(found, part, group, label, depth + 1, fields=kind == "errors")


def _kind(key: str) -> str:
    name = key.lower().replace("_", "").replace("-", "")
    if name in _KINDS:
        return _KINDS[name]
    if "validationerror" in name:
        return "validation"
    if "downstream" in name or name.startswith("targetsystemerror"):
        return "downstream"
    return "message" if "message" in name else ""


def _add(group: list[str], label: str, text: str) -> None:
    message = f"{label}: {text}" if label else text
    if len(group) < _MOST_MESSAGES and message not in group:
        group.append(message)


def _text(value: object) -> str:
    """Return *value* as text; empty if it is not text or says nothing."""
    if isinstance(value, str):
        return value if value.strip() else ""
    return str(value) if isinstance(value, _NUMBER) and not isinstance(value, bool) else ""


_CODE_NAMES: Final = ("code", "error_code", "errorCode", "status", "reason", "type")


def code_in(payload: Any, status: int) -> str | None:
    """Return the API's own error code in a JSON body, such as ``lock_timeout``; None if there is none.

    Searches ``error``, the first of ``errors`` and the body itself for ``code``, ``error_code``, ``errorCode``,
    ``status``, ``reason`` and ``type``. A number equal to *status* is ignored.
    """
    body = {"errors": payload} if isinstance(payload, list) else payload
    if not isinstance(body, dict):
        return None
    errors = body.get("errors")
    part: Any
    for part in (body.get("error"), errors[0] if isinstance(errors, list) and errors else errors, body):
        if isinstance(part, str) and part:
            return part
        if isinstance(part, dict):
            for name in _CODE_NAMES:
                if (code := _text(part.get(name))) and code != str(status):
                    return code
    return None


_REQUEST_IDS: Final = (
    "x-request-id",
    "request-id",
    "x-amzn-requestid",
    "x-amz-request-id",
    "x-ms-request-id",
    "x-github-request-id",
    "x-correlation-id",
    "correlation-id",
)
_TRACE_IDS: Final = ("x-trace-id", "x-amzn-trace-id", "x-cloud-trace-context", "x-b3-traceid", "cf-ray", "x-amz-cf-id")


def request_id_in(headers: Mapping[str, str]) -> str | None:
    """Return the request ID from the usual response *headers*; None if there is none."""
    if not _names_one(tuple(headers)):
        return None
    found = [
        (rank, value)
        for name, value in headers.items()
        if (rank := _rank_of(name)) is not None and any(map(str.isprintable, value))
    ]
    return min(found, key=itemgetter(0))[1] if found else None


# The responses of a server share a few sets of header names.
@lru_cache(maxsize=256)
def _names_one(names: tuple[str, ...]) -> bool:
    """Return whether one of the header *names* is that of a request ID."""
    return any(_rank_of(name) is not None for name in names)


@lru_cache(maxsize=1024)
def _rank_of(name: str) -> int | None:
    """Return the rank of the header *name* as a request ID, 0 being the best; None if it is not one."""
    lower = name.lower()
    if lower in _REQUEST_IDS:
        return _REQUEST_IDS.index(lower)
    if lower.endswith(("request-id", "requestid")):
        return len(_REQUEST_IDS)
    return len(_REQUEST_IDS) + 1 + _TRACE_IDS.index(lower) if lower in _TRACE_IDS else None
