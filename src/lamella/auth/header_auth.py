"""``HeaderAuth``: credentials in headers, for one origin only."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal

import aiohttp
from multidict import istr
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from yarl import URL

from lamella.auth.tokens import Tokens
from lamella.auth.values import check_value, checked, fault_of_name, takes_request
from lamella.call import Call, PerCall
from lamella.checks import check_whole
from lamella.credentials import HIDDEN, NOTES_ALL, REFUSED, hide_headers, note_secrets
from lamella.errors import ApiError
from lamella.origins import origin_of, parsed_origin
from lamella.pipeline import Layer, Result, Slot
from lamella.scope import NOTHING, SCOPE, inherited, inherited_deadline

HeaderValue = (
    str
    | Callable[[], str | None]
    | Callable[[], Awaitable[str | None]]
    | Callable[[aiohttp.ClientRequest], str | None]
    | Callable[[aiohttp.ClientRequest], Awaitable[str | None]]
    | Tokens
)
"""A value, or a function that returns one before each attempt; if it returns None, the header is omitted."""


class HeaderAuth(Layer):
    """Set headers that hold a credential, on requests to one origin.

    It belongs inside ``Retry``, so that each attempt gets a fresh value. A request to another scheme, host or port, for
    example after a redirect, gets none of these headers and loses any that it has. After an attempt the headers are
    removed from the request, so that no later message shows them.

    Args:
        headers: A mapping of names to values. A function, plain or async, is called for each attempt in the context of
            the call. Its result is used only for that attempt, so it may depend on a context variable. It gets the
            request if it has a parameter without a default.
        origin: The origin that gets the credentials, such as ``"https://api.example.com"``. None means the origin of
            the first request.
        existing: What to do if the request or ``ClientSession(headers=)`` already sets one of the headers: ``"raise"``,
            the default, raises ValueError before anything is sent; ``"keep"`` sends the existing value. A ``Cookie``
            header is always replaced, because the session's cookie jar writes one.
        refresh_on: Statuses with which the server rejects a token of :class:`lamella.Tokens`. The token is dropped, and
            the surrounding ``Retry`` sends the request once more with a new one. This includes writes, because a
            rejected request was not carried out. Default: 401.

    Raises:
        ValueError: *headers* is not a mapping, a name or a value is not allowed in a header, *origin* is not an origin,
            *existing* is unknown, or *refresh_on* contains a status outside 400 to 599. Return values of functions are
            checked at the call.
    """

    slot = Slot.AUTH

    def __init__(
        self,
        headers: Mapping[str, HeaderValue],
        *,
        origin: str | URL | None = None,
        existing: Literal["raise", "keep"] = "raise",
        refresh_on: Collection[int] = (401,),
    ) -> None:
        if isinstance(refresh_on, str | int):
            raise ValueError(  # noqa: TRY004 - like every other bad value
                f"refresh_on must be a collection of statuses, such as {{401}}, got {refresh_on!r}"
            )
        for status in refresh_on:
            check_whole("a status of refresh_on", status, 400, 599)
        if existing not in {"raise", "keep"}:
            raise ValueError(f"existing must be 'raise' or 'keep', got {existing!r}")
        if not isinstance(headers, Mapping):
            # Do not show the value, which may be a credential.
            raise ValueError(f"headers must be a mapping of names to values, got {type(headers).__name__}")  # noqa: TRY004
        for name, value in headers.items():
            if (fault := fault_of_name(name)) is not None:
                # Do not show this name, which may be a credential swapped with its name.
                raise ValueError(f"a name in headers {fault}: write {{name: value}}, such as {{'X-API-Key': key}}")
            if isinstance(value, str):
                check_value(name, value)
            elif not callable(value):
                raise ValueError(  # noqa: TRY004 - like every other bad value
                    f"the value of {name} must be a string or a function, got {type(value).__name__}"
                )
        self._names = tuple(istr(name) for name in headers)
        self._lowered = frozenset(name.lower() for name in self._names)
        self._guarded = tuple(name for name in self._names if name.lower() != "cookie")
        """Headers that must not be overwritten silently. Cookies are excluded: they come from the session's jar."""
        self._fixed = {istr(name): value for name, value in headers.items() if isinstance(value, str)}
        self._secrets = tuple(self._fixed.values())
        self._functions: dict[istr, tuple[Callable[..., object], bool]] = {
            istr(name): (value, takes_request(value)) for name, value in headers.items() if not isinstance(value, str)
        }
        self._passed: str | None = None
        """The last result of each function, so that the same value is not checked again."""
        self._origin = None if origin is None else parsed_origin(origin)
        self.shared: Mapping[str, object] = {"origin": self._origin}
        self._kept = PerCall[frozenset[istr]](frozenset) if existing == "keep" else None
        """Headers that the request already has and keeps. None: existing headers are an error."""
        tokens = [name for name, value in headers.items() if isinstance(value, Tokens)]
        self._refresh_on = frozenset(refresh_on if tokens else ())

    def inherit(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        """Pass the providers of the stack to tokens that have none of their own."""
        for value, _ in self._functions.values():
            if isinstance(value, Tokens):
                value.inherit(tracer_provider=tracer_provider, meter_provider=meter_provider)

    def before(self, call: Call) -> Awaitable[None] | None:
        if call.state.setdefault(HIDDEN, self._lowered) is not self._lowered:
            hide_headers(call, self._lowered)
        request = call.request
        url, headers, origin = request.url, request.headers, self._origin
        if origin is None:
            origin = self._origin = origin_of(url)
        if url.raw_host != origin[1] or url.port != origin[2] or url.scheme != origin[0]:
            if self._kept is not None:
                self._kept.take(call)
            self._take_off(call)
            call.secrets += self._secrets  # a redirect of its own origin may have put one into the URL
            return None
        for name in self._guarded:
            if name in headers:
                return self._add_to_existing(call)
        # No value is in a local, as in _wait_for_all. (update() takes five times as long.)
        for name in self._fixed:
            headers[name] = self._fixed[name]
        call.secrets = (*call.secrets, *self._secrets) if call.secrets else self._secrets
        return self._ask_all(call, self._functions) if self._functions else None

    def _add_to_existing(self, call: Call) -> Awaitable[None] | None:
        """Set the headers that the request does not have yet. Return an awaitable if that takes a wait.

        Raises:
            ValueError: The request has one of the headers, and *existing* is ``"raise"``.
        """
        kept = frozenset(name for name in self._guarded if name in call.request.headers)
        if self._kept is None:
            raise ValueError(
                f"the request already has {', '.join(sorted(kept))}, which HeaderAuth sets: remove it from the request "
                "and the session's headers, or keep the request's value with HeaderAuth(..., existing='keep')"
            )
        self._kept.set(call, kept)
        call.secrets += (*self._secrets, *(call.request.headers[name] for name in kept))
        for name in self._fixed:
            if name not in kept:
                call.request.headers[name] = self._fixed[name]
        return self._ask_all(call, [name for name in self._functions if name not in kept])

    def _ask_all(self, call: Call, functions: Iterable[istr]) -> Awaitable[None] | None:
        """Set the headers whose values are *functions*. Return an awaitable if that takes a wait."""
        names = iter(functions)
        if SCOPE.get() is not NOTHING:
            # A task started by a function may serve other calls, so it must not inherit this call's deadline.
            return self._wait_for_all(call, names)
        try:
            for name in names:
                if (answer := self._ask(call, name)) is not None:
                    return self._wait_for_all(call, names, name, answer)
        except BaseException:
            self._take_off(call)
            raise
        return None

    async def _wait_for_all(
        self, call: Call, names: Iterator[istr], first: istr | None = None, asked: Awaitable[str | None] | None = None
    ) -> None:
        """Set the header *first* to the result of *asked*, and then those of *names*."""
        try:
            # Keep values out of local variables: a traceback with locals would show them.
            with inherited_deadline(inherited()):
                if first is not None and asked is not None:
                    _put(call, first, checked(first, await asked))
                for name in names:
                    if (answer := self._ask(call, name)) is not None:
                        _put(call, name, checked(name, await answer))
        except BaseException:
            self._take_off(call)
            raise

    def after(self, call: Call, result: Result) -> None:
        statuses = self._refresh_on
        if statuses and isinstance(result, aiohttp.ClientResponse | ApiError) and result.status in statuses:
            self._refuse(call)
        self._take_off(call)
        if not isinstance(result, BaseException) and (result.status >= 400 or NOTES_ALL.get()):
            note_secrets(result, call.secrets)

    def _refuse(self, call: Call) -> None:
        """Drop the tokens of the request and have it sent once more."""
        kept = () if self._kept is None else self._kept.of(call)
        for name, (value, _) in self._functions.items():
            if isinstance(value, Tokens) and name in call.request.headers and name not in kept:
                value.refuse(call.request, name)
                REFUSED.set(call, True)

    def _take_off(self, call: Call) -> None:
        # aiohttp shows the headers of a sent request, for example in the repr of its own errors.
        headers, kept = call.request.headers, None if self._kept is None else self._kept.get(call)
        for name in self._names:
            if not kept or name not in kept:
                try:
                    del headers[name]  # popall() takes twice as long
                except KeyError:
                    continue

    def _ask(self, call: Call, name: istr) -> Awaitable[str | None] | None:
        """Set a header if its value is known at once; otherwise return an awaitable."""
        function, takes_request = self._functions[name]
        request = call.request
        answer = function(request) if takes_request else function()
        if not isinstance(answer, str):
            if inspect.isawaitable(answer):
                return answer
            _put(call, name, checked(name, answer))
            return None
        if answer is not self._passed:
            self._passed = check_value(name, answer)
        request.headers[name] = answer
        if answer not in call.secrets:
            call.secrets += (answer,)
        return None

    def __repr__(self) -> str:
        return f"HeaderAuth({', '.join(self._names)})"


def _put(call: Call, name: istr, credential: str | None) -> None:
    if credential is None:
        call.request.headers.popall(name, None)
        return
    call.request.headers[name] = credential
    if credential not in call.secrets:
        call.secrets += (credential,)
