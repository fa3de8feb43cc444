"""``Throttle``: the calls of one account keep to its rate limit, and wait together when it is exceeded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import islice
from typing import Final, TypeVar, TypeVarTuple

import aiohttp
import stamina
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.classify.failures import ERROR_STATUS, rate_limited, require_open
from lamella.classify.judge import Judged, judge
from lamella.errors import ApiError, CertificateInvalid, ConnectFailed, RequestRejected
from lamella.origins import Origin, origin_of, origin_text
from lamella.pipeline import Call, Layer, Result, Slot, Stop
from lamella.rules import RuleBook, StopReason
from lamella.store import Store
from lamella.store.shared import SharedState
from lamella.telemetry.attributes import origin_attributes
from lamella.telemetry.log import LOGGER
from lamella.telemetry.metrics import Instruments
from lamella.telemetry.names import (
    EPISODE,
    KEY_HASH,
    LIMIT,
    LIMIT_PERIOD,
    QUEUED,
    QUEUED_BY,
    QUEUED_EVENT,
    REFUSED,
    SERVER_ADDRESS,
    WAIT,
)
from lamella.telemetry.tracing import SILENT, Tracing
from lamella.throttle.estimator import (
    Hold,
    Limit,
    Permit,
    RateEstimate,
    answered,
    earliest,
    is_too_long,
    learned,
    lost,
    next_turn,
    refused,
)
from lamella.throttle.queue import WAITING, Queue, no_longer_waiting, waiting_of

__all__ = ["Throttle"]

_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")


_REFUSED: Final = 429
# Where no rule says how long to wait after a refusal, a limit is assumed to be for a minute.
_PERIOD: Final = 60.0
_MOST_ACCOUNTS: Final = 10_000


class Throttle(Layer):
    """Makes the calls for one account wait for their turn, so that its rate limit refuses as few as possible.

    The first refusal (429, or 503 with ``Retry-After``) closes the queue for all calls of that account, for the wait
    that the rule or ``Retry-After`` asks for. What waits in the queue is not sent, so it uses up no attempt. How many
    pass in which time is learned from the answers (see ``lamella.throttle.estimator``), so that later refusals are
    rare. Within an account it is first come, first served; a call that is sent again comes before all that are younger.
    No account waits for another.

    Where the server asks for a longer wait than the rule's maximum, no call waits for that: until the moment that the
    server has given, the calls of that account fail at once with :class:`lamella.RateLimited`.

    It stands inside of ``Retry``, since every send counts against the limit, and outside of ``AttemptSpan``, whose
    time is the server's and not ours. Without ``Retry`` a refused call fails, and the others wait all the same. In
    stamina's test mode it lets everything pass.

    Args:
        rules: What 429 and 503 mean, and for how long they close the queue.
        limit: The limit, if it is known: then nothing is refused, unless others share the account. Each call counts
            until it is answered, so a long poll holds its place for as long as it takes. None means that the limit is
            learned.
        key: Which account a request belongs to; None, or a *key* that answers None, means that all requests to one
            origin are of one account. The answer may be a credential: no store gets it and nothing shows it, but a
            hash of it.
        store: Where what is learned is kept. None means in this process, for the 10,000 accounts used last.
        show_key: Whether traces and logs tell accounts apart, by a short hash of the key.
        tracer_provider: None means the global one.
        meter_provider: None means the global one.
    """

    slot = Slot.THROTTLE
    single = True

    def __init__(
        self,
        rules: RuleBook,
        *,
        limit: Limit | None = None,
        key: Callable[[aiohttp.ClientRequest], str | None] | None = None,
        store: Store | None = None,
        show_key: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.shared = {"store": store, "tracer_provider": tracer_provider, "meter_provider": meter_provider}
        self._rules = rules
        self._below_400 = rules.below_400
        backoff = rules.rule_for(_REFUSED).retry
        self._period = (backoff.low if backoff else 0.0) or _PERIOD
        self._limit = limit
        self._key = key
        self._state = SharedState(store)
        self._show_key = show_key
        self._tracing = Tracing(tracer_provider)
        self._instruments = Instruments(meter_provider)
        self._permits: dict[Call, tuple[_Account, Permit, RateEstimate | None]] = {}
        """The account and permit of each attempt under way, and what is known of it, where that is in memory."""
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        """The queues, the one used last at the end. What is learned of an account is in the store."""

    def closed_for(self, origin: URL, key: str | None = None) -> float:
        """For how many seconds from now an account's refusal keeps its calls waiting, as far as is known here.

        0.0: its queue is open. No store is asked, and an account that has made no call yet stays unknown.

        Args:
            origin: The URL whose origin the calls go to.
            key: What the *key* of the layer answers for a request of that account.
        """
        account = self._accounts.get(_name(origin_of(origin), key))
        if account is None:
            return 0.0
        return max(account.queue.closed_until - asyncio.get_running_loop().time(), 0.0)

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)

    def before(self, call: Call) -> Awaitable[None] | None:
        if WAITING in call.state:
            no_longer_waiting(call)
        if stamina.is_testing():
            return None  # without waits
        account, memory = self._account(call), self._state.memory
        queue = account.queue
        if memory is not None and queue.is_free:
            # The queue is empty, and nothing need be waited for: most calls just pass.
            estimate = memory.of(account.name, RateEstimate)
            now = memory.now(call.request.loop.time())
            turn = next_turn(estimate, now, queue.sent, self._period, self._limit)
            if isinstance(turn, Permit):
                queue.let_pass(call, turn)
                self._permits[call] = account, turn, estimate
                return None
        return self._wait(call, account)

    async def _wait(self, call: Call, account: _Account) -> None:
        sent = await self._turn(account, call)
        if call.span is SILENT:
            call.span = trace.INVALID_SPAN  # an SDK may have been set up meanwhile
        try:
            require_open(call.request)
        except BaseException:
            account.queue.left(sent)
            raise
        memory = self._state.memory
        self._permits[call] = account, sent, None if memory is None else memory.of(account.name, RateEstimate)

    def after(self, call: Call, result: Result) -> Awaitable[None] | None:
        permit = self._permits.pop(call, None)
        if permit is None:
            return None
        account, sent, estimate = permit
        queue, memory = account.queue, self._state.memory
        if not isinstance(result, BaseException):
            if (
                estimate is None
                or memory is None
                or account.episode is not None
                or result.status >= ERROR_STATUS
                or (self._below_400 and result.status in self._below_400)
            ):
                return self._settle_answer(call, account, sent, result)
            now = memory.now(call.request.loop.time())
            answered(estimate, now, sent, len(queue.sent) - 1, self._limit)
            queue.left(sent)
            return None
        if isinstance(result, ConnectFailed | CertificateInvalid | RequestRejected | GeneratorExit):
            queue.left(sent)  # it cannot have been counted; or the loop is gone
            return None
        return self._settle_failure(call, account, sent, result)

    async def _turn(self, account: _Account, call: Call) -> Permit:
        """Wait until it is the turn of *call*."""
        answer = await self._queued(account, call)
        if isinstance(answer, Permit):
            return answer
        now = asyncio.get_running_loop().time()
        began = account.episode.began if account.episode is not None else now
        stopped = StopReason.WAIT_TOO_LONG if answer.too_long else StopReason.DEADLINE
        error = rate_limited(call, self._rules, since=now - began, until=answer.seconds or 0.0, stopped=stopped)
        call.stop = Stop(stopped, error.rule, error)
        raise error

    async def _queued(self, account: _Account, call: Call) -> Permit | Hold:
        waited = call.queued
        queued: tuple[float, float] | None = None
        try:
            answer = await account.queue.enter(call)
            queued = waiting_of(call)
            if isinstance(answer, Permit):
                no_longer_waiting(call)
            return answer
        finally:
            queued = queued or waiting_of(call)
            if queued is not None:
                since, until = queued
                waited = call.queued - waited
                self._instruments.queue_wait.record(waited, account.server)
                (call.span or trace.get_current_span()).add_event(
                    QUEUED_EVENT,
                    {WAIT: waited, QUEUED_BY: "refusal" if until > since else "rate"},
                    time.time_ns() - int(waited * 1e9),
                )

    async def _settle_failure(self, call: Call, account: _Account, sent: Permit, exc: BaseException) -> None:
        try:
            if not isinstance(exc, ApiError):
                await self._noted(call, account, lost)
            elif exc.stopped is None:
                # One that says why it stopped is the end of another call, which a layer further in has made.
                rule = self._rules.unless_built_in(exc.rule, exc.status)
                await self._settle(call, account, sent, exc.status, Judged(rule, exc.retry_after))
        finally:
            del exc  # its traceback may hold on to this frame
            account.queue.left(sent)

    async def _settle_answer(
        self, call: Call, account: _Account, sent: Permit, response: aiohttp.ClientResponse
    ) -> None:
        try:
            try:
                judged = await judge(call, response, self._rules)
            except (aiohttp.ClientError, TimeoutError):
                await self._noted(call, account, lost)
                raise
            await self._settle(call, account, sent, response.status, judged)
        finally:
            account.queue.left(sent)

    async def _settle(self, call: Call, account: _Account, sent: Permit, status: int, judged: Judged | None) -> None:
        """Report to the estimator what an attempt has ended in. None for *judged*: it is no error."""
        queue = account.queue
        if judged is None or not judged.rule.is_rate_limit(status, judged.retry_after):
            ends = await self._noted(call, account, answered, sent, len(queue.sent) - 1, self._limit)
            # Another process that shares the store may have been the first to pass.
            if ends or (account.episode is not None and sent.generation > account.episode.generation):
                await self._reopened(account)
            return
        backoff, retry_after = judged.rule.retry, judged.retry_after
        wait = await self._noted(call, account, refused, sent, backoff, retry_after)
        if wait is not None:
            now = asyncio.get_running_loop().time()
            queue.close(now + wait, too_long=is_too_long(backoff, retry_after))
            if account.episode is None:
                context = (call.span or trace.get_current_span()).get_span_context()
                account.episode = _Episode(now, time.time_ns(), context, queue.queued - queue.waiting)
                self._instruments.episodes.add(1, account.server)
            account.episode.wait += wait
            account.episode.generation = max(account.episode.generation, sent.generation)
        if account.episode is not None:
            account.episode.refused += 1

    async def _noted(
        self, call: Call, account: _Account, change: Callable[[RateEstimate, float, *_Ts], _R], *args: *_Ts
    ) -> _R:
        """Have *change* made to what is known of *account*, though the caller may go away meanwhile."""
        from anyio import CancelScope  # it takes longer to import than all of this module

        try:
            # Who is cancelled by anyio can wait for nothing else. A slow store gets no more than its usual patience.
            with CancelScope(shield=True):
                return await self._state.update(call.span, account.name, RateEstimate, change, *args)
        except asyncio.CancelledError:
            # Nobody knows whether it was made. Twice is a send too many in the count; not at all, one too few.
            with CancelScope(shield=True):
                await self._state.update(call.span, account.name, RateEstimate, change, *args)
            raise
        raise AssertionError("a shield swallows nothing")

    async def _reopened(self, account: _Account) -> None:
        """A call has passed again: tell of the episode that is over."""
        episode, account.episode = account.episode, None
        if episode is None:
            return
        requests, period = await self._state.update(None, account.name, RateEstimate, learned)
        if self._limit is not None:
            requests, period = self._limit.requests, self._limit.per
        limit: dict[str, AttributeValue] = {LIMIT: float(requests), LIMIT_PERIOD: float(period)}
        self._tell(account, episode, limit if requests else {})

    def _tell(self, account: _Account, episode: _Episode, limit: Mapping[str, AttributeValue]) -> None:
        lasted = asyncio.get_running_loop().time() - episode.began
        queued = account.queue.queued - episode.queued_before
        self._instruments.episode_duration.record(lasted, account.server)
        attributes: dict[str, AttributeValue] = {
            **account.server,
            QUEUED: queued,
            REFUSED: episode.refused,
            WAIT: episode.wait,
            **limit,
        }
        shown = ""
        if self._show_key:
            attributes[KEY_HASH] = account.name[:_SHOWN]
            shown = f", account {account.name[:_SHOWN]}"
        # A trace of its own: it belongs to all the calls that it kept waiting, and to none of them.
        links = [Link(episode.context)] if episode.context.is_valid else []
        self._tracing.tracer.start_span(
            EPISODE, Context(), SpanKind.INTERNAL, attributes, links, start_time=episode.started
        ).end()
        if not queued:
            return  # nobody but the refused knows of it
        LOGGER.info(
            "%s limited the rate%s: for %.3g s calls waited in the queue (%d of them), after %d had been refused",
            account.server[SERVER_ADDRESS],
            shown,
            lasted,
            queued,
            episode.refused,
        )

    def _account(self, call: Call) -> _Account:
        accounts, request = self._accounts, call.request
        name = _name(origin_of(request.url), None if self._key is None else self._key(request))
        account = accounts.get(name)
        if account is None:
            account = accounts[name] = _Account(self, name, origin_attributes(request))
            if len(accounts) > _MOST_ACCOUNTS:
                self._forget_idle()
        else:
            accounts.move_to_end(name)
        return account

    def _forget_idle(self) -> None:
        # A few at a time: each new account makes room for more than itself.
        for name, account in list(islice(self._accounts.items(), 4)):
            if account.queue.in_flight or account.queue.waiting:
                self._accounts.move_to_end(name)
                continue
            if account.episode is not None:
                self._tell(account, account.episode, {})
            del self._accounts[name]

    async def ask(self, account: _Account, call: Call, in_flight: Sequence[float], ahead: int) -> Permit | Hold:
        """Answer the queue of *account*."""
        update = self._state.update
        if not ahead:
            waiting = waiting_of(call)
            waited = 0.0 if waiting is None else asyncio.get_running_loop().time() - waiting[0]
            change = partial(next_turn, waiting=account.queue.waiting, waited=waited)
            return await update(call.span, account.name, RateEstimate, change, in_flight, self._period, self._limit)
        if self._limit is None:
            return Hold(None, closed=False)
        seconds = await update(call.span, account.name, RateEstimate, earliest, len(in_flight), ahead, self._limit)
        return Hold(seconds, closed=False)

    def count(self, account: _Account, number: int) -> None:
        """How the queue of *account* tells of those that wait."""
        self._instruments.queued.add(number, account.server)

    def __repr__(self) -> str:
        return f"Throttle({self._rules!r}, limit={self._limit!r})"


class _Account:
    """An account with calls."""

    __slots__ = ("episode", "name", "queue", "server")

    def __init__(self, throttle: Throttle, name: str, server: Mapping[str, AttributeValue]) -> None:
        self.name = name
        """A hash: the key itself may be a credential."""
        self.server = server
        self.episode: _Episode | None = None
        self.queue = Queue(
            lambda call, in_flight, ahead: throttle.ask(self, call, in_flight, ahead),
            lambda number: throttle.count(self, number),
        )


@dataclass(slots=True)
class _Episode:
    """From a refusal until something passes again."""

    began: float
    started: int
    """The same in nanoseconds since the epoch."""
    context: SpanContext
    """The call that was refused."""
    queued_before: int
    """How many calls had had to wait in the queue before, and had passed."""
    wait: float = 0.0
    refused: int = 0
    generation: int = 0
    """Of the send that was refused last: one of a later generation that passes ends the episode."""


_SHOWN: Final = 8


@lru_cache(maxsize=4096)
def _name(origin: Origin, key: str | None) -> str:
    return blake2b(f"{origin_text(origin)}\n{key or ''}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
