"""What an operator sees of a rate limit, and that an account's key is shown nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from functools import partial

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan
from tests.json_store import JsonStore
from tests.sdk import Metering, Tracing, given
from tests.servers import Serve
from tests.telemetry.conformance import EPISODE

from lamella import Backoff, LamellaError, Limit, RateLimited, Rule, RuleBook, Throttle, TooManyRequests, stack
from lamella.store.shared import hash_key
from lamella.testing import FixedWindow, VirtualClock

MINUTE = RuleBook(
    Rule(429, "Too Many Requests", hint="slow down", retry=Backoff(60, jitter=0)),
    Rule(500, "Internal Server Error", retry=Backoff(15, jitter=0)),
)
KEY = "zq-account-key-4711"
NS = 1e9


class Server:
    def __init__(self, *statuses: int, latency: float = 0.5) -> None:
        self.statuses = list(statuses)
        self.latency = latency

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        status = self.statuses.pop(0) if self.statuses else 200
        await asyncio.sleep(self.latency)
        return web.Response(status=status)


def client(url: str, tracing: Tracing, metering: Metering, **options: object) -> aiohttp.ClientSession:
    layers = stack(MINUTE, tracer_provider=tracing.provider, meter_provider=metering.provider, **options)  # type: ignore[arg-type]
    return aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers)


def episodes(tracing: Tracing) -> list[ReadableSpan]:
    return [span for span in tracing.spans if span.name == EPISODE]


def calls(tracing: Tracing) -> list[ReadableSpan]:
    return [span for span in tracing.spans if span.name.startswith("lamella ") and span.name != EPISODE]


def events(span: ReadableSpan, name: str) -> list[dict[str, object]]:
    return [given(event) for event in span.events if event.name == name]


async def get(session: aiohttp.ClientSession, path: str = "/") -> None:
    async with session.get(path) as response:
        assert response.status == 200


async def test_an_episode_is_one_span_linked_to_the_first_refused_call(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    """Three are on their way and are refused, four more come and wait."""
    url = await serve(Server(429, 429, 429))
    async with client(url, tracing, metering) as session:
        tasks = [asyncio.create_task(get(session)) for _ in range(3)]
        await asyncio.sleep(10)
        tasks += [asyncio.create_task(get(session)) for _ in range(4)]
        await asyncio.sleep(1)
        assert metering.value("lamella.calls.queued") == 4
        await asyncio.gather(*tasks)
    [episode] = episodes(tracing)
    assert episode.parent is None
    [link] = episode.links
    refused = {span.context.span_id for span in calls(tracing) if events(span, "lamella.retry")}
    assert link.context.span_id in refused
    assert link.context.trace_id != episode.context.trace_id
    attributes = given(episode)
    address, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    assert attributes["server.address"] == address
    assert attributes["server.port"] == int(port)
    assert attributes["lamella.refused_attempts"] == 3
    # The four that waited at first, and those of the three that were not the first to go when it opened.
    assert attributes["lamella.queued_calls"] == 6
    assert attributes["lamella.wait"] == 60
    assert "lamella.key_hash" not in attributes
    # From the refusal to the next success: a minute and an attempt.
    [(of, lasted)] = metering.points("lamella.rate_limit.duration")
    assert lasted == pytest.approx(60.5, abs=0.01)
    assert of == {"server.address": address, "server.port": int(port)}
    assert metering.value("lamella.rate_limit.episodes") == 1
    assert metering.value("lamella.calls.queued") == 0


async def test_a_refusal_after_the_wait_belongs_to_the_same_episode(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lamella"):
        async with client(await serve(Server(429, 429)), tracing, metering) as session:
            first = asyncio.create_task(get(session))
            await asyncio.sleep(1)
            await asyncio.gather(first, get(session))
    [episode] = episodes(tracing)
    assert given(episode)["lamella.wait"] == 60 + 120
    assert given(episode)["lamella.refused_attempts"] == 2
    assert metering.value("lamella.rate_limit.episodes") == 1
    assert metering.value("lamella.rate_limit.duration") == pytest.approx(181, abs=0.1)
    [line] = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "limited the rate" in line.message
    assert "for 181 s" in line.message
    assert "after 2 refusals" in line.message


async def test_a_later_refusal_begins_a_new_episode(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    server = Server()
    async with client(await serve(server), tracing, metering) as session:
        for waiting in (2, 3):
            server.statuses.append(429)
            calls = [asyncio.create_task(get(session))]
            await asyncio.sleep(1)
            calls += [asyncio.create_task(get(session)) for _ in range(waiting)]
            await asyncio.gather(*calls)
    assert [given(episode)["lamella.wait"] for episode in episodes(tracing)] == [60, 60]
    assert [given(episode)["lamella.queued_calls"] for episode in episodes(tracing)] == [2, 3]
    assert metering.value("lamella.rate_limit.episodes") == 2


async def test_no_line_is_logged_if_only_the_refused_call_waited(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lamella"):
        async with client(await serve(Server(429)), tracing, metering) as session:
            await get(session)
    assert [given(episode)["lamella.queued_calls"] for episode in episodes(tracing)] == [0]
    assert [record.message for record in caplog.records] == []


async def test_a_call_queued_twice_has_an_event_for_each_wait(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    """The first ends an episode, the others begin the next one; then the older goes first, and the younger waits."""
    async with client(await serve(Server(429, 200, 429, 429)), tracing, metering) as session:
        tasks = [asyncio.create_task(get(session))]
        await asyncio.sleep(30)
        tasks += [asyncio.create_task(get(session)) for _ in range(2)]
        await asyncio.gather(*tasks)
    waits = [[event for event in span.events if event.name == "lamella.queued"] for span in calls(tracing)]
    assert sorted(map(len, waits)) == [0, 1, 2]
    for span, queued in zip(calls(tracing), waits, strict=True):
        told = [float(str(given(event)["lamella.wait"])) for event in queued]
        assert sum(told) == pytest.approx(given(span).get("lamella.queue_wait", 0.0))
        for event, waited in zip(queued, told, strict=True):
            # The event has the time when the wait began. (By a real clock, on which this takes no time.)
            assert event.timestamp / NS == pytest.approx(time.time() - waited, abs=10)
    in_sum = sum(float(str(given(span).get("lamella.queue_wait", 0.0))) for span in calls(tracing))
    assert metering.value("lamella.queue.wait") == pytest.approx(in_sum)
    assert in_sum > 60


async def test_the_episode_span_has_the_real_times(serve: Serve, tracing: Tracing, metering: Metering) -> None:
    """On a real clock, for it is the operator's; the refused call's own span ends with it."""
    rules = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(0.05, jitter=0)))
    layers = stack(rules, tracer_provider=tracing.provider, meter_provider=metering.provider)
    async with aiohttp.ClientSession(await serve(Server(429, latency=0)), middlewares=layers) as session:
        await get(session)
    [episode], [call] = episodes(tracing), calls(tracing)
    assert call.start_time is not None
    assert call.end_time is not None
    assert episode.start_time is not None
    assert episode.end_time is not None
    assert call.start_time < episode.start_time < episode.end_time <= call.end_time
    assert (episode.end_time - episode.start_time) / NS == pytest.approx(
        metering.value("lamella.rate_limit.duration"), abs=0.02
    )


async def test_queue_time_is_reported_separately_from_attempts(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server(429)), tracing, metering, attempts=1) as session:
        with pytest.raises(TooManyRequests):
            await get(session)
        await asyncio.sleep(20)
        tracing.exporter.clear()
        await get(session)
    [call] = calls(tracing)
    assert events(call, "lamella.queued") == [{"lamella.wait": pytest.approx(40), "lamella.queued_by": "refusal"}]
    assert given(call)["lamella.queue_wait"] == pytest.approx(40)
    assert given(call)["lamella.attempts"] == 1
    assert given(call)["lamella.wait"] == 0
    [(_, waited)] = metering.points("lamella.queue.wait")
    assert waited == pytest.approx(40)
    assert metering.value("lamella.calls.queued") == 0


async def test_the_duration_of_an_attempt_is_that_of_the_server(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    """And neither the wait that was decided on, nor the one in the queue, where another has been refused meanwhile."""
    async with client(await serve(Server(500, 429, 429, 400)), tracing, metering) as session:
        failing = asyncio.create_task(get(session))
        await asyncio.sleep(5)
        refused = [asyncio.create_task(get(session))]
        await asyncio.sleep(1)
        refused.append(asyncio.create_task(get(session)))  # goes alone
        with pytest.raises(LamellaError) as caught:
            await failing
        await asyncio.gather(*refused)
    first, second = caught.value.attempts
    assert (first.status, second.status) == (500, 400)
    assert [first.took, first.queued, first.waited] == pytest.approx([0.5, 0.0, 15.0])
    assert [second.took, second.queued, second.waited] == pytest.approx([0.5, 50.0, 0.0])
    assert "2 attempts in 66 s" in str(caught.value)
    assert metering.value("lamella.queue.wait") >= 50


async def test_a_call_queued_before_the_refusal_is_counted(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server(*[429] * 4, latency=0.2)), tracing, metering) as session:
        tasks = [asyncio.create_task(get(session)) for _ in range(7)]
        await asyncio.sleep(0.1)
        assert metering.value("lamella.calls.queued") == 3  # four go at once where nothing is known
        await asyncio.gather(*tasks)
    [episode] = episodes(tracing)
    assert given(episode)["lamella.queued_calls"] in range(3, 8)  # perhaps the refused ones as well
    assert given(episode)["lamella.refused_attempts"] == 4


async def test_waiting_for_the_rate_does_not_count_as_a_refusal(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server()), tracing, metering, limits=Limit(1, 60)) as session:
        await asyncio.gather(get(session), get(session))
    [told] = [event for call in calls(tracing) for event in events(call, "lamella.queued")]
    assert told == {"lamella.wait": pytest.approx(60.5, abs=0.01), "lamella.queued_by": "rate"}
    assert episodes(tracing) == []
    assert metering.points("lamella.rate_limit.episodes") == []


async def test_a_too_long_wait_is_the_stop_reason_of_both_calls(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async def quota(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "43200"})

    async with client(await serve(quota), tracing, metering) as session:
        for error_type in ("429", "RateLimited"):
            tracing.exporter.clear()
            with pytest.raises(LamellaError):
                await get(session)
            assert given(tracing.call)["lamella.stop_reason"] == "wait_too_long"
            [stop] = events(tracing.call, "lamella.stop")
            assert (stop["lamella.stop_reason"], stop["error.type"]) == ("wait_too_long", error_type)
    assert tracing.sends == []
    stops = metering.points("lamella.call.stops")
    assert [(attributes["lamella.stop_reason"], count) for attributes, count in stops] == [("wait_too_long", 1)] * 2


async def test_a_permit_after_the_deadline_is_the_stop_reason(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server(429)), tracing, metering, deadline=50.0) as session:
        with pytest.raises(TooManyRequests):
            await get(session)
        tracing.exporter.clear()
        with pytest.raises(RateLimited):
            await get(session)
    assert given(tracing.call)["error.type"] == "RateLimited"
    assert given(tracing.call)["lamella.stop_reason"] == "deadline"
    assert given(tracing.call)["lamella.attempts"] == 0
    [stop] = events(tracing.call, "lamella.stop")
    assert (stop["lamella.stop_reason"], stop["error.type"]) == ("deadline", "RateLimited")
    assert events(tracing.call, "lamella.queued") == []
    assert tracing.sends == []


async def test_a_cancelled_call_reports_its_queue_time(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server(429)), tracing, metering, attempts=1) as session:
        with pytest.raises(TooManyRequests):
            await get(session)
        tracing.exporter.clear()
        task = asyncio.create_task(get(session))
        await asyncio.sleep(7)
        assert metering.value("lamella.calls.queued") == 1
        task.cancel()
        await asyncio.wait([task])
        assert metering.value("lamella.calls.queued") == 0
    assert events(tracing.call, "lamella.queued") == [
        {"lamella.wait": pytest.approx(7), "lamella.queued_by": "refusal"}
    ]
    assert given(tracing.call)["lamella.outcome"] == "cancelled"
    assert tracing.call.status.is_unset


async def test_an_episode_ended_by_another_process_is_reported(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    url, store = await serve(Server(429)), JsonStore()
    async with client(url, tracing, metering, store=store, attempts=1) as here:
        async with client(url, tracing, metering, store=store) as there:
            with pytest.raises(TooManyRequests):
                await get(here)
            await get(there)
            assert episodes(tracing) == []
            await get(here)
    [episode] = episodes(tracing)
    assert given(episode)["lamella.refused_attempts"] == 1
    assert metering.value("lamella.rate_limit.episodes") == 1


async def test_the_learned_limit_is_reported(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    async with client(await serve(Server(*[200] * 10, 429, 429)), tracing, metering, limits=Limit(20, 30)) as session:
        for _ in range(11):
            await get(session)
    [episode] = episodes(tracing)
    assert (given(episode)["lamella.limit.requests"], given(episode)["lamella.limit.period"]) == (20, 30)


async def test_an_account_dropped_during_an_episode_reports_it(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the busy ones, though they are the oldest, keep no place from being made."""
    for most in ("_MOST_ACCOUNTS", "MOST_IDLE"):
        monkeypatch.setattr(f"lamella.throttle.layer.{most}", 8)

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1000 if "busy" in request.path else 0)
        return web.Response(status=429 if request.path == "/refused" else 200)

    throttle = Throttle(MINUTE, key=lambda request: request.url.path, tracer_provider=tracing.provider)
    url = await serve(answer)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=(throttle,)) as session:
        busy = [asyncio.create_task(get(session, f"/busy{number}")) for number in range(4)]
        await asyncio.sleep(1)
        async with session.get("/refused") as response:
            assert response.status == 429
        await get(session, "/often")
        often = next(reversed(throttle._accounts.values()))
        for number in range(20):
            await get(session, f"/{number}")
            await get(session, "/often")
            assert next(reversed(throttle._accounts.values())) is often
            assert len(throttle._accounts) <= 9
        assert [given(episode)["lamella.refused_attempts"] for episode in episodes(tracing)] == [1]
        origin = (session._base_url.scheme, session._base_url.host, session._base_url.port)  # type: ignore[union-attr]
        assert {hash_key(origin, f"/busy{number}") for number in range(4)} <= throttle._accounts.keys()
        await asyncio.gather(*busy)


