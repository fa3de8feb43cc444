"""Calls to two services through two `Breaker`s that share a store: what a circuit promises holds, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import aiohttp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.examples import examples
from tests.fuzz.calls import Answer, driven, request_of
from tests.json_store import JsonStore
from yarl import URL

from lamella import Backoff, Breaker, CircuitOpen, Failure, LamellaError, MemoryStore, Retry, Rule, RuleBook, StopReason
from lamella.classify.judge import api_error_class
from lamella.testing import VirtualClock, VirtualTimeLoop

_T = TypeVar("_T")

SERVICE: Final = "http://service.example"
WINDOW: Final = 10.0
IN_A_ROW: Final = 20
WAIT: Final = 12.0
NEAR: Final = 1e-6
"""What a sum of seconds may be off by."""
RULES: Final = RuleBook(
    Rule("5xx", "Server Error", retry=Backoff(WAIT, factor=1, jitter=0)),
    Rule(Failure.CONNECTION_LOST, "Connection Lost", retry=Backoff(WAIT, factor=1, jitter=0)),
)

KEYS = st.sampled_from(["a", "b"])
WHICH = st.integers(0, 30)
WELL = st.sampled_from([200, 302, 404, 429])
BADLY = st.sampled_from([500, 503, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, TimeoutError])
NEITHER = st.sampled_from([ValueError, CircuitOpen])
GONE: Final = ("cancelled", "thrown away")
END = st.one_of(WELL, BADLY, BADLY, NEITHER, st.sampled_from(GONE))
PAUSES = st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.95, 2.0])
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 8.99, 9.0, 9.5, 10.0, 11.0])
PARTS = st.sampled_from([0.25, 0.5, 0.999, 1.0, 1.001])


@dataclass(eq=False)
class Call:
    """A call that has begun."""

    key: str
    retries: bool
    task: asyncio.Task[Any] | None = None
    send: Send | None = None
    """The attempt in flight."""
    abandoned: bool = False

    def is_abandoned(self) -> bool:
        return self.abandoned


@dataclass(eq=False)
class Send:
    """An attempt that the breaker has admitted."""

    turn: int
    """How often the circuit had opened or closed."""
    end: asyncio.Future[int | Exception]


@dataclass
class Service:
    """The results of all attempts to one service, and what its circuit must make of them."""

    failures: float
    minimum: int
    open_for: float
    probes: int
    turn: int = 0
    since: float = 0.0
    opened: float | None = None
    """When it opened last. None: it is closed."""
    unsure: bool = False
    """Whether it may have opened or not: there are attempts at the far end of the window."""
    unsure_since: float = 0.0
    ends: list[tuple[float, bool]] = field(default_factory=list)
    """Since the last transition: when, and whether it was a failure."""
    in_a_row: int = 0
    well: int = 0
    places: dict[Send, float] = field(default_factory=dict)
    works: bool = False
    """Whether it answers each attempt at once, with a success."""
    sends: int = 0

    def left(self, now: float) -> float:
        """Return for how many seconds no attempt can pass."""
        if self.opened is None:
            return 0.0
        if now < self.opened:
            self.since = self.opened = now  # a clock that has begun anew
        left = self.opened + self.open_for - now
        return left if left > NEAR else 0.0

    def free(self, now: float) -> float:
        """Return how many attempts may pass."""
        if self.opened is None:
            return float("inf")
        return 0 if self.left(now) else max(self.probes - len(self.taken(now)), 0)

    def taken(self, now: float) -> list[float]:
        """Since when each place is taken: a probe that is not heard of for so long counts no more."""
        return [at for at in self.places.values() if 0 <= now - at < self.open_for - NEAR]

    def passes(self, now: float, send: Send) -> None:
        assert not self.unsure
        assert self.free(now), "a send has passed that must not"
        if self.opened is not None:
            self.places[send] = now

    def ended(self, now: float, send: Send, failed: bool | None) -> None:
        """A *send* has ended; None: that shows nothing."""
        self.places.pop(send, None)
        if failed is None or send.turn != self.turn:
            return
        if self.opened is None:
            self.ends.append((now, failed))
            self.in_a_row = self.in_a_row + 1 if failed else 0
            verdicts = self.verdicts(now)
            self.unsure, self.unsure_since = len(verdicts) > 1, now
            if verdicts == {True}:
                self.turns(now)
        elif failed:
            since = self.since
            self.turns(now)
            self.since = min(since, now)
        else:
            self.well += 1
            if self.well == self.probes:
                self.turns(None)

    def turns(self, opened: float | None) -> None:
        self.unsure = False
        self.turn += 1
        self.opened, self.since = opened, opened or 0.0
        self.ends, self.in_a_row, self.well, self.places = [], 0, 0, {}

    def verdicts(self, now: float) -> set[bool]:
        """Whether it has to open: nine tenths of the window count for sure, and what is older than it never does."""
        young = [bad for at, bad in self.ends if now - at < 0.9 * WINDOW - NEAR]
        older = [bad for at, bad in self.ends if 0.9 * WINDOW - NEAR <= now - at <= WINDOW + NEAR]
        found = set()
        for first in range(len(older) + 1):
            counted = older[first:] + young
            bad = sum(counted) / len(counted) >= self.failures or self.in_a_row >= IN_A_ROW
            found.add(len(counted) >= self.minimum and bad)
        return found


class Shared(JsonStore):
    """As one beyond a network, but for its clock, and that no time passes while one waits for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock

    def now(self) -> float:
        return self.clock()

    async def wait(self) -> None:
        await asyncio.sleep(0)


