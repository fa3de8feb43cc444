"""Find what an error answer says: messages, code and request ID, whatever its shape. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

ERROR_BYTES = 64 * 1024
"""How many bytes of its body an error keeps."""

_MOST_MESSAGES = 20
_DEEPEST = 6


class Said(NamedTuple):
    """What the body of an error says. Each part is empty or None if the body does not say it."""

    payload: Any = None
    """The body as JSON."""
    details: tuple[str, ...] = ()
    validation_errors: tuple[str, ...] = ()
    downstream_errors: tuple[str, ...] = ()


def parse(body: bytes) -> Said:
    """Return what *body* says, which may be anything."""
    try:
        payload = json_in(body)
    except (ValueError, RecursionError):
        return Said()
    if not isinstance(payload, _NESTED):
        return Said(payload)
    found = _Found([], [], [])
    # At the top a list is one of errors only if its items say so.
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
        RecursionError: It is nested too deep.
    """
    # To look for its encoding takes longer than to parse it. (UTF-16 and UTF-32 have a zero in the first four bytes.)
    if isinstance(body, bytes) and body.isascii() and b"\0" not in body[:4]:
        body = body.decode("ascii")
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        # A wrong charset spoils a letter or two, not the structure.
        assert isinstance(body, bytes)  # noqa: S101 - a text needs no decoding
        return json_in(body.decode("utf-8", "replace"))


# What the name of a field says about its value. "errors" and "message" are messages, or objects that hold some; among
# fields and what is wrong with them, "message" is a field. "field" is what the message is about.
_KINDS: Final = {
    **dict.fromkeys(("error", "errors", "message", "messages"), "errors"),
    **dict.fromkeys(("detail", "details", "title", "errormessage", "errordescription", "msg"), "message"),
    **dict.fromkeys(("code", "errorcode", "errornumber"), "code"),
    **dict.fromkeys(("field", "fieldname", "param", "parameter", "property", "propertyname", "target"), "field"),
}
_MESSAGES: Final = frozenset({"errors", "message"})
_OF_ERRORS: Final = frozenset({"errors", "validation", "downstream"})
# Made once: the call of isinstance would make a union of them each time.
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
    """Add each message in *value* to its group, whatever the shape; *group* is None outside of all errors.

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
    """Return *value* as a text. It is empty if *value* is none, or says nothing."""
    if isinstance(value, str):
        return value if value.strip() else ""
    return str(value) if isinstance(value, _NUMBER) and not isinstance(value, bool) else ""


_CODE_NAMES: Final = ("code", "error_code", "errorCode", "status", "reason", "type")


def code_in(payload: Any, status: int) -> str | None:
    """Return the API's own code for the error in a JSON body, such as ``lock_timeout``. None: it has none.

    It is looked for in ``error``, in the first of ``errors`` and in the body itself, under ``code``, ``error_code``,
    ``errorCode``, ``status``, ``reason`` and ``type``. A number that repeats *status* is none.
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
    """Return the server's name for the request, by the usual *headers* of an answer. None: it has none of them."""
    if not _names_one(tuple(headers)):
        return None
    found = [(rank, value) for name, value in headers.items() if (rank := _rank_of(name)) is not None and value]
    return min(found, key=itemgetter(0))[1] if found else None


# The answers of a server have the same few headers.
@lru_cache(maxsize=256)
def _names_one(names: tuple[str, ...]) -> bool:
    """Return whether one of the *names* of headers is that of a name for the request."""
    return any(_rank_of(name) is not None for name in names)


@lru_cache(maxsize=1024)
def _rank_of(name: str) -> int | None:
    """Return how well the header *name* names a request, 0 being the best. None: it does not."""
    lower = name.lower()
    if lower in _REQUEST_IDS:
        return _REQUEST_IDS.index(lower)
    if lower.endswith(("request-id", "requestid")):
        return len(_REQUEST_IDS)
    return len(_REQUEST_IDS) + 1 + _TRACE_IDS.index(lower) if lower in _TRACE_IDS else None
