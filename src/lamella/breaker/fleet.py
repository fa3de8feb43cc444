"""``SharedCircuit``: a circuit that this process shares with other processes through a store on a network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Final, NamedTuple

from lamella.breaker import circuit
from lamella.breaker.circuit import CircuitSettings, CircuitState, Permit, Rejection, Results, Transition
from lamella.logger import LOGGER
from lamella.store.network import NetworkStore
from lamella.store.protocol import StoreUnavailable

_FLUSH: Final = 0.25  # seconds between two exchanges that are not urgent


class _Step(NamedTuple):
    """A change of the circuit that an exchange makes at once."""

    change: Callable[..., Any] | None  # None: open the circuit if the results of all processes say so
    args: tuple[Any, ...]
    done: asyncio.Future[Any]


class _Work:
    """The exchanges of one event loop. Timers, tasks and times of another loop are forgotten."""

    __slots__ = ("ahead", "asked_at", "is_known", "loop", "steps", "task", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.steps: list[_Step] = []
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.asked_at = -inf  # when the last exchange began, by the loop's clock
        self.is_known = False  # whether a call of this loop has waited for the state
        self.ahead = 0.0  # seconds by which the clock of the state is ahead of the loop's

    @property
    def now(self) -> float:
        """The time by the clock of the state."""
        return self.loop.time() + self.ahead

    @property
    def is_fresh(self) -> bool:
        """Whether the state was seen less than 250 ms ago."""
        return self.loop.time() < self.asked_at + _FLUSH

    def stop_timer(self) -> None:
        """Begin no exchange later."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class SharedCircuit:
    """A circuit as this process has last seen it in the store, with the results of this process since.

    An exchange reports these results and reads the state. There is one at most every 250 ms while there are attempts,
    and one at once for a change that the processes must agree on: the circuit opens or closes, or an attempt is a
    probe. While the store fails, the changes are made in the last state seen, and the results of the last window are
    reported when the store is available again.

    Args:
        store: The store.
        key: The key of the state.
        settings: When the circuit opens and how it closes.
        report: Reports a transition that no call has waited for.
    """

    __slots__ = (
        "__weakref__",
        "_failed",
        "_key",
        "_opened",
        "_report",
        "_results",
        "_seen",
        "_settings",
        "_state",
        "_store",
        "_work",
    )

    def __init__(
        self, store: NetworkStore, key: str, settings: CircuitSettings, report: Callable[[Transition], None]
    ) -> None:
        self._store = store
        self._key = key
        self._settings = settings
        self._report = report
        self._seen = CircuitState()  # in the store
        self._state = CircuitState()  # the same with the results of this process since
        self._results: list[tuple[float, Results]] = []  # not reported yet, each with the time of its first attempt
        self._opened: Transition | None = None  # how the circuit opens by what this process knows, not agreed yet
        self._failed = False  # whether the last exchange has failed
        self._work: _Work | None = None
        store.holders.add(self)

    def _work_here(self) -> _Work:
        """Return the exchanges of the running loop."""
        loop, work = asyncio.get_running_loop(), self._work
        if work is None or work.loop is not loop:
            self._work = work = _Work(loop)
            self._results.clear()  # their times are those of another loop
        return work

    def open_for(self) -> float:
        """Return for how many seconds no attempt may be sent; 0.0 if the circuit is closed or half-open."""
        return circuit.open_for(self._state, self._work_here().now, self._settings)

    def at_once(self) -> Permit | Rejection | None:
        """Return whether an attempt may be sent, by the last state seen. None: ask :meth:`admit`."""
        work = self._work_here()
        if not work.is_known:
            return None
        if self._state.since is None:
            self._soon(work)
            return Permit(self._state.epoch)
        if self._failed:
            self._soon(work)
        answer = circuit.admit(circuit.copied(self._state), work.now, self._settings, "")
        # Another process may have closed a half-open circuit since; an open one stays so.
        return answer if isinstance(answer, Rejection) and (work.is_fresh or self.open_for()) else None

    async def admit(self, attempt: str) -> Permit | Rejection:
        """Return whether *attempt* may be sent, by a state that was seen less than 250 ms ago."""
        work = self._work_here()
        if not work.is_known or (self._state.since is None and not work.is_fresh):
            await asyncio.wait({self._start(work)}, timeout=_FLUSH)
            work.is_known = True
        answer = self.at_once()
        if answer is None:
            answer = await self._agree(circuit.admit, self._settings, attempt)
        return answer

    def count(self, attempt: str, permit: Permit, *, works: bool) -> Transition | None:
        """Record the result of *attempt*, which is not a probe. Return the transition by what this process knows."""
        work = self._work_here()
        now = work.loop.time()
        if permit.epoch == self._seen.epoch:
            if not self._results or now >= self._results[-1][0] + _FLUSH:
                self._results.append((now, Results(0, 0)))
            began, (attempts, failures) = self._results[-1]
            self._results[-1] = began, Results(attempts + 1, failures + (not works))
        opened = None
        if self._state.since is None and permit.epoch == self._state.epoch:
            result = Results(1, int(not works))
            opened = circuit.count(self._state, work.now, self._settings, attempt, result)
        if opened is None:
            self._soon(work)
            return None
        if not self._failed:
            self._state = circuit.copied(self._seen)  # until the processes have agreed
        self._opened = opened
        self._start(work)
        return opened

    async def ended(self, attempt: str, permit: Permit, *, works: bool) -> Transition | None:
        """Record the result of *attempt*. Return the transition that it causes."""
        transition: Transition | None = None
        if permit.probe:
            change = circuit.succeeded if works else circuit.failed
            transition = await self._agree(change, self._settings, attempt, permit.epoch)
        elif self.count(attempt, permit, works=works) is not None:
            transition = await self._agree(None)
        return transition

    def release(self, attempt: str) -> None:
        """Forget *attempt* if it is a probe without a result, so that another one may be sent."""
        if self._work is not None and self._work.loop is asyncio.get_running_loop():
            self._agree(circuit.release, attempt)

    def leave(self) -> Awaitable[object] | None:
        """Report for the last time. None: there is nothing to report."""
        work = self._work
        if work is None or work.loop is not asyncio.get_running_loop():
            return None
        work.stop_timer()
        return self._leave(work) if self._results or work.task is not None else None

    async def _leave(self, work: _Work) -> None:
        if work.task is not None:
            await asyncio.wait({work.task})  # it may have begun before
        work.stop_timer()
        if self._results:
            await asyncio.wait({self._start(work)})
            work.stop_timer()

    def _agree(self, change: Callable[..., Any] | None, *args: Any) -> asyncio.Future[Any]:
        """Return what *change* returns, once the store or, if that fails, the last state seen is changed."""
        work = self._work_here()
        step = _Step(change, args, work.loop.create_future())
        work.steps.append(step)
        self._start(work)
        return step.done

    def _soon(self, work: _Work) -> None:
        """Exchange when the next exchange is due."""
        if work.timer is None and work.task is None:
            if work.is_fresh:
                work.timer = work.loop.call_at(work.asked_at + _FLUSH, self._start, work)
            else:
                self._start(work)

    def _start(self, work: _Work) -> asyncio.Task[None]:
        work.stop_timer()
        if work.task is None:
            work.task = work.loop.create_task(self._run(work))
        return work.task

    async def _run(self, work: _Work) -> None:
        """Exchange until no step is left. Cancelling a caller does not cancel the exchange."""
        steps: list[_Step] = []
        try:
            while True:
                work.asked_at = work.loop.time()
                # A cancelled caller releases its permit by another step.
                steps, work.steps = [each for each in work.steps if not each.done.cancelled()], []
                await self._exchange(work, steps)
                if not work.steps and self._opened is None:
                    break
        finally:
            for each in (*steps, *work.steps):
                each.done.cancel()
            work.steps.clear()
            work.task = None
        if self._results and not self._failed:
            self._soon(work)

    async def _exchange(self, work: _Work, steps: list[_Step]) -> None:
        oldest = work.asked_at - self._settings.window
        results, self._results = [each for each in self._results if each[0] > oldest], []
        try:
            transition, answers = await self._by_store(work, [each for _, each in results], steps)
        except Exception as exc:  # noqa: BLE001 - no call fails because of what is in the store
            if not self._failed and not isinstance(exc, StoreUnavailable):  # which the store has logged
                kind = type(exc).__qualname__
                LOGGER.warning("the state of a circuit in the store is not valid (%s)", kind)
            self._results = results + self._results
            if not self._failed:
                self._opened = self._recount(work.now)
            self._failed = True
            transition, answers = self._opened, [_changed(self._state, work.now, each) for each in steps]
            self._opened = None
        for step, answer in zip(steps, answers, strict=True):
            given = answer
            if step.change is None:
                given, transition = transition, None
            if not step.done.done():
                step.done.set_result(given)
            elif isinstance(given, Transition):
                self._report(given)
        if transition is not None:
            self._report(transition)

    async def _by_store(
        self, work: _Work, results: list[Results], steps: list[_Step]
    ) -> tuple[Transition | None, list[Any]]:
        seen, epoch = self._seen, _new_epoch()
        applied = CircuitState(), 0.0

        def change(state: CircuitState, now: float) -> tuple[Transition | None, list[Any]]:
            nonlocal applied
            circuit.restore(state, seen)
            opened = None
            if state.since is None and state.epoch == seen.epoch:
                for each in results:
                    opened = opened or circuit.count(state, now, self._settings, epoch, each)
            answers = [_changed(state, now, each) for each in steps]
            applied = state, now - work.loop.time()
            return opened, answers

        changed = await self._store.update(self._key, CircuitState, change)
        self._failed = False
        if applied[0].epoch != seen.epoch:
            self._results.clear()
        self._seen, work.ahead = applied
        self._opened = self._recount(work.now)
        if self._opened is not None:
            self._state = circuit.copied(self._seen)
        return changed

    def _recount(self, now: float) -> Transition | None:
        """Add the results of this process to the state last seen. Return the transition that they cause."""
        self._state, opened = circuit.copied(self._seen), None
        for _, each in self._results:
            opened = opened or circuit.count(self._state, now, self._settings, _new_epoch(), each)
        return opened


def _changed(state: CircuitState, now: float, step: _Step) -> Any:
    return None if step.change is None else step.change(state, now, *step.args)


def _new_epoch() -> str:
    return f"{random.getrandbits(64):016x}"