@pytest.mark.parametrize("show_key", [False, True])
async def test_the_account_key_is_never_shown(
    serve: Serve,
    virtual_time: VirtualClock,
    tracing: Tracing,
    metering: Metering,
    caplog: pytest.LogCaptureFixture,
    show_key: bool,
) -> None:
    """In no span, event, metric, line, repr, key or value of a store; a short hash of it where that is asked for."""
    store = JsonStore()
    made = partial(Throttle, show_key=True) if show_key else Throttle  # by default it is not
    throttle = made(
        MINUTE,
        key=lambda _: KEY,
        store=store,
        tracer_provider=tracing.provider,
        meter_provider=metering.provider,
    )
    with caplog.at_level(logging.DEBUG):
        layers = stack(MINUTE, throttle, deadline=65.0, tracer_provider=tracing.provider)
        async with aiohttp.ClientSession(
            await serve(Server(429)), timeout=aiohttp.ClientTimeout(), middlewares=layers
        ) as session:
            first = asyncio.create_task(get(session))
            await asyncio.sleep(1)
            others = [asyncio.create_task(get(session)) for _ in range(3)]
            await asyncio.sleep(1)
            shown = [repr(throttle), repr(layers), *map(repr, asyncio.all_tasks())]
            store.fails = lambda: 1 / 0
            await asyncio.gather(first, *others)
            store.fails = None
            url = str(session._base_url)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(), middlewares=layers) as session:
        [account] = throttle._accounts.values()
        # As if another process had been refused.
        store.texts = {
            key: text.replace('"blocked_until": ', '"blocked_until": 9') for key, text in store.texts.items()
        }
        await asyncio.sleep(10)
        with pytest.raises(RateLimited) as caught:
            await get(session)
    shown += [span.to_json() for span in tracing.spans]
    shown += [json.dumps([metering.points(name) for name in metering.metrics])]
    shown += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    shown += [*store.texts, *store.texts.values(), repr(store.texts)]
    shown += [repr(caught.value), str(caught.value), repr(vars(caught.value)), repr(account)]
    text = "\n".join(shown)
    assert KEY not in text
    assert KEY.encode().hex() not in text
    short = account.name[:8]
    [episode] = episodes(tracing)
    assert given(episode).get("lamella.key_hash") == (short if show_key else None)
    told = [record.getMessage() for record in caplog.records if "limited the rate" in record.getMessage()]
    assert [short in line for line in told] == [show_key]
    assert short not in json.dumps([metering.points(name) for name in metering.metrics])


