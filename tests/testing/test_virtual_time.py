from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.maesn.sandbox import Sandbox
from lamella.testing import FixedWindow, VirtualClock, VirtualTimeLoop, run_virtual, virtual_clock

HOUR = 3600.0

_T = TypeVar("_T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@contextmanager
def real_seconds(at_most: float = 5, at_least: float = 0) -> Iterator[None]:
    began = time.perf_counter()
    yield
    assert at_least <= time.perf_counter() - began <= at_most


def run_real(main: Coroutine[Any, Any, _T]) -> _T:
    """As asyncio.run, which would take away the loop that pytest-asyncio keeps between the tests."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main)


def run_switched(main: Coroutine[Any, Any, Any]) -> Any:
    """On a loop that is put on virtual time only when it runs."""

    async def switched() -> Any:
        with virtual_clock():
            return await main

    return run_real(switched())


@pytest.fixture(params=[run_virtual, run_switched], ids=["own loop", "switched loop"])
def run(request: pytest.FixtureRequest) -> Run:
    run: Run = request.param
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_an_hour_takes_no_time(run: Run) -> None:
    async def main() -> None:
        start = now()
        await asyncio.sleep(HOUR)
        assert now() - start == pytest.approx(HOUR)

    with real_seconds():
        run(main())


def test_everything_that_uses_the_loop_clock_is_virtual(run: Run) -> None:
    async def main() -> None:
        start = now()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(HOUR):
                await asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), HOUR)
        with anyio.move_on_after(HOUR):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(anyio.sleep, HOUR)
        assert now() - start == pytest.approx(4 * HOUR)

    with real_seconds():
        run(main())


def test_time_stands_still_between_the_jumps(run: Run) -> None:
    async def main() -> None:
        start = now()
        time.sleep(0.01)  # noqa: ASYNC251  real time must not count
        for _ in range(10):
            await asyncio.sleep(0)
        assert now() == start

    run(main())


def test_begins_at_zero_or_at_the_given_time() -> None:
    async def main() -> float:
        return now()

    assert run_virtual(main()) == 0
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(VirtualClock(1000.5))) as runner:
        assert runner.run(main()) == 1000.5


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 60.0, 60.5, 100_000.0]), max_size=40))
def test_timers_fire_in_order(delays: list[float]) -> None:
    """By their time, and of equal ones the first that was made first."""

    async def main() -> list[tuple[int, float]]:
        loop = asyncio.get_running_loop()
        fired: list[tuple[int, float]] = []

        def note(number: int) -> None:
            fired.append((number, loop.time()))

        for number, delay in enumerate(delays):
            loop.call_later(delay, note, number)
        await asyncio.sleep(200_000)
        return fired

    expected = sorted(range(len(delays)), key=lambda number: (delays[number], number))
    fired = run_virtual(main())
    assert [number for number, _ in fired] == expected
    assert [at for _, at in fired] == pytest.approx(sorted(delays))


@pytest.mark.parametrize(
    ("first", "second"), [(0.08044581855253541, 2.629404229337251), (0.6492654248961536, 56.80535432238985)]
)
def test_a_jump_ends_exactly_at_its_timer(first: float, second: float) -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        fired: list[float] = []
        for when in (first, second):
            loop.call_at(when, lambda: fired.append(loop.time()))
        await asyncio.sleep(100)
        return fired

    assert first + (second - first) != second
    assert run_virtual(main()) == [first, second]


def test_cancelled_timers_do_not_fire(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        start = now()
        fired: list[int] = []
        handles = [loop.call_at(start + number, fired.append, number) for number in range(1, 200)]
        for handle in handles[::2]:
            handle.cancel()
        await asyncio.sleep(HOUR)
        assert fired == list(range(2, 200, 2))

    run(main())


def test_sockets_are_served_before_timers(run: Run) -> None:
    """Thousands of bytes to and fro in one virtual moment, and no timeout strikes in between."""

    async def main() -> None:
        start = now()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for _ in range(200):
                async with asyncio.timeout(0.001):
                    writer.write(b"x" * 10_000 + b"\n")
                    assert len(await reader.readline()) == 10_001
            async with asyncio.timeout(0.001):  # more than the buffers of the kernel hold
                writer.write(bytes(8 << 20))
                assert await reader.readexactly(8 << 20) == bytes(8 << 20)
            assert now() == start
            writer.close()
            await writer.wait_closed()

    run(main())


def test_client_timeouts(run: Run) -> None:
    async def main() -> None:
        start = now()
        async with Sandbox(latency=20.0) as sandbox, aiohttp.ClientSession(sandbox.url) as session:
            with pytest.raises(TimeoutError):
                await session.get("/", timeout=aiohttp.ClientTimeout(total=4))
            assert now() - start == pytest.approx(4)
            async with session.get("/", timeout=aiohttp.ClientTimeout(total=100)) as response:
                assert response.status == 403
            assert now() - start == pytest.approx(24)

    with real_seconds():
        run(main())


def test_a_schedule_of_15_minutes(run: Run) -> None:
    """Waits of 1, 2, 4 and 8 minutes, against a limit that nothing shorter satisfies."""

    async def main() -> None:
        async with Sandbox(limit=FixedWindow(1, 900)) as sandbox:
            keys = {"X-API-KEY": sandbox.api_key, "X-ACCOUNT-KEY": sandbox.account_key}
            async with aiohttp.ClientSession(sandbox.url, headers=keys) as session:
                for wait in (0, 60, 120, 240, 480):
                    async with session.get("/accounting/invoices"):
                        await asyncio.sleep(wait)
                async with session.get("/accounting/invoices") as response:
                    assert response.status == 200
            first, *others = sandbox.received
            assert [received.outcome for received in sandbox.received] == [200, 429, 429, 429, 429, 200]
            assert [received.at - first.at for received in others] == pytest.approx([0, 60, 180, 420, 900])

    with real_seconds():
        run(main())


class TestThreads:
    def test_the_clock_waits_for_the_work_of_threads(self, run: Run) -> None:
        async def main() -> None:
            start = now()
            async with asyncio.timeout(HOUR):
                await asyncio.to_thread(time.sleep, 0.05)
            assert now() - start < 1
            await asyncio.sleep(HOUR)
            assert now() - start == pytest.approx(HOUR, abs=1)

        with real_seconds(at_least=0.05):
            run(main())

    def test_a_shorter_timeout_fires_in_real_time(self, run: Run) -> None:
        async def main() -> None:
            done = threading.Event()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await asyncio.to_thread(done.wait, 60)
            done.set()

        with real_seconds(at_least=0.02):
            run(main())

    def test_host_names_are_resolved_in_threads(self, run: Run) -> None:
        async def main() -> None:
            async with asyncio.timeout(HOUR):
                assert await asyncio.get_running_loop().getaddrinfo("localhost", 80)

        run(main())

    def test_foreign_threads_must_be_announced(self) -> None:
        async def main() -> float:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            with loop.clock.real_time():
                async with asyncio.timeout(HOUR):
                    await anyio.to_thread.run_sync(time.sleep, 0.03)
            return now()

        with real_seconds(at_least=0.03):
            assert run_virtual(main()) < 1

    def test_the_end_of_the_loop_waits_for_threads(self) -> None:
        finished: list[bool] = []

        async def main() -> None:
            def work() -> None:
                time.sleep(0.03)
                finished.append(True)

            asyncio.get_running_loop().run_in_executor(None, work).cancel()

        with real_seconds(at_least=0.02):
            run_virtual(main())
        assert finished == [True]

    def test_waits_for_real_without_a_timer(self, run: Run) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            start = now()
            future = loop.create_future()

            def work() -> None:
                time.sleep(0.02)
                loop.call_soon_threadsafe(future.set_result, "done")

            with ThreadPoolExecutor() as executor:
                executor.submit(work)
                assert await future == "done"
            assert now() == start

        with real_seconds(at_least=0.02):
            run(main())


class TestSwitch:
    def test_time_is_virtual_only_inside_the_context(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            kind = type(loop)
            with virtual_clock() as clock:
                assert isinstance(loop, VirtualTimeLoop)
                await asyncio.sleep(HOUR)
                assert clock.elapsed == HOUR
            assert type(loop) is kind
            start = now()
            await asyncio.sleep(0.02)
            assert 0.02 <= now() - start < 0.5

        with real_seconds(at_least=0.02):
            run_real(main())

    def test_time_never_goes_back(self) -> None:
        async def main() -> None:
            times = [now()]
            for _ in range(2):
                with virtual_clock():
                    times.append(now())
                    await asyncio.sleep(HOUR)
                    times.append(now())
                times.append(now())
            with virtual_clock():
                times.append(now())
            times.append(now())
            assert times == sorted(times)
            assert times[-1] - times[0] == pytest.approx(2 * HOUR, abs=4)

        run_real(main())

    def test_timers_from_outside_keep_their_distance(self) -> None:
        async def main() -> list[str]:
            fired: list[str] = []
            loop = asyncio.get_running_loop()
            loop.call_later(60, fired.append, "before")
            with virtual_clock():
                await asyncio.sleep(90)
                loop.call_later(0.02, fired.append, "inside")
                loop.call_later(60, fired.append, "too late")
            await asyncio.sleep(0.05)
            return fired

        assert run_real(main()) == ["before", "inside"]

    def test_virtual_time_contexts_can_be_nested(self) -> None:
        async def main() -> None:
            with virtual_clock() as outer, virtual_clock() as inner:
                assert outer is inner
                await asyncio.sleep(HOUR)
            assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

        run_real(main())

    def test_a_custom_loop_class_can_be_switched(self) -> None:
        class Loop(asyncio.SelectorEventLoop):
            def get_debug(self) -> bool:
                calls.append(True)
                return super().get_debug()

        async def main() -> None:
            loop = asyncio.get_running_loop()
            with virtual_clock(loop):
                assert isinstance(loop, Loop)
                await asyncio.sleep(HOUR)
            assert type(loop) is Loop

        calls: list[bool] = []
        with real_seconds(), asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(main())
        assert calls

    def test_rejects_a_loop_without_a_selector(self) -> None:
        loop: Any = object.__new__(type("OtherLoop", (asyncio.AbstractEventLoop,), {}))
        with pytest.raises(TypeError, match=r"needs an asyncio.SelectorEventLoop, got OtherLoop"), virtual_clock(loop):
            pass


def test_run_virtual_returns_and_raises() -> None:
    async def main(value: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    assert run_virtual(main(5), debug=True) == 5
    with pytest.raises(KeyError):
        run_virtual(main(KeyError()))


def test_repr_of_the_clock_shows_its_time() -> None:
    clock = VirtualClock(5)
    assert (clock.now, clock.elapsed) == (5, 0)
    assert isinstance(clock.now, float)
    assert repr(clock) == "<VirtualClock at 5.000 s, 0.000 s after its start>"


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["start", "grace"])
def test_virtual_time_rejects_invalid_arguments(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number of seconds, 0 or more, got {value!r}"):
        VirtualClock(**{name: value})
