"""What may be shown of a request: nothing here lets a credential through."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from multidict import CIMultiDict
from yarl import URL

__all__ = ["REDACTED", "redact_headers", "redact_text", "redact_url", "secrets_in"]

REDACTED = "REDACTED"
"""What stands in place of a secret, by the OpenTelemetry conventions for ``url.full``."""

_LONGEST_TEXT = 300
# Anything shorter is no secret, and would be found in every second word.
_SHORTEST_SECRET = 4

# Names of query parameters whose values are shown to nobody.
_SECRET_NAME = re.compile(
    r"key|token|secret|passw|pwd|signature|^sig$|credential|auth|session|jwt|^code$|^state$|otp|^pin$",
    re.IGNORECASE,
)
# Headers whose values are worth showing and never a secret. Everything else keeps its name only.
_PUBLIC_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "age",
        "allow",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "etag",
        "expires",
        "host",
        "last-modified",
        "retry-after",
        "server",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "vary",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "x-request-id",
    }
)


def redact_url(url: URL, secrets: Iterable[str] = ()) -> str:
    """*url* without user, password and fragment, and with the values of telling query keys replaced."""
    shown = url.with_fragment(None) if url.raw_fragment else url
    if url.raw_user is not None or url.raw_password is not None:
        shown = shown.with_user(None)
    if url.raw_query_string:
        shown = shown.with_query(
            [(name, REDACTED if _SECRET_NAME.search(name) else value) for name, value in url.query.items()]
        )
    return _without(str(shown), secrets)


def redact_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The same names; the values only where they are known to be harmless."""
    return CIMultiDict(
        (name, value if name.lower() in _PUBLIC_HEADERS else REDACTED) for name, value in headers.items()
    )


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Somebody else's *text*, fit for one line of ours: no secrets, no control characters, not too long."""
    text = _without(text, secrets)
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def secrets_in(url: URL, headers: Mapping[str, str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """Whatever in a request may be a secret, so that it can be taken out of what a server says of it.

    That is what is *known* to be one, and the values of telling headers and query keys.
    """
    values = [*known, *(value for name, value in url.query.items() if _SECRET_NAME.search(name))]
    values += [value for name, value in headers.items() if _SECRET_NAME.search(name) or name.lower() == "cookie"]
    # "Bearer abc", "a=b; c=d" and Basic's base64: each part is a secret of its own.
    parts = {part for value in values for part in (value, *_SEPARATORS.split(value), *_decoded(value))}
    # The longest first: what is left of it is no use to anybody.
    return tuple(sorted((part for part in parts if len(part) >= _SHORTEST_SECRET), key=len, reverse=True))


_SEPARATORS = re.compile(r"[\s;,=]+")


def _decoded(value: str) -> Iterable[str]:
    scheme, _, rest = value.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        pair = b64decode(rest, validate=True).decode("utf-8", "replace")
    except ValueError:
        return ()
    return (pair, pair.partition(":")[2])


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            # As it is, and as it is written in a URL.
            text = text.replace(secret, REDACTED).replace(quote(secret, safe=""), REDACTED)
    return text
