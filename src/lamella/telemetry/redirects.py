"""Link the hops of a redirect, since aiohttp makes a new request, and so a new call, for each hop."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import Final, NamedTuple

import aiohttp
from yarl import URL

from lamella._aiohttp import same_call
from lamella.call import Call, PerCall
from lamella.credentials import secrets_of
from lamella.origins import Origin, origin_of


class _Redirect(NamedTuple):
    """The data that the next hop needs."""

    target: str
    call: object
    """An object that all requests of a call share."""
    attempts: int
    """The number of attempts so far."""
    origin: Origin
    """The origin of the first request."""
    secrets: tuple[str, ...]
    """Possible secrets of the requests so far, which a server may have put into the target."""


REDIRECTED: Final[ContextVar[_Redirect | None]] = ContextVar("lamella_redirected", default=None)
"""The previous hop, for the next call in this context, which may be unrelated."""
_BEFORE: Final = PerCall[_Redirect](lambda: _Redirect("", None, 0, ("", None, None), ()))
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def is_redirect(response: aiohttp.ClientResponse) -> bool:
    """Return whether aiohttp by default follows *response* and drops its body."""
    return response.status in _REDIRECTS and _target_of(response) is not None


def _target_of(response: aiohttp.ClientResponse) -> str | None:
    return response.headers.get("Location") or response.headers.get("URI")


def note_redirect(call: Call, response: aiohttp.ClientResponse) -> None:
    """Remember the hops so far for the next hop that *response* may cause."""
    if is_redirect(response):
        target = ""
        with suppress(ValueError):
            target = str(response.url.join(URL(_target_of(response) or "")).with_fragment(None))
        first = first_origin(call) or origin_of(call.request.url)
        REDIRECTED.set(_Redirect(target, same_call(call.request), call.attempts, first, secrets_of(call)))


def _hop_before(call: Call) -> _Redirect | None:
    redirect = REDIRECTED.get()
    if redirect is None:
        return None
    shared = same_call(call.request)
    is_same = redirect.call is shared and (shared is not None or redirect.target == str(call.request.url))
    return redirect if is_same else None


def note_earlier_secrets(call: Call) -> None:
    """Add the secrets of earlier hops to *call*."""
    if (redirect := _hop_before(call)) is not None:
        call.secrets = tuple(dict.fromkeys((*call.secrets, *redirect.secrets)))


def note_earlier_hops(call: Call) -> None:
    """Add the attempts and secrets of earlier hops to *call* before its first attempt."""
    if (redirect := _hop_before(call)) is not None:
        note_earlier_secrets(call)
        call.attempts = redirect.attempts
        _BEFORE.set(call, redirect)
    REDIRECTED.set(None)


def earlier_hops(call: Call) -> int:
    """Return how many attempts of *call* were made by earlier hops."""
    return 0 if (before := _BEFORE.get(call)) is None else before.attempts


def first_origin(call: Call) -> Origin | None:
    """Return the origin of the request before redirects; None if the request was not redirected."""
    return None if (before := _BEFORE.get(call)) is None else before.origin
