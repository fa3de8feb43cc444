"""Names of query parameters and headers whose values are credentials."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# Names of query parameters and headers whose values are not shown.
_SECRET_NAME = re.compile(
    r"key|token|secret|passw|passphrase|^pass$|pwd|signature|^sig$|credential|auth|session|jwt|^code$|^state$|otp|^pin$",
    re.IGNORECASE,
)
_COUNTED = re.compile("rate-?limit.*tokens", re.IGNORECASE)
PUBLIC_HEADERS: Final = frozenset(
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
"""Request headers whose values are useful and never secret. For all others only the name is shown."""


@lru_cache(maxsize=1024)
def tells(name: str) -> bool:
    """Return whether the value of a header or query key with this name is sensitive."""
    return _SECRET_NAME.search(name) is not None


@lru_cache(maxsize=1024)
def one_tells(names: tuple[str, ...]) -> bool:
    """Return whether the value of one of the query keys *names* is sensitive."""
    return any(map(tells, names))


# The requests of a session have the same few headers.
@lru_cache(maxsize=256)
def telling_headers(names: tuple[str, ...]) -> frozenset[str]:
    """Return those of the *names* of headers whose values are not shown."""
    return frozenset(name for name in names if tells_header(name))


@lru_cache(maxsize=1024)
def tells_header(name: str) -> bool:
    """Return whether the value of a header of a request is sensitive."""
    return tells(name) or name.lower() in {"cookie", "set-cookie", "set-cookie2"}


@lru_cache(maxsize=1024)
def tells_of_answer(name: str) -> bool:
    """Return whether the value of a header of a response is sensitive: unlike ``X-RateLimit-Remaining-Tokens``."""
    return tells_header(name) and not _COUNTED.search(name)
