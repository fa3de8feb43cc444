"""Where a request goes: scheme, host and port."""

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


def parsed_origin(value: str | URL) -> Origin:
    """Return the origin that *value* is.

    Raises:
        ValueError: It is no http or https URL with a host.
    """
    try:
        url = URL(value)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.raw_host:
        text = str(value)
        if re.fullmatch(_HOST, text, re.IGNORECASE):
            raise ValueError(f"origin must be an http or https URL with a host, got {text!r}: write 'https://{text}'")
        # Without a host it may be anything, also a credential.
        shown = repr(str(url.with_user(None))) if url.raw_host else type(value).__name__
        raise ValueError(
            f"origin must be an http or https URL with a host, got {shown}: write 'https://api.example.com'"
        )
    return origin_of(url)
