"""A server that asks for a longer wait than the rule allows: the account's calls fail at once, and none is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.json_store import JsonStore
from tests.layers.accounts import MINUTE, account_of, at_rest, client, get, now, throttle_in
from tests.servers import Serve

from lamella import (
    ApiError,
    Backoff,
    Breaker,
    Classify,
    LamellaError,
    Limit,
    RateLimited,
    Retry,
    Rule,
    RuleBook,
    StopReason,
    Throttle,
    TooManyRequests,
    deadline,
    maesn,
    stack,
)
from lamella.batch import AccountStopped, Batch, Journal
from lamella.maesn.sandbox import Account, Reply, Sandbox
from lamella.store.protocol import Store
from lamella.testing import FixedWindow, Limiter, VirtualClock
from lamella.testing import Limit as ServersLimit
from lamella.throttle.estimate import RateEstimate
from lamella.throttle.permits import learned

HOURS = 43200.0
QUOTA = (429, str(int(HOURS)))
MakeStore = Callable[[], Store | None]
STORES = pytest.mark.parametrize(
    "store", [lambda: None, lambda: JsonStore(slow=0.0), lambda: JsonStore(slow=0.01)], ids=["none", "json", "slow"]
)


class Server:
    """Answers with what it is given, and then well; `requests` are the accounts of those that came."""

    def __init__(self, *answers: tuple[int, str | None], latency: float = 0.1) -> None:
        self.answers = list(answers)
        self.latency = latency
        self.requests: list[str] = []
        self.at: list[float] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.headers.get("X-Account", ""))
        self.at.append(now())
        status, after = self.answers.pop(0) if self.answers else (200, None)
        await asyncio.sleep(float(request.query["n"] or self.latency) if "." in request.query["n"] else self.latency)
        return web.Response(status=status, headers={} if after is None else {"Retry-After": after})


async def refused(session: aiohttp.ClientSession, account: str = "") -> RateLimited:
    """The error of a call that is refused at once."""
    began = now()
    with pytest.raises(RateLimited) as caught:
        await get(session, account=account)
    assert now() - began < 0.1
    assert caught.value.stopped is StopReason.WAIT_TOO_LONG
    return caught.value


@pytest.mark.sampled(1)
@STORES
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["43200", "43200.0", "0043200", "date"])
async def test_the_first_call_stops_and_the_next_ones_are_not_sent(
    serve: Serve, virtual_time: VirtualClock, store: MakeStore, status: int, form: str
) -> None:
    if form == "date":
        form = format_datetime(datetime.now(UTC) + timedelta(seconds=HOURS), usegmt=True)
    server = Server((status, form))
    async with client(await serve(server), *stack(RULES, account=account_of, store=store())) as session:
        began = now()
        with pytest.raises(ApiError) as caught:
            await get(session, account="a")
        assert (caught.value.status, caught.value.stopped) == (status, StopReason.WAIT_TOO_LONG)
        assert len(caught.value.attempts) == 1
        assert now() - began < 1
        for later in (0.0, 10.0, HOURS - 300, 200.0):
            await asyncio.sleep(later)
            error = await refused(session, "a")
            assert began + HOURS == pytest.approx(now() + (error.retry_after or 0), abs=2)
            assert (error.until - datetime.now(UTC)).total_seconds() == pytest.approx(error.retry_after, abs=2)
            assert error.attempts == ()
            # The other accounts go on.
            assert await get(session, account="b") == 200
            await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
            at_rest(session)
        assert server.requests.count("a") == 1
        await asyncio.sleep(100)
        assert await asyncio.gather(*(get(session, account="a") for _ in range(5))) == [200] * 5
        assert now() - began < HOURS + 20
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


RULES = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(60, jitter=0)),
    Rule(500, "Internal Server Error", retry=Backoff(15, jitter=0)),
    Rule(503, "Service Unavailable", retry=Backoff(15, jitter=0)),
)


@pytest.mark.sampled
@STORES
@pytest.mark.parametrize("limit", [None, Limit(1, 7.0)])
async def test_calls_that_wait_in_the_queue_fail_at_once(
    serve: Serve, virtual_time: VirtualClock, store: MakeStore, limit: Limit | None
) -> None:
    """They are queued for the minute after a refusal, or for the rate, when the refusal comes."""
    server = Server(QUOTA)
    async with client(await serve(server), *stack(MINUTE, store=store(), limits=limit)) as session:
        began = now()
        slow = asyncio.create_task(get(session, "20.0"))
        await asyncio.sleep(0.05)
        if limit is None:
            server.answers = [(429, None)] * 4
        waiting = [asyncio.create_task(get(session)) for _ in range(5)]
        with deadline(5000.0):
            waiting.append(asyncio.create_task(get(session)))
        await asyncio.wait([slow])
        await asyncio.sleep(0.1)
        assert now() - began < 21
        # Those that were refused come back a minute later, as they were to, and are not sent either. One of them was
        # sent alone, to find out whether the account is used up.
        assert sum(task.done() for task in waiting) == (2 if limit is None else 6)
        errors = await asyncio.gather(slow, *waiting, return_exceptions=True)
        assert isinstance(errors[0], TooManyRequests)
        for error in errors:
            assert isinstance(error, LamellaError)
            assert error.stopped is StopReason.WAIT_TOO_LONG
            assert isinstance(error, RateLimited) or error is errors[0]
        await refused(session)
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.slow
@STORES
@pytest.mark.parametrize("answers", [[QUOTA, (429, "1")], [(429, "1"), QUOTA], [QUOTA, QUOTA], [QUOTA, (429, "86400")]])
async def test_the_longest_of_several_concurrent_refusals_applies(
    serve: Serve, virtual_time: VirtualClock, store: MakeStore, answers: list[tuple[int, str]]
) -> None:
    server = Server(*answers)
    async with client(await serve(server), *stack(MINUTE, store=store())) as session:
        began = now()
        results = await asyncio.gather(get(session, "0.1"), get(session, "0.2"), return_exceptions=True)
        assert all(isinstance(error, LamellaError) for error in results)
        longest = max(float(after) for _, after in answers)
        error = await refused(session)
        assert now() - began + (error.retry_after or 0) == pytest.approx(longest, abs=62)
        await asyncio.sleep(longest)
        assert await get(session) == 200
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


async def test_a_response_to_an_earlier_attempt_does_not_end_the_wait(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server((200, None), QUOTA)
    async with client(await serve(server), *stack(MINUTE)) as session:
        slow = asyncio.create_task(get(session, "5.0"))
        await asyncio.sleep(0.01)
        with pytest.raises(TooManyRequests):
            await get(session)
        assert await slow == 200
        await refused(session)


async def test_after_the_wait_one_attempt_is_sent_and_calls_wait_again(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    server = Server(QUOTA, (429, None))
    async with client(await serve(server), *stack(MINUTE)) as session:
        with pytest.raises(TooManyRequests):
            await get(session)
        await asyncio.sleep(HOURS)
        assert await asyncio.gather(*(get(session) for _ in range(8))) == [200] * 8
        came = [round(at - server.at[1], 1) for at in server.at[1:]]
        assert came[:3] == [0.0, 60.1, 60.2]
        await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
        at_rest(session)


@pytest.mark.slow
async def test_calls_fail_again_if_the_server_asks_for_hours_again(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(*[QUOTA] * 5)
    async with client(await serve(server), *stack(MINUTE)) as session:
        for _ in range(2):
            results = await asyncio.gather(*(get(session) for _ in range(8)), return_exceptions=True)
            assert [getattr(error, "stopped", None) for error in results] == [StopReason.WAIT_TOO_LONG] * 8
            await asyncio.sleep(HOURS)
        assert len(server.requests) == 4 + 1  # where nothing is known four go at once, and after a refusal one
        assert await get(session) == 200


class Quota:
    """Five a minute, and twenty a day."""

    retry_after = True

    def limiter(self) -> Limiter:
        return self

    def __init__(self) -> None:
        self.minute = FixedWindow(5, 60).limiter()
        self.day = FixedWindow(20, 86400).limiter()

    def allow(self, now: float) -> float:
        if (wait := self.minute.allow(now)) > 0:
            return wait
        return self.day.allow(now)


@pytest.mark.slow
async def test_a_wait_for_hours_keeps_the_learned_minute_limit(virtual_time: VirtualClock) -> None:
    """A quota for a day is no period that calls are spread over."""
    quota: ServersLimit = Quota()
    async with Sandbox(limit=quota, records=1, latency=0.1) as sandbox:
        async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:

            async def call() -> int:
                async with session.get("accounting/invoices") as response:
                    return response.status

            for _ in range(3):
                results = await asyncio.gather(*(call() for _ in range(30)), return_exceptions=True)
                assert results.count(200) == 20
                [state] = throttle_in(session)._state._local._states.values()
                assert isinstance(state, RateEstimate)
                assert learned(state, 0.0)[1] < 130
                await asyncio.sleep(86400)
            assert len(sandbox.received) < 3 * 30
            await asyncio.sleep(0)  # until Timeout cancels the timer that no attempt needs any more
            at_rest(session)


@pytest.mark.parametrize("value", ["1e300", "-1", "soon", "", "NaN", "inf"])
async def test_an_invalid_header_asks_for_no_wait(serve: Serve, virtual_time: VirtualClock, value: str) -> None:
    server = Server((429, value))
    async with client(await serve(server), *stack(MINUTE)) as session:
        assert await get(session) == 200
        assert server.at[1] - server.at[0] == pytest.approx(60, abs=1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("value", ["9" * 400, "999999999", "31622400", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_wait_of_more_than_a_year_is_ignored_and_does_not_block_the_account(
    serve: Serve, virtual_time: VirtualClock, value: str
) -> None:
    """After the rule's maximum the server is asked again."""
    server = Server((429, value))
    async with client(await serve(server), *stack(MINUTE)) as session:
        with pytest.raises(TooManyRequests) as caught:
            await get(session)
        assert caught.value.stopped is StopReason.WAIT_TOO_LONG
        error = await refused(session)
        assert error.retry_after == pytest.approx(3600, abs=1)
        await asyncio.sleep(3600)
        assert await get(session) == 200


