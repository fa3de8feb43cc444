"""``Lease``: the permits of an account or a quota that this process shares with other processes through a store."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any, Final

from lamella.call import Call
from lamella.logger import LOGGER
from lamella.rules.backoff import Backoff
from lamella.store.network import PAUSE, TIMER_ERROR, NetworkStore
from lamella.store.protocol import StoreUnavailable
from lamella.throttle.estimate import Permit, Wait
from lamella.throttle.holding import Holding, moved
from lamella.throttle.lease import Grant, LeaseState, as_text, exchange, newest, of_text, sizes
from lamella.throttle.lease_policy import Outcome, Policy
from lamella.throttle.queue import Count, Queue
from lamella.throttle.stated import StatedLimit

_TRIES: Final = 100
_LONGEST_PAUSE: Final = 0.25  # seconds between two tries of an exchange that others have overtaken
_MOST_ASIDE: Final = 10_000
_ROUNDS: Final = 3
_SOON: Final = 0.005
_ALL_COME: Final = 0.85  # seconds: the pause after a failure of the store plus the longest time between two exchanges
_OTHER_CLOCK: Final = 1.0  # seconds: two holders differ by less in their estimate of the same clock


class LeasedQueue(Queue):
    """A queue whose permits are leased."""

    __slots__ = ("lease",)

    def __init__(self, ask: Callable[[Call, Queue, int], Awaitable[Permit | Wait]], count: Count, lease: Lease) -> None:
        super().__init__(ask, count)
        self.lease: Lease = lease
        lease.queue = self

    def end(self, permit: Permit) -> None:
        """Release a permit that its attempt no longer needs."""
        self.lease.unused(permit)
        super().end(permit)

    def wake(self) -> None:
        """Wake the first call, which may get a permit."""
        if self.waiters:
            self._wake_first()


class Lease:
    """The permits of one account that this process holds.

    While the store fails, this process uses the last state that it has read, and its share of the limit: the limit
    divided by the number of holders. It reports the results of these attempts when the store is available again.

    Args:
        store: The store.
        name: The name of the state, a hash.
        policy: Decides who may send.
    """

    __slots__ = (
        "__weakref__",
        "_aside",
        "_asked",
        "_local",
        "_name",
        "_policy",
        "_process",
        "_seen",
        "_store",
        "_task",
        "_timer",
        "_woken",
        "holding",
        "queue",
    )

    def __init__(self, store: NetworkStore, name: str, policy: Policy) -> None:
        store.holders.add(self)
        self._store = store
        self._name = f"lease:{name}"
        self._policy = policy
        self._seen = _Seen()
        self._local: tuple[LeaseState, Policy] | None = None  # set while the store fails
        self._aside: list[Outcome] = []  # outcomes of attempts that only the local state contains
        self._process = os.getpid()
        self._asked = 0  # the number of waiting calls at the last exchange, including those in outer queues
        self._task: asyncio.Task[Grant | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._woken = False  # whether it was woken during an exchange, which may have begun before
        self.holding: Holding = Holding(store.wakeups.add(self))
        self.queue: LeasedQueue | None = None

    def new_queue(self, ask: Callable[[Call, Queue, int], Awaitable[Permit | Wait]], count: Count) -> LeasedQueue:
        """Return the queue of the calls that wait for these permits."""
        return LeasedQueue(ask, count, self)

    @property
    def known(self) -> Any:
        """The knowledge of the limit. The caller must not change it."""
        state = self._local[0] if self._local is not None else self._seen.state
        return self._policy.new() if state is None else state.known

    def now(self) -> float:
        """Return the time by the clock of the state."""
        return asyncio.get_running_loop().time() + self._seen.ahead

    def begin(self) -> None:
        """Forget the timer and the exchange of an event loop that has ended."""
        self._timer = self._task = None

    def at_once(self) -> Permit | None:
        """Return an available permit. None: no permit is available."""
        if not self.holding.pool:
            return None
        permit = self.holding.take(self.now())
        return permit if isinstance(permit, Permit) else None

    async def take(self, waiting: int, waited: float, cost: float) -> Permit | Wait:
        """Return a permit, or the wait for one, for the first of *waiting* calls."""
        for _ in range(_ROUNDS):
            answer = self.holding.take(self.now(), cost)
            if answer is not None:
                self._flush_later()
                return answer
            await self.exchange(waiting, waited, cost)
        return Wait(None, blocked=False, again=_SOON)

    async def may_pass(self, waiting: int, waited: float, cost: float) -> Wait | None:
        """Return the wait for a permit. None: :meth:`take` would return a permit."""
        for _ in range(_ROUNDS):
            answer = self.holding.may(self.now(), cost)
            if answer is not False:
                return None if answer is True else answer
            await self.exchange(waiting, waited, cost)
        return Wait(None, blocked=False, again=_SOON)

    def ended(self, permit: Permit, *, passed: bool | None, says: Sequence[StatedLimit] = ()) -> None:
        """Record the result of an attempt. *passed* None: it is unknown whether the server counted it."""
        # The clocks of two processes may differ: the next permit must not be issued too early.
        ended = self.now() + self._store.doubt
        self.holding.ended(permit, ended, passed=passed, says=says)
        self._flush_later()

    async def refused(
        self, permit: Permit, backoff: Backoff | None, retry_after: float | None, says: Sequence[StatedLimit]
    ) -> Wait | None:
        """Report a refusal at once. Return the wait that it begins. None: it begins no wait."""
        more = {"backoff": backoff, "retry_after": retry_after, "says": says}
        self.holding.ended(permit, self.now(), passed=False, **more)  # type: ignore[arg-type]
        if self._task is not None:
            await asyncio.shield(self._task)  # it may have begun before
        grant = await self.exchange(self._waiting, 0.0, 1.0)
        return None if grant is None else grant.refused

    def unused(self, permit: Permit) -> None:
        """Release the permit of an attempt that the server cannot have counted, unless its result was reported."""
        self.holding.unused(permit, self.now())
        self._flush_later()

    def leave(self) -> Awaitable[object] | None:
        """Report for the last time, and release the unused permits. None: there is nothing to report."""
        if self._process != os.getpid():
            return None  # a fork: the permits are those of the other process
        self.holding.release(self.now())
        return self._leave() if self._reports else None

    @property
    def _reports(self) -> bool:
        """Whether there is something that the others have to know: results, or that it wants no more permits."""
        return bool(self.holding.outcomes) or self.holding.wait is not None

    async def _leave(self) -> None:
        if self._task is not None:
            await asyncio.shield(self._task)  # it may have begun before
        for _ in range(2):  # others may have issued permits to it in the meantime
            self.holding.release(self.now())
            if self._reports:
                self.holding.spent = 0  # otherwise it would get permits in advance again
                await self.exchange(0, 0.0, 1.0)

    async def exchange(self, waiting: int, waited: float, cost: float) -> Grant | None:
        """Report to the store and get permits. Cancelling a caller does not cancel the exchange."""
        if self._task is None:
            self._asked = waiting
            self._task = asyncio.get_running_loop().create_task(self._exchange(waiting, waited, cost))
            self._task.add_done_callback(self._ended)
        return await asyncio.shield(self._task)

    def _ended(self, task: asyncio.Task[Grant | None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if self._woken:
            self.wake()
        elif self.queue is not None:
            self.queue.wake()
            self._flush_later()

    @property
    def waits(self) -> bool:
        """Whether the next permit may depend on another process."""
        return self.holding.waits

    def wake(self) -> None:
        """Ask the store at once: another process has issued permits to this one, or waits for its results."""
        self._woken = self._task is not None
        if self._woken:
            return
        self._seen.reads_first = True
        self.holding.wake(self.now())
        if self.queue is not None:
            self.queue.wake()
        self._flush_later()

    def _flush_later(self) -> None:
        if self._timer is not None and not self.holding.awaited:
            return
        now = self.now()
        if (at := self.holding.flush_at(now, self._waiting)) is None:
            return
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + at - now + TIMER_ERROR:
                return
            self._timer.cancel()
        self._timer = loop.call_later(at - now, self._flush)

    def _flush(self) -> None:
        self._timer = None
        at = self.holding.flush_at(self.now(), self._waiting)
        if at is None or self._task is not None:
            return
        if at > self.now() + TIMER_ERROR:
            self._flush_later()
            return
        self._task = asyncio.get_running_loop().create_task(self._exchange(self._waiting, 0.0, 1.0))
        self._task.add_done_callback(self._ended)

    async def _exchange(self, waiting: int, waited: float, cost: float) -> Grant | None:
        began = asyncio.get_running_loop().time()
        try:
            grant = await self._by_store(waiting, waited, cost)
            waits = self.waits and grant is not None and grant.holders > 1
            if waits or self.holding.awaited or self._policy.limits_in_flight:
                self._store.listen_here()
            return grant
        except StoreUnavailable:
            self._seen.restore(self._policy)
        except Exception as exc:  # noqa: BLE001 - no call fails because of what is in the store
            self._seen.reject(exc)
            self._local = None
        return self._by_share(waiting, waited, cost, began)

    async def _by_store(self, waiting: int, waited: float, cost: float) -> Grant | None:
        store, seen, policy, loop = self._store, self._seen, self._policy, asyncio.get_running_loop()
        was_local, version = self._local is not None, seen.version
        must_read = seen.reads_first or seen.state is None or store.ahead is None
        for attempt in range(_TRIES):
            if must_read:
                reply = await store.swap(self._name, "")
                if reply.version != seen.version or seen.state is None:
                    seen.found(reply.version, reply.state, policy)
            if not attempt:
                seen.reads_first = bool(version) and seen.version != version
            time = loop.time()
            is_fresh = (must_read or attempt > 0) and not was_local and seen.forgotten is None
            if is_fresh and waiting and self.holding.pick_up(seen.state, self.now(), 1 if attempt else waiting):
                return None
            server = time + (store.ahead or 0.0)
            # The store's clock may jump: no more time has passed than by the clock of this process.
            latest = time + seen.ahead + store.doubt if seen.ahead else inf
            state = newest(seen.state, seen.forgotten, server, policy, latest)
            now = state.tick(server, latest)
            self._set_clock(now - time)
            if was_local:
                # Within this time the other holders report what they sent during the failure.
                state.closed_until = max(state.closed_until, now + _ALL_COME)
            report = self.holding.report(now, waiting, waited, cost)
            held = len(report.outcomes)
            whole = report._replace(outcomes=(*self._aside, *report.outcomes))
            before = sizes(state)
            grant = exchange(state, now, whole, policy)
            if is_fresh and not whole.outcomes and before == sizes(state) and self.holding.may_report_later(now):
                self.holding.granted(grant, report, now)  # there is nothing that the others need to know
                return grant
            text = as_text(state)
            reply = await store.swap(self._name, seen.version, text, grant.wakes)
            if reply.done:
                seen.keep(reply.version, text, state, now - time)
                self._local = None
                self._aside.clear()
                self.holding.granted(grant, report._replace(outcomes=report.outcomes[:held]), now)
                self.holding.reported_at = now
                return grant
            seen.found(reply.version, reply.state, policy)
            seen.reads_first = True
            if must_read or attempt:  # it was overtaken although its state was new: many exchange at this moment
                pause = random.random() * grant.holders * (loop.time() - time)
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))
                must_read = True  # a state from before the pause would be overtaken as well
        raise StoreUnavailable

    def _set_clock(self, ahead: float) -> None:
        """Move what this process holds if the state now has another clock."""
        seconds = ahead - self._seen.ahead
        if abs(seconds) > _OTHER_CLOCK:
            self.holding.move(seconds)
            self._aside = moved(self._aside, seconds)
            self._seen.ahead, self._local = ahead, None

    def _by_share(self, waiting: int, waited: float, cost: float, began: float) -> Grant:
        if self._local is None:
            seen = {} if self._seen.state is None else self._seen.state.holders
            # Before the store failed, the other holders may have taken all remaining permits.
            horizon = 0.0 if self.holding.grant is None else self.holding.grant.horizon
            used_up_at = began + self._seen.ahead + horizon if any(each.wanting for each in seen.values()) else None
            known, policy = self._policy.share(self.known, max(len(seen), 1), used_up_at)
            state = LeaseState(known, self.now())
            if self.holding.name in seen:
                state.holders[self.holding.name] = seen[self.holding.name]
            self._local = state, policy
        state, policy = self._local
        now = self.now()
        report = self.holding.report(now, waiting, waited, cost)
        grant = exchange(state, now, report, policy)
        self._aside.extend(each for each in report.outcomes if each.kind != "unused")
        del self._aside[:-_MOST_ASIDE]
        self.holding.granted(grant, report, now)
        self.holding.due = min(self.holding.due, now + PAUSE)  # the store may be available again
        return grant

    @property
    def _waiting(self) -> int:
        queue = self.queue
        return 0 if queue is None or not queue.waiters else max(queue.waiting, self._asked)


class _Seen:
    """The state of a lease as it was last seen in the store."""

    __slots__ = ("ahead", "forgotten", "is_unreadable", "reads_first", "serial", "state", "text", "version")

    def __init__(self) -> None:
        self.version = ""
        self.text = ""
        self.serial = -1  # of the state in `text`
        self.state: LeaseState | None = None
        self.forgotten: LeaseState | None = None
        """The newest state that was read, if the store now has an older one or none."""
        self.ahead = 0.0
        """Seconds by which the clock of the state is ahead of the loop's clock."""
        self.reads_first = False
        """Whether the next exchange reads the state first, because the last one was overtaken."""
        self.is_unreadable = False
        """Whether a state was found that is not valid. Only the first one is logged."""

    def keep(self, version: str, text: str, state: LeaseState, ahead: float) -> None:
        """Record that the store contains *state*."""
        self.version, self.text, self.state, self.ahead, self.forgotten = version, text, state, ahead, None
        self.serial, self.is_unreadable = state.serial, False

    def found(self, version: str, text: str, policy: Policy) -> None:
        """Read the state that another process has stored, or None.

        Raises:
            StoreUnavailable: It cannot be read. Another version of lamella may have written it.
        """
        try:
            self.version, self.state = version, of_text(text, policy) if text else None
        except Exception as exc:
            self._warn(exc)
            raise StoreUnavailable from exc
        if self.state is not None and self.state.serial >= self.serial:
            self.text, self.serial, self.forgotten = text, self.state.serial, None
        else:
            self.forgotten = of_text(self.text, policy) if self.text else None

    def reject(self, exc: Exception) -> None:
        """Forget a state with values that are not valid."""
        self._warn(exc)
        self.version, self.text, self.serial, self.state, self.forgotten = "", "", -1, None, None

    def _warn(self, exc: Exception) -> None:
        if not self.is_unreadable:
            self.is_unreadable = True
            kind = type(exc).__qualname__  # its message may contain parts of the state
            LOGGER.warning("the state of a rate limit in the store is not valid (%s)", kind)

    def restore(self, policy: Policy) -> None:
        """Discard the state that was not stored."""
        self.version = ""
        self.state = of_text(self.text, policy) if self.text else None
        self.forgotten = None
