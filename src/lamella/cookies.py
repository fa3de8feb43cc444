"""Store cookies of failed attempts. aiohttp stores a ``Set-Cookie`` only after all middlewares have returned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import aiohttp
from aiohttp import hdrs

from lamella.call import Call, PerCall

_HELD: Final = PerCall[Mapping[str, str]](dict)
"""The cookies that the session's jar held for the request when it was created or last sent."""
_SEGMENT: Final = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^;])+')
"""Matches one cookie of a ``Cookie`` header. A quoted value may contain a semicolon."""
_SHORTEST: Final = 8
"""Minimum length of a value that counts as a credential. Shorter ones are words, such as ``lang=en``."""


def keep_cookies(call: Call, response: aiohttp.ClientResponse) -> None:
    """Store the cookies of *response* in the session's jar, as aiohttp does for the final response.

    An exception of the jar propagates, as in aiohttp, and *response* is closed.
    """
    given = response.headers.getall(hdrs.SET_COOKIE, ())
    if not given:
        return
    _hide(call, (cookie.partition(";")[0] for cookie in given))
    jar = call.request.session.cookie_jar
    # Newer versions of aiohttp distinguish cookies of the same name with different paths.
    from_headers = getattr(jar, "update_cookies_from_headers", None)
    try:
        if from_headers is not None:
            from_headers(given, response.url)
        else:
            jar.update_cookies(response.cookies, response.url)
    except BaseException:
        response.close()
        raise


def note_held_cookies(call: Call) -> None:
    """Remember the jar's cookies when aiohttp made the request. All other cookies are the request's own."""
    _HELD.set(call, _held(call.request))


def renew_cookies(call: Call) -> None:
    """Update the jar's cookies in *request*, which is about to be sent again.

    The request's own cookies, from a header or from ``cookies=``, stay.
    """
    request = call.request
    before, now = _HELD.of(call), _held(request)
    if now == before:
        return
    _HELD.set(call, now)
    header = "; ".join(request.headers.getall(hdrs.COOKIE, ()))
    segments = [segment.strip() for segment in _SEGMENT.findall(header)]
    _hide(call, segments)
    sent = dict(now)
    for segment in segments:
        name, _, value = segment.partition("=")
        if before.get(name) != value:
            sent[name] = value
    if sent:
        # aiohttp sorts them as well.
        request.headers[hdrs.COOKIE] = "; ".join(f"{name}={value}" for name, value in sorted(sent.items()))
    else:
        request.headers.popall(hdrs.COOKIE, None)


def _held(request: aiohttp.ClientRequest) -> Mapping[str, str]:
    """Return the cookies that the session's jar now holds for *request*, as sent."""
    held = request.session.cookie_jar.filter_cookies(request.url)
    return {morsel.key: morsel.coded_value for morsel in held.values()} if held else {}


def _hide(call: Call, cookies: Iterable[str]) -> None:
    """Redact the values of *cookies*. A server may mention a cookie that it has replaced."""
    values = (cookie.partition("=")[2].strip().strip('"') for cookie in cookies)
    call.secrets += tuple({value for value in values if len(value) >= _SHORTEST}.difference(call.secrets))
