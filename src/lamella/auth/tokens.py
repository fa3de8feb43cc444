"""``Tokens``: credentials that are fetched, kept by key, and renewed before they expire."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from contextvars import Context
from functools import partial
from math import inf
from threading import Lock
from typing import Final, TypeVar, overload

import aiohttp
from opentelemetry import context, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.auth.entry import Entry, Fetch
from lamella.auth.token import Held, Token
from lamella.auth.values import takes_request
from lamella.call import Call
from lamella.checks import check_seconds
from lamella.classify.failures import rejected
from lamella.errors import LamellaError, TokenUnavailable
from lamella.rules import StopReason
from lamella.telemetry.log import safely
from lamella.telemetry.metrics import instruments_of
from lamella.telemetry.names import TOKEN_EVENT, TOKEN_RESULT, WAIT
from lamella.telemetry.tracing import is_suppressed, suppression

K = TypeVar("K", bound=Hashable)

_MOST_KEYS: Final = 100_000


class Tokens:
    """Tokens for :class:`lamella.HeaderAuth`: ``HeaderAuth({"Authorization": Tokens(fetch)})``.

    All calls that need the token of one key share one fetch. It runs outside any call, so no deadline, option, context
    variable or cancellation of a caller affects it. It is cancelled when no call waits for it. If it fails, each
    waiting call raises :class:`lamella.TokenUnavailable`. A failed endpoint is called again after 1 s, then 2, 4 and so
    on up to 30 s, or after its ``Retry-After``, up to five minutes. Calls wait until then, within their deadlines.

    A token is renewed in the background before it expires, while calls still use it. It is dropped when a server
    rejects it (``HeaderAuth(refresh_on=)``). At most 100,000 keys are kept.

    One instance may serve several event loops and threads.

    Args:
        fetch: Fetches a :class:`Token`; gets the key if *key* is given. It runs in an empty context: context variables
            have their defaults. Its spans are still children of the call that caused it, and it inherits that call's
            ``suppress_instrumentation()``.
        key: Returns the hashable key of the token that a request needs, such as the tenant. It is called in the context
            of the call, with the request if it has a parameter without a default. If it returns None, the header is
            omitted. Without *key* all calls share one token.
        leeway: Seconds before expiry at which a token is renewed, limited to half of its lifetime.
        timeout: Maximum duration of a fetch in seconds.
        meter_provider: Provider of the metric. None, the default, means the provider of the stack, or the global one.

    Raises:
        ValueError: *fetch* or *key* is not a function, or a number of seconds is out of its range.
    """

    @overload
    def __init__(
        self,
        fetch: Callable[[], Awaitable[Token]],
        *,
        key: None = None,
        leeway: float = 60.0,
        timeout: float = 60.0,
        meter_provider: MeterProvider | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        fetch: Callable[[K], Awaitable[Token]],
        *,
        key: Callable[[], K | None] | Callable[[aiohttp.ClientRequest], K | None],
        leeway: float = 60.0,
        timeout: float = 60.0,
        meter_provider: MeterProvider | None = None,
    ) -> None: ...

    def __init__(
        self,
        fetch: Callable[..., Awaitable[Token]],
        *,
        key: Callable[..., Hashable] | None = None,
        leeway: float = 60.0,
        timeout: float = 60.0,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        for name, function in (("fetch", fetch), ("key", key)):
            if not callable(function) and (name == "fetch" or function is not None):
                raise ValueError(f"{name} must be a function, got {type(function).__name__}")
        check_seconds("leeway", leeway, zero=True)
        check_seconds("timeout", timeout)
        self._fetch = fetch
        self._key = key
        self._key_takes_request = key is not None and takes_request(key)
        self._leeway, self._timeout = leeway, timeout
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._running: set[Fetch] = set()
        self._lock = Lock()
        """Held for changes of an entry, never during an await or a call of user code."""
        self._refreshes = instruments_of(meter_provider).refreshes
        self._is_measured = meter_provider is not None
        """Whether a meter provider was given."""

    def inherit(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        """Use the providers of a stack if none was given. (A fetch itself uses no tracer.)"""
        if meter_provider is not None and not self._is_measured:
            self._refreshes = instruments_of(meter_provider).refreshes

    def __call__(self, request: aiohttp.ClientRequest) -> str | Awaitable[str] | None:
        """Return the value for *request*, or an awaitable for it; None if it needs no token."""
        key = self._key_of(request)
        if key is None:
            return None
        entry = self._entries.get(key)
        held = None if entry is None else entry.held
        if held is None:
            return self._wait(request, key)
        now = request.loop.time()
        if now < held.fresh_until:
            return held.value
        if now >= held.expires:
            return self._wait(request, key)
        with self._lock:
            entry = self._entry(key, now)
            if entry.held is held and now >= entry.ask_from:
                self._join(key, entry, Call.of(request), inf)
        return held.value

    def refuse(self, request: aiohttp.ClientRequest, header: str) -> None:
        """Drop the token of *request*, which a server rejected, if it is still the one sent in *header*.

        ``HeaderAuth`` calls this for the statuses in *refresh_on*.
        """
        key = self._key_of(request)
        with self._lock:
            entry = self._entries.get(key)
            held = None if entry is None else entry.held
            if entry is not None and held is not None and held.value == request.headers.get(header):
                entry.refuse(held)

    async def aclose(self) -> None:
        """Cancel the fetches in this event loop and wait until they have ended.

        Calls waiting for one raise :class:`lamella.TokenUnavailable`. A later call starts a new fetch.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            tasks = [fetch.task for fetch in self._running if fetch.loop is loop]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _key_of(self, request: aiohttp.ClientRequest) -> Hashable:
        if self._key is None:
            return ""
        return self._key(request) if self._key_takes_request else self._key()

    def _entry(self, key: Hashable, now: float) -> Entry:
        entry = self._entries.get(key)
        if entry is None:
            for _ in range(min(2, len(self._entries))):
                # Each new key checks two old ones, so that all get checked in time without a long scan.
                old_key, old = self._entries.popitem(last=False)
                if old.fetch is not None or (len(self._entries) + 1 < _MOST_KEYS and old.is_useful(now)):
                    self._entries[old_key] = old
            entry = self._entries[key] = Entry()
        return entry

    async def _wait(self, request: aiohttp.ClientRequest, key: Hashable) -> str:
        """Wait for the fetch and return the value."""
        call, loop = Call.of(request), request.loop
        began, began_at = loop.time(), time.time_ns()
        while True:
            with self._lock:
                entry = self._entry(key, began)
                if entry.held is not None and loop.time() < entry.held.expires:
                    return entry.held.value  # fetched before the task of this call began
                fetch = self._join(key, entry, call, 1)
            try:
                outcome = await asyncio.wrap_future(fetch.ended)
            except BaseException:
                self._leave(fetch)
                raise
            if isinstance(outcome, asyncio.CancelledError) and fetch.loop is not loop:
                continue  # that loop was closed
            _report(call, began_at, loop.time() - began, _result_of(outcome))
            if isinstance(outcome, Held):
                return outcome.value
            raise self._unavailable(call, entry, outcome)

    def _unavailable(self, call: Call, entry: Entry, outcome: BaseException) -> TokenUnavailable:
        """Return the error of *call* for a fetch that ended with *outcome*."""
        now = call.request.loop.time()
        since = max(now - entry.failing_since, 0.0) if entry.failures else 0.0
        until = max(entry.ask_from - now, 0.0)
        error = rejected(TokenUnavailable, call, since=since, until=until, stopped=StopReason.TOKEN_UNAVAILABLE)
        # Only our own messages are known to contain no secrets.
        said = str(outcome) if isinstance(outcome, LamellaError) else type(outcome).__name__
        error.reason = f"{said}; {error.reason}"
        error.__cause__ = outcome if isinstance(outcome, Exception) else None
        return error

    def _leave(self, fetch: Fetch) -> None:
        """Stop waiting for *fetch*. The last waiter cancels it."""
        with self._lock:
            is_last = fetch.leave()
        if is_last and fetch.loop is asyncio.get_running_loop():
            fetch.task.cancel()
        elif is_last:
            with suppress(RuntimeError):  # it was closed
                fetch.loop.call_soon_threadsafe(fetch.task.cancel)

    def _join(self, key: Hashable, entry: Entry, call: Call, waiters: float) -> Fetch:
        """Return the running fetch. If there is none, start one as a task with its own context."""
        loop, fetch = call.request.loop, entry.fetch
        if fetch is not None and fetch.is_lost(loop):
            fetch = None
        if fetch is None or fetch.given_up:
            entry.fetch = fetch = Fetch(loop, fetch)
            self._running.add(fetch)
            within, span = Context(), call.span or trace.get_current_span()
            current = suppression()
            if span.get_span_context().is_valid:
                current = trace.set_span_in_context(span, current)
            if current:
                within.run(context.attach, current)
            fetch.task = loop.create_task(self._run(key, entry, fetch), context=within)
            fetch.task.add_done_callback(partial(self._end, entry, fetch))
        fetch.waiters += waiters
        return fetch

    async def _run(self, key: Hashable, entry: Entry, fetch: Fetch) -> Held:
        if fetch.after is not None:
            await asyncio.wait([asyncio.wrap_future(fetch.after.ended)], timeout=self._timeout)
            fetch.after = None
        # Yield to the loop once: an eager task would run user code while the lock is held.
        await asyncio.sleep(max(entry.ask_from - fetch.loop.time(), 0))
        fetch.began = fetch.loop.time()
        async with asyncio.timeout(self._timeout):
            token: object = await (self._fetch() if self._key is None else self._fetch(key))
        if isinstance(token, Token):
            return Held(token, fetch.began, self._leeway)
        kind = type(token).__name__
        del token  # a traceback would show it
        raise TypeError(f"fetch must return a Token, got {kind}")

    def _end(self, entry: Entry, fetch: Fetch, task: asyncio.Task[Held]) -> None:
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        with self._lock:
            self._running.discard(fetch)
            if entry.fetch is fetch:
                entry.fetch = None
            if isinstance(outcome, Held):
                entry.keep(outcome)
            elif task.cancelled():
                entry.give_up(fetch.began)
            else:
                asked = outcome.retry_after if isinstance(outcome, LamellaError) else None
                entry.fail(fetch.began, fetch.loop.time(), asked or 0.0)
        if not is_suppressed():  # the context of the call that caused it, which callbacks keep
            safely(self._refreshes.add, 1, {TOKEN_RESULT: _result_of(outcome)})
        fetch.ended.set_result(outcome)

    def __repr__(self) -> str:
        return f"Tokens({len(self._entries)} keys)"


def _result_of(outcome: Held | BaseException) -> str:
    if isinstance(outcome, Held):
        return "success"
    return "cancelled" if isinstance(outcome, asyncio.CancelledError) else "failure"


def _report(call: Call, began_at: int, seconds: float, result: str) -> None:
    span = call.span or trace.get_current_span()
    if span.is_recording():
        span.add_event(TOKEN_EVENT, {WAIT: seconds, TOKEN_RESULT: result}, began_at)
