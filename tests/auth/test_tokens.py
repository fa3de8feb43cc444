from __future__ import annotations

import asyncio
import itertools
import pickle
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from threading import Thread

import aiohttp
import pytest
from aiohttp import web
from tests.environment import HANGS
from tests.leftovers import tasks_of_lamella, timers_of_lamella
from tests.sdk import Metering, Tracing
from tests.security.shown import leaks
from tests.servers import Serve, serving

from lamella import (
    HeaderAuth,
    RequestSpan,
    RuleBook,
    StopReason,
    Token,
    Tokens,
    TokenUnavailable,
    deadline,
    options,
    stack,
)
from lamella.auth import tokens as module
from lamella.testing import VirtualClock

tenant: ContextVar[str] = ContextVar("tenant")


class Issuer:
    """Issues numbered tokens, each after some seconds; fails as often as it is told to."""

    def __init__(self, expires_in: float | None = 3600.0, seconds: float = 1.0, failures: int = 0) -> None:
        self.expires_in, self.seconds, self.failures = expires_in, seconds, failures
        self.issued: Counter[object] = Counter()
        self.asked_at: list[float] = []
        self.under_way: Counter[object] = Counter()
        self.cancelled = 0

    async def __call__(self, key: object = "") -> Token:
        self.asked_at.append(asyncio.get_running_loop().time())
        assert not self.under_way[key]
        self.under_way[key] += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way[key] -= 1
        if self.failures:
            self.failures -= 1
            raise LookupError("zq-secret of the issuer")
        self.issued[key] += 1
        return Token(f"{key}-{self.issued[key]}", self.expires_in)


