"""``HeaderAuth``: credentials in headers, for one origin alone."""

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
"""A value, or a function that is asked for it before each attempt; from a function, None leaves the header out."""


class HeaderAuth(Layer):
    """Sets headers that hold a credential, on requests to one origin.

    It is inside of ``Retry``, so that each attempt gets a fresh value. A request to any other scheme, host or port,
    such as after a redirect, gets none of these headers and loses those that it has. When an attempt has ended, the
    headers are taken off the request again, so that no later text about it shows them.

    Args:
        headers: The values by their names. A function, plain or async, is called for each attempt, in the context of
            that call: its answer is used for that attempt and no other, so it may depend on a context variable. It
            takes the request where it has a parameter without a default.
        origin: Where the credentials belong, as in ``"https://api.example.com"``. None means the origin of the
            first request that passes.
        existing: What happens to a request that brings one of the headers itself, or from ``ClientSession(headers=)``:
            ``"raise"``, the default, raises ValueError before anything is sent; ``"keep"`` sends what it brings.
            A ``Cookie`` header is always replaced, since the session's jar writes one.
        refresh_on: Statuses by which the server refuses a token of :class:`lamella.Tokens`. It is dropped, and the
            ``Retry`` around this layer sends the request once more with another one, a write as well, since it was not
            carried out. Default: 401.

    Raises:
        ValueError: *headers* is no mapping, a name or a value cannot stand in a header, *origin* is no origin,
            *existing* is neither of the two, or *refresh_on* has what is no status from 400 to 599. Values that
            functions return are checked when they are asked for.
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
                f"refresh_on must be several statuses, such as {{401}}, got {refresh_on!r}"
            )
        for status in refresh_on:
            check_whole("a status of refresh_on", status, 400, 599)
        if existing not in {"raise", "keep"}:
            raise ValueError(f"existing must be 'raise' or 'keep', got {existing!r}")
        if not isinstance(headers, Mapping):
            # No value: it may be a credential.
            raise ValueError(f"headers must be a mapping of names to values, got {type(headers).__name__}")  # noqa: TRY004
        for name, value in headers.items():
            if (fault := fault_of_name(name)) is not None:
                # Nor this name: it may be a credential that has changed places with its name.
                raise ValueError(f"a name in headers {fault}: write {{name: value}}, such as {{'X-API-Key': key}}")
            if isinstance(value, str):
                check_value(name, value)
            elif not callable(value):
                raise ValueError(  # noqa: TRY004 - like every other bad value
                    f"the value of {name} must be a string or a function, not {type(value).__name__}"
                )
        self._names = tuple(istr(name) for name in headers)
        self._lowered = frozenset(name.lower() for name in self._names)
        self._guarded = tuple(name for name in self._names if name.lower() != "cookie")
        """Those that a request may not bring unnoticed. Cookies come from the session's jar."""
        self._fixed = {istr(name): value for name, value in headers.items() if isinstance(value, str)}
        self._secrets = tuple(self._fixed.values())
        self._functions: dict[istr, tuple[Callable[..., object], bool]] = {
            istr(name): (value, takes_request(value)) for name, value in headers.items() if not isinstance(value, str)
        }
        self._passed: str | None = None
        """What a function answered last: it need not be looked at again."""
        self._origin = None if origin is None else parsed_origin(origin)
        self.shared: Mapping[str, object] = {"origin": self._origin}
        self._kept = PerCall[frozenset[istr]](frozenset) if existing == "keep" else None
        """Which of the headers the request brings. None: it may bring none."""
        tokens = [name for name, value in headers.items() if isinstance(value, Tokens)]
        self._refresh_on = frozenset(refresh_on if tokens else ())

    def inherit(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        """Let tokens take over the providers of the stack where they have none of their own."""
        for value, _ in self._functions.values():
            if isinstance(value, Tokens):
                value.inherit(tracer_provider=tracer_provider, meter_provider=meter_provider)

    def before(self, call: Call) -> Awaitable[None] | None:
        if call.state.setdefault(HIDDEN, self._lowered) is not self._lowered:
            hide_headers(call, self._lowered)
        request = call.request
        url, origin = request.url, self._origin
        if origin is None:
            origin = self._origin = origin_of(url)
        if url.raw_host != origin[1] or url.port != origin[2] or url.scheme != origin[0]:
            if self._kept is not None:
                self._kept.take(call)
            self._take_off(call)
            return None
        for name in self._guarded:
            if name in request.headers:
                return self._add_to_existing(call)
        # No value is in a local, as in _wait_for_all. (update() takes five times as long.)
        for name in self._fixed:
            request.headers[name] = self._fixed[name]
        call.secrets = (*call.secrets, *self._secrets) if call.secrets else self._secrets
        return self._ask_all(call, self._functions) if self._functions else None

    def _add_to_existing(self, call: Call) -> Awaitable[None] | None:
        """Set the headers that the request does not bring. Return what has to be awaited for that.

        Raises:
            ValueError: It may bring none of them.
        """
        kept = frozenset(name for name in self._guarded if name in call.request.headers)
        if self._kept is None:
            raise ValueError(
                f"the request brings {', '.join(sorted(kept))}, which HeaderAuth sets: leave it out of the request and "
                "of the session's headers, or send what the request brings by HeaderAuth(..., existing='keep')"
            )
        self._kept.set(call, kept)
        call.secrets += (*self._secrets, *(call.request.headers[name] for name in kept))
        for name in self._fixed:
            if name not in kept:
                call.request.headers[name] = self._fixed[name]
        return self._ask_all(call, [name for name in self._functions if name not in kept])

    def _ask_all(self, call: Call, functions: Iterable[istr]) -> Awaitable[None] | None:
        """Set the headers that *functions* answer for. Return what has to be awaited for that."""
        names = iter(functions)
        if SCOPE.get() is not NOTHING:
            # Other calls may wait for a task that a function starts: it must not inherit the deadline of this call.
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
        """Set the header *first* to what is *asked* for, and then those of *names*."""
        try:
            # No value is in a local of this frame: a traceback with the locals of its frames would show it.
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
        """Drop the tokens that the request has, and let it be sent once more."""
        kept = () if self._kept is None else self._kept.of(call)
        for name, (value, _) in self._functions.items():
            if isinstance(value, Tokens) and name in call.request.headers and name not in kept:
                value.refuse(call.request, name)
                REFUSED.set(call, True)

    def _take_off(self, call: Call) -> None:
        # aiohttp shows the headers of a request that was sent: in the repr of its own errors, for one.
        headers, kept = call.request.headers, None if self._kept is None else self._kept.get(call)
        for name in self._names:
            if not kept or name not in kept:
                try:
                    del headers[name]  # popall() takes twice as long
                except KeyError:
                    continue

    def _ask(self, call: Call, name: istr) -> Awaitable[str | None] | None:
        """Set a header whose value is known at once. Return what has to be awaited where it is not."""
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
