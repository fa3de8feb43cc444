"""The origin of a request: scheme, host and port."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from yarl import URL

_HOST: Final = r"(localhost|[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,24}|\d+(\.\d+){3})(:\d+)?"

Origin = tuple[str, str | None, int | None]
"""Scheme, host and port."""


def origin_of(url: URL) -> Origin:
    """Return the origin of *url*."""
    return url.scheme, url.raw_host, url.port


@lru_cache(maxsize=1024)
def origin_text(origin: Origin) -> str:
    """Return *origin* as one text, such as ``https://api.example.com``."""
    scheme, host, port = origin
    return str(URL.build(scheme=scheme, host=host or "", port=port).origin())


def parsed_origin(value: str | URL, name: str = "origin") -> Origin:
    """Return the origin of *value*, or raise ValueError; *name* is the argument's name for the message."""
    try:
        url = URL(value)
    except (ValueError, TypeError):
        url = URL()
    if url.scheme not in {"http", "https"} or not url.raw_host:
        allowed = f"{name} must be an http or https URL with a host"
        if host := re.match(rf"{_HOST}(?=/|$)", str(value), re.IGNORECASE):
            # What follows the host may be a credential.
            raise ValueError(f"{allowed}, got {host[0]!r}: write 'https://{host[0]}'")
        # Without a host it may be anything, also a credential.
        shown = repr(str(url.with_user(None))) if url.raw_host else type(value).__name__
        raise ValueError(f"{allowed}, got {shown}: write 'https://api.example.com'")
    return origin_of(url)
