"""``HeaderAuth``: credentials in headers, for one origin."""

from lamella.auth.header_auth import HeaderAuth, HeaderValue

__all__ = ["HeaderAuth", "HeaderValue"]
