"""Calls of several accounts through `Throttle`, whatever the server does: what it promises holds."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import aiohttp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tests.examples import examples
from tests.fuzz.calls import Answer, driven, request_of
from tests.json_store import AHEAD, JsonStore
from yarl import URL

from lamella import (
    Backoff,
    ConnectFailed,
    Limit,
    MemoryStore,
    RateLimited,
    Rule,
    RuleBook,
    StopReason,
    Throttle,
    TooManyRequests,
)
from lamella.call import Call as LayersCall
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket, VirtualClock, VirtualTimeLoop
from lamella.testing import Limit as ServersLimit
from lamella.throttle.queue import Queue

_T = TypeVar("_T")

SERVER: Final = "http://service.example"
BACKOFF: Final = Backoff(60, maximum=200, jitter=0)
RULES: Final = RuleBook(Rule(429, "Too Many Requests", retry=BACKOFF))
SLOW: Final = 0.01
"""The longest that one way to the store takes, where it is not in memory."""
NEAR: Final = 1e-3
"""What a sum of seconds may be off by."""
LOST: Final = -1
UNSENT: Final = -2

ACCOUNTS = st.sampled_from(["a", "a", "b"])
LAYERS = st.integers(0, 1)
WHICH = st.integers(0, 200)
# None: as the limit has it.
STATUSES = st.lists(st.sampled_from([None, None, 200, 429, 500, LOST, UNSENT]), min_size=1, max_size=3)
LATENCIES = st.sampled_from([0.0, 0.1, 0.1, 1.0, 70.0])
PATIENCE = st.sampled_from([None, None, None, 0.05, 10.0, 60.0, 130.0])
RETRY_AFTER = st.sampled_from([None, None, "0", "30", "90", "500", "soon"])
PAUSES = st.sampled_from([0.0, 0.0, 15.0, 60.0])
SECONDS = st.sampled_from([0.0, 0.05, 1.0, 5.0, 29.0, 59.9, 60.0, 61.0, 300.0])


@dataclass(eq=False)
class Call:
    """A call and its attempts."""

    number: int
    """Its place in the order in which they came."""
    account: Account
    layer: int
    latency: float = 0.1
    statuses: tuple[int | None, ...] = (200,)
    retry_after: str | None = None
    pause: float = 0.0
    """Before it is sent again."""
    deadline: float | None = None
    raised: bool = False
    """Whether a 429 is an error already, as `Classify` has it."""
    task: asyncio.Task[Any] | None = None
    abandoned: bool = False
    sent_at: float = 0.0
    told_to_go: int | None = None
    """How often it had been cancelled when its attempt ended. None: it has not ended."""

    def is_abandoned(self) -> bool:
        return self.abandoned

    def went_unnoted(self) -> bool:
        """Return whether it was cancelled after that, while the end was recorded."""
        return self.told_to_go is not None and self.times_told > self.told_to_go

    @property
    def times_told(self) -> int:
        """How often it has been cancelled."""
        return 0 if self.task is None else self.task.cancelling()

    @property
    def goes(self) -> bool:
        return self.times_told > 0


@dataclass(eq=False)
class Account:
    """The results of all calls of one account."""

    name: str
    limiter: Any
    """None: the server has no limit for it."""
    waiting: dict[Call, float] = field(default_factory=dict)
    """Since when."""
    flying: set[Call] = field(default_factory=set)
    counted: list[tuple[float, Call]] = field(default_factory=list)
    """When an attempt ended that the server may have counted, and of which call."""
    blocked_at: float = -1.0
    blocked_until: float = -1.0
    blocks: int = 0
    refusals: int = 0
    """How many times it was blocked since the last success."""
    undecided: list[tuple[float, float]] = field(default_factory=list)
    """When attempts were refused without blocking it, and the seconds that the server asked for."""
    shut: bool = False
    """Whether it is blocked for longer than the rule allows."""
    moved: float = 0.0
    """When an attempt last began or ended."""
    unnoted: set[Call] = field(default_factory=set)
    """Calls that were cancelled while the result was recorded in a slow store: it may know it or not."""


def queues_of(throttle: Throttle) -> list[Queue]:
    return [account.queue for account in throttle._accounts.values()]


def queues_of_quotas(throttle: Throttle) -> list[Queue]:
    return [] if throttle._quotas is None else [quota.queue for quota in throttle._quotas._quotas.values()]


class ThrottleMachine(RuleBasedStateMachine):
    """The attempts check whether they may be sent, and note in `wrong` what they find."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop(VirtualClock(grace=0))
        self.numbers = itertools.count()
        self.accounts: dict[str, Account] = {}
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.throttles: list[Throttle] = []

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)

    @property
    def at(self) -> float:
        return self.loop.time()

    @initialize(
        limit=st.sampled_from(
            [None, None, FixedWindow(3, 60), SlidingWindow(2, 60), TokenBucket(0.1, 4), FixedWindow(30, 60)]
        ),
        limits=st.sampled_from(
            [
                (),
                (),
                (Limit(3, 60),),
                (Limit(20, 45),),
                (Limit(20, 45), Limit(3, 10), Limit(concurrent=2)),
                (Limit(3, 60), Limit(4, 60, key=lambda _: None)),
                (Limit(concurrent=2), Limit(concurrent=3, key=lambda _: None)),
                (Limit(2, 50, scope=lambda request: request.url.path), Limit(5, 60, key=lambda _: None)),
            ]
        ),
        chance=st.sampled_from([0.0, 0.0, 0.2]),
        memory=st.sampled_from([True, True, False]),
        layers=st.integers(1, 2),
        seed=st.integers(0, 99),
    )
    def begin(
        self,
        limit: ServersLimit | None,
        limits: tuple[Limit, ...],
        chance: float,
        memory: bool,
        layers: int,
        seed: int,
    ) -> None:
        self.limit, self.limits, self.chance = limit, limits, chance
        self.longest = max((each.per for each in limits if each.per is not None), default=0.0)
        self.learns = not any(each.per is not None and each.key is None for each in limits)
        self.random = random.Random(seed)
        self.memory = memory
        # Where limits are stated, the store is asked for each of them as well.
        self.late = 0.0 if memory else (25 if limits else 5) * SLOW
        """How long it takes until a layer knows of something, or has done what it knew of before."""
        self.store = MemoryStore() if memory else JsonStore(slow=SLOW, seed=seed)
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.throttles = [
            Throttle(
                RULES,
                limits=limits,
                key=lambda request: request.url.path,
                store=self.store,
                meter_provider=self.meters,
            )
            for _ in range(layers)
        ]
        self.run(self._begin())

    async def _begin(self) -> None:
        self.session = aiohttp.ClientSession(SERVER)

    def account(self, name: str) -> Account:
        if name not in self.accounts:
            self.accounts[name] = Account(name, self.limit.limiter() if self.limit else None)
        return self.accounts[name]

    def states(self) -> list[dict[str, Any]]:
        """What is kept of accounts; as it comes out of JSON again."""
        if isinstance(self.store, MemoryStore):
            given = [asdict(state) for state in self.store._states.values()]
            states: list[dict[str, Any]] = json.loads(json.dumps(given, allow_nan=False))
            assert states == given
        else:
            states = [json.loads(text) for text in self.store.texts.values()]
        return [state for state in states if "log" in state]

    async def _settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        await asyncio.sleep(self.late)

    # The life of a call.

    async def _come(self, *calls: Call, settled: bool = True) -> None:
        for call in calls:
            request = await request_of(self.session, f"/{call.account.name}")
            call.task = self.loop.create_task(driven(self._live(call, request), call.is_abandoned))
            self.calls.append(call)
        if settled:
            await self._settled()

    async def _live(self, call: Call, request: aiohttp.ClientRequest) -> None:
        account, throttle = call.account, self.throttles[call.layer]
        LayersCall.of(request).deadline = call.deadline
        statuses = list(call.statuses)

        async def send(request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
            return await self._sent(call, request, statuses.pop(0))

        try:
            async with asyncio.timeout_at(call.deadline):
                while statuses:
                    account.waiting[call] = self.at
                    call.told_to_go = None
                    try:
                        response = await throttle(request, send)
                        if response.status == 200:
                            return
                    except (TooManyRequests, aiohttp.ServerDisconnectedError, ConnectFailed):
                        pass
                    finally:
                        account.waiting.pop(call, None)
                        if not self.memory and call.went_unnoted():
                            account.unnoted.add(call)
                    await asyncio.sleep(call.pause)
        except RateLimited as error:
            self._told_too_late(call, error)
        except TimeoutError:
            if call.deadline is None:
                self.wrong.append("a call without a deadline is out of time")
        finally:
            self.calls.remove(call)

    async def _sent(self, call: Call, request: aiohttp.ClientRequest, status: int | None) -> aiohttp.ClientResponse:
        account = call.account
        self._may_be_sent(call)
        del account.waiting[call]
        blocks = account.blocks
        if self.at < account.blocked_until:
            blocks -= 1  # it had leave before that
        account.flying.add(call)
        account.moved = call.sent_at = self.at
        counts = True
        try:
            await asyncio.sleep(call.latency / 2)
            if status is None:
                limited = account.limiter is not None and account.limiter.allow(self.at) > 0
                status = 429 if limited or self.random.random() < self.chance else 200
            await asyncio.sleep(call.latency / 2)
            counts = status not in {429, UNSENT}
        except GeneratorExit:
            counts = False  # nobody could record it
            raise
        finally:
            account.flying.remove(call)
            account.moved = self.at
            call.told_to_go = call.times_told
            if counts:
                account.counted.append((self.at, call))
        if status == LOST:
            raise aiohttp.ServerDisconnectedError
        if status == UNSENT:
            raise ConnectFailed("GET", request.url, RULES.rule_for(ConnectFailed.failure))
        if status == 429:
            return self._refused(call, request, blocks)
        if blocks == account.blocks:
            account.refusals, account.shut = 0, False
        return Answer(status)  # type: ignore[return-value]

    def _refused(self, call: Call, request: aiohttp.ClientRequest, blocks: int) -> aiohttp.ClientResponse:
        """Block the account, if it is not blocked by a refusal of the same time already."""
        account, asked = call.account, call.retry_after
        seconds = float(asked) if asked and asked.isdigit() else None
        if seconds is not None and seconds > BACKOFF.maximum:
            if self.at + seconds > account.blocked_until:
                account.blocks += 1
                account.refusals = max(account.refusals, 1)
                account.shut = True
                account.blocked_at, account.blocked_until = self.at, self.at + seconds
                if self.memory:
                    self.loop.call_soon(self._is_blocked, call)
        elif blocks == account.blocks:
            account.undecided.append((self.at, seconds or 0.0))
            if self.memory:
                self.loop.call_soon(self._may_be_blocked, call, blocks)
            else:
                self.loop.call_later(self.late, self._may_be_blocked, call, blocks)
        if call.raised:
            raise TooManyRequests(request.request_info, status=429, rule=RULES.rule_for(429), retry_after=seconds)
        return Answer(429, {"Retry-After": asked} if asked else {})  # type: ignore[return-value]

    def _may_be_blocked(self, call: Call, blocks: int) -> None:
        """Note whether a refusal has blocked the account, for as long as it should; it may have been by chance."""
        account = call.account
        for_seconds = self.throttles[call.layer].blocked_for(URL(SERVER), f"/{account.name}")
        if account.blocks != blocks or for_seconds == 0:
            return
        account.blocks += 1
        account.refusals = 1 if account.shut else account.refusals + 1
        account.shut = False
        # Which of two answers of one moment is recorded first is not known, nor how often it was blocked in a row.
        least = min(at + BACKOFF.floor(1) for at, _ in account.undecided)
        most = max(at + max(BACKOFF.maximum, seconds) for at, seconds in account.undecided)
        until = self.at + for_seconds
        # The layer begins the wait when a slow store has answered; it began in the store before that.
        account.blocked_at, account.blocked_until = self.at, until - self.late
        if not least - NEAR <= until <= most + self.late + NEAR:
            self.wrong.append(f"it is blocked until {until} s, and not {least} to {most} s")
        account.undecided.clear()

    def _is_blocked(self, call: Call) -> None:
        account = call.account
        for_seconds = self.throttles[call.layer].blocked_for(URL(SERVER), f"/{account.name}")
        if abs(for_seconds - (account.blocked_until - self.at)) > NEAR:
            self.wrong.append(f"it is blocked for {for_seconds} s, and should be until {account.blocked_until} s")

    def _may_be_sent(self, call: Call) -> None:
        account, now = call.account, self.at
        self._is_not_idle(account, call.layer)
        closed = now < account.blocked_until - NEAR and account.blocked_at <= now - self.late
        if closed and not account.unnoted:
            self.wrong.append(f"sent at {now} s, while it is blocked until {account.blocked_until} s")
        for other, since in account.waiting.items():
            if other.number < call.number and other.layer == call.layer and since <= now - self.late and not other.goes:
                self.wrong.append(f"the {call.number}th call has overtaken the {other.number}th")
        if self.memory and account.refusals:
            for other in account.flying:
                # A slow one, or one from before the refusal, shows nothing, so the others go on.
                lately = max(account.blocked_until, now - 1.0) + NEAR
                if other.layer == call.layer and other.sent_at > lately:
                    self.wrong.append("not alone, though nothing has passed since it was closed")
        for limit in self.limits:
            self._is_kept(limit, call)

    def _is_kept(self, limit: Limit, call: Call) -> None:
        """Note it if *call*, which is sent now, is beyond *limit*."""
        number = 1
        for account in self.accounts.values() if limit.key else [call.account]:
            number += sum(other.layer == call.layer for other in account.flying)
            per = limit.per or 0.0
            for at, other in reversed(account.counted):
                if self.at - at >= per - NEAR:
                    break
                seen = other.layer == call.layer or at < self.at - self.late
                number += seen and other not in account.unnoted
        most = limit.requests or limit.concurrent
        if most is not None and number > most:
            self.wrong.append(f"{number} sends are too many for {limit}")

    def _is_not_idle(self, account: Account, layer: int) -> None:
        """Who waits does so for an answer, for the queue to open, or for the rate: not without end."""
        since = [at for call, at in account.waiting.items() if call.layer == layer and not call.goes]
        shared = list(self.accounts.values()) if any(limit.key for limit in self.limits) else [account]
        if not since or any(call.layer == layer for each in shared for call in each.flying):
            return
        idle = self.at - max(min(since), account.blocked_until, *(each.moved for each in shared))
        period = max(60.0, self.longest)
        if idle <= period:
            return
        # It may be blocked for longer, as far as a slow store knows, or the learned period may be longer.
        states = self.states()
        if not self.memory:
            idle = min(idle, self.at - max(state["blocked_until"] - AHEAD for state in states))
        if self.learns:
            period = max(period, *(state["period"] for state in states))
        if idle > period + 2 * self.late + NEAR:
            self.wrong.append(f"{len(since)} calls wait since {idle} s for nothing")

    def _told_too_late(self, call: Call, error: RateLimited) -> None:
        assert error.retry_after is not None
        if error.stopped is StopReason.WAIT_TOO_LONG:
            opens = self.at + error.retry_after
            if not call.account.shut or abs(opens - call.account.blocked_until) > NEAR + self.late:
                self.wrong.append(f"it is not blocked until {opens}")
        elif error.stopped is not StopReason.DEADLINE or call.deadline is None:
            self.wrong.append("a call without a deadline is rejected as too late")
        elif self.at + error.retry_after < call.deadline - NEAR:
            self.wrong.append(f"it could have been sent {call.deadline - self.at - error.retry_after} s before its end")

    # What is done.

    @rule(
        name=ACCOUNTS,
        layer=LAYERS,
        number=st.sampled_from([1, 1, 2, 5, 12]),
        latency=LATENCIES,
        statuses=STATUSES,
        retry_after=RETRY_AFTER,
        pause=PAUSES,
        patience=PATIENCE,
        raised=st.booleans(),
    )
    def they_come(
        self,
        name: str,
        layer: int,
        number: int,
        latency: float,
        statuses: list[int | None],
        retry_after: str | None,
        pause: float,
        patience: float | None,
        raised: bool,
    ) -> None:
        deadline = None if patience is None else self.at + patience
        made = [
            Call(
                next(self.numbers),
                self.account(name),
                layer % len(self.throttles),
                latency,
                tuple(statuses),
                retry_after,
                pause,
                deadline,
                raised,
            )
            for _ in range(number)
        ]
        self.run(self._come(*made))

    @rule(name=ACCOUNTS, layer=LAYERS, patience=PATIENCE)
    def a_crowd_comes_of_which_the_first_are_refused(self, name: str, layer: int, patience: float | None) -> None:
        """Who waits behind them and cannot wait so long has to know it then."""
        self.they_come(name, layer, 6, 1.0, [429, None], None, 0.0, None, raised=True)
        self.they_come(name, layer, 2, 1.0, [429, None], None, 0.0, patience, raised=True)
        self.time_passes(1.0)

    @rule(name=ACCOUNTS, layer=LAYERS, rule_of=st.sampled_from([(10, 0.1), (10, 1.0), (150, 1.0)]))
    def they_come_one_after_the_other(self, name: str, layer: int, rule_of: tuple[int, float]) -> None:
        number, seconds = rule_of

        async def main() -> None:
            for _ in range(number):
                call = Call(next(self.numbers), self.account(name), layer % len(self.throttles))
                await self._come(call, settled=False)
                await asyncio.sleep(seconds)

        self.run(main())

    @rule(layer=LAYERS)
    def a_newcomer_waits_for_nobody(self, layer: int) -> None:
        call = Call(next(self.numbers), self.account(f"new {next(self.numbers)}"), layer % len(self.throttles), 0.0)
        self.run(self._come(call))
        if not self.memory:
            self.run(self._settled())
        assert call not in self.calls or any(limit.key for limit in self.limits)

    @precondition(lambda self: self.calls)
    @rule(which=WHICH, abandoned=st.booleans(), number=st.sampled_from([1, 1, 3]))
    def some_go_away(self, which: int, abandoned: bool, number: int) -> None:
        """Cancelled, or thrown away where they stand."""
        for _ in range(min(number, len(self.calls))):
            call = self.calls[which % len(self.calls)]
            assert call.task is not None
            call.abandoned = abandoned
            call.task.cancel()
            if number == 1:
                self.run(self._settled())
                assert call.task.done()

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        self.run(self._settled())

    @rule()
    def all_come_to_an_end(self) -> None:
        chance, self.chance = self.chance, 0.0
        self.run(self._ended())
        self.chance = chance

    async def _ended(self) -> None:
        tasks = [call.task for call in self.calls if call.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=100_000)
        await asyncio.sleep(self.late)  # until what is called later here has been
        assert not self.calls, "a call waits for ever"
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        for throttle in self.throttles:
            for queue in [*queues_of(throttle), *queues_of_quotas(throttle)]:
                assert (queue.waiting, queue.in_flight, queue.points) == (0, 0, 0.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in vars(self.loop)["_scheduled"] if not timer.cancelled()] == []
        data = self.reader.get_metrics_data()
        if data is not None:
            metrics = [each for scope in data.resource_metrics[0].scope_metrics for each in scope.metrics]
            points: Any = [each.data.data_points for each in metrics if each.name == "lamella.calls.queued"]
            assert {point.value for each in points for point in each} <= {0}

    def teardown(self) -> None:
        try:
            if self.throttles:
                self.all_come_to_an_end()
                assert self.wrong == [], self.wrong[:3]
        finally:
            if self.throttles:
                self.run(self._left())
            self.loop.close()

    async def _left(self) -> None:
        self.meters.shutdown()
        for call in list(self.calls):
            assert call.task is not None
            call.task.cancel()
        await asyncio.sleep(1)
        await self.session.close()

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.wrong == [], self.wrong[:3]
        if not self.throttles:
            return
        for account in self.accounts.values():
            for layer in range(len(self.throttles)):
                self._is_not_idle(account, layer)
        assert self.wrong == [], self.wrong[:3]
        for state in self.states():
            assert len(state["log"]) <= 128
        if self.memory:
            self.run(self._count())

    async def _count(self) -> None:
        """The queued calls and attempts in flight are known, and no call waits for what comes too late."""
        timers = [timer for timer in vars(self.loop)["_scheduled"] if not timer.cancelled()]
        everybody = sum(
            queue.waiting for each in self.throttles for queue in [*queues_of(each), *queues_of_quotas(each)]
        )
        assert sum(timer._callback.__module__.startswith("lamella") for timer in timers) <= everybody
        for layer, throttle in enumerate(self.throttles):
            queues = queues_of(throttle)
            waiting = [call for each in self.accounts.values() for call in each.waiting if call.layer == layer]
            flying = [call for each in self.accounts.values() for call in each.flying if call.layer == layer]
            if not any(call.goes for call in self.calls):
                if not any(limit.scope for limit in self.limits):  # otherwise they wait there, all but the first
                    assert sum(queue.waiting for queue in queues) == len(waiting)
                assert sum(queue.in_flight for queue in queues) == len(flying)
            for call in waiting:
                assert not call.account.shut or self.at > call.account.blocked_until - NEAR, "it waits for too long"
                closed = throttle.blocked_for(URL(SERVER), f"/{call.account.name}")
                assert call.goes or call.deadline is None or self.at + closed < call.deadline or not closed


TestThrottle = ThrottleMachine.TestCase
TestThrottle.settings = examples(25, stateful_step_count=20)