class BreakerMachine(RuleBasedStateMachine):
    """`services` know what each circuit has to be; the calls themselves look whether they may pass."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop(VirtualClock(grace=0))
        self.ahead = 0.0
        self.stands_at: float | None = None
        self.calls: list[Call] = []
        self.wrong: list[str] = []
        self.names: dict[str, str] = {}

    def teardown(self) -> None:
        for call in self.calls:
            assert call.task is not None
            call.task.cancel()
        self.run(self._settled())
        left = asyncio.all_tasks(self.loop)
        if hasattr(self, "session"):
            self.run(self.session.close())
        self.loop.close()
        assert not left

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)

    async def _settled(self) -> None:
        """No time passes, but all that can go on without it has."""
        for _ in range(40):
            await asyncio.sleep(0)

    def now(self) -> float:
        """The store's clock."""
        return self.loop.time() + self.ahead if self.stands_at is None else self.stands_at

    @initialize(
        failures=st.sampled_from([0.01, 0.5, 0.5, 1.0]),
        minimum=st.sampled_from([1, 2, 5]),
        open_for=st.sampled_from([5.0, 30.0]),
        probes=st.sampled_from([1, 2, 3]),
        memory=st.booleans(),
        ahead=st.sampled_from([0.0, 1e9]),
    )
    def begin(self, failures: float, minimum: int, open_for: float, probes: int, memory: bool, ahead: float) -> None:
        self.ahead = 1e6 + ahead  # it can begin anew many times
        self.open_for = open_for
        self.services = {key: Service(failures, minimum, open_for, probes) for key in "ab"}
        self.store = MemoryStore(clock=self.now) if memory else Shared(self.now)
        self.breakers = [
            Breaker(
                failures=failures,
                window=WINDOW,
                minimum=minimum,
                open_for=open_for,
                probes=probes,
                key=lambda request: request.url.path,
                store=self.store,
            )
            for _ in range(2)
        ]
        self.retry = Retry(RULES, attempts=3)
        self.run(self._begin())

    async def _begin(self) -> None:
        self.session = aiohttp.ClientSession(SERVICE)
        for key in "ab":
            # Under which name it is kept is the layer's affair.
            known = set(self.states())
            [call] = await self._call(key, [0], retries=False)
            await self._end(call, ValueError)
            [self.names[key]] = set(self.states()) - known

    def states(self) -> dict[str, dict[str, Any]]:
        """What is kept, by its name; as it comes out of JSON again."""
        if isinstance(self.store, MemoryStore):
            given = {name: asdict(state) for name, state in self.store._states.items()}
            states: dict[str, dict[str, Any]] = json.loads(json.dumps(given, allow_nan=False))
            assert states == given
            return states
        return {name: json.loads(text) for name, text in self.store.texts.items()}

    def look(self, key: str) -> Service:
        """What is known of a service; where a circuit may be open or not, it is as it is."""
        service = self.services[key]
        if service.unsure:
            service.unsure = False
            if self.states()[self.names[key]]["since"] is not None:
                service.turns(service.unsure_since)
        return service

    async def _call(self, key: str, layers: list[int], *, retries: bool, settled: bool = True) -> list[Call]:
        """Begin as many calls as there are *layers*, all at once."""
        made = []
        for layer in layers:
            call = Call(key, retries)
            request = await request_of(self.session, f"/{key}")
            work = self._live(call, request, self.breakers[layer])
            call.task = self.loop.create_task(driven(work, call.is_abandoned))
            self.calls.append(call)
            made.append(call)
        if settled:
            await self._settled()
        return made

    async def _live(self, call: Call, request: aiohttp.ClientRequest, breaker: Breaker) -> object:
        """A call from its begin to its end; what is wrong is noted."""

        async def send(_: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
            service = self.look(call.key)
            service.sends += 1
            sending = Send(service.turn, self.loop.create_future())
            try:
                service.passes(self.now(), sending)
            except AssertionError as exc:
                self.wrong.append(str(exc))
            if service.works:
                service.ended(self.now(), sending, failed=False)
                return Answer(200)  # type: ignore[return-value]
            call.send = sending
            end = await sending.end
            call.send = None
            if isinstance(end, Exception):
                raise end
            if end >= 400 and call.retries:
                # As `Classify` has it.
                raise api_error_class(end)(request.request_info, status=end, rule=RULES.rule_for(end))
            return Answer(end)  # type: ignore[return-value]

        async def again(request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
            return await self.retry(request, send)

        try:
            return await breaker(request, again if call.retries else send)
        except CircuitOpen as error:
            if error.url.startswith(SERVICE):
                self._refused(call, error)
            return error
        except LamellaError as error:
            if error.stopped is StopReason.CIRCUIT_OPEN and self.look(call.key).free(self.now()):
                self.wrong.append("a call has stopped that could be sent again")
            return error
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return error
        finally:
            self.calls.remove(call)

    def _refused(self, call: Call, error: CircuitOpen) -> None:
        service, now = self.look(call.key), self.now()
        if service.free(now):
            self.wrong.append("a call is refused that may pass")
            return
        until = service.left(now) or min(service.taken(now), default=now) + self.open_for - now
        assert error.retry_after is not None
        if abs(error.retry_after - until) > 1e-3:
            self.wrong.append(f"it is said to be refused for {error.retry_after} s, and is for {until} s")
        lasts = (error.until - error.since).total_seconds()
        if abs(lasts - until - (now - service.since)) > 1e-3:
            self.wrong.append(f"it is said to be open for {lasts} s in all")

    async def _end(self, call: Call, how: Any) -> None:
        """Let the attempt of *call* end as *how* says."""
        service, send = self.look(call.key), call.send
        assert send is not None
        before = self.states()
        end = how if isinstance(how, int) else _error(how)
        stale = send.turn != service.turn
        failed = how >= 500 if isinstance(how, int) else None if how in {ValueError, CircuitOpen} else True
        service.ended(self.now(), send, failed)
        sends = service.sends
        send.end.set_result(end)
        await self._settled()
        if call.key in self.names:
            self.is_as_known(call.key)
        if stale and service.sends == sends:
            after = self.states()
            for state in before.values():
                if state["opened"] > self.now():
                    # The clock has begun anew: the next call sets them right.
                    state.pop("since"), state.pop("opened")
            assert {name: {each: after[name][each] for each in state} for name, state in before.items()} == before

    @rule(key=KEYS, layers=st.lists(st.integers(0, 1), min_size=1, max_size=5), retries=st.booleans())
    def they_begin(self, key: str, layers: list[int], retries: bool) -> None:
        """As many pass as there is room for."""
        service = self.services[key]
        expected, sends = min(service.free(self.now()), len(layers)), service.sends
        calls = self.run(self._call(key, layers, retries=retries))
        assert service.sends - sends == expected
        assert sum(call.send is not None for call in calls) == expected
        assert sum(call in self.calls for call in calls) == expected

    def under_way(self) -> list[Call]:
        return [call for call in self.calls if call.send is not None]

    @precondition(lambda self: self.under_way())
    @rule(which=WHICH, how=END)
    def one_ends(self, which: int, how: Any) -> None:
        calls = self.under_way()
        self.ends(calls[which % len(calls)], how)

    @precondition(lambda self: self.under_way())
    @rule(key=KEYS, hows=st.lists(END, min_size=1, max_size=3))
    def all_end(self, key: str, hows: list[Any]) -> None:
        """In the order in which they were sent."""
        for call, how in zip(self.under_way(), itertools.cycle(hows), strict=False):
            if call.key == key and call.send is not None:
                self.ends(call, how)

    @precondition(lambda self: self.calls)
    @rule(which=WHICH, how=st.sampled_from(GONE))
    def one_goes_away(self, which: int, how: str) -> None:
        """Also while it waits for its next try."""
        self.ends(self.calls[which % len(self.calls)], how)

    def ends(self, call: Call, how: Any) -> None:
        if how not in GONE:
            self.run(self._end(call, how))
            return
        assert call.task is not None
        call.abandoned = how == "thrown away"
        # Nothing can be recorded in a slow store then: the probe expires.
        if call.send is not None and not (call.abandoned and isinstance(self.store, Shared)):
            self.look(call.key).ended(self.now(), call.send, failed=None)
        call.task.cancel()
        self.run(self._settled())
        assert call.task.done()
        assert call.task.cancelled() is not call.abandoned
        assert call.task.cancelled() or call.task.exception() is None

    @rule(
        key=KEYS, hows=st.lists(st.one_of(WELL, BADLY), min_size=1, max_size=3), number=st.integers(1, 24), pause=PAUSES
    )
    def many_one_after_the_other(self, key: str, hows: list[Any], number: int, pause: float) -> None:
        for how in itertools.islice(itertools.cycle(hows), number):
            [call] = self.run(self._call(key, [0], retries=False))
            if call.send is not None:
                self.run(self._end(call, how))
            if pause:
                self.run(self._pass(pause))

    @rule(key=KEYS, layers=st.lists(st.integers(0, 1), min_size=1, max_size=3), seconds=SECONDS)
    def some_wait_for_their_next_try(self, key: str, layers: list[int], seconds: float) -> None:
        for call in self.run(self._call(key, layers, retries=True)):
            if call.send is not None:
                self.run(self._end(call, 500))
        self.run(self._pass(seconds))

    @rule(key=KEYS, layer=st.integers(0, 1), steps=st.integers(1, 12), retries=st.booleans())
    def one_begins_and_is_cancelled(self, key: str, layer: int, steps: int, retries: bool) -> None:
        """Also while it asks whether it may pass."""

        async def main() -> None:
            [call] = await self._call(key, [layer], retries=retries, settled=False)
            for _ in range(steps):
                await asyncio.sleep(0)
            assert call.task is not None
            call.task.cancel()
            await self._settled()
            assert call.task.done()
            if call.send is not None:
                self.look(key).ended(self.now(), call.send, failed=None)

        self.run(main())

    @rule(seconds=SECONDS, clock=st.sampled_from(["goes on", "goes on", "goes on", "stands still", "begins anew"]))
    def time_passes(self, seconds: float, clock: str) -> None:
        if clock == "stands still":
            self.stands_at = self.now()
        elif clock == "begins anew":
            # As another machine's does; it will not be so late again in this life.
            self.ahead -= 5_000.0
            for service in self.services.values():
                service.ends = []
        self.run(self._pass(seconds))
        if self.stands_at is not None:
            self.ahead, self.stands_at = self.stands_at - self.loop.time(), None

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._settled()

    @rule(key=KEYS, how=BADLY, part=PARTS, layers=st.lists(st.integers(0, 1), max_size=4))
    def it_breaks_down(self, key: str, how: Any, part: float, layers: list[int]) -> None:
        """Until the circuit is open; it may be half-open afterwards, when others come."""
        for _ in range(IN_A_ROW):
            [call] = self.run(self._call(key, [0], retries=False))
            if call.send is None:
                break
            self.run(self._end(call, how))
        assert not self.look(key).free(self.now())
        self.run(self._pass(part * self.open_for))
        self.they_begin(key, layers, retries=False)

    @rule(key=KEYS)
    def it_is_well_again(self, key: str) -> None:
        """Then the circuit closes within the time for which it is open, though some are never heard of again."""
        service = self.look(key)
        service.works = True

        async def main() -> None:
            passed, rounds, waited = 0, 0, 0.0
            while service.opened is not None:
                [call] = await self._call(key, [0], retries=False)
                assert call.task is not None
                outcome = call.task.result()
                self.is_as_known(key)
                if isinstance(outcome, CircuitOpen):
                    assert outcome.retry_after is not None
                    waited += outcome.retry_after
                    await self._pass(outcome.retry_after)
                else:
                    passed += 1
                assert waited <= self.open_for + 1e-3
                assert passed <= service.probes
                # Once until it is half-open, and once for each place that is taken.
                rounds += 1
                assert rounds <= 1 + 2 * service.probes
            [call] = await self._call(key, [1], retries=False)
            assert call.task is not None
            assert isinstance(call.task.result(), Answer)

        self.run(main())
        service.works = False

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.wrong == []
        if not self.names:
            return
        assert set(self.states()) == set(self.names.values())
        for key in self.names:
            self.is_as_known(key)

    def is_as_known(self, key: str) -> None:
        service, state = self.look(key), self.states()[self.names[key]]
        assert (state["since"] is None) is (service.opened is None), f"the circuit of {key}"
        assert len(state["probes"]) <= service.probes
        assert len(state["attempts"]) == len(state["failures"]) <= 10


def _error(kind: type[Exception]) -> Exception:
    if kind is not CircuitOpen:
        return kind()
    # Of another service, which a layer below has asked for something.
    url, rule = URL("http://tokens.example/"), RULES.rule_for(CircuitOpen.failure)
    return CircuitOpen("GET", url, rule, since=1, until=1, stopped=StopReason.CIRCUIT_OPEN)


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = examples(50, stateful_step_count=25)
