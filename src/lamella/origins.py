"""Where a request goes: scheme, host and port."""

from __future__ import annotations

from functools import lru_cache

from yarl import URL

__all__ = ["Origin", "origin_of", "origin_text"]

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
