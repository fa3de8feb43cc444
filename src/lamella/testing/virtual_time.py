"""An event loop whose clock jumps over every wait, with real sockets.

What uses the loop's clock (`asyncio.sleep`, `asyncio.timeout`, `loop.call_later`, the timeouts of aiohttp, the waits of
stamina, `anyio.current_time`) takes no real time. `time.monotonic` and `time.time` stay real.
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

_GRACE = 0.001  # the least that epoll can wait; on Linux even 0 has proved enough, which need not hold elsewhere


class VirtualClock:
    """The time of a virtual-time loop, in seconds.

    `grace`: for how many real seconds the loop listens to its sockets before each jump, so that bytes under way on this
    machine arrive first. Raise it for a peer in another process.

    Raises ValueError for a `start` or a `grace` that is below 0 or not finite.
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
        """The virtual seconds since the clock was started."""
        return self._now - self._start

    @contextmanager
    def real_time(self) -> Iterator[None]:
        """Let the clock run in real time inside the context, for work that the loop does not know of.

        `run_in_executor` and `asyncio.to_thread` do so by themselves; threads of anyio, subprocesses and servers
        in other processes do not.
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
        """Let `timeout` seconds pass until the next timer, or fewer if something becomes ready."""
        began = time.monotonic()
        if self._holds:
            ready = selector.select(timeout)
        else:
            # With nothing but the loop's own wake-up socket there can be no bytes under way.
            ready = selector.select(self.grace if len(selector.get_map()) > 1 else 0)
        if not ready:
            # Not a rounding error before the timer: a wait for a limit must not end too soon.
            self._now = timeout.until if isinstance(timeout, _Wait) else self._now + timeout
        elif self._holds:
            self._now += min(time.monotonic() - began, timeout)
        return ready


_Events = list[tuple[selectors.SelectorKey, int]]


class _VirtualSelector:
    """A selector that asks the clock where it would have to wait for a timer."""

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
    """The seconds until a timer, and exactly when that is."""

    __slots__ = ("until",)
    until: float


class _Moment(float):
    """When a timer is due. Of equal ones the first that was made comes first.

    On a real clock no two timers are equal; on this one most are, and a heap alone does not keep their order.
    """

    __slots__ = ("_number",)

    _numbers = itertools.count()

    def __init__(self, when: float) -> None:
        del when  # float.__new__ has taken it
        self._number = next(self._numbers)

    def __lt__(self, other: float) -> bool:
        if isinstance(other, _Moment) and self == other:
            return self._number < other._number
        return super().__lt__(other)

    def __sub__(self, now: float) -> _Wait:
        """Return the wait, as a loop computes it."""
        wait = _Wait(super().__sub__(now))
        wait.until = float(self)
        return wait


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on a `VirtualClock`: when nothing is ready, the clock jumps to the next timer.

    It waits in real time only while work in executor threads is under way (the clock then runs), and when there is no
    timer to jump to. A task that spins with `sleep(0)` keeps the clock where it is.

    `asyncio.Runner(loop_factory=VirtualTimeLoop)`, or `run_virtual`. `clock` None: one that begins at 0.
    """

    clock: VirtualClock

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        super().__init__(_VirtualSelector(selectors.DefaultSelector(), self.clock))  # type: ignore[arg-type]

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self.clock.now

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do as asyncio does; of timers for the same moment the first one comes first."""
        return super().call_at(_Moment(when), callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """Do as asyncio does; until the work is done the clock does not jump."""
        future = super().run_in_executor(executor, func, *args)
        self.clock._hold()
        future.add_done_callback(self.clock._release)
        return future

    async def shutdown_default_executor(self, *args: float | None) -> None:
        """Do as asyncio does; until the threads have ended the clock does not jump."""
        with self.clock.real_time():
            await super().shutdown_default_executor(*args)  # with a timeout since Python 3.12


@contextmanager
def virtual_clock(loop: asyncio.AbstractEventLoop | None = None) -> Iterator[VirtualClock]:
    """Put a loop that exists already on virtual time, for the length of the context. None: the running loop.

    Its time goes on from the next full second (so that sums of seconds come out exact) and never goes back:
    afterwards the loop follows the real clock again, but stays ahead by what it has jumped, so that the timers of
    others keep their distance.

    Raises TypeError for a loop that is not asyncio's selector loop.
    """
    loop = loop or asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        yield loop.clock
        return
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise TypeError(f"virtual time needs an asyncio.SelectorEventLoop, not {type(loop).__qualname__}")

    clock = VirtualClock(math.ceil(loop.time()))
    selector: selectors.BaseSelector = loop._selector  # type: ignore[attr-defined]
    kind = type(loop)
    real_time = loop.time
    own_time = vars(loop).pop("time", None)  # left by an earlier use, it would hide the virtual one
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
    """`asyncio.run` on a `VirtualTimeLoop`, whose time begins at 0."""
    with asyncio.Runner(debug=debug, loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
