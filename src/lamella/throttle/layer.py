"""``Throttle``: keep the calls of each account within its rate limit. All of them wait when it is exceeded."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import stamina
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from yarl import URL

from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, rejected, require_open
from lamella.classify.judge import ERROR_HEADERS, Judged, judge
from lamella.errors import ApiError, CertificateInvalid, ConnectFailed, RateLimited, RequestRejected
from lamella.origins import origin_of
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import RuleBook, StopReason, check_rules
from lamella.store.protocol import Store
from lamella.store.shared import SharedState, hash_key, network_store
from lamella.telemetry.attributes import origin_attributes
from lamella.telemetry.tracing import OFF, SILENT
from lamella.throttle.account import MOST_IDLE, Account, Episode, Learning, account_name, forget_idle, leased
from lamella.throttle.belief import Belief, believed
from lamella.throttle.estimate import ONE, Asked, Permit, RateEstimate, Wait
from lamella.throttle.headers import read_by, stated_limits
from lamella.throttle.limit import Cost, Limits, Of, cost_of, separated
from lamella.throttle.permits import answered, learned, next_permit, refused
from lamella.throttle.queue import WAITING
from lamella.throttle.quota import PASSAGE, Held, Quota, Quotas, ended, release
from lamella.throttle.report import Report
from lamella.throttle.stated import stated_now

_REFUSED: Final = 429
# A tuple, because a union would be made for each attempt.
_UNCOUNTED: Final = (ConnectFailed, CertificateInvalid, RequestRejected, GeneratorExit)
_PERIOD: Final = 60.0  # the period in seconds to assume if the rules have no wait
_MOST_ACCOUNTS: Final = 10_000


class Throttle(Layer):
    """Keeps the calls of each account within its rate limit, which is stated or learned.

    A refusal (an answer that matches a rule with ``rate_limit``) begins a rate-limit episode. Throttle queues all calls
    of that account for the wait that the rule or the server asks for. Then it sends them at the learned rate, first
    come, first served. A queued call uses up no attempt, and a retry keeps its place. If the server asks for a longer
    wait than the rule's maximum, the calls of that account fail with :class:`lamella.RateLimited` until that time has
    passed.

    Throttle belongs inside ``Retry``, since each attempt counts, and outside ``AttemptSpan``, which measures the time
    of the server. Without ``Retry`` a refused call fails, and the other calls are queued. In stamina's test mode no
    call waits.

    Args:
        rules: Which answers are a rate limit, and how long to wait after them.
        limits: The known limits: a :class:`lamella.Limit`, or several, which all apply. Then the server refuses
            nothing, unless other clients use the same limits. Each call counts until it is answered, including long
            polls. A function in place of a Limit, or among several, reads the limits from the headers of an answer.
            None means that the limit is learned, and that the usual headers are read, such as ``RateLimit`` and
            ``X-RateLimit-Remaining``. If a number of requests is stated for the account, it is not learned, and only
            the given functions read headers.
        key: Returns the account of a request. None, or a *key* that returns None, means one account for each origin.
            The key may be a credential: only a hash of it is stored.
        scope: Returns the name of the learned limit that a request counts against, for an account with several limits,
            such as one for each path. Each has its own queue and estimate. A *scope* that returns None means one limit
            for all requests. None: a path or method is given its own when its refusals show it, except with a store
            outside this process.
        cost: Returns the points of the limit that a request uses, 0 or more. None means 1.
        store: Stores the learned limits and the usage of stated limits. None means in this process, for the 10,000 most
            recently used accounts.
        show_key: Whether traces and logs identify accounts by a short hash of the key.
        tracer_provider: None means the global one.
        meter_provider: None means the global one.
    """

    slot = Slot.THROTTLE
    single = True

    def __init__(
        self,
        rules: RuleBook,
        *,
        limits: Limits | None = None,
        key: Of | None = None,
        scope: Of | None = None,
        cost: Cost | None = None,
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
        self._limits, reads = separated(limits)
        self._key = key
        self._scope = scope
        self._state = SharedState(store)
        self._used = SharedState(store)
        self._fleet = network_store(store)
        quotas = partial(Quotas, key=key, scope=scope, cost=cost, state=self._used, fleet=self._fleet)
        self._quotas = quotas(self._limits) if self._limits else None
        self._stated = next((each for each in self._limits if each.requests is not None and each.key is None), None)
        """A stated limit on requests, which is therefore not learned."""
        self._says = read_by(reads) if reads else None if self._stated else stated_limits
        """Reads the limits in the headers of an answer. None: headers are not read."""
        backoff = rules.rule_for(_REFUSED).retry
        period = (backoff.low if backoff else 0.0) or _PERIOD
        self._learning = Learning(self._state, period, self._stated is None, cost)
        self._splits = scope is None and self._state.memory is not None
        """Whether the limits of parts are found."""
        self._report = Report(tracer_provider, meter_provider, show_key=show_key)
        self._process = os.getpid()
        self._permits: dict[Call, tuple[Account, Permit, RateEstimate | None, Held]] = {}
        """The permits of the attempts in flight. The estimate is set if it is in memory, to avoid a second look-up."""
        self._accounts: OrderedDict[str, Account] = OrderedDict()  # the most recently used one is at the end

    def blocked_for(self, origin: URL, key: str | None = None, scope: str | None = None) -> float:
        """Return the seconds for which a refusal still blocks an account, as far as this process knows, or 0.0.

        *origin* is a URL of its server. *key* and *scope* are the values that the functions of the layer return.
        """
        account = self._accounts.get(account_name(origin, key, scope))
        return 0.0 if account is None else max(account.queue.blocked_until - asyncio.get_running_loop().time(), 0.0)

    def state(self, origin: URL, key: str | None = None, scope: str | None = None) -> Belief:
        """Return the estimated limits of an account, as far as this process knows.

        *origin* is a URL of its server. *key* and *scope* are the values that the functions of the layer return.
        """
        name = account_name(origin, key, scope)
        estimate, account = self._estimate(name), self._accounts.get(name)
        stations = () if account is None else account.stations
        left = [each for station in stations if isinstance(station, Quota) for each in station.uses()]
        if estimate.stated:
            left += stated_now(estimate, (self._state if account is None else account.lease or self._state).now())
        parts = () if account is None or account.parts is None else account.parts.accounts.values()
        in_parts = tuple((each.part, believed(self._estimate(each.name), None)) for each in parts)
        return replace(believed(estimate, self._stated, left), parts=in_parts)

    def _estimate(self, name: str) -> RateEstimate:
        account = None if self._fleet is None else self._accounts.get(name)
        lease = None if account is None else account.lease
        estimate = self._state.last_known(name) if lease is None else lease.known
        return estimate if isinstance(estimate, RateEstimate) else RateEstimate()

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.work_in(loop)
        self._used.work_in(loop)
        if self._process != (process := os.getpid()):  # in a fork, the calls so far are those of the other process
            self._process, self._permits, self._accounts = process, {}, OrderedDict()
            if self._quotas is not None:
                self._quotas.clear()
        for each in (*self._accounts.values(), *(self._quotas or ())):
            if each.lease is not None:
                each.lease.begin()

    def before(self, call: Call) -> Awaitable[None] | None:
        if WAITING in call.state:
            WAITING.take(call)
        if stamina.is_testing():
            return None
        account, memory = self._account(call.request), self._state.memory
        queue = account.queue
        if memory is not None and not queue.waiters and self._quotas is None:
            # Fast path for calls that need not wait.
            _, period, _, cost = self._learning
            estimate, now = memory.of(account.name, RateEstimate), call.now if memory.clock is None else memory.clock()
            asked = ONE
            if cost is not None:
                asked = Asked(extra=queue.points - queue.in_flight, cost=cost_of(call.request, cost))
            permit = next_permit(estimate, now, queue.sent_at, period, asked)
            if isinstance(permit, Permit):
                queue.start(call, permit)
                self._permits[call] = account, permit, estimate, ()
                return None
        elif memory is None and (permitted := self._leased_at_once(account)) is not None:
            queue.start(call, permitted)
            self._permits[call] = account, permitted, None, ()
            return None
        return self._wait(call, account)

    def _leased_at_once(self, account: Account) -> Permit | None:
        """Return a leased permit of *account* if one is available and no other call waits for it."""
        lease = account.lease
        if lease is None or account.queue.waiters or self._quotas is not None or self._learning.cost is not None:
            return None
        return lease.at_once()

    async def _wait(self, call: Call, account: Account) -> None:
        before = call.queued
        try:
            while True:
                first, passage = account.queue, None
                if self._quotas is not None:
                    passage = self._quotas.passage(call.request, account, account.count)
                    PASSAGE.set(call, passage)
                    account.stations, first = passage.stations, passage.stations[0].queue
                answer = await first.enter(call)
                if not (isinstance(answer, Wait) and answer.moved):
                    break
                account = self._account(call.request)
        finally:
            self._report.wait_ended(call, account, call.queued - before)
        if isinstance(answer, Wait):
            since = 0.0 if account.episode is None else call.request.loop.time() - account.episode.began
            stopped = StopReason.WAIT_TOO_LONG if answer.too_long else StopReason.DEADLINE
            until = answer.seconds or 0.0
            raise rejected(RateLimited, call, self._rules, since=since, until=until, stopped=stopped)
        WAITING.take(call)
        if call.span is SILENT:
            call.span = trace.INVALID_SPAN  # an SDK may have been set up in the meantime
        held: Held = ()
        if passage is not None:
            PASSAGE.take(call)
            [answer] = [permit for station, permit in passage.held if station is account]
            held = [each for each in passage.held if each[0] is not account]
        try:
            require_open(call.request)
        except RuntimeError:
            account.queue.end(answer)
            release(held)
            raise
        self._report.believed(call, account, believed(self._estimate(account.name), self._stated))
        memory = self._state.memory
        estimate = None if memory is None else memory.of(account.name, RateEstimate)
        self._permits[call] = account, answer, estimate, held

    def after(self, call: Call, result: Result) -> Awaitable[None] | None:
        begun = self._permits.pop(call, None)
        if begun is None:
            return None
        account, permit, estimate, held = begun
        queue, lease = account.queue, account.lease
        headers: Mapping[str, str] | None = None
        if isinstance(result, BaseException):
            is_plain = isinstance(result, ApiError) and result.stopped is None and not self._is_refusal(result)
        else:
            headers = result.headers
            is_plain = result.status < ERROR_STATUS and result.status not in self._below_400
        # Most attempts pass, and in no episode. Then there is nothing to wait for.
        in_doubt = held or account.episode is not None or account.doubt is not None
        if not is_plain or in_doubt or (estimate is None and lease is None):
            # The server cannot have counted an attempt that ended in one of these errors, or the loop is closed.
            if isinstance(result, _UNCOUNTED):
                queue.end(permit)
                release(held)
                return None
            return self._ended(call, account, permit, held, result)
        if headers is None:
            headers = ERROR_HEADERS.take(call)
        says = () if headers is None or self._says is None else self._says(headers)
        if lease is not None:
            lease.ended(permit, passed=True, says=says)
        elif estimate is not None:
            memory = self._state.memory
            now = call.now if memory is None or memory.clock is None else memory.clock()
            answered(estimate, now, permit, len(queue.sent_at) - 1, self._stated is None, says)
            if account.parts is not None:
                account.has_passed(call.request, permit)
        queue.end(permit)
        return None

    def _is_refusal(self, error: ApiError) -> bool:
        rule = self._rules.unless_built_in(error.rule, error.status)
        return rule.is_rate_limit(error.status, error.retry_after)

    async def _ended(self, call: Call, account: Account, permit: Permit, held: Held, result: Result) -> None:
        counts = True
        try:
            if not isinstance(result, BaseException):
                try:
                    judged = await judge(call, result, self._rules)
                except (aiohttp.ClientError, TimeoutError):  # raised while reading the body that a rule asks for
                    await self._note(call, account, permit)
                    raise
                counts = await self._record(call, account, permit, result, judged)
            elif not isinstance(result, ApiError):
                await self._note(call, account, permit)
            elif result.stopped is None:  # otherwise it is the error of another call, made by an inner layer
                rule = self._rules.unless_built_in(result.rule, result.status)
                counts = await self._record(call, account, permit, result, Judged(rule, result.retry_after))
            else:
                counts = False
        finally:
            del result  # its traceback may refer to this frame
            account.queue.end(permit)
            await ended(call, held, counts=counts)

    async def _note(self, call: Call, account: Account, permit: Permit) -> None:
        """Record an attempt without an answer."""
        if account.lease is not None:
            account.lease.ended(permit, passed=None)
            return
        await self._state.note(call.span, account.name, RateEstimate, RateEstimate.record, permit.cost)

    async def _record(
        self,
        call: Call,
        account: Account,
        permit: Permit,
        result: aiohttp.ClientResponse | ApiError,
        judged: Judged | None,
    ) -> bool:
        """Record an answer. Return whether the limit let the attempt pass."""
        state, queue = self._state, account.queue
        headers = ERROR_HEADERS.take(call) if isinstance(result, ApiError) else result.headers
        says = () if headers is None or self._says is None else self._says(headers)
        if judged is not None and judged.rule.is_rate_limit(result.status, judged.retry_after):
            asked = judged.rule.retry, judged.retry_after
            if self._splits and state.memory is not None:
                charged = account.charged(call, permit, state.memory.of(account.name, RateEstimate))
                if charged is None:
                    return False
                if charged is not account:
                    self._end_episode(account)
                    account, permit, queue = charged, Permit(0, permit.at, cost=permit.cost), charged.queue
            change = partial(refused, others=max(queue.in_flight - 1, 0), says=says)
            if account.lease is not None:
                wait = await account.lease.refused(permit, *asked, says)
            else:
                wait = await state.note(call.span, account.name, RateEstimate, change, permit, *asked)
            now, episode = asyncio.get_running_loop().time(), account.episode or account.doubt
            if episode is None:
                context = (call.span or trace.get_current_span()).get_span_context()
                last = queue.sent_at[-1] if queue.sent_at else permit.at
                episode = Episode(now, context, queue.queued - queue.waiting, last, OFF not in call.state)
                account.doubt = episode
            episode.refused += 1
            if wait is not None:
                seconds = wait.seconds or 0.0
                queue.block(now + seconds, too_long=wait.too_long)
                if account.episode is None:
                    account.episode, account.doubt = episode, None
                    self._report.begun(account, episode)
                episode.wait += seconds
                episode.generation = max(episode.generation, permit.generation)
            return False
        account.has_passed(call.request, permit)
        passed = partial(answered, learns=self._stated is None, says=says)
        if account.lease is not None:
            account.lease.ended(permit, passed=True, says=says)
            ends = False
        else:
            ends = await state.note(call.span, account.name, RateEstimate, passed, permit, queue.in_flight - 1)
        if account.doubt is not None and permit.at > account.doubt.last:
            account.doubt = None
        episode = account.episode
        # Another process that shares the store may have had the first success.
        if episode is not None and (ends or permit.generation > episode.generation):
            account.episode = None
            if account.lease is not None:
                requests, period = learned(account.lease.known, 0.0)
            else:
                requests, period = await state.update(None, account.name, RateEstimate, learned)
            if self._stated is not None:
                requests, period = self._stated.requests or 0.0, self._stated.per or 0.0
            self._report.ended(account, episode, requests, period)
        return True

    def _account(self, request: aiohttp.ClientRequest) -> Account:
        accounts = self._accounts
        key, scope = self._key, self._scope
        of = None if key is None else key(request)
        name = hash_key(origin_of(request.url), of) if scope is None else account_name(request.url, of, scope(request))
        account = accounts.get(name)
        if account is None:
            server, url = origin_attributes(request), request.url
            measured = self._report.instruments.server(url.host, url.port)
            count = partial(self._report.count_queued, measured)
            lease = None if self._fleet is None else leased(self._fleet, name, self._learning)
            account = accounts[name] = Account(name, server, measured, self._learning, count, lease=lease)
            if len(accounts) > MOST_IDLE:
                forget_idle(accounts, self._end_episode, too_many=len(accounts) > _MOST_ACCOUNTS)
        else:
            accounts.move_to_end(name)
        return account if account.parts is None else account.parts.of(request)

    def _end_episode(self, account: Account) -> None:
        if account.episode is not None:
            self._report.ended(account, account.episode, 0.0, 0.0)
        account.episode = account.doubt = None

    def __repr__(self) -> str:
        shown = f", limits={list(self._limits)!r}" if self._limits else ""
        return f"Throttle({self._rules!r}{shown})"
