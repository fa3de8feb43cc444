"""`Retry(on_attempt=…)`, and `attempts(response)`: what a call that ended well knows of its attempts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve, ServeRaw, Statuses

from lamella import (
    ApiError,
    AttemptRecord,
    Backoff,
    Call,
    HeaderAuth,
    LamellaError,
    Layer,
    Retry,
    Rule,
    RuleBook,
    Slot,
    StopReason,
    Timeout,
    WaitSource,
    attempts,
    maesn,
    options,
    stack,
)
from lamella.testing import VirtualClock

RULES = RuleBook(
    Rule(503, "Service Unavailable", retry=Backoff(10, jitter=0)),
    Rule(200, "Busy", when=lambda a: "busy" in a.headers, retry=Backoff(10, jitter=0)),
)


class Told:
    """Keeps what the hook is called with."""

    def __init__(self) -> None:
        self.requests: list[aiohttp.ClientRequest] = []
        self.results: list[aiohttp.ClientResponse | LamellaError] = []
        self.records: list[AttemptRecord] = []
        self.stopped: list[StopReason | None] = []

    def __call__(
        self, request: aiohttp.ClientRequest, result: aiohttp.ClientResponse | LamellaError, record: AttemptRecord
    ) -> None:
        self.requests.append(request)
        self.results.append(result)
        self.records.append(record)
        self.stopped.append(result.stopped if isinstance(result, LamellaError) else None)


def client(url: str, *layers: Layer, **given: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=stack(RULES, *layers, **given))


async def get(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    async with session.get("/path") as response:
        await response.read()
        return response


async def test_the_hook_is_called_before_each_wait_and_at_the_end(serve: Serve, virtual_time: VirtualClock) -> None:
    told = Told()
    async with client(await serve(Statuses(503, 503)), on_attempt=told) as session:
        response = await get(session)
    assert [record.number for record in told.records] == [1, 2, 3]
    assert [record.status for record in told.records] == [503, 503, 200]
    assert [record.waited for record in told.records] == [10, 20, 0]
    assert [record.wait_source for record in told.records] == [WaitSource.RULE, WaitSource.RULE, None]
    assert [record.attempts_left for record in told.records] == [4, 3, 2]
    assert [type(result).__name__ for result in told.results[:2]] == ["ServiceUnavailable"] * 2
    assert told.results[2] is response
    assert {request.url.path for request in told.requests} == {"/path"}


async def test_an_async_hook_is_awaited_as_part_of_the_wait(serve: Serve, virtual_time: VirtualClock) -> None:
    seen: list[float] = []

    async def slow(_request: object, _result: object, _record: AttemptRecord) -> None:
        await asyncio.sleep(4)
        seen.append(virtual_time.now - began)

    async with client(await serve(Statuses(503)), on_attempt=slow) as session:
        began = virtual_time.now
        await get(session)
    assert seen == pytest.approx([4, 14], abs=0.1)


@pytest.mark.parametrize("raise_errors", [True, False])
async def test_the_last_attempt_of_a_failed_call_says_why_it_stopped(
    serve: Serve, virtual_time: VirtualClock, raise_errors: bool
) -> None:
    told = Told()
    async with client(await serve(Statuses(503, 404)), on_attempt=told, raise_errors=raise_errors) as session:
        if raise_errors:
            with pytest.raises(ApiError):
                await get(session)
        else:
            assert [record.status for record in attempts(await get(session))] == [503, 404]
    assert told.stopped == [None, StopReason.NOT_RETRYABLE]
    assert isinstance(told.results[-1], ApiError)
    assert len(told.results[-1].attempts) == 2


async def test_a_call_that_ends_during_a_wait_is_reported_again(serve: Serve, virtual_time: VirtualClock) -> None:
    told = Told()

    class OpensMeanwhile(Layer):
        """A circuit that opens during the wait."""

        slot = Slot.BREAKER

        def before(self, call: Call) -> None:
            call.circuit = self

        async def failed(self, error: BaseException) -> None:
            pass

        async def open_for(self) -> float:
            return 0.0

        async def admit(self) -> bool:
            return False

    async with client(await serve(Statuses(503)), OpensMeanwhile(), on_attempt=told) as session:
        with pytest.raises(ApiError):
            await get(session)
    assert [record.number for record in told.records] == [1, 1]
    assert [record.waited for record in told.records] == pytest.approx([10, 10], abs=0.1)
    assert told.stopped == [None, StopReason.CIRCUIT_OPEN]


async def test_a_lost_connection_and_an_error_below_400_are_attempts(
    serve: Serve, serve_raw: ServeRaw, virtual_time: VirtualClock
) -> None:
    told = Told()
    busy = ["busy"]

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(headers={busy.pop(): "1"} if busy else {})

    async with client(await serve(answer), on_attempt=told) as session:
        await get(session)
    assert [(record.status, record.rule) for record in told.records] == [(200, "Busy"), (200, None)]

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    told = Told()
    async with client(await serve_raw(hang_up), on_attempt=told, attempts=1) as session:
        with pytest.raises(LamellaError):
            await get(session)
    assert [record.exception for record in told.records] == ["ConnectionLost"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failing_hook_fails_no_call_and_is_logged_once(
    serve: Serve, virtual_time: VirtualClock, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    def fail(request: aiohttp.ClientRequest, _result: object, _record: AttemptRecord) -> None:
        assert "X-API-KEY" not in request.headers
        raise LookupError(f"no counter for {request.url}")

    async def fail_later(request: aiohttp.ClientRequest, result: object, record: AttemptRecord) -> None:
        await asyncio.sleep(0)
        fail(request, result, record)

    url = await serve(Statuses(503))
    auth = HeaderAuth({"X-API-KEY": "s3cret-key-of-mine"}, origin=url)
    with caplog.at_level(logging.WARNING, "lamella"):
        async with client(url, auth=auth, on_attempt=fail_later if is_async else fail) as session:
            for _ in range(2):
                async with session.get("/path?api_key=s3cret-key-of-mine") as response:
                    assert response.status == 200
    [line] = [record.getMessage() for record in caplog.records if record.name == "lamella"]
    assert line.startswith("on_attempt failed and was ignored; later failures are not logged: LookupError: no ")
    assert "s3cret" not in caplog.text


async def test_a_cancellation_passes_and_releases_the_answer(serve: Serve) -> None:
    waits = asyncio.Event()

    async def hang(_request: object, _result: object, _record: AttemptRecord) -> None:
        waits.set()
        await asyncio.Event().wait()

    async with client(await serve(Statuses()), on_attempt=hang) as session:
        call = asyncio.create_task(get(session))
        await waits.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert session.connector is not None
        assert not session.connector._acquired


def test_on_attempt_is_an_option_of_stack_and_maesn_session() -> None:
    with pytest.raises(ValueError, match="on_attempt= has no effect on a Retry made by hand: give it to that layer"):
        stack(RULES, Retry(RULES), on_attempt=print)
    assert maesn.layers("key", "account", on_attempt=print)


async def test_attempts_returns_the_records_of_a_successful_call(serve: Serve, virtual_time: VirtualClock) -> None:
    async with client(await serve(Statuses(503, 200, 200)), deadline=100.0, attempts=3) as session:
        failed, last = attempts(await get(session))
        assert failed.waited == pytest.approx(10, abs=0.1)
        assert (failed.status, failed.rule, last.status, last.rule) == (503, "Service Unavailable", 200, None)
        [only] = attempts(await get(session))
        assert (only.number, only.status, only.rule, only.attempts_left) == (1, 200, None, 2)
        assert only.deadline_left == pytest.approx(100, abs=0.5)
        assert 0 <= only.took < 0.5
        with options(attempts=7):
            [only] = attempts(await get(session))
        assert only.attempts_left == 6


async def test_an_attempt_that_was_not_handled_by_retry_has_no_record(serve: Serve) -> None:
    url = await serve(Statuses())
    for middlewares in ((), (Timeout(5),)):
        async with aiohttp.ClientSession(url, middlewares=middlewares) as session:
            assert attempts(await get(session)) == ()


async def test_hook_and_attempts_have_equal_records(serve: Serve, virtual_time: VirtualClock) -> None:
    url = await serve(Statuses())
    found = []
    for hook in (None, Told()):
        async with client(url, on_attempt=hook, deadline=50.0, attempts=4) as session:
            [record] = attempts(await get(session))
            found.append(record._replace(took=0.0, deadline_left=round(record.deadline_left or 0)))
    assert found[0] == found[1]
