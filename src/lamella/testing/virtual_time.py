"""An event loop with real sockets whose clock jumps over every wait.

Code that uses the loop's clock (`asyncio.sleep`, `asyncio.timeout`, `loop.call_later`, the timeouts of aiohttp, the
waits of stamina, `anyio.current_time`) takes no real time. `time.monotonic` and `time.time` stay real.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from lamella.checks import check_seconds

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_GRACE = 0.001  # the shortest wait of epoll; on Linux even 0 is enough in practice, but maybe not elsewhere


class VirtualClock:
    """The time of a virtual-time loop, in seconds.

    `grace`: how many real seconds the loop polls its sockets before each jump, so that bytes in transit on this machine
    arrive first. Raise it for a peer in another process.

    Raises ValueError if `start` or `grace` is below 0 or not finite.
    """

    def __init__(self, start: float = 0.0, grace: float = _GRACE) -> None:
        for name, value in (("start", start), ("grace", grace)):
            check_seconds(name, value, zero=True)
        self.grace = grace
        self._start = float(start)
        self._now = self._start
        self._holds = 0

    def __repr__(self) -> str:
        return f"<VirtualClock at {self._now:.3f} s, {self.elapsed:.3f} s after its start>"

    @property
    def now(self) -> float:
        """The value of `loop.time()`."""
        return self._now

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the clock was started."""
        return self._now - self._start

    @contextmanager
    def real_time(self) -> Iterator[None]:
        """Let the clock run in real time inside the context, for work outside the loop.

        `run_in_executor` and `asyncio.to_thread` do this automatically; threads of anyio, subprocesses and servers in
        other processes need it.
        """
        self._hold()
        try:
            yield
        finally:
            self._release()

    def _hold(self) -> None:
        self._holds += 1

    def _release(self, _: object = None) -> None:
        self._holds -= 1

    def _wait(self, selector: selectors.BaseSelector, timeout: float) -> _Events:
        """Let `timeout` seconds pass until the next timer, or less if something becomes ready."""
        began = time.monotonic()
        if self._holds:
            ready = selector.select(timeout)
        else:
            # With only the loop's own wake-up socket there are no bytes in transit.
            ready = selector.select(self.grace if len(selector.get_map()) > 1 else 0)
        if not ready:
            # Never a rounding error before the timer, since a wait for a limit must not end too early.
            self._now = timeout.until if isinstance(timeout, _Wait) else self._now + timeout
        elif self._holds:
            self._now += min(time.monotonic() - began, timeout)
        return ready


_Events = list[tuple[selectors.SelectorKey, int]]


class _VirtualSelector:
    """A selector that asks the clock instead of waiting for a timer."""

    def __init__(self, selector: selectors.BaseSelector, clock: VirtualClock) -> None:
        self._selector = selector
        self._clock = clock

    def select(self, timeout: float | None = None) -> _Events:
        if timeout is None or timeout <= 0:
            return self._selector.select(timeout)
        return self._clock._wait(self._selector, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


class _Wait(float):
    """The seconds until a timer, and its exact time."""

    __slots__ = ("until",)
    until: float


class _Moment(float):
    """The due time of a timer. Equal times are ordered by creation.

    On a real clock timers rarely coincide. On this clock most do, and a heap alone does not keep their order.
    """

    __slots__ = ("_number",)

    _numbers = itertools.count()

    def __init__(self, when: float) -> None:
        del when  # float.__new__ has used the argument
        self._number = next(self._numbers)

    def __lt__(self, other: float) -> bool:
        if isinstance(other, _Moment) and self == other:
            return self._number < other._number
        return super().__lt__(other)

    def __sub__(self, now: float) -> _Wait:
        """Return the wait as computed by a loop."""
        wait = _Wait(super().__sub__(now))
        wait.until = float(self)
        return wait


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on a `VirtualClock`: when nothing is ready, the clock jumps to the next timer.

    It waits in real time only while executor threads are working (the clock then runs), and when there is no timer to
    jump to. A task that spins with `sleep(0)` stops the clock.

    Use `asyncio.Runner(loop_factory=VirtualTimeLoop)` or `run_virtual`. `clock` None means one that begins at 0.
    """

    clock: VirtualClock

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        super().__init__(_VirtualSelector(selectors.DefaultSelector(), self.clock))  # type: ignore[arg-type]

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.clock.now

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule like asyncio, but keep the order of timers with equal times."""
        return super().call_at(_Moment(when), callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """Run like asyncio; the clock does not jump until the work is done."""
        future = super().run_in_executor(executor, func, *args)
        self.clock._hold()
        future.add_done_callback(self.clock._release)
        return future

    async def shutdown_default_executor(self, *args: float | None) -> None:
        """Shut down like asyncio; the clock does not jump until the threads have ended."""
        with self.clock.real_time():
            await super().shutdown_default_executor(*args)  # with a timeout since Python 3.12


@contextmanager
def virtual_clock(loop: asyncio.AbstractEventLoop | None = None) -> Iterator[VirtualClock]:
    """Put an existing loop (None: the running one) on virtual time inside the context.

    Its time continues from the next full second (so that sums of seconds are exact) and never goes back. Afterwards the
    loop follows the real clock again but stays ahead by the jumps, so that other timers keep their distance.

    Raises TypeError for a loop that is not asyncio's selector loop.
    """
    loop = loop or asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        yield loop.clock
        return
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise TypeError(f"virtual time needs an asyncio.SelectorEventLoop, got {type(loop).__qualname__}")

    clock = VirtualClock(math.ceil(loop.time()))
    selector: selectors.BaseSelector = loop._selector  # type: ignore[attr-defined]
    kind = type(loop)
    real_time = loop.time
    own_time = vars(loop).pop("time", None)  # a leftover of an earlier use would hide the virtual one
    virtual = VirtualTimeLoop if kind is asyncio.SelectorEventLoop else type(kind.__name__, (VirtualTimeLoop, kind), {})
    vars(loop).update(clock=clock, _selector=_VirtualSelector(selector, clock))
    loop.__class__ = virtual
    try:
        yield clock
    finally:
        loop.__class__ = kind
        vars(loop)["_selector"] = selector
        del vars(loop)["clock"]
        ahead = clock.now - real_time()
        if ahead > 0:
            vars(loop)["time"] = lambda: real_time() + ahead
        elif own_time is not None:
            vars(loop)["time"] = own_time


def run_virtual(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """Run like `asyncio.run` on a `VirtualTimeLoop` whose time begins at 0."""
    with asyncio.Runner(debug=debug, loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
