"""How many attempts the earlier hops of a redirect took: aiohttp makes a new request of each, and so a new call."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import Final

import aiohttp
from yarl import URL

from lamella._aiohttp import same_call
from lamella.call import Call, PerCall

__all__ = ["earlier_hops", "is_redirect", "note_earlier_hops", "note_redirect"]

# For the next hop: where the redirect leads, how many attempts were made, and a list that all requests of a call share.
_redirected: ContextVar[tuple[str, int, object] | None] = ContextVar("lamella_redirected", default=None)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_EARLIER: Final = PerCall[int](lambda: 0)


def is_redirect(response: aiohttp.ClientResponse) -> bool:
    """Return whether aiohttp follows *response*, unless the caller has told it not to, and drops its body."""
    if response.status not in _REDIRECTS:
        return False
    return (response.headers.get("Location") or response.headers.get("URI")) is not None


def note_redirect(call: Call, response: aiohttp.ClientResponse) -> None:
    """Remember how many attempts were made, for the hop that *response* may lead to."""
    if is_redirect(response) and (target := response.headers.get("Location")):
        with suppress(ValueError):
            url = response.url.join(URL(target)).with_fragment(None)
            _redirected.set((str(url), call.attempts, same_call(call.request)))


def note_earlier_hops(call: Call) -> None:
    """Count the attempts of earlier hops as attempts of *call*, before it makes its first one."""
    redirected = _redirected.get()
    if redirected is None:
        return
    _redirected.set(None)
    target, attempts, shared = redirected
    if target == str(call.request.url) and shared is same_call(call.request):
        call.attempts = attempts
        _EARLIER.set(call, attempts)


def earlier_hops(call: Call) -> int:
    """Return how many of the attempts of *call* were made by earlier hops."""
    return _EARLIER.of(call)