@pytest.mark.sampled(1)
@pytest.mark.parametrize("asked", ["3600", "3601"])
async def test_calls_wait_up_to_the_maximum_of_the_rule(serve: Serve, virtual_time: VirtualClock, asked: str) -> None:
    server = Server((429, asked))
    async with client(await serve(server), *stack(MINUTE)) as session:
        if asked == "3600":
            assert await get(session) == 200
            assert server.at[1] - server.at[0] == pytest.approx(3600, abs=1)
        else:
            with pytest.raises(TooManyRequests):
                await get(session)
            await refused(session)


async def test_without_a_throttle_the_call_stops_and_the_next_one_is_sent(
    serve: Serve, virtual_time: VirtualClock
) -> None:
    server = Server(QUOTA)
    for layers in ((Retry(MINUTE), Classify(MINUTE)), stack(MINUTE, throttle=False)):
        server.answers = [QUOTA]
        async with client(await serve(server), *layers) as session:
            with pytest.raises(TooManyRequests) as caught:
                await get(session)
            assert (caught.value.stopped, caught.value.retry_after) == (StopReason.WAIT_TOO_LONG, HOURS)
            assert await get(session) == 200
    assert virtual_time.elapsed < 5


@pytest.mark.slow
@pytest.mark.parametrize("classified", [True, False])
async def test_without_retry_the_next_call_is_not_sent(
    serve: Serve, virtual_time: VirtualClock, classified: bool
) -> None:
    server = Server(QUOTA)
    layers: tuple[aiohttp.ClientMiddlewareType, ...] = (Throttle(MINUTE), *((Classify(MINUTE),) if classified else ()))
    async with client(await serve(server), *layers) as session:
        if classified:
            with pytest.raises(TooManyRequests) as caught:
                await get(session)
            assert caught.value.stopped is None
        else:
            assert await get(session) == 429
        await refused(session)
        assert len(server.requests) == 1
        await asyncio.sleep(HOURS)
        assert await get(session) == 200


