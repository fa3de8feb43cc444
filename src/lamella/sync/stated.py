"""Find statements of failure in an answer with a successful status, such as ``{"data": [], "success": false}``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from lamella.classify.failures import ERROR_STATUS

_GOOD: Final = {"success", "succeeded", "successful", "issuccess", "issuccessful", "ok", "isok"}
"""Flags that are false in an answer that failed."""
_BAD: Final = {
    *("haserror", "haserrors", "iserror", "failed", "failure", "hasfailed", "timedout", "aborted"),
    *("partial", "ispartial", "partialresult", "partialresults", "partialsuccess", "partialfailure"),
    *("incomplete", "isincomplete", "incompleteresult", "incompleteresults"),
    *("errorcode", "errcode", "errorid", "errortype", "errormessage", "errormsg", "errmsg", "errordescription"),
    *("errormessages", "errorcount", "errorlist", "faultcode", "faultstring"),
}
"""Flags, codes and texts that only an answer that failed has."""
_CODE: Final = {"status", "code", "statuscode", "httpstatus", "httpcode"}
_RESULT: Final = _CODE | {"result", "outcome", "state", "type", "responsestatus", "resultstatus", "requeststatus"}
_FAULTS: Final = {"error", "errors", "fault", "faults", "exception", "exceptions"}
"""Texts, lists or objects that only an answer that failed has."""
_OF_SOURCE: Final = {"error", "errors"}
"""Spellings of them that :attr:`Source.errors` states."""
_END: Final = {"done", "isdone", "last", "islast", "lastpage", "islastpage", "complete", "iscomplete"}
"""Flags that are false if more records follow, as at Salesforce, Jira and Spring."""
_MORE: Final = {"hasmore", "hasnext", "hasnextpage", "hasmorepages", "morerecords", "truncated", "istruncated"}
"""Flags that say that more records follow."""
_TEXT: Final = {"message", "msg", "errormessage", "errormsg", "errmsg", "errordescription", "description", "reason"}

_BAD_WORDS: Final = {
    *("error", "errors", "failed", "failure", "fail", "partial", "partialsuccess", "incomplete"),
    *("timeout", "timedout", "unavailable", "denied", "exception", "fatal", "aborted"),
}
_NO: Final = {"", "false", "no", "n", "off", "0"}
_NOTHING: Final = {*_NO, "none", "null", "nil", "noerror", "noerrors", "ok", "success", "200"}
_STATUSES: Final = range(ERROR_STATUS, 600)


def failure_in(answer: Mapping[str, Any]) -> str | None:
    """Return the statement of failure in an object of an answer, or in its ``meta``, with its message. None: no such
    statement.

    A statement is a flag (``success``, ``ok``, ``error``, ``hasErrors``, ``partial``, ``incomplete``), an error code or
    message, or a ``status`` such as ``"error"`` or 500. The case of names and ``_`` in them do not matter.
    """
    for scope in _scopes(answer):
        for name, value in scope.items():
            is_fault = _plain(name) in _FAULTS and name not in _OF_SOURCE
            if _has_content(value) if is_fault else _fails(_plain(name), value):
                return "; ".join([f"{name} is {_short(value)}", *messages_of(scope)])
    return None


def says_more(answer: object) -> str | None:
    """Return the name of a flag that says that more records follow: ``has_more``, or ``isLast`` that is false. None:
    there is none."""
    if not isinstance(answer, Mapping):
        return None
    scopes = [found for scope in _scopes(answer) for found in (scope, scope.get("pagination"), scope.get("paging"))]
    flags = ((name, value) for scope in scopes if isinstance(scope, Mapping) for name, value in scope.items())
    return next((name for name, value in flags if _follows(_plain(name), value)), None)


def _follows(name: str, value: object) -> bool:
    is_false = value is False or (isinstance(value, str) and _plain(value) in {"false", "no"})
    return is_false if name in _END else name in _MORE and _is_set(value)


def messages_of(answer: object) -> list[str]:
    """Return the messages in an object."""
    found = answer.items() if isinstance(answer, Mapping) else ()
    return [value for name, value in found if isinstance(value, str) and value.strip() and _plain(name) in _TEXT]


def _scopes(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield answer
    for name in ("meta", "metadata", "status"):
        if isinstance(found := answer.get(name), Mapping):
            yield found


def _fails(name: str, value: object) -> bool:
    word = _plain(value) if isinstance(value, str) else None
    if name in _GOOD:
        return word in _NO | _BAD_WORDS - {""} if word else value is False or (_is_number(value) and value == 0)
    if name in _RESULT:
        return word in _BAD_WORDS or (name in _CODE and _is_error_status(value))
    return name in _BAD and _is_set(value)


def _is_set(value: object) -> bool:
    """Return whether a flag, a code or a text states something. An object is for :attr:`Source.errors`."""
    if isinstance(value, str):
        word = _plain(value)
        return word not in _NOTHING and bool(word.strip("0"))
    return bool(value) and not isinstance(value, Mapping) and value != 200


def _has_content(value: object) -> bool:
    return _is_set(value) or (isinstance(value, Mapping) and any(map(_has_content, value.values())))


def _is_error_status(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdigit() and len(value) == len("500") and int(value) in _STATUSES
    return _is_number(value) and value in _STATUSES


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _plain(text: str) -> str:
    return text.strip().casefold().translate({ord(char): None for char in "_- "})


def _short(value: object) -> str:
    return json.dumps(value, default=str)[:200]
