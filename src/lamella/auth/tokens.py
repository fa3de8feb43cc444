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
from lamella.call import Call, Stop
from lamella.checks import check_seconds
from lamella.credentials import secrets_of
from lamella.errors import LamellaError, TokenUnavailable
from lamella.rules import Failure, RuleBook, StopReason
from lamella.telemetry.metrics import instruments_of
from lamella.telemetry.names import TOKEN_EVENT, TOKEN_RESULT, WAIT
from lamella.telemetry.tracing import is_suppressed, suppression

K = TypeVar("K", bound=Hashable)

_MOST_KEYS: Final = 100_000
_RULE: Final = RuleBook().rule_for(Failure.TOKEN_UNAVAILABLE)


class Tokens:
    """Tokens for :class:`lamella.HeaderAuth`: ``HeaderAuth({"Authorization": Tokens(fetch)})``.

    However many calls want the token of one key, one fetch is under way for it, outside of any call: no deadline,
    option, context variable or cancellation of a caller reaches it. It ends when no call waits for it any more. Its
    failure is that of the calls that waited for it: each raises a :class:`lamella.TokenUnavailable`. An endpoint that
    failed is asked again after 1 s, then 2, 4 and so on up to 30 s, or when it asks for by ``Retry-After``, up to five
    minutes; calls wait until then, as long as they may.

    A token is renewed before it expires, in the background, while calls still use it. It is dropped when a server
    refuses it (``HeaderAuth(refresh_on=)``). At most 100,000 keys are kept.

    It may serve several event loops and threads.

    Args:
        fetch: Fetches a :class:`Token`, of the key where there is a *key*. It runs in an empty context: context
            variables have their defaults, except that a span of it is a child of the call that caused it, and that it
            is inside ``suppress_instrumentation()`` where that call is.
        key: Returns whose token a request needs, such as the tenant: something hashable. It is called in the context of
            the call, with the request if it has a parameter without a default. From it, None means no token: the header
            is left out. Without it there is one token for all calls.
        leeway: How many seconds before its expiry a token is renewed, but at most half of its life before.
        timeout: How many seconds a fetch may take.
        meter_provider: Where the metric goes. None, the default, means that of the stack, or the global one.

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
                raise ValueError(f"{name} must be a function, not {type(function).__name__}")
        check_seconds("leeway", leeway, zero=True)
        check_seconds("timeout", timeout)
        self._fetch = fetch
        self._key = key
        self._key_takes_request = key is not None and takes_request(key)
        self._leeway, self._timeout = leeway, timeout
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._running: set[Fetch] = set()
        self._lock = Lock()
        """Held for what changes an entry, and never while something is awaited or called that is not ours."""
        self._refreshes = instruments_of(meter_provider).refreshes
        self._is_measured = meter_provider is not None
        """Whether it was said where the metric goes."""

    def inherit(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        """Take over the providers of a stack where none was given. (A fetch uses no tracer itself.)"""
        if meter_provider is not None and not self._is_measured:
            self._refreshes = instruments_of(meter_provider).refreshes

    def __call__(self, request: aiohttp.ClientRequest) -> str | Awaitable[str] | None:
        """Return the value for *request*, or what has to be awaited for it. None: it needs none."""
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
        """Drop the token of *request*, which a server has refused, if it is still the one in the *header* of that name.

        ``HeaderAuth`` does it for the statuses of its *refresh_on*.
        """
        key = self._key_of(request)
        with self._lock:
            entry = self._entries.get(key)
            held = None if entry is None else entry.held
            if entry is not None and held is not None and held.value == request.headers.get(header):
                entry.refuse(held)

    async def aclose(self) -> None:
        """Cancel the fetches that run in this event loop, and wait until they have ended.

        Calls that wait for one raise :class:`lamella.TokenUnavailable`. A later call begins a fetch again.
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
                # Each new key looks at two old ones: so all are looked at in time, and none for long.
                old_key, old = self._entries.popitem(last=False)
                if old.fetch is not None or (len(self._entries) + 1 < _MOST_KEYS and old.is_useful(now)):
                    self._entries[old_key] = old
            entry = self._entries[key] = Entry()
        return entry

    async def _wait(self, request: aiohttp.ClientRequest, key: Hashable) -> str:
        """Return the value when its fetch has ended."""
        call, loop = Call.of(request), request.loop
        began, began_at = loop.time(), time.time_ns()
        while True:
            with self._lock:
                entry = self._entry(key, began)
                if entry.held is not None and loop.time() < entry.held.expires:
                    return entry.held.value  # fetched before the task of this call has begun
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
        """Return the error of *call* for a fetch that ended in *outcome*."""
        now = call.request.loop.time()
        error = TokenUnavailable(
            call.request.method,
            call.request.url,
            _RULE,
            since=max(now - entry.failing_since, 0.0) if entry.failures else 0.0,
            until=max(entry.ask_from - now, 0.0),
            stopped=StopReason.TOKEN_UNAVAILABLE,
            secrets=secrets_of(call),
        )
        # Only our own messages are known to hold no secret.
        said = str(outcome) if isinstance(outcome, LamellaError) else type(outcome).__name__
        error.reason = f"{said}; {error.reason}"
        error.__cause__ = outcome if isinstance(outcome, Exception) else None
        call.stop = Stop(StopReason.TOKEN_UNAVAILABLE, _RULE, error)
        return error

    def _leave(self, fetch: Fetch) -> None:
        """Wait for *fetch* no longer. The last one to leave cancels it."""
        with self._lock:
            is_last = fetch.leave()
        if is_last and fetch.loop is asyncio.get_running_loop():
            fetch.task.cancel()
        elif is_last:
            with suppress(RuntimeError):  # it was closed
                fetch.loop.call_soon_threadsafe(fetch.task.cancel)

    def _join(self, key: Hashable, entry: Entry, call: Call, waiters: float) -> Fetch:
        """Return the fetch that is under way. If there is none, begin one, as a task with a context of its own."""
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
        # Once around the loop at least: an eager task would run what is not ours while the lock is held.
        await asyncio.sleep(max(entry.ask_from - fetch.loop.time(), 0))
        fetch.began = fetch.loop.time()
        async with asyncio.timeout(self._timeout):
            token: object = await (self._fetch() if self._key is None else self._fetch(key))
        if isinstance(token, Token):
            return Held(token, fetch.began, self._leeway)
        kind = type(token).__name__
        del token  # a traceback would show it
        raise TypeError(f"fetch must return a Token, not {kind}")

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
        if not is_suppressed():  # where the call was made that caused it: callbacks keep that context
            self._refreshes.add(1, {TOKEN_RESULT: _result_of(outcome)})
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
