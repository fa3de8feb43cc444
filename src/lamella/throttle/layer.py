"""``Throttle``: the calls of an account keep to its rate limit, and wait together when it is exceeded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

import aiohttp
import stamina
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.call import Call, Stop
from lamella.classify.failures import ERROR_STATUS, rate_limited, require_open
from lamella.classify.judge import ERROR_HEADERS, Judged, judge
from lamella.errors import ApiError, CertificateInvalid, ConnectFailed, RequestRejected
from lamella.origins import origin_of
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import RuleBook, StopReason, check_rules
from lamella.store import Store
from lamella.store.shared import SharedState, hash_key
from lamella.telemetry import names
from lamella.telemetry.attributes import origin_attributes
from lamella.telemetry.log import LOGGER
from lamella.telemetry.metrics import Gauge, instruments_of
from lamella.telemetry.tracing import OFF, SILENT, Tracing
from lamella.throttle.belief import Belief, believed
from lamella.throttle.estimate import Permit, RateEstimate, Wait
from lamella.throttle.headers import guarded, stated_limits
from lamella.throttle.limit import Limit, earliest
from lamella.throttle.permits import answered, learned, next_permit, refused
from lamella.throttle.queue import WAITING, Queue, waiting_of
from lamella.throttle.stated import StatedLimit

_REFUSED: Final = 429
_PERIOD: Final = 60.0  # the period to assume where the rules have no wait
_MOST_ACCOUNTS: Final = 10_000
_SHOWN: Final = 8  # hexadecimal digits of a key's hash


@dataclass(eq=False, slots=True)
class _Episode:
    """A rate-limit episode of an account: from a refusal to the next success. Until it is one, refusals in doubt."""

    began: float  # by the loop's clock
    context: SpanContext  # of the refused call
    queued_before: int  # calls that had been queued, and sent, before it
    last: float  # when the last attempt was sent before it: a success of a later one shows that it is none
    recorded: bool  # whether there is a span and metrics
    wait: float = 0.0
    refused: int = 0
    generation: int = 0  # of the last refused permit: a success with a later one ends the episode
    started: int = field(default_factory=time.time_ns)


@dataclass(eq=False, slots=True)
class _Account:
    name: str  # a hash: the key itself may be a credential
    server: Mapping[str, AttributeValue]
    measured: Mapping[str, AttributeValue]  # what metrics say about the server
    queue: Queue
    episode: _Episode | None = None
    doubt: _Episode | None = None
    belief: tuple[AttributeValue, ...] = ("none", 0.0, 0.0, 0)  # as it was last recorded


class Throttle(Layer):
    """Keeps the calls of an account to its rate limit, which is stated or learned.

    A refusal (an answer whose rule is a rate limit) begins a rate-limit episode: all calls of that account are queued
    for the wait that the rule or the server asks for, and then sent at the rate that is learned, first come, first
    served. A queued call uses up no attempt, and a retry keeps its place. If the server asks for a longer wait than the
    rule's maximum, the calls of that account fail with :class:`lamella.RateLimited` until it has passed.

    It belongs inside ``Retry``, since each attempt counts, and outside ``AttemptSpan``, whose time is the server's.
    Without ``Retry`` a refused call fails, and the others are queued. In stamina's test mode nothing waits.

    Args:
        rules: Which answers are a rate limit, and how long to wait after them.
        limit: The limit, if it is known: then nothing is refused, unless others use it as well. Each call counts until
            it is answered, a long poll too. None means that the limit is learned.
        key: Returns the account of a request. None, or a *key* that returns None, means one account for each origin.
            The key may be a credential: only a hash of it is stored.
        scope: Returns which limit of the account a request counts against, where there are several, such as one for
            each path. Each has a queue and an estimate of its own. None, or a *scope* that returns None, means one for
            all.
        limits: Returns the limits that the headers of an answer state. They are kept to before anything is refused.
            None means the usual forms, ``RateLimit`` and ``X-RateLimit-Remaining`` among them. With *limit* it is not
            called.
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
        scope: Callable[[aiohttp.ClientRequest], str | None] | None = None,
        limits: Callable[[Mapping[str, str]], Sequence[StatedLimit]] | None = None,
        store: Store | None = None,
        show_key: bool = False,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        check_rules(rules, "Throttle(")
        self.shared: Mapping[str, object] = {
            "rules": rules,
            "store": store,
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
        }
        self._rules = rules
        self._below_400 = rules.below_400
        backoff = rules.rule_for(_REFUSED).retry
        self._period = (backoff.low if backoff else 0.0) or _PERIOD
        self._limit = limit
        self._key = key
        self._scope = scope
        self._limits = stated_limits if limits is None else guarded(limits)
        self._state = SharedState(store)
        self._show_key = show_key
        self._tracing = Tracing(tracer_provider)
        self._instruments = instruments_of(meter_provider)
        self._queued = Gauge("queued", meter_provider)
        self._permits: dict[Call, tuple[_Account, Permit, RateEstimate | None]] = {}
        """Of the attempts in flight. The estimate, where it is in memory: to look it up again takes longer."""
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # the one used last at the end

    def blocked_for(self, origin: URL, key: str | None = None, scope: str | None = None) -> float:
        """Return for how many seconds a refusal still blocks an account, as far as this process knows, or 0.0.

        *origin* is a URL of its server, *key* and *scope* what those of the layer return for its requests.
        """
        account = self._accounts.get(_name(origin, key, scope))
        if account is None:
            return 0.0
        return max(account.queue.blocked_until - asyncio.get_running_loop().time(), 0.0)

    def state(self, origin: URL, key: str | None = None, scope: str | None = None) -> Belief:
        """Return what is believed of the limits of an account, as far as this process knows.

        *origin* is a URL of its server, *key* and *scope* what those of the layer return for its requests.
        """
        return believed(self._estimate(_name(origin, key, scope)), self._limit)

    def _estimate(self, name: str) -> RateEstimate:
        estimate = self._state.last_known(name)
        return estimate if isinstance(estimate, RateEstimate) else RateEstimate()

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)

    def before(self, call: Call) -> Awaitable[None] | None:
        if WAITING in call.state:
            WAITING.take(call)
        if stamina.is_testing():
            return None
        account, memory = self._account(call.request), self._state.memory
        queue = account.queue
        if memory is not None and not queue.waiters:
            # Most calls need not wait.
            estimate, now = memory.of(account.name, RateEstimate), memory.now(call.now)
            permit = next_permit(estimate, now, queue.sent_at, self._period, self._limit)
            if isinstance(permit, Permit):
                queue.start(call, permit)
                self._permits[call] = account, permit, estimate
                return None
        return self._wait(call, account)

    async def _wait(self, call: Call, account: _Account) -> None:
        queue, before = account.queue, call.queued
        try:
            answer = await queue.enter(call)
        finally:
            if (queued := waiting_of(call)) is not None:
                waited, reason = call.queued - before, "refusal" if queued[1] > queued[0] else "rate"
                if OFF not in call.state:
                    self._instruments.queue_wait.record(waited, account.measured)
                noted: dict[str, AttributeValue] = {names.WAIT: waited, names.QUEUED_BY: reason}
                (call.span or trace.get_current_span()).add_event(
                    names.QUEUED_EVENT, noted, time.time_ns() - int(waited * 1e9)
                )
        if isinstance(answer, Wait):
            since = 0.0 if account.episode is None else call.request.loop.time() - account.episode.began
            stopped = StopReason.WAIT_TOO_LONG if answer.too_long else StopReason.DEADLINE
            error = rate_limited(call, self._rules, since=since, until=answer.seconds or 0.0, stopped=stopped)
            call.stop = Stop(stopped, error.rule, error)
            raise error
        WAITING.take(call)
        if call.span is SILENT:
            call.span = trace.INVALID_SPAN  # an SDK may have been set up meanwhile
        try:
            require_open(call.request)
        except RuntimeError:
            queue.end(answer)
            raise
        self._record_belief(call, account)
        memory = self._state.memory
        self._permits[call] = account, answer, None if memory is None else memory.of(account.name, RateEstimate)

    async def _ask(self, name: str, call: Call, queue: Queue, ahead: int) -> Permit | Wait:
        """Ask for a permit for *call*, which has *ahead* others before it in the queue of the account *name*."""
        update, limit = self._state.update, self._limit
        if not ahead:
            queued = waiting_of(call)
            waited = 0.0 if queued is None else asyncio.get_running_loop().time() - queued[0]
            change = partial(next_permit, waiting=queue.waiting, waited=waited)
            return await update(call.span, name, RateEstimate, change, queue.sent_at, self._period, limit)
        if limit is None:
            return Wait(None, blocked=False)
        seconds = await update(call.span, name, RateEstimate, earliest, queue.in_flight, ahead, limit)
        return Wait(seconds, blocked=False)

    def after(self, call: Call, result: Result) -> Awaitable[None] | None:
        begun = self._permits.pop(call, None)
        if begun is None:
            return None
        account, permit, estimate = begun
        queue, memory = account.queue, self._state.memory
        if not isinstance(result, BaseException):
            if (
                memory is None
                or estimate is None
                or account.episode is not None
                or account.doubt is not None
                or result.status >= ERROR_STATUS
                or (self._below_400 and result.status in self._below_400)
            ):
                return self._ended(call, account, permit, result)
            says = self._limits(result.headers) if self._limit is None else ()
            answered(estimate, memory.now(call.now), permit, len(queue.sent_at) - 1, self._limit, says=says)
        # The server cannot have counted an attempt that ended in one of these; or the loop is gone.
        elif not isinstance(result, ConnectFailed | CertificateInvalid | RequestRejected | GeneratorExit):
            return self._ended(call, account, permit, result)
        queue.end(permit)
        return None

    async def _ended(self, call: Call, account: _Account, permit: Permit, result: Result) -> None:
        try:
            if not isinstance(result, BaseException):
                try:
                    judged = await judge(call, result, self._rules)
                except (aiohttp.ClientError, TimeoutError):  # of the body that a rule asks for
                    await self._state.note(call.span, account.name, RateEstimate, RateEstimate.record)
                    raise
                await self._record(call, account, permit, result, judged)
            elif not isinstance(result, ApiError):
                await self._state.note(call.span, account.name, RateEstimate, RateEstimate.record)
            elif result.stopped is None:  # otherwise it is the end of another call, which a layer further in made
                rule = self._rules.unless_built_in(result.rule, result.status)
                await self._record(call, account, permit, result, Judged(rule, result.retry_after))
        finally:
            del result  # its traceback may refer to this frame
            account.queue.end(permit)

    async def _record(
        self,
        call: Call,
        account: _Account,
        permit: Permit,
        result: aiohttp.ClientResponse | ApiError,
        judged: Judged | None,
    ) -> None:
        state, queue = self._state, account.queue
        says = self._stated(ERROR_HEADERS.take(call) if isinstance(result, ApiError) else result.headers)
        if judged is not None and judged.rule.is_rate_limit(result.status, judged.retry_after):
            asked = judged.rule.retry, judged.retry_after
            change = partial(refused, others=queue.in_flight - 1, says=says)
            wait = await state.note(call.span, account.name, RateEstimate, change, permit, *asked)
            now, episode = asyncio.get_running_loop().time(), account.episode or account.doubt
            if episode is None:
                context = (call.span or trace.get_current_span()).get_span_context()
                episode = _Episode(now, context, queue.queued - queue.waiting, queue.sent_at[-1], OFF not in call.state)
                account.doubt = episode
            episode.refused += 1
            if wait is not None:
                seconds = wait.seconds or 0.0
                queue.block(now + seconds, too_long=wait.too_long)
                if account.episode is None:
                    account.episode, account.doubt = episode, None
                    if episode.recorded:
                        self._instruments.episodes.add(1, account.measured)
                episode.wait += seconds
                episode.generation = max(episode.generation, permit.generation)
            return
        others, limit = queue.in_flight - 1, self._limit
        passed = partial(answered, says=says)
        ends = await state.note(call.span, account.name, RateEstimate, passed, permit, others, limit)
        if account.doubt is not None and permit.at > account.doubt.last:
            account.doubt = None
        episode = account.episode
        # Another process that shares the store may have had the first success.
        if episode is not None and (ends or permit.generation > episode.generation):
            account.episode = None
            requests, period = await state.update(None, account.name, RateEstimate, learned)
            if limit is not None:
                requests, period = limit.requests, limit.per
            self._report(
                account, episode, {names.LIMIT: float(requests), names.LIMIT_PERIOD: float(period)} if requests else {}
            )

    def _stated(self, headers: Mapping[str, str] | None) -> Sequence[StatedLimit]:
        return () if self._limit is not None or headers is None else self._limits(headers)

    def _record_belief(self, call: Call, account: _Account) -> None:
        """Record what is believed of the limits of *account*, if that has changed."""
        belief = believed(self._estimate(account.name), self._limit)
        limits: dict[str, AttributeValue] = {names.LIMIT_KIND: belief.kind, names.LIMIT: float(belief.requests)}
        limits |= {names.LIMIT_PERIOD: float(belief.period), names.LIMIT_IN_FLIGHT: belief.in_flight or 0}
        if (now := tuple(limits.values())) != account.belief:
            (call.span or trace.get_current_span()).add_event(names.BELIEF_EVENT, limits)
            account.belief = now

    def _report(self, account: _Account, episode: _Episode, limit: Mapping[str, AttributeValue]) -> None:
        """Report the end of *episode*: a span, a metric and a line in the log."""
        lasted = asyncio.get_running_loop().time() - episode.began
        queued = account.queue.queued - episode.queued_before
        attributes = {
            **account.server,
            names.QUEUED: queued,
            names.REFUSED: episode.refused,
            names.WAIT: episode.wait,
            **limit,
        }
        shown = ""
        if self._show_key:
            attributes[names.KEY_HASH] = account.name[:_SHOWN]
            shown = f", account {account.name[:_SHOWN]}"
        if episode.recorded:
            self._instruments.episode_duration.record(lasted, account.measured)
            # A trace of its own: it belongs to all calls that waited.
            links = [Link(episode.context)] if episode.context.is_valid else []
            start = self._tracing.tracer.start_span
            start(names.EPISODE, Context(), SpanKind.INTERNAL, attributes, links, start_time=episode.started).end()
        if queued:  # otherwise only the refused call was concerned
            LOGGER.info(
                "%s limited the rate%s: for %.3g s calls waited in the queue (%d of them), after %d had been refused",
                account.server[names.SERVER_ADDRESS],
                shown,
                lasted,
                queued,
                episode.refused,
            )

    def _account(self, request: aiohttp.ClientRequest) -> _Account:
        accounts = self._accounts
        key, scope = self._key, self._scope
        of = None if key is None else key(request)
        name = hash_key(origin_of(request.url), of) if scope is None else _name(request.url, of, scope(request))
        account = accounts.get(name)
        if account is None:
            server, url = origin_attributes(request), request.url
            measured = self._instruments.server(url.host, url.port)
            queue = Queue(partial(self._ask, name), partial(self._count_queued, measured))
            account = accounts[name] = _Account(name, server, measured, queue)
            if len(accounts) > _MOST_ACCOUNTS:
                self._forget_idle()
        else:
            accounts.move_to_end(name)
        return account

    def _count_queued(self, measured: Mapping[str, AttributeValue], call: Call, change: int) -> None:
        if OFF not in call.state:
            self._queued.add(change, measured)

    def _forget_idle(self) -> None:
        # A few at a time: each new account makes room for more than itself.
        for name, account in list(islice(self._accounts.items(), 4)):
            if account.queue.in_flight or account.queue.waiting:
                self._accounts.move_to_end(name)
                continue
            if account.episode is not None:
                self._report(account, account.episode, {})
            del self._accounts[name]

    def __repr__(self) -> str:
        return f"Throttle({self._rules!r}, limit={self._limit!r})"


def _name(url: URL, key: str | None, scope: str | None) -> str:
    return hash_key(origin_of(url), key if scope is None else f"{key or ''}\n{scope}")
