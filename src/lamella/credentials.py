"""Track the credentials of a call, so that no message shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import aiohttp

from lamella.call import Call, PerCall
from lamella.redaction import secrets_in

HIDDEN: Final = PerCall[frozenset[str]](frozenset)
"""Lower-case names of headers that an auth layer set."""
REFUSED: Final = PerCall[bool](lambda: False)
"""Set by an auth layer if its credential was rejected and it has a new one for the next attempt."""
_NOTED: Final = "_lamella_secrets"
NOTES_ALL: Final[ContextVar[bool]] = ContextVar("lamella_notes_all_secrets", default=False)
"""Whether to remember the secrets of a request for successful responses as well."""


def hide_headers(call: Call, names: frozenset[str]) -> None:
    """Hide the values of the headers *names* (lower case) of the request and its response."""
    HIDDEN.set(call, HIDDEN.of(call) | names)


def hidden_headers(call: Call) -> frozenset[str]:
    """Return the lower-case names of the headers whose values are never shown."""
    return HIDDEN.of(call)


def secrets_of(call: Call) -> tuple[str, ...]:
    """Return possible secrets in the request of *call*, to be removed from every message."""
    return secrets_in(call.request.url, call.request.headers, call.secrets)


@contextmanager
def noting_secrets() -> Iterator[None]:
    """Remember the secrets of requests made inside for successful responses as well."""
    token = NOTES_ALL.set(True)
    try:
        yield
    finally:
        NOTES_ALL.reset(token)


def note_secrets(response: aiohttp.ClientResponse, secrets: tuple[str, ...]) -> None:
    """Remember *secrets* for an error made from *response*: the request no longer has them in its headers."""
    vars(response)[_NOTED] = secrets


def noted_secrets(response: aiohttp.ClientResponse) -> tuple[str, ...]:
    """Return the secrets remembered by :func:`note_secrets`."""
    found: tuple[str, ...] = vars(response).get(_NOTED, ())
    return found
