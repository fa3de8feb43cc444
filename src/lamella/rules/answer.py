"""The response as a rule sees it, and the request for its body."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from lamella.error_body import code_in


class BodyNeeded(BaseException):
    """A rule needs a body that is not read yet. (A BaseException, so that ``except Exception`` in a rule does not catch
    it.)"""


class Answer:
    """A response, as ``Rule(when=…)`` and ``RuleBook(retry_after=…)`` see it.

    lamella reads the body only if a rule uses `text`, `json` or `error_code`. Create an Answer to test a rule:
    ``Answer(403, {"Retry-After": "5"})``.

    Args:
        status: The status of the response.
        headers: Its headers. Names are case-insensitive.
        method: The method of the request.
        url: The URL of the request.
        body: The body as far as read. None means not read yet, so access raises `BodyNeeded`.
    """

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        method: str = "GET",
        url: str = "",
        body: bytes | None = b"",
    ) -> None:
        self.status: Final = status
        self.headers: Final = headers if hasattr(headers, "getall") else _Headers(headers)
        self.method: Final = method
        self.url: Final = url
        self.body_needed: bool = False
        """Whether a rule needed the body before it was read."""
        self._body = body

    @cached_property
    def text(self) -> str:
        """The body as text, by the charset of ``Content-Type`` or UTF-8. Undecodable bytes become U+FFFD."""
        body = self._body
        if body is None:
            self.body_needed = True
            raise BodyNeeded
        _, _, charset = self.headers.get("Content-Type", "").lower().partition("charset=")
        try:
            return body.decode(charset.partition(";")[0].strip(" \"'") or "utf-8", "replace")
        except (LookupError, ValueError):
            return body.decode("utf-8", "replace")

    @cached_property
    def json(self) -> Any:
        """The body as JSON, or None if it is not JSON."""
        text = self.text.removeprefix("\ufeff")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None

    @property
    def error_code(self) -> str | None:
        """The code of the error in a JSON body, such as ``lock_timeout`` in ``{"error": {"code": "lock_timeout"}}``.

        Searches the same places as :attr:`lamella.ApiError.error_code`: ``error``, the first of ``errors`` and the body
        itself. A number equal to the status is ignored.
        """
        return code_in(self.json, self.status)

    def __repr__(self) -> str:
        return f"<Answer {self.status} to {self.method}>"


class _Headers(Mapping[str, str]):
    """Headers with case-insensitive names, like aiohttp's."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._values = {name.lower(): value for name, value in headers.items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
