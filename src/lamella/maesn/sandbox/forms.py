"""Read the body of a request: a JSON object, or a multipart form with the record in one of its fields."""

from __future__ import annotations

import json
import re
from email.parser import BytesParser
from email.policy import HTTP
from http import HTTPStatus
from typing import Any, Final

from lamella.maesn.published.operations import Operation
from lamella.maesn.sandbox.replies import Reply, failure

_INDEX: Final = re.compile(r"\[\d*\]$")
"""Some clients number the fields of a list: ``files[0]`` or ``files[]``."""


def fields_of_body(operation: Operation, body: bytes, content_type: str) -> dict[str, Any] | Reply:
    """Return the fields of a body, or an error response if the operation does not accept the body."""
    if operation.body == "form":
        return _of_form(operation, body, content_type)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return _invalid("body", "must be JSON")
    return fields if isinstance(fields, dict) else _invalid("body", "must be a JSON object")


def _of_form(operation: Operation, body: bytes, content_type: str) -> dict[str, Any] | Reply:
    if not content_type.lower().startswith("multipart/form-data"):
        return _invalid("body", "must be multipart/form-data")
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    record: Any = {}
    others: dict[str, Any] = {}
    files: list[str] = []
    for part in message.iter_parts() if message.is_multipart() else ():
        name = _INDEX.sub("", str(part.get_param("name", "", "content-disposition")))
        content = part.get_payload(decode=True)
        if name == operation.files:
            files.append(part.get_filename() or "file")
        elif name == operation.field:
            try:
                record = json.loads(content)  # type: ignore[arg-type]  # a part that is no multipart itself is bytes
            except (ValueError, RecursionError):
                return _invalid(name, "must be JSON")
        else:
            others[name] = content.decode(errors="replace") if isinstance(content, bytes) else ""
    if not isinstance(record, dict):
        return _invalid(operation.field, "must be a JSON object")
    if operation.files == "file":
        return {**others, "fileName": files[0] if files else None}
    return {**others, **record, "files": files}


def _invalid(field: str, reason: str) -> Reply:
    return failure(HTTPStatus.BAD_REQUEST, invalid=[(field, reason)])
