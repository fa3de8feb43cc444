"""``HeaderAuth``: credentials in headers, for one origin alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import aiohttp
from multidict import istr
from yarl import URL

from lamella.call import ORDER, Call, Layer, Origin, Send
from lamella.classification import needs_secrets, note_secrets
from lamella.deadlines import inherited, inherited_deadline

__all__ = ["HeaderAuth", "HeaderValue"]

HeaderValue = str | Callable[[], str | None] | Callable[[], Awaitable[str | None]]
"""A value, or a function that is asked for it before each send; from a function, None leaves the header out."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\r\n\0]")


class HeaderAuth(Layer):
    """Sets headers that hold a credential, on requests to one origin.

    It stands inside of ``Retry``, so that each send gets a fresh value. A request to any other scheme, host or
    port, as after a redirect, gets none of these headers and loses those that it has. When a send has ended they are
    taken off the request again, so that nothing that is said of it later shows them.

    Args:
        headers: The values by their names. A function, plain or async, is called for each attempt, in the context of
            that call: its answer is used for that attempt and no other, so it may depend on a context variable.
        origin: Where the credentials belong, as in ``"https://api.example.com"``. None means the origin of the
            first request that passes.

    Raises:
        ValueError: A name or a value cannot stand in a header, or *origin* is no origin. Values that functions
            return are checked when they are asked for.
    """

    rank = ORDER.index("HeaderAuth")

    def __init__(self, headers: Mapping[str, HeaderValue], *, origin: str | URL | None = None) -> None:
        for name, value in headers.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"not a header name: {name!r}")
            if isinstance(value, str):
                _check(name, value)
            elif not callable(value):
                raise ValueError(  # noqa: TRY004 - like every other bad value
                    f"the value of {name} must be a string or a function, not {type(value).__name__}"
                )
        self._values: Final = {istr(name): value for name, value in headers.items()}
        self._at_once = not any(_is_async(value) for value in self._values.values())
        """Whether nothing has to be awaited for a value, as far as is known."""
        self._asks = any(callable(value) for value in self._values.values())
        self._passed: str | None = None
        """What a function answered last: it need not be looked at again."""
        self._names = frozenset[str](self._values)
        self._origin = None if origin is None else _origin_of(origin)

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        if not self._at_once or (self._asks and inherited() is not None):
            return False
        if not self._is_ours(request, call):
            self._take_off(request)
            return True
        try:
            for name in self._values:
                if (answer := self._ask(request, call, name)) is not None:
                    # No async function, and yet something to be awaited.
                    self._at_once = False
                    call.asked = name, answer
                    return False
        except BaseException:
            self._take_off(request)
            raise
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        self._take_off(request)
        if needs_secrets(response):
            note_secrets(response, call.secrets)
        return True

    async def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        try:
            response = await send(request, call)
        except BaseException:
            self._take_off(request)
            raise
        self.end(request, call, response, 0.0)
        return response

    async def wait(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> aiohttp.ClientResponse:
        if not self._is_ours(request, call):
            self._take_off(request)
            return await send(request, call)
        try:
            # Other calls may wait for a task that a function starts: it must not inherit the deadline of this call.
            with inherited_deadline(inherited()):
                for name in self._values:
                    # No value is in a local of this frame: a traceback with the locals of its frames would show it.
                    if (answer := self._ask(request, call, name)) is not None:
                        _put(request, call, name, _checked(name, await answer))
        except BaseException:
            self._take_off(request)
            raise
        return await self.complete(request, call, send)

    def _take_off(self, request: aiohttp.ClientRequest) -> None:
        # aiohttp shows them to whoever looks at a request that was sent: in the repr of its own errors, say.
        for name in self._values:
            request.headers.popall(name, None)

    def _is_ours(self, request: aiohttp.ClientRequest, call: Call) -> bool:
        if self._names not in call.auth_headers:
            call.auth_headers += (self._names,)
        origin = call.origin(request.url)
        if self._origin is None:
            self._origin = origin
        return origin == self._origin

    def _ask(self, request: aiohttp.ClientRequest, call: Call, name: istr) -> Awaitable[str | None] | None:
        """Set a header whose value is there. Returns what is to be waited for where it is not."""
        value = self._values[name]
        if isinstance(value, str):
            _put(request, call, name, value)
            return None
        if call.asked is not None and call.asked[0] is name:
            (_, asked), call.asked = call.asked, None
            return asked
        answer = value()
        if not isinstance(answer, str):
            if inspect.isawaitable(answer):
                return answer
            answer = _checked(name, answer)
        elif answer is not self._passed:
            self._passed = _check(name, answer)
        _put(request, call, name, answer)
        return None

    def __repr__(self) -> str:
        return f"HeaderAuth({', '.join(self._values)})"


def _put(request: aiohttp.ClientRequest, call: Call, name: istr, credential: str | None) -> None:
    if credential is None:
        request.headers.popall(name, None)
        return
    request.headers[name] = credential
    if credential not in call.secrets:
        call.secrets += (credential,)


def _origin_of(value: str | URL) -> Origin:
    try:
        url = URL(value)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.raw_host:
        shown = url.with_user(None) if url.raw_host else type(value).__name__
        raise ValueError(f"origin must be an http or https URL with a host, not {str(shown)!r}")
    return url.scheme, url.raw_host, url.port


def _checked(name: str, answer: object) -> str | None:
    return None if answer is None else _check(name, answer)


def _check(name: str, value: object) -> str:
    # The messages name the header and never the value: it is a secret, or nearly one.
    if not isinstance(value, str):
        raise ValueError(f"the value of {name} must be a string, not {type(value).__name__}")  # noqa: TRY004
    if not value.strip():
        raise ValueError(f"the value of {name} is empty")
    if not value.isprintable() and (bad := _BAD_VALUE.search(value)):
        raise ValueError(f"the value of {name} contains {bad.group()!r}, which no header may")
    return value


def _is_async(value: HeaderValue) -> bool:
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(getattr(value, "__call__", None))  # noqa: B004