@pytest.mark.slow
def test_the_short_key_hash_is_the_same_in_every_process() -> None:
    """Whatever seed Python hashes with: two processes that share a store, or a dashboard, mean the same account."""
    origin = ("https", "api.example.com", 443)
    script = f"from lamella.store.shared import hash_key; print(hash_key({origin!r}, {KEY!r}))"
    mine = hash_key(origin, KEY)
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)  # noqa: S603
        assert ran.stdout.strip() == mine
    assert hash_key(origin, KEY + "x")[:8] != mine[:8]
    assert hash_key(("https", "other.example.com", 443), KEY)[:8] != mine[:8]


async def test_a_queued_call_records_the_new_estimate(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering
) -> None:
    came: list[float] = []

    async def server(_: web.Request) -> web.StreamResponse:
        now = asyncio.get_running_loop().time()
        passes = sum(at > now - 60 for at in came) < 20
        if passes:
            came.append(now)
        await asyncio.sleep(0.1)
        return web.Response(status=200 if passes else 429)

    async with client(await serve(server), tracing, metering) as session:
        await asyncio.gather(*(get(session) for _ in range(100)))
    believed = [event for span in calls(tracing) for event in events(span, "lamella.rate_limit_belief")]
    assert {
        "lamella.limit.kind": "window",
        "lamella.limit.requests": 20.0,
        "lamella.limit.period": 60.0,
        "lamella.limit.in_flight": 0,
    } in believed
    assert len(believed) < 10


async def test_an_account_that_was_dropped_as_idle_records_its_estimate_once(
    serve: Serve, virtual_time: VirtualClock, tracing: Tracing, metering: Metering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.throttle.layer.MOST_IDLE", 2)
    limiter = FixedWindow(20, 60).limiter()

    async def server(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        waits = request.path == "/a" and limiter.allow(asyncio.get_running_loop().time()) > 0
        return web.Response(status=429 if waits else 200)

    def window() -> int:
        found = [event for span in calls(tracing) for event in events(span, "lamella.rate_limit_belief")]
        return sum(
            (event["lamella.limit.kind"], event["lamella.limit.requests"]) == ("window", 20.0) for event in found
        )

    async with client(await serve(server), tracing, metering, account=lambda request: request.url.path) as session:
        await asyncio.gather(*(get(session, "/a") for _ in range(50)))
        before = window()
        for number in range(9):
            await get(session, f"/{number}")
        await asyncio.gather(*(get(session, "/a") for _ in range(30)))
    assert (before, window()) == (1, 1)
