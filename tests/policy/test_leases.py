"""Leased permits against the limits themselves: many holders, minutes of traffic, without a loop or a store."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest

from lamella import Limit
from lamella.rules import Backoff
from lamella.testing import FixedWindow, SlidingWindow, TokenBucket
from lamella.testing import Limit as ServersLimit
from lamella.throttle.estimate import Asked, Permit, RateEstimate, Wait
from lamella.throttle.holding import Holding
from lamella.throttle.lease import Grant, LeaseState, as_text, exchange, newest, of_text
from lamella.throttle.lease_policy import Learned, Policy, Stated

REQUESTS = 100
BEGIN = 5000.0
ROUND_TRIP = 0.001
"""Of an exchange, in seconds."""


def limit_of(kind: str, requests: int = REQUESTS, per: float = 1.0) -> ServersLimit:
    if kind == "bucket":
        return TokenBucket(requests / per, requests, retry_after=False)
    return (FixedWindow if kind == "fixed" else SlidingWindow)(requests, per, retry_after=False)


@dataclass
class Process:
    """One of the processes: its calls, their queue, and what it holds."""

    holding: Holding
    left: int
    queue: list[tuple[int, int]] = field(default_factory=list)  # number and attempts so far
    asks: bool = False
    ended: float = 0.0
    dead: bool = False
    wake: float = math.inf
    seen: str = ""
    version: int = 0


@dataclass
class Outcome:
    took: float
    sends: int = 0
    refused: int = 0
    lost: int = 0
    exchanges: int = 0
    ends: list[float] = field(default_factory=list)


@dataclass
class Fleet:
    """Processes that share an account, and a server with a limit."""

    processes: int
    calls: int
    """Of each process."""
    limit: ServersLimit | None
    policy: Policy
    at_once: int = 64
    latency: float = 0.02
    wait: float = 1.0
    work: float | None = None
    """Seconds after which a process repeats a swap that another one has overtaken. None: no swap is overtaken."""
    dies_at: float | None = None
    forgets_at: tuple[float, ...] = ()
    seed: int = 0
    serial: float = 0.0
    """Mean seconds for which each attempt occupies the machine. 0.0: it is never busy."""

    def run(self) -> Outcome:
        random_ = random.Random(self.seed)
        state: LeaseState | None = None
        version = 0
        limiter = None if self.limit is None else self.limit.limiter()
        backoff = Backoff(self.wait)
        fleet = [Process(Holding(f"holder {n}"), self.calls) for n in range(self.processes)]
        outcome = Outcome(0.0)
        events: list[tuple[float, int, str, int, object]] = []
        numbers = itertools.count()
        offset = BEGIN  # of the time here to the clock of the state
        free = 0.0  # when the machine is free again

        def at(moment: float, what: str, who: int, about: object = None) -> None:
            heappush(events, (moment, next(numbers), what, who, about))

        for number, process in enumerate(fleet):
            first = min(self.at_once, process.left)
            process.queue = [(next(numbers), 0) for _ in range(first)]
            process.left -= first
            process.wake = random_.random() * 0.05
            at(process.wake, "runs", number)
        if self.dies_at is not None:
            at(self.dies_at, "dies", 0)
        for moment in self.forgets_at:
            at(moment, "forgets", 0)
        open_calls = self.calls * self.processes
        while open_calls > 0:
            assert events, "stuck"
            now, _, what, who, about = heappop(events)
            assert now < 1000, "it goes on for ever"
            process = fleet[who]
            if what == "dies":
                process.dead = True
                open_calls -= process.left + len(process.queue) + len(process.holding.used)
                process.left = 0
                continue
            if what == "forgets":
                state = None
                continue
            if process.dead and what != "arrives":
                continue
            if what == "runs":
                if now != process.wake:
                    continue
                process.wake = math.inf
            if what == "arrives":
                assert isinstance(about, tuple)
                until = 0.0 if limiter is None else limiter.allow(now)
                at(now + self.latency / 2, "answers", who, (*about, until))
                continue
            if what == "comes back":
                assert isinstance(about, tuple)
                process.queue.append(about)
                process.queue.sort()
            if what == "answers":
                assert isinstance(about, tuple)
                number, tries, permit, until = about
                if until <= 0:
                    process.holding.ended(permit, now + offset, passed=True)
                else:
                    outcome.refused += 1
                    process.holding.ended(permit, now + offset, passed=False, backoff=backoff)
                if until > 0 and tries < 5:
                    at(now + self.wait * 2 ** (tries - 1), "comes back", who, (number, tries))
                else:
                    open_calls -= 1
                    outcome.lost += until > 0
                    process.ended = outcome.took = now
                    if process.left:
                        process.left -= 1
                        process.queue.append((next(numbers), 0))
            if what == "exchanges" and self.work is not None:
                if process.version != version:
                    process.version = version
                    outcome.exchanges += 1
                    at(now + ROUND_TRIP + self.work, "exchanges", who)
                    continue
                process.version = version = version + 1
            if what == "exchanges":
                seen = of_text(process.seen, self.policy) if process.seen else None
                state = newest(state, seen, now, self.policy)
                clock = state.tick(now)
                offset = clock - now
                report = process.holding.report(clock, len(process.queue))
                grant = exchange(state, clock, report, self.policy)
                if self.forgets_at:
                    process.seen = as_text(state)
                outcome.exchanges += 1
                process.holding.granted(grant, report, clock)
                for name in grant.wakes:
                    at(now + ROUND_TRIP, "woken", int(name.removeprefix("holder ")))
                at(now + ROUND_TRIP, "exchanged", who)
                continue
            if what == "woken":
                process.holding.wake(now + offset)
            if what == "exchanged":
                process.asks = False
            asks, wake = False, math.inf
            while process.queue:
                answer = process.holding.take(now + offset)
                if isinstance(answer, Permit):
                    number, tries = process.queue.pop(0)
                    outcome.sends += 1
                    free = max(free, now) + self.serial * (0.5 + random_.random())
                    at((free if self.serial else now) + self.latency / 2, "arrives", who, (number, tries + 1, answer))
                    continue
                asks = answer is None or any(each.kind == "refused" for each in process.holding.outcomes[-1:])
                if isinstance(answer, Wait):
                    waits = [each for each in (answer.seconds, answer.again) if each is not None]
                    wake = now + max(min(waits), 1e-4)
                break
            flush = process.holding.flush_at(now + offset, len(process.queue))
            asks = asks or (flush is not None and flush <= now + offset)
            if asks and not process.asks:
                process.asks = True
                at(now + ROUND_TRIP / 2, "exchanges", who)
            elif flush is not None:
                wake = min(wake, max(flush - offset, now) + 1e-4)
            if not process.asks and wake < process.wake:
                process.wake = wake
                at(wake, "runs", who)
        outcome.ends = [each.ended for each in fleet if not each.dead]
        return outcome

    def ideal(self) -> float:
        assert self.limit is not None
        limiter, now = self.limit.limiter(), 0.0
        for _ in range(self.calls * self.processes):
            while (wait := limiter.allow(now)) > 0:
                now += wait
        return now + self.latency


KINDS = ("fixed", "sliding", "bucket")
LEARNED, STATED = Learned(1.0), Stated((Limit(REQUESTS, per=1),))
BUSY = [(0.0015, 2), (0.0022, 5), (0.0035, 3), (0.0035, 4)]
"""How busy a machine is, and a seed."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 4, 16])
def test_holders_use_a_stated_limit_fully_without_exceeding_it(kind: str, processes: int) -> None:
    fleet = Fleet(processes, 1600 // processes, limit_of(kind), STATED)
    got = fleet.run()
    assert (got.refused, got.lost) == (0, 0)
    assert got.took <= 1.15 * fleet.ideal()
    assert got.exchanges <= 0.6 * 1600


@pytest.mark.parametrize("work", [0.005, pytest.param(0.002, marks=pytest.mark.slow)])
def test_holders_that_overtake_one_another_use_a_stated_limit_fully(work: float) -> None:
    fleet = Fleet(16, 100, limit_of("fixed"), STATED, at_once=4, work=work)
    got = fleet.run()
    assert (got.refused, got.lost) == (0, 0)
    assert got.took <= 1.15 * fleet.ideal()
    assert max(got.ends) <= 1.2 * min(got.ends)
    assert got.exchanges <= 2.5 * 1600


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 4, 16])
def test_all_holders_learn_a_limit_together(kind: str, processes: int) -> None:
    sends = []
    for seed in range(3):
        fleet = Fleet(processes, 4000 // processes, limit_of(kind), LEARNED, seed=seed)
        got = fleet.run()
        assert got.lost == 0
        assert got.took <= (1.15 if processes < 16 else 1.20) * fleet.ideal()
        assert max(got.ends) <= 1.3 * min(got.ends)
        sends.append(got.sends)
    assert sum(sends) / len(sends) <= 1.03 * 4000  # a single run of 16 processes with a bucket may take 1.04


@pytest.mark.parametrize(
    ("serial", "seed"), [(0.0022, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in BUSY)]
)
def test_holders_on_a_busy_machine_recognize_a_bucket(serial: float, seed: int) -> None:
    """Its burst takes as long as the second measurement, so about the same number passes, as with a window."""
    fleet = Fleet(4, 300, limit_of("bucket"), LEARNED, at_once=16, work=0.003, serial=serial, seed=seed)
    got = fleet.run()
    assert got.refused <= 75
    assert got.lost == 0
    assert got.took <= 1.15 * fleet.ideal()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("policy", [LEARNED, STATED], ids=["learned", "stated"])
def test_permits_of_a_lost_holder_count_as_used(policy: Policy) -> None:
    fleet = Fleet(4, 400, limit_of("fixed"), policy, dies_at=3.0)
    got = fleet.run()
    assert got.lost == 0
    made = Fleet(1, got.sends - got.refused, limit_of("fixed"), policy)
    assert got.took <= 1.15 * made.ideal() + 1.0
    if policy is STATED:
        assert got.refused == 0


@pytest.mark.slow
@pytest.mark.parametrize("policy", [LEARNED, STATED], ids=["learned", "stated"])
def test_a_state_lost_by_the_store_is_restored(policy: Policy) -> None:
    fleet = Fleet(4, 500, limit_of("fixed"), policy, forgets_at=(2.0, 5.0, 8.0))
    got, undisturbed = fleet.run(), Fleet(4, 500, limit_of("fixed"), policy).run()
    assert got.lost == 0
    assert got.sends <= undisturbed.sends + 0.01 * 2000
    assert got.took <= 1.25 * fleet.ideal()
    if policy is STATED:
        assert got.refused == 0


def test_the_clock_of_a_state_never_goes_back() -> None:
    state = LeaseState(LEARNED.new())
    moments = [state.tick(server) for server in (100.0, 101.0, 40.0, 41.0, 41.5)]
    assert [moment - moments[0] for moment in moments] == [0.0, 1.0, 1.0, 2.0, 2.5]


def test_the_clock_of_a_state_does_not_jump_with_that_of_the_store() -> None:
    state = LeaseState(LEARNED.new())
    jumps = [(100.0, math.inf), (103_700.0, 1000.5), (101.0, 1001.0), (103_701.0, 1001.5), (103_702.0, 900.0)]
    assert [state.tick(*each) for each in jumps] == [1000.0, 1000.5, 1000.5, 1001.5, 1002.5]


def test_a_state_survives_json() -> None:
    state = LeaseState(LEARNED.new())
    holding = Holding("here")
    for number in range(5):
        now = state.tick(number * 0.01)
        report = holding.report(now, 9)
        holding.granted(exchange(state, now, report, LEARNED), report, now)
        while isinstance(permit := holding.take(now), Permit):
            holding.ended(permit, now + 0.005, passed=True)
    text = as_text(state)
    assert as_text(of_text(text, LEARNED)) == text
    assert json.loads(text)["holders"]["here"]["open"]


def test_an_exchange_with_a_lost_answer_can_be_repeated() -> None:
    state, holding = LeaseState(STATED.new()), Holding("here")
    now = state.tick(0.0)
    report = holding.report(now, 5)
    lost = exchange(state, now, report, STATED)
    grant = exchange(state, now, holding.report(now, 5), STATED)
    assert all(permit in grant.permits for permit in lost.permits)
    holding.granted(grant, report, now)
    [first, *_] = [holding.take(now) for _ in range(5)]
    assert isinstance(first, Permit)
    holding.ended(first, now + 0.1, passed=True)
    for _ in range(2):  # the second one says the same as the first
        exchange(state, now + 0.1, holding.report(now + 0.1, 0), STATED)
    assert sum(points for _, _, points in state.known.logs["1.0"]) <= 2.0


def test_no_call_wakes_before_an_exchange_is_due() -> None:
    """Each such call would wake again and again until then, a thousand times a second."""
    holding = Holding("here", wait=Wait(0.1, blocked=False), asked_at=5.0, due=5.5)
    asleep = holding.take(5.2)
    assert isinstance(asleep, Wait)
    assert asleep.seconds == asleep.again == pytest.approx(0.3)


def two_holders(waiting: int = 4) -> tuple[LeaseState, Holding, Holding]:
    """Return a state in which the exchange of the first holder has issued permits to the second one."""
    state, here, there = LeaseState(STATED.new()), Holding("here"), Holding("there")
    for number, holding in enumerate((there, here)):
        now = state.tick(0.01 * number)
        report = holding.report(now, waiting if holding is here else 0)
        holding.granted(exchange(state, now, report, STATED), report, now)
        holding.reported_at = now
    state.holders["there"].wanting = waiting
    state.holders["here"].given = 100  # so the other holder comes first
    exchange(state, state.tick(0.02), here.report(state.clock, 2 * waiting), STATED)
    while isinstance(here.take(state.clock), Permit):
        pass
    assert state.holders["there"].open
    return state, here, there


def test_a_holder_takes_permits_from_the_exchange_of_another_one() -> None:
    state, _, there = two_holders()
    now, leased = state.clock, len(state.holders["there"].open)
    assert not there.pick_up(state, now, leased + 1)
    assert there.pick_up(state, now, leased)
    assert not there.pick_up(state, now, 0)  # it has them already
    used = [permit for _ in range(leased) if isinstance(permit := there.take(now), Permit)]
    assert len({permit.at for permit in used}) == len(used) == leased
    assert there.take(now + 0.001) is None  # it asks again
    for permit in used:
        there.ended(permit, now + 0.02, passed=True)
    exchange(state, now + 0.02, there.report(now + 0.02, 0), STATED)
    assert state.holders["there"].open == []
    assert sum(points for _, _, points in state.known.logs["1.0"]) == leased


@pytest.mark.parametrize("reason", ["refused", "silent", "answer", "unknown"])
def test_a_holder_exchanges_before_it_takes_permits_of_others(reason: str) -> None:
    state, _, there = two_holders()
    now, name = state.clock, "there"
    if reason == "refused":
        there.used[now] = Permit(0, now)
        there.ended(Permit(0, now), now, passed=False)
    elif reason == "silent":
        now += 0.3
    elif reason == "answer":
        there.wait = Wait(None, blocked=False)
    else:
        name = "another"
    there.name = name
    assert not there.pick_up(state, now, 1)


def test_a_holder_takes_no_permits_of_an_earlier_generation() -> None:
    state, here = LeaseState(LEARNED.new()), Holding("here")
    report = here.report(state.clock, 2)
    here.granted(exchange(state, state.clock, report, LEARNED), report, state.clock)
    here.reported_at = state.clock
    here.pool.clear()
    assert state.holders["here"].open
    state.known.generation += 1
    assert not here.pick_up(state, state.clock, 1)
    state.known.generation -= 1
    assert here.pick_up(state, state.clock, 1)


def test_a_refusal_revokes_unused_permits() -> None:
    state, here, there = LeaseState(LEARNED.new()), Holding("here"), Holding("there")
    now = state.tick(0.0)
    for holding in (here, there):
        report = holding.report(now, 2)
        holding.granted(exchange(state, now, report, LEARNED), report, now)
    used = here.take(now)
    assert isinstance(used, Permit)
    here.ended(used, now + 0.1, passed=False, backoff=Backoff(60))
    report = here.report(now + 0.1, 1)
    assert sorted(each.kind for each in report.outcomes) == ["refused", "unused"]
    here.granted(exchange(state, now + 0.1, report, LEARNED), report, now + 0.1)
    assert not here.pool
    assert isinstance(here.until(now + 0.1), Wait)


@pytest.mark.parametrize(("used_up_at", "waits"), [(None, [False] * 3), (BEGIN + 1, [True, True, False])])
def test_share_of_a_stated_limit_waits_for_what_others_may_have_used(
    used_up_at: float | None, waits: list[bool]
) -> None:
    policy = Stated((Limit(30, per=60), Limit(300, per=120)))
    known = policy.new()
    policy.used(known, BEGIN - 1, 15)  # so 5 of 10 are left for each of three
    own, shared = policy.share(known, 3, used_up_at)
    costs = {BEGIN + 2: 5, BEGIN + 60: 6, BEGIN + 62: 5}
    assert [isinstance(shared.issue(own, at, [], 0.0, Asked(cost=cost)), Wait) for at, cost in costs.items()] == waits


@pytest.mark.parametrize("used_up_at", [None, BEGIN])
def test_share_of_a_learned_limit_waits_for_what_others_may_have_used(used_up_at: float | None) -> None:
    policy = Learned(60)
    known = RateEstimate(untouched=False, phase="steady", requests=30.0, period=60.0, look_at=BEGIN + 1000)
    own, shared = policy.share(known, 3, used_up_at)
    answers = [shared.issue(own, BEGIN + seconds, [], 0.0, Asked(waiting=1)) for seconds in (1, 61)]
    assert [isinstance(each, Wait) for each in answers] == [used_up_at is not None, False]


@pytest.mark.parametrize("seconds", [-99_000.0, 3000.0], ids=["earlier", "later"])
def test_what_is_held_moves_with_the_clock(seconds: float) -> None:
    holding = Holding("holder")
    state = LeaseState(STATED.new(), 100_000.0)
    grant = exchange(state, 100_000.0, holding.report(100_000.0, 4), STATED)
    holding.granted(grant, holding.report(100_000.0, 4), 100_000.0)
    first, second, third = (holding.take(100_000.0) for _ in range(3))
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    assert isinstance(third, Permit)
    holding.ended(first, 100_000.25, passed=True)
    holding.move(seconds)
    now = 100_000.5 + seconds
    holding.ended(second, now, passed=True)
    holding.unused(third, now)
    assert [outcome.ended - outcome.sent for outcome in holding.outcomes[:2]] == pytest.approx([0.25, 0.5], abs=1e-6)
    assert all(abs(outcome.permit.at - now) < 1 for outcome in holding.outcomes)
    assert not holding.used
    assert not holding.sent
    assert isinstance(holding.take(now), Permit)


def exchanged(state: LeaseState, holding: Holding, now: float, waiting: int, policy: Policy) -> Grant:
    report = holding.report(now, waiting)
    grant = exchange(state, now, report, policy)
    holding.granted(grant, report, now)
    return grant


def taken(holding: Holding, now: float) -> Permit:
    permit = holding.take(now)
    assert isinstance(permit, Permit)
    return permit


def test_an_answer_wakes_only_the_holder_whose_turn_it_is() -> None:
    policy = Stated((Limit(concurrent=1),))
    state = LeaseState(policy.new())
    first, second, third = holdings = [Holding(name) for name in ("first", "second", "third")]
    now = state.clock
    # The first one reports its result at once, once it knows that another one waits for it.
    assert [list(exchanged(state, each, now, 1, policy).wakes) for each in holdings] == [[], ["first"], []]
    permit = taken(first, now)
    assert isinstance(second.take(now + 0.2), Wait)
    assert second.take(now + 0.25) is None  # it asks again in case no message comes
    first.wake(now)
    first.ended(permit, now + 1, passed=True)
    assert first.flush_at(now + 1) == now + 1
    assert list(exchanged(state, first, now + 1, 0, policy).wakes) == ["second"]
    second.wake(now + 1)
    assert second.take(now + 1) is None
    assert list(exchanged(state, second, now + 1.001, 1, policy).wakes) == []
    second.ended(taken(second, now + 1.001), now + 2, passed=True)
    assert list(exchanged(state, second, now + 2, 0, policy).wakes) == ["third"]
    exchanged(state, third, now + 2, 1, policy)
    third.ended(taken(third, now + 2), now + 3, passed=True)
    assert list(exchanged(state, third, now + 3, 0, policy).wakes) == []
    assert not any(each.open for each in state.holders.values())


def test_a_holder_that_wants_more_gets_the_place_of_its_own_attempt() -> None:
    policy = Stated((Limit(concurrent=1),))
    state, first, second = LeaseState(policy.new()), Holding("first"), Holding("second")
    now, turns = state.clock, ""
    for holding in (first, second):
        exchanged(state, holding, now, 50, policy)
    for _ in range(60):
        now += 0.02
        holding = first if state.holders["first"].open else second
        holding.ended(taken(holding, now), now, passed=True)
        turns += holding.name[0]
        grant = exchanged(state, holding, now, 50, policy)
        assert (list(grant.wakes) == []) == bool(state.holders[holding.name].open)
        for name in grant.wakes:
            exchanged(state, first if name == "first" else second, now, 50, policy)
    assert turns.startswith("f" * 16)
    assert abs(turns.count("f") - turns.count("s")) <= 16


def test_a_holder_that_does_not_come_for_its_permit_gets_no_other_one() -> None:
    policy = Stated((Limit(concurrent=2),))
    state = LeaseState(policy.new())
    first, second, third = holdings = [Holding(name) for name in ("first", "second", "third")]
    now = state.clock
    for holding in holdings:
        exchanged(state, holding, now, 2, policy)
    permits = [taken(first, now) for _ in range(2)]
    woken: list[str] = []
    for permit in permits:
        first.ended(permit, now, passed=True)
        woken += exchanged(state, first, now, 0, policy).wakes
    assert woken == ["second", "third"]
    assert [len(each.open) for each in state.holders.values()] == [0, 1, 1]
    assert second.waits
    assert third.waits


def test_a_holder_that_waits_for_an_answer_is_woken_when_the_time_is_known() -> None:
    policy = Stated((Limit(1, per=60), Limit(concurrent=1)))
    state, first, second = LeaseState(policy.new()), Holding("first"), Holding("second")
    now = state.clock
    for holding in (first, second):
        exchanged(state, holding, now, 1, policy)
    first.ended(taken(first, now), now + 1, passed=True)
    assert list(exchanged(state, first, now + 1, 0, policy).wakes) == ["second"]
    grant = exchanged(state, second, now + 1, 1, policy)
    assert grant.permits == ()
    assert grant.wait is not None
    assert grant.wait.seconds == pytest.approx(60)
    assert list(exchanged(state, first, now + 2, 0, policy).wakes) == []


def test_a_holder_does_not_ask_again_for_the_permits_that_others_have_issued() -> None:
    policy = Stated((Limit(concurrent=2),))
    state, first, second = LeaseState(policy.new()), Holding("first"), Holding("second")
    now = state.clock
    exchanged(state, first, now, 2, policy)
    exchanged(state, second, now, 1, policy)
    for permit in [taken(first, now) for _ in range(2)]:
        first.ended(permit, now + 1, passed=True)
    exchanged(state, first, now + 1, 0, policy)
    grant = exchanged(state, second, now + 1, 1, policy)
    assert len(grant.permits) == 1
    assert grant.wait is None


def test_a_holder_whose_waiting_calls_have_gone_says_so() -> None:
    policy = Stated((Limit(concurrent=1),))
    state, first, second = LeaseState(policy.new()), Holding("first"), Holding("second")
    now = state.clock
    for holding in (first, second):
        exchanged(state, holding, now, 1, policy)
    assert second.flush_at(now + 0.1, 0) == pytest.approx(now + 0.25)
    first.ended(taken(first, now), now + 0.2, passed=True)
    exchanged(state, first, now + 0.2, 0, policy)
    second.wake(now + 0.2)
    assert second.flush_at(now + 0.2, 0) == now + 0.2
    exchanged(state, second, now + 0.2, 0, policy)
    assert second.pool
    due = second.flush_at(now + 0.2, 0)
    assert due is not None
    exchanged(state, second, due + 0.1, 0, policy)
    assert not state.holders["second"].open


def test_a_holder_that_has_waited_for_a_second_comes_next() -> None:
    policy = Stated((Limit(concurrent=1),))
    state, first, second = LeaseState(policy.new()), Holding("first"), Holding("second")
    now, turns = state.clock, ""
    for holding in (first, second):
        exchanged(state, holding, now, 50, policy)
    for _ in range(6):
        now += 1.0
        holding, other = (first, second) if state.holders["first"].open else (second, first)
        holding.ended(taken(holding, now), now, passed=True)
        turns += holding.name[0]
        exchanged(state, holding, now, 50, policy)
        exchanged(state, other, now, 50, policy)
    assert turns == "ffsfsf"
