"""``Token``: a credential that may expire."""

from __future__ import annotations

from math import inf, isfinite
from typing import Final

from lamella.auth.values import fault_of

_UNDER_WAY: Final = 5.0
"""Seconds before expiry after which a token is no longer sent, since it could expire in transit."""


class Token:
    """A credential that may expire; the result of the *fetch* of :class:`Tokens`.

    Args:
        value: The complete value of the header, such as ``"Bearer abc"``. It appears in no repr or message.
        expires_in: Seconds from now until it expires. With 0 or less, only the calls already waiting for it get it.
            None, the default, means that it is used until the server rejects it.

    Raises:
        ValueError: *value* is not allowed in a header, or *expires_in* is not a finite number.
    """

    __slots__ = ("expires_in", "value")

    def __init__(self, value: str, expires_in: float | None = None) -> None:
        self.value: Final[str] = value
        self.expires_in: Final[float | None] = expires_in
        fault = fault_of(value)
        del value  # a traceback would show it
        if fault is not None:
            raise ValueError(f"the value of a token {fault}")
        number = isinstance(expires_in, int | float) and not isinstance(expires_in, bool)
        if expires_in is not None and not (number and isfinite(expires_in)):
            raise ValueError(f"expires_in must be a finite number of seconds or None, got {expires_in!r}")

    def __repr__(self) -> str:
        return f"Token(expires_in={self.expires_in})"


class Held:
    """A token with its times, by the loop's clock."""

    __slots__ = ("expires", "fetched", "fresh_until", "value")

    def __init__(self, token: Token, now: float, leeway: float) -> None:
        lasts = inf if token.expires_in is None else max(token.expires_in, 0.0)
        self.value: Final[str] = token.value
        self.fetched: Final[float] = now
        self.expires: Final[float] = now + lasts - min(_UNDER_WAY, lasts / 10, leeway)
        """When it is no longer sent."""
        self.fresh_until: Final[float] = now + lasts - max(min(leeway, lasts / 2), min(_UNDER_WAY, lasts / 10, leeway))
        """When it should be renewed."""
