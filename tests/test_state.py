"""Stores: what they keep, and that no call fails because one does."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from opentelemetry import trace
from tests.json_store import AHEAD, JsonStore, R, S, Ts
from tests.local_store import Database, LocalStore
from tests.sdk import Tracing

from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store
from lamella.store.shared import SharedState
from lamella.testing import VirtualClock

SECRET = "zq-store-pa55word"


@dataclass
class Tally:
    count: int = 0
    moments: list[float] = field(default_factory=list)


def add(tally: Tally, now: float, number: int) -> int:
    tally.count += number
    tally.moments.append(now)
    return tally.count


def moments_of(tally: Tally, _now: float) -> list[float]:
    return list(tally.moments)


def forget(tally: Tally, _now: float) -> None:
    tally.count = 0


async def total(state: SharedState | Store, key: str = "key") -> int:
    if isinstance(state, SharedState):
        return await state.update(None, key, Tally, add, 0)
    return await state.update(key, Tally, add, 0)


@pytest.mark.parametrize("keys", [0, -1])
def test_a_memory_store_must_keep_at_least_one_state(keys: int) -> None:
    with pytest.raises(ValueError, match=f"keys must be a whole number, 1 or more, got {keys}"):
        MemoryStore(keys)


async def test_a_memory_store_may_keep_one_entry_and_its_repr_shows_only_the_number() -> None:
    store = MemoryStore(1)
    for key in ("pa55word", "pa55word", "other"):
        await store.update(key, Tally, add, 1)
    assert (len(store), await total(store, "other")) == (1, 1)
    assert repr(store) == "MemoryStore(1)"


async def test_a_memory_store_keeps_the_most_recently_used_states() -> None:
    store = MemoryStore(3)
    for key in ("a", "b", "c", "a", "d", "e"):
        await store.update(key, Tally, add, 1)
        assert len(store) <= 3
    assert [await total(store, key) for key in ("a", "d", "e")] == [2, 1, 1]
    assert [await total(store, key) for key in ("b", "c")] == [0, 0]


async def test_replacing_a_state_counts_as_a_use() -> None:
    store = MemoryStore(2)
    for key in ("a", "b", "a", "c"):
        store.keep(key, Tally(7))
    assert [await total(store, key) for key in ("a", "c")] == [7, 7]
    assert await total(store, "b") == 0


@dataclass
class State:
    """A state with each kind of value."""

    flag: bool = True
    number: float = 0.0
    text: str = "a"
    log: list[list[float]] = field(default_factory=list)
    by_name: dict[str, list[float]] = field(default_factory=dict)


@pytest.mark.parametrize("state", [State(), State(False, -0.1, "ü", [[1.0, 2.5]], {"x": [3.0]}), Tally(7)], ids=repr)
async def test_a_packed_state_has_the_same_values(state: Any) -> None:
    store = MemoryStore(2)
    store.keep("a", state)
    store.pack("a")
    store.pack("a")
    store.pack("missing")
    assert store.peek("a") == state
    store.of("b", State)
    found = store.of("a", State)
    assert (found, found is state) == (state, False)
    store.of("c", State)
    assert store.peek("b") is None, "unpacking counts as a use"
    assert store.of("a", State) is found


async def test_a_state_of_a_shared_store_is_not_packed() -> None:
    """Another layer may hold a reference to it."""
    store = MemoryStore()
    kept = store.of("a", State)
    SharedState(store).pack("a")
    assert store.peek("a") is kept


async def test_thirty_thousand_accounts_are_bounded() -> None:
    store = MemoryStore()
    for number in range(30_000):
        await store.update(str(number), Tally, add, 1)
        assert len(store) <= 10_000
    assert await total(store, "29999") == 1
    assert await total(store, "0") == 0


async def test_a_memory_store_uses_the_loops_clock_or_a_given_one(virtual_time: VirtualClock) -> None:
    moments = []
    for store in (MemoryStore(), MemoryStore(clock=lambda: 7.0)):
        await asyncio.sleep(1)
        await store.update("key", Tally, lambda _, now: moments.append(now))
    assert moments == [virtual_time.now - 1, 7.0]


@pytest.mark.parametrize("name", ["patience", "pause"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_bad_arguments(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .* got {value}$"):
        SharedState(None, **{name: value})


def test_only_a_memory_store_can_be_used_without_waiting() -> None:
    store = MemoryStore()
    assert SharedState(store).memory is store
    assert isinstance(SharedState(None).memory, MemoryStore)
    assert SharedState(JsonStore()).memory is None


async def test_layers_that_share_a_store_share_states(virtual_time: VirtualClock) -> None:
    for store in (MemoryStore(), JsonStore()):
        here, there = SharedState(store), SharedState(store)
        for _ in range(20):
            await asyncio.gather(here.update(None, "key", Tally, add, 1), there.update(None, "key", Tally, add, 1))
        assert await total(here) == await total(there) == 40
    assert isinstance(store, JsonStore)
    assert store.again > 5
    assert list(store.texts) == ["key"]


async def test_layers_without_a_common_store_have_separate_states() -> None:
    here, there = SharedState(None), SharedState(None)
    await here.update(None, "key", Tally, add, 1)
    assert (await total(here), await total(there)) == (1, 0)


def never() -> asyncio.Future[object]:
    return asyncio.get_running_loop().create_future()


def cancelled() -> asyncio.Future[object]:
    """Something inside of the store was cancelled: a connection's reader, for one."""
    future = never()
    future.cancel()
    return future


