"""A page's JSON, read so that the text of each record stays as it was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

__all__ = ["decode"]

_SPACE = re.compile(r"[ \t\n\r]*")


def decode(text: str, decoder: json.JSONDecoder) -> tuple[Any, list[str]]:
    """Return the value of *text* as *decoder* reads it, and the text of each item of its list ``data``.

    Raises:
        ValueError: It is not JSON.
    """
    members: dict[str, Any] = {}
    texts: list[str] = []

    def read_item(at: int) -> int:
        value, end = decoder.raw_decode(text, at)
        members["data"].append(value)
        texts.append(text[at:end])
        return end

    def read_member(at: int) -> int:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting a name in double quotes", text, at)
        name, end = decoder.raw_decode(text, at)
        at = _skip(text, end)
        if not text.startswith(":", at):
            raise json.JSONDecodeError("Expecting ':'", text, at)
        at = _skip(text, at + 1)
        if name == "data":
            texts.clear()  # of several members with the same name the last one counts, as for json.loads
            if text.startswith("[", at):
                members[name] = []
                return _read_each(text, at + 1, "]", read_item)
        members[name], end = decoder.raw_decode(text, at)
        return end

    at = _skip(text, 0)
    if not text.startswith("{", at):
        return decoder.decode(text), texts
    end = _skip(text, _read_each(text, at + 1, "}", read_member))
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return members, texts


def _read_each(text: str, at: int, close: str, read: Callable[[int], int]) -> int:
    """Call *read* with the position of each element up to *close*; return the position after that."""
    at = _skip(text, at)
    if text.startswith(close, at):
        return at + 1
    while True:
        at = _skip(text, read(at))
        if text.startswith(close, at):
            return at + 1
        if not text.startswith(",", at):
            raise json.JSONDecodeError(f"Expecting ',' or {close!r}", text, at)
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    """Return the position of the next token."""
    space = _SPACE.match(text, at)
    return space.end() if space else at