class Echo:
    """Answers with the token of the request."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def __call__(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization")
        self.seen.append(token)
        return web.Response(text=str(token))


Get = Callable[[], Awaitable[str]]


def session(url: str, tokens: Tokens, **more: object) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    auth = HeaderAuth({"Authorization": tokens}, origin=url)
    layers = stack(auth=auth, throttle=False, **more)  # type: ignore[arg-type]
    return aiohttp.ClientSession(url, middlewares=layers, connector=connector, timeout=aiohttp.ClientTimeout())


async def get(client: aiohttp.ClientSession, of: str | None = None) -> str:
    if of is not None:
        tenant.set(of)
    async with client.get("/") as response:
        return await response.text()


async def test_all_calls_of_a_key_share_one_fetch(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer, echo = Issuer(), Echo()
    names = ["anna", "ben", "carl"]
    async with session(await serve(echo), Tokens(issuer, key=tenant.get)) as client:
        answers = await asyncio.gather(*(asyncio.create_task(get(client, name)) for name in names * 20))
        assert virtual_time.elapsed < 1.5
        answers += await asyncio.gather(*(asyncio.create_task(get(client, name)) for name in names * 20))
    assert answers == [f"{name}-1" for name in names * 40]
    assert issuer.issued == dict.fromkeys(names, 1)


async def test_a_function_of_the_request_selects_the_token(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer()

    def key(request: aiohttp.ClientRequest) -> str | None:
        return request.url.path.strip("/") or None

    async with session(await serve(Echo()), Tokens(issuer, key=key)) as client:
        for path in ("/anna", "/ben", "/"):
            async with client.get(path) as response:
                assert await response.text() == (f"{path[1:]}-1" if path != "/" else "None")
    assert issuer.issued == {"anna": 1, "ben": 1}


async def test_a_fetch_runs_outside_the_context_of_its_call(serve: Serve, virtual_time: VirtualClock) -> None:
    """So a token that was fetched without a key cannot be that of a tenant."""
    seen = []

    async def fetch() -> Token:
        seen.append(tenant.get("nobody"))
        await asyncio.sleep(3)
        async with stranger.get("/") as response:  # neither the deadline nor the options reach it
            seen.append(await response.text())
        return Token("of all")

    url = await serve(Echo())
    async with aiohttp.ClientSession(url, middlewares=stack()) as stranger, session(url, Tokens(fetch)) as client:

        async def patient() -> str:
            tenant.set("ben")
            return await get(client)

        async def hurried() -> str:
            with deadline(2), options(attempts=1):
                return await get(client, "anna")

        first = asyncio.create_task(hurried())
        second = asyncio.create_task(patient())
        answers = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(answers[0], TimeoutError)
    assert answers[1] == "of all"
    assert seen == ["nobody", "None"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("expires_in", "leeway", "renewed_at", "waits_from"), [(3600, 60, 3540, 3595), (20, 60, 10, 18)]
)
async def test_a_token_is_renewed_in_the_background_while_it_is_valid(
    serve: Serve, virtual_time: VirtualClock, expires_in: float, leeway: float, renewed_at: float, waits_from: float
) -> None:
    issuer = Issuer(expires_in)
    async with session(await serve(Echo()), Tokens(issuer, leeway=leeway)) as client:
        assert await get(client) == "-1"
        began = issuer.asked_at[0]

        async def at(moment: float) -> str:
            await asyncio.sleep(began + moment - asyncio.get_running_loop().time())
            return await get(client)

        assert await at(renewed_at - 0.5) == "-1"
        assert len(issuer.asked_at) == 1
        assert await at(renewed_at + 0.1) == "-1"
        assert await at(renewed_at + 0.2) == "-1"
        assert await at(renewed_at + 1.5) == "-2"
        assert len(issuer.asked_at) == 2
        # From the second one on, too late for the background: the call waits.
        began = issuer.asked_at[1]
        before = virtual_time.elapsed
        assert await at(waits_from + 0.1) == "-3"
        assert virtual_time.elapsed - before >= issuer.seconds


async def test_a_failed_background_fetch_fails_no_call(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(100)
    async with session(await serve(Echo()), Tokens(issuer)) as client:
        await get(client)
        issuer.failures = 3
        await asyncio.sleep(60)
        while len(issuer.asked_at) < 5:
            assert await get(client) in {"-1", "-2"}
            await asyncio.sleep(0.5)
        await asyncio.sleep(2)
        assert await get(client) == "-2"
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(issuer.asked_at[1:])]
    assert gaps == [2, 3, 5]  # 1 s for the fetch, and 1, 2 and 4 s


async def test_a_failed_fetch_fails_the_calls_that_waited_for_it(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(failures=1)
    url = await serve(Echo())
    async with session(url, Tokens(issuer)) as client:
        calls = [asyncio.create_task(get(client)) for _ in range(5)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert await get(client) == "-1"
    errors = [answer for answer in answers if isinstance(answer, TokenUnavailable)]
    assert len({id(error) for error in errors}) == 5
    for error in errors:
        assert isinstance(error.__cause__, LookupError)
        assert error.stopped is StopReason.TOKEN_UNAVAILABLE
        assert error.url == f"{url}/"
        assert error.retry_after == pytest.approx(1, abs=0.1)
        text = str(pickle.loads(pickle.dumps(error)))  # noqa: S301 - our own
        assert "Token Unavailable (LookupError; since 20" in text
        assert "zq-secret" not in text
    assert issuer.asked_at[1] - issuer.asked_at[0] == pytest.approx(2, abs=0.1)


@pytest.mark.slow
async def test_a_failing_endpoint_is_called_less_and_less_often(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(failures=9, seconds=0)

    async def keep_on() -> None:
        for _ in range(50):
            try:
                await get(client)
            except TokenUnavailable:
                await asyncio.sleep(0.01)

    async with session(await serve(Echo()), Tokens(issuer)) as client:
        await asyncio.gather(*(asyncio.create_task(keep_on()) for _ in range(10)))
    gaps = [round(later - earlier) for earlier, later in itertools.pairwise(issuer.asked_at)]
    assert gaps == [1, 2, 4, 8, 16, 30, 30, 30, 30]


async def test_a_cancelled_caller_does_not_cancel_a_shared_fetch(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer()
    async with session(await serve(Echo()), Tokens(issuer)) as client:
        calls = [asyncio.create_task(get(client)) for _ in range(5)]
        await asyncio.sleep(0.5)
        for call in calls[:4]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 4 + [str]
    assert issuer.cancelled == 0


async def test_the_last_cancelled_caller_cancels_the_fetch(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(seconds=5)
    async with session(await serve(Echo()), Tokens(issuer)) as client:
        calls = [asyncio.create_task(get(client)) for _ in range(5)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert issuer.cancelled == 1
        assert not tasks_of_lamella()
        assert not timers_of_lamella()
        assert await get(client) == "-1"
    # Those who come and go must not ask all the time.
    assert issuer.asked_at[1] - issuer.asked_at[0] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("before_it_began", [True, False])
async def test_a_new_fetch_waits_for_the_end_of_a_cancelled_one(
    serve: Serve, virtual_time: VirtualClock, before_it_began: bool
) -> None:
    ended = []

    async def fetch() -> Token:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            await asyncio.sleep(10)
            ended.append(asyncio.get_running_loop().time())
            raise
        return Token(f"after {len(ended)}")

    tokens = Tokens(fetch)
    async with session(await serve(Echo()), tokens) as client:
        first = asyncio.create_task(get(client))
        while not tokens._running:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        await asyncio.sleep(0 if before_it_began else 0.5)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await get(client) == f"after {len(ended)}"
        assert before_it_began or ended
        assert not tasks_of_lamella()


async def test_a_fetch_that_hangs_ends_in_time(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(seconds=1000)
    async with session(await serve(Echo()), Tokens(issuer, timeout=7)) as client:
        with pytest.raises(TokenUnavailable, match="TimeoutError") as caught:
            await get(client)
        assert not isinstance(caught.value, TimeoutError)
        assert virtual_time.elapsed == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize("expires_in", [0, -5])
async def test_an_already_expired_token_serves_only_waiting_calls(
    serve: Serve, virtual_time: VirtualClock, expires_in: float
) -> None:
    issuer = Issuer(expires_in, seconds=0.1)
    async with session(await serve(Echo()), Tokens(issuer)) as client:
        answers = [asyncio.create_task(get(client)) for _ in range(3)]
        assert await asyncio.gather(*answers) == ["-1"] * 3
        assert await get(client) == "-2"
    assert issuer.asked_at[1] - issuer.asked_at[0] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
async def test_a_token_without_expiry_is_used_until_it_is_rejected(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(None)
    async with session(await serve(Echo()), Tokens(issuer)) as client:
        for _ in range(3):
            assert await get(client) == "-1"
            await asyncio.sleep(30 * 86400)


@pytest.mark.slow
async def test_least_recently_used_keys_are_dropped(
    serve: Serve, virtual_time: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_KEYS", 50)
    issuer = Issuer(3600, seconds=0)
    tokens = Tokens(issuer, key=tenant.get)
    async with session(await serve(Echo()), tokens) as client:
        for number in range(200):
            await get(client, f"t{number}")
            assert len(tokens._entries) <= 50
        await get(client, "t199")
        assert issuer.issued["t199"] == 1
        await asyncio.sleep(3600)
        for number in range(30):
            await get(client, f"u{number}")
        assert len(tokens._entries) <= 31


async def test_aclose_leaves_no_task(serve: Serve, virtual_time: VirtualClock) -> None:
    issuer = Issuer(100, seconds=50)
    tokens = Tokens(issuer)
    async with session(await serve(Echo()), tokens) as client:
        call = asyncio.create_task(get(client))
        await asyncio.sleep(1)
        await tokens.aclose()
        assert not tokens._running
        with pytest.raises(TokenUnavailable, match="CancelledError"):
            await call
        assert await get(client) == "-1"
        await asyncio.sleep(20)
        assert await get(client) == "-1"  # and a fetch begins
        await asyncio.sleep(1)
        await tokens.aclose()
        assert not tasks_of_lamella()
        assert not timers_of_lamella()
    await tokens.aclose()


def test_event_loops_in_several_threads_share_one_fetch() -> None:
    issuer = Issuer(seconds=0.05)
    tokens = Tokens(issuer, key=lambda: "k")
    answers: list[str] = []

    async def work() -> None:
        async with serving(Echo()) as url, session(url, tokens) as client:
            answers.extend(await asyncio.gather(*(asyncio.create_task(get(client)) for _ in range(5))))

    threads = [Thread(target=lambda: asyncio.run(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    asyncio.run(work())
    assert answers == ["k-1"] * 25
    assert issuer.issued == {"k": 1}


@pytest.mark.slow
def test_a_fetch_of_a_closed_loop_is_repeated_by_another_loop() -> None:
    began = asyncio.Event()

    async def fetch() -> Token:
        if not began.is_set():
            began.set()
            await asyncio.sleep(100)
        return Token("second")

    tokens = Tokens(fetch)

    async def first() -> None:
        async with serving(Echo()) as url, session(url, tokens) as client:
            call = asyncio.create_task(get(client))
            await began.wait()
            waiter.start()
            while next(iter(tokens._running)).waiters < 2:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.001)
            call.get_loop().stop()
            await asyncio.sleep(100)

    answers = []

    async def second() -> None:
        async with serving(Echo()) as url, session(url, tokens) as client:
            answers.append(await get(client))

    waiter = Thread(target=lambda: asyncio.run(second()))
    with pytest.raises(RuntimeError):
        asyncio.run(first())
    waiter.join(HANGS)
    assert answers == ["second"]


def test_a_loop_abandoned_during_a_fetch_blocks_no_other_loop() -> None:
    issuer = Issuer(seconds=0.01)
    tokens = Tokens(issuer)

    async def work() -> str:
        async with serving(Echo()) as url, session(url, tokens) as client:
            return await get(client)

    loop = asyncio.new_event_loop()
    task = loop.create_task(work())
    while not issuer.asked_at:
        loop.run_until_complete(asyncio.sleep(0.001))
    issuer.under_way.clear()
    assert asyncio.run(work()) == "-1"
    assert loop.run_until_complete(task) in {"-1", "-2"}
    loop.close()


async def test_the_trace_shows_the_fetch_and_the_waiting_calls(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    url = await serve(Echo())
    endpoint = stack(tracer_provider=tracing.provider)
    failures = [True]

    async def fetch() -> Token:
        async with stranger.get("/endpoint"):
            await asyncio.sleep(2)
        if failures.pop() if failures else False:
            raise LookupError
        return Token("t", 100)

    tokens = Tokens(fetch, meter_provider=metering.provider)
    async with (
        aiohttp.ClientSession(url, middlewares=endpoint) as stranger,
        session(url, tokens, tracer_provider=tracing.provider) as client,
    ):
        first = asyncio.create_task(get(client))
        await asyncio.sleep(1)
        second = asyncio.create_task(get(client))
        await asyncio.gather(first, second, return_exceptions=True)
        await get(client)
        await get(client)
    spans = sorted(
        (span for span in tracing.spans if span.name == "lamella GET"), key=lambda span: span.start_time or 0
    )
    fetches = [span for span in spans if "/endpoint" in str(span.attributes)]
    calls = [span for span in spans if span not in fetches]
    causes = [calls[0].context.span_id, calls[2].context.span_id]
    assert [fetch.parent and fetch.parent.span_id for fetch in fetches] == causes
    waits = []
    for call in calls:
        events = [event.attributes or {} for event in call.events if event.name == "lamella.token"]
        waits.append([(each["lamella.token.result"], round(float(str(each["lamella.wait"])))) for each in events])
    assert waits == [[("failure", 2)], [("failure", 1)], [("success", 3)], []]
    assert sorted(metering.points("lamella.token.refreshes"), key=str) == [
        ({"lamella.token.result": "failure"}, 1),
        ({"lamella.token.result": "success"}, 1),
    ]


async def test_no_output_shows_a_token(serve: Serve, virtual_time: VirtualClock) -> None:
    async def wrong() -> Token:
        return "zq-secret-token"  # type: ignore[return-value]

    async def bad() -> Token:
        return Token("zq-secret-token\n")

    async def leave() -> Token:
        return Token("zq-secret-token")

    async def forbid(request: web.Request) -> web.Response:
        return web.Response(status=403, text=f"not {request.headers['Authorization']}")

    for fetch in (wrong, bad, leave):
        tokens = Tokens(fetch)
        async with session(await serve(forbid), tokens) as client:
            with pytest.raises(aiohttp.ClientError) as caught:
                await get(client)
        assert not leaks(caught.value, "zq-secret-token", apart_from=__file__)
        assert "zq-secret" not in repr((tokens, Token("zq-secret-token", 5)))
        assert b"zq-secret" not in pickle.dumps(caught.value)


def test_an_invalid_token_is_rejected() -> None:
    for value in ("", " ", "a\nb", 5):
        with pytest.raises(ValueError, match="the value of a token") as caught:
            Token(value)  # type: ignore[arg-type]
        assert not leaks(caught.value, "a\nb", apart_from=__file__)
    for expires_in in (float("nan"), float("inf"), "3600", True):
        with pytest.raises(ValueError, match="expires_in must be a finite number of seconds or None, got"):
            Token("t", expires_in)  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    issuer = Issuer()
    with pytest.raises(ValueError, match="fetch must be a function, got str"):
        Tokens("zq")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="key must be a function, got str"):
        Tokens(issuer, key="tenant")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="leeway must be a finite number of seconds, 0 or more, got -1"):
        Tokens(issuer, leeway=-1)
    with pytest.raises(ValueError, match="timeout must be a finite number of seconds greater than 0, got 0"):
        Tokens(issuer, timeout=0)


async def test_tokens_work_without_other_layers(serve: Serve, virtual_time: VirtualClock) -> None:
    auth = HeaderAuth({"Authorization": Tokens(Issuer(failures=1))})
    async with aiohttp.ClientSession(await serve(Echo()), middlewares=(RequestSpan(), auth)) as client:
        with pytest.raises(TokenUnavailable):
            await get(client)
        assert await get(client) == "-1"
    assert not RuleBook().rule_for(TokenUnavailable.failure).retryable