def failure() -> object:
    raise ConnectionError(f"redis://user:{SECRET}@redis.example")


async def late_failure() -> object:
    await asyncio.sleep(0.1)
    raise LookupError(SECRET)


async def too_slow() -> object:
    await asyncio.sleep(1)
    return 1


FAILURES = {
    "raises": (failure, "ConnectionError"),
    "raises later": (late_failure, "LookupError"),
    "never answers": (never, "TimeoutError"),
    "is too slow": (too_slow, "TimeoutError"),
    "is cancelled": (cancelled, "CancelledError"),
    "answers None": (lambda: None, "TypeError"),
    "answers a text": (lambda: SECRET, "TypeError"),
    "answers something else": (object, "TypeError"),
}


@pytest.mark.parametrize("how", FAILURES)
async def test_local_state_is_used_while_the_store_fails(
    how: str, virtual_time: VirtualClock, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    """What it said before is known here; there is one warning; after the pause it is asked again."""
    store = JsonStore(slow=0)
    state = SharedState(store)
    assert await state.update(None, "key", Tally, add, 5) == 5
    store.fails, kind = FAILURES[how]
    began = virtual_time.now
    span = tracing.provider.get_tracer("lamella").start_span("lamella GET", kind=trace.SpanKind.INTERNAL)
    span.set_attributes({"http.request.method": "GET"})
    with caplog.at_level(logging.INFO, "lamella"):
        # All of them at once, and some more a little later.
        assert sorted(await asyncio.gather(*(state.update(span, "key", Tally, add, 1) for _ in range(9)))) == [
            *range(6, 15)
        ]
        assert virtual_time.now - began <= 0.25
        asked = store.asked
        await asyncio.sleep(1)
        assert await state.update(span, "key", Tally, add, 1) == 15
        await asyncio.sleep(3.7)
        assert await total(state) == 15
        assert store.asked == asked
    [line] = caplog.records
    assert (line.name, line.levelname, vars(line)["lamella.store_error"]) == ("lamella", "WARNING", kind)
    assert SECRET not in caplog.text
    span.end()
    [event] = tracing.spans[0].events
    assert (event.name, dict(event.attributes or {})) == ("lamella.store_failed", {"error.type": kind})

    store.fails = None
    await asyncio.sleep(5)
    assert await total(state) == 5
    assert await state.update(None, "key", Tally, add, 1) == 6
    assert json.loads(store.texts["key"])["count"] == 6


async def test_a_garbled_state_counts_as_a_store_failure(virtual_time: VirtualClock) -> None:
    store = JsonStore()
    state = SharedState(store)
    await state.update(None, "key", Tally, add, 5)
    for text in ("", "null", "[]", '{"count": null, "moments": []}', '{"other": 1}', '{"count": 1, "moments": 1}'):
        store.texts["key"] = text
        await asyncio.sleep(6)
        assert await state.update(None, "key", Tally, add, 1) > 5
        assert store.texts["key"] == text


async def test_only_one_call_tests_a_failed_store(virtual_time: VirtualClock) -> None:
    store = JsonStore(slow=0)
    state = SharedState(store)
    store.fails = never
    await total(state)
    await asyncio.sleep(5)
    asked, began = store.asked, virtual_time.now
    took = []

    async def one() -> None:
        await total(state)
        took.append(virtual_time.now - began)

    await asyncio.gather(*(one() for _ in range(9)))
    assert store.asked == asked + 1
    assert sorted(took) == [*[0.0] * 8, 0.25]


@pytest.mark.parametrize("ahead", [AHEAD, 0.0, -3.0])
async def test_no_state_contains_times_of_two_clocks(virtual_time: VirtualClock, ahead: float) -> None:
    """What was noted by the store's clock is compared with the time in a fallback, and the other way round."""
    store = JsonStore(slow=0, ahead=ahead)
    state = SharedState(store)
    moments: list[list[float]] = []
    began = virtual_time.now + ahead
    for failing in (False, True, False):
        store.fails = failure if failing else None
        await asyncio.sleep(5)
        await state.update(None, "key", Tally, add, 1)
        moments.append(await state.update(None, "key", Tally, moments_of))
    assert moments == [[began + 5], [began + 5, began + 10], [began + 5, began + 15]]


async def test_a_late_answer_does_not_end_the_pause_of_a_failed_store(virtual_time: VirtualClock) -> None:
    store = JsonStore(slow=1)
    state = SharedState(store, patience=60)
    early = asyncio.create_task(state.update(None, "key", Tally, add, 1))
    await asyncio.sleep(0)
    store.fails = failure
    await total(state)
    assert await early == 1
    store.fails = None
    asked = store.asked
    await total(state)
    assert store.asked == asked


def double(tally: Tally, _now: float) -> list[int]:
    """Two equal answers need not tell of equal states."""
    tally.count *= 2
    return [tally.count % 4]


@pytest.mark.parametrize(
    ("counts", "answer", "known"),
    [
        ((1, 7), lambda first, last: last, 14),
        ((1, 7), lambda first, last: list(last), 14),
        ((1, 6), lambda first, last: first, 2),
        ((1, 6), lambda first, last: [1], 0),
        ((1, 6), lambda first, last: None, 0),
    ],
    ids=["the last", "its copy", "the first", "another", "none"],
)
async def test_last_known_returns_the_state_of_the_last_answer(
    virtual_time: VirtualClock, counts: tuple[int, ...], answer: Callable[[Any, Any], Any], known: int
) -> None:
    """A change may be applied more than once, to a newer state each time."""

    class Swapping(JsonStore):
        async def update(self, key: str, new: Callable[[], S], change: Callable[[S, float, *Ts], R], *args: *Ts) -> R:
            if self.fails is not None:
                return cast(R, self.fails())
            first, last = (change(cast(S, Tally(count)), self.now(), *args) for count in counts)
            return cast(R, answer(first, last))

    store = Swapping()
    state = SharedState(store)
    await state.update(None, "key", Tally, double)
    store.fails = failure
    assert await total(state) == known


async def test_a_store_that_starts_late_sets_the_clock(virtual_time: VirtualClock) -> None:
    store = JsonStore(slow=0)
    store.fails = failure
    state = SharedState(store)
    await state.update(None, "key", Tally, add, 1)
    await state.update(None, "other", Tally, add, 1)
    store.fails = None
    await asyncio.sleep(5)
    await state.update(None, "key", Tally, add, 1)
    store.fails = failure
    seen: list[float] = []
    for key in ("key", "other"):
        await state.update(None, key, Tally, add, 1)
        seen += await state.update(None, key, Tally, moments_of)
    assert len(seen) == 3
    assert all(moment >= AHEAD for moment in seen)


@pytest.mark.parametrize("steps", range(4))
async def test_a_caller_that_is_cancelled_is_cancelled(virtual_time: VirtualClock, steps: int) -> None:
    """At whatever moment; and it says nothing against the store."""
    store = JsonStore(slow=1)
    store.random.seed(3)
    state = SharedState(store, patience=60)
    task = asyncio.create_task(state.update(None, "key", Tally, add, 1))
    await asyncio.sleep(0.2 * steps)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    asked = store.asked
    await total(state)
    assert store.asked == asked + 1


async def test_a_change_without_an_answer_is_applied(virtual_time: VirtualClock) -> None:
    store = JsonStore()
    state = SharedState(store)
    await state.update(None, "key", Tally, add, 3)
    await state.update(None, "key", Tally, forget)
    assert json.loads(store.texts["key"])["count"] == 0
    assert await total(state) == 0


@pytest.mark.slow
async def test_the_local_copy_of_a_store_is_bounded(virtual_time: VirtualClock) -> None:
    store = JsonStore(slow=0)
    state = SharedState(store)
    for number in range(10_100):
        await state.update(None, str(number), Tally, add, 1)
    store.fails = failure
    assert await total(state, "10099") == 1
    assert await total(state, "0") == 0


async def test_a_network_store_may_take_as_long_as_its_own_patience(
    virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(slow=0.6)
    here, there = SharedState(LocalStore(database)), SharedState(LocalStore(database))
    await asyncio.gather(*(state.update(None, "key", Tally, add, 1) for state in (here, there)))
    assert await total(here) == await total(there) == 2
    assert not caplog.records


async def test_a_state_that_cannot_be_read_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    database = Database()
    state = SharedState(LocalStore(database))
    database.texts["key"] = "0123456789abcdef no JSON"
    for number in range(1, 4):
        assert await state.update(None, "key", Tally, add, 1) == number
    [line] = caplog.records
    assert vars(line)["lamella.store_error"] == "JSONDecodeError"


async def test_a_failure_of_a_network_store_is_logged_once(
    virtual_time: VirtualClock, tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database()
    state = SharedState(LocalStore(database))
    await state.update(None, "key", Tally, add, 5)
    span = tracing.provider.get_tracer("lamella").start_span("lamella GET", kind=trace.SpanKind.INTERNAL)
    span.set_attributes({"http.request.method": "GET"})
    database.fails = ConnectionError(SECRET)
    for number in range(1, 10):
        assert await state.update(span, "key", Tally, add, 1) == 5 + number
        await asyncio.sleep(1)
    [line] = caplog.records
    assert (vars(line)["lamella.store_error"], SECRET in caplog.text) == ("ConnectionError", False)
    span.end()
    [event] = tracing.spans[0].events
    assert (event.name, dict(event.attributes or {})) == ("lamella.store_failed", {"error.type": "StoreUnavailable"})
    database.fails = None
    await asyncio.sleep(0.3)
    assert await total(state) == 5
