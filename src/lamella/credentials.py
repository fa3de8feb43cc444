"""Which credentials a call carries, so that no text about it shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import aiohttp

from lamella.call import Call, PerCall
from lamella.redaction import secrets_in

HIDDEN: Final = PerCall[frozenset[str]](frozenset)
"""Names of headers, in lower case, that an auth layer has set."""
REFUSED: Final = PerCall[bool](lambda: False)
"""Set by an auth layer whose credential the attempt was refused with, and that has another one for the next attempt."""
_NOTED: Final = "_lamella_secrets"
NOTES_ALL: Final[ContextVar[bool]] = ContextVar("lamella_notes_all_secrets", default=False)
"""Whether the secrets of a request are to be remembered for a good answer, too."""


def hide_headers(call: Call, names: frozenset[str]) -> None:
    """Show no value of the headers *names* (in lower case), neither of the request nor of its answer."""
    HIDDEN.set(call, HIDDEN.of(call) | names)


def hidden_headers(call: Call) -> frozenset[str]:
    """Return the names, in lower case, of the headers whose values are shown nowhere."""
    return HIDDEN.of(call)


def secrets_of(call: Call) -> tuple[str, ...]:
    """Return what may be a secret in the request of *call*, to be taken out of every text about it."""
    return secrets_in(call.request.url, call.request.headers, call.secrets)


@contextmanager
def noting_secrets() -> Iterator[None]:
    """Remember the secrets of the requests that are made inside for a good answer, too."""
    token = NOTES_ALL.set(True)
    try:
        yield
    finally:
        NOTES_ALL.reset(token)


def note_secrets(response: aiohttp.ClientResponse, secrets: tuple[str, ...]) -> None:
    """Remember *secrets* for an error that is made of *response*: the request no longer has them in its headers."""
    vars(response)[_NOTED] = secrets


def noted_secrets(response: aiohttp.ClientResponse) -> tuple[str, ...]:
    """Return what :func:`note_secrets` has remembered."""
    found: tuple[str, ...] = vars(response).get(_NOTED, ())
    return found