@pytest.mark.parametrize(
    "options", [{"attempts": 1}, {"deadline": 100.0}, {"raise_errors": False}, {"limits": Limit(9, 1)}]
)
async def test_the_next_call_is_not_sent_with_any_options(
    serve: Serve, virtual_time: VirtualClock, options: dict[str, object]
) -> None:
    server = Server(QUOTA)
    async with client(await serve(server), *stack(MINUTE, **options)) as session:  # type: ignore[arg-type]
        if "raise_errors" in options:
            assert await get(session) == 429
        else:
            with pytest.raises(TooManyRequests) as caught:
                await get(session)
            attempts = options.get("attempts") == 1
            assert caught.value.stopped is (StopReason.ATTEMPTS_USED_UP if attempts else StopReason.WAIT_TOO_LONG)
        await refused(session)
        assert len(server.requests) == 1


async def test_a_rule_without_retries_has_a_maximum_of_an_hour(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(QUOTA)
    async with client(await serve(server), *stack(RuleBook(Rule(429, "Too Many Requests")))) as session:
        with pytest.raises(TooManyRequests) as caught:
            await get(session)
        assert caught.value.stopped is StopReason.NOT_RETRYABLE
        await refused(session)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_another_error_stops_only_its_own_call(serve: Serve, virtual_time: VirtualClock, status: int) -> None:
    """It is no rate limit."""
    rules = MINUTE.replace(Rule("5xx", "Server Error", retry=Backoff(15, jitter=0)))
    server = Server((status, "43200"))
    async with client(await serve(server), *stack(rules)) as session:
        with pytest.raises(ApiError) as caught:
            await get(session)
        assert caught.value.stopped is StopReason.WAIT_TOO_LONG
        assert await get(session) == 200
        assert virtual_time.elapsed < 1


async def test_two_sessions_with_one_store_share_a_long_block(serve: Serve, virtual_time: VirtualClock) -> None:
    server, store = Server(QUOTA), JsonStore(slow=0.01)
    url = await serve(server)
    async with client(url, *stack(MINUTE, store=store)) as here, client(url, *stack(MINUTE, store=store)) as there:
        with pytest.raises(TooManyRequests):
            await get(here)
        results = await asyncio.gather(*(get(there) for _ in range(8)), return_exceptions=True)
        assert {getattr(error, "stopped", None) for error in results} == {StopReason.WAIT_TOO_LONG}
        assert len(server.requests) == 1


async def test_a_breaker_does_not_count_a_long_rate_limit(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(QUOTA)
    async with client(await serve(server), *stack(MINUTE, Breaker(minimum=1), account=account_of)) as session:
        with pytest.raises(TooManyRequests):
            await get(session, account="a")
        for _ in range(30):
            await refused(session, "a")
        assert await get(session, account="b") == 200


async def test_a_batch_with_stop_on_ends_the_account(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server((200, None), QUOTA)
    async with client(await serve(server), *stack(MINUTE, account=account_of)) as session:

        async def work(item: int) -> int:
            return await get(session, account="a" if item < 50 else "b")

        batch = Batch(
            work,
            range(100),
            at_once=2,
            account=lambda item: item < 50,
            at_once_per_account=1,
            stop_on=(TooManyRequests, RateLimited),
        )
        async with batch:
            outcomes = {outcome.item: outcome async for outcome in batch}
        assert [item for item, outcome in outcomes.items() if outcome.done and item >= 50] != []
        assert all(outcomes[item].done for item in range(50, 100))
        failed = [outcomes[item].error for item in range(50) if not outcomes[item].done]
        assert isinstance(failed[0], TooManyRequests)
        assert all(isinstance(error, AccountStopped) for error in failed[1:])
        assert virtual_time.elapsed < 60


@pytest.mark.slow
async def test_a_sync_ends_the_parts_of_that_account_with_the_reason(
    tmp_path: Path, virtual_time: VirtualClock
) -> None:
    accounts = [Account("key-a", records=400), Account("key-b", records=40)]
    async with Sandbox(accounts=accounts) as sandbox:
        sandbox.script(200, Reply(429, {"Retry-After": str(int(HOURS))}), account="key-a")
        async with (
            maesn.session(sandbox.api_key, None, sandbox.url, breaker=Breaker()) as session,
            Journal.open(tmp_path / "journal", batch="nightly") as journal,
        ):
            names = {"north": "key-a", "south": "key-b"}
            report = await maesn.sync(session, names, ["contacts", "invoices"], journal=journal, limit=5)
            assert virtual_time.elapsed < 60
            assert [(part.account, part.done) for part in report.parts] == [
                ("north", False),
                ("north", False),
                ("south", True),
                ("south", True),
            ]
            for part in report.failed:
                assert isinstance(part.error, TooManyRequests | RateLimited)
                assert part.error.stopped is StopReason.WAIT_TOO_LONG
            assert sum(received.account == "key-a" for received in sandbox.received) < 12
            # The next run, once the quota is renewed, has it all.
            await asyncio.sleep(HOURS)
            report = await maesn.sync(session, names, ["contacts", "invoices"], journal=journal, limit=5, resume=True)
            assert report.done
