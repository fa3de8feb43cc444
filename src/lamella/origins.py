"""Where a request goes: scheme, host and port."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

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
    """Return the origin that *value* states, such as ``https://api.example.com``.

    Raises:
        ValueError: It is no http or https URL with a host.
    """
    try:
        url = URL(value)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.raw_host:
        raise ValueError(f"an origin must be an http or https URL with a host, got {str(value)!r}")
    return origin_of(url)
