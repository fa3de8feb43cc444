"""Connections that fail in the same way each time are tried once, and the error names the cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest
from tests.faults.certificates import server_context
from tests.faults.refusals import FOR_GOOD, FOR_NOW, Refusal
from tests.faults.wire import Line, Route, Wire
from tests.layering import together
from tests.sdk import Tracing

from lamella import (
    Backoff,
    Breaker,
    Buffer,
    CertificateInvalid,
    CircuitOpen,
    Classify,
    ConnectFailed,
    Failure,
    LamellaError,
    ProxyRefused,
    Retry,
    Rule,
    RuleBook,
    StopReason,
    Timeout,
    maesn,
    stack,
)
from lamella.batch import Batch, ItemOutcome
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]
RULES: Final = RuleBook()

LAYERS: Final[dict[str, Callable[[], Layers]]] = {
    "Classify": lambda: (Classify(RULES),),
    "Buffer and Classify": lambda: (Timeout(60), Buffer(), Classify(RULES)),
    "Retry": lambda: (Retry(RULES),),
    "Retry and Classify": lambda: (Retry(RULES), Classify(RULES)),
    "a deadline": lambda: (Retry(RULES, attempts=None, deadline=1000, retry_writes=True), Classify(RULES)),
    "all": lambda: stack(RULES, retry_writes=True),
    "all as one": lambda: (together(stack(maesn.RULES, Breaker(), retry_writes=True, raise_errors=False)),),
}


class Place:
    """A client and what refuses it."""

    def __init__(self, refusal: Refusal, wire: Wire, session: aiohttp.ClientSession) -> None:
        self.wire = wire
        self.session = session
        self.url, self.options = refusal.target(wire)

    async def call(self, method: str = "GET", **more: Any) -> int:
        async with self.session.request(method, self.url, **self.options, **more) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def refusing(refusal: Refusal, layers: Layers, *, always: bool = True) -> AsyncIterator[Place]:
    wire = refusal.wire()
    wire.listen()
    wire.begin(always=always)
    connector = aiohttp.TCPConnector(ssl=refusal.client())
    try:
        async with aiohttp.ClientSession(
            connector=connector, middlewares=layers, timeout=aiohttp.ClientTimeout()
        ) as session:
            yield Place(refusal, wire, session)
            assert not connector._acquired
        await wire.end()
    finally:
        await wire.close()


async def stream() -> AsyncIterator[bytes]:
    yield b"abc"


@pytest.mark.sampled
@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(name, marks=pytest.mark.slow if name in {"Buffer and Classify", "Retry", "a deadline"} else ())
        for name in LAYERS
    ],
)
@pytest.mark.parametrize("refusal", FOR_GOOD)
async def test_a_permanent_failure_is_tried_once_and_named(
    refusal: str, layers: str, virtual_time: VirtualClock
) -> None:
    refused = FOR_GOOD[refusal]
    for method, data in (("GET", None), ("POST", b"abc"), ("PUT", stream())):
        async with refusing(refused, LAYERS[layers]()) as place:
            with pytest.raises(LamellaError) as caught:
                await place.call(method, data=data)
            assert place.wire.connections == 1
        error = caught.value
        assert type(error) is refused.error
        assert isinstance(error, aiohttp.ClientConnectionError)
        assert error.stopped is (
            None if layers.endswith("Classify") and "Retry" not in layers else StopReason.NOT_RETRYABLE
        )
        assert error.rule.retry is None
        assert error.rule.hint.rstrip(".") in str(error)
        assert refused.says in str(error)
    assert virtual_time.elapsed < 1


@pytest.mark.sampled(5)
@pytest.mark.parametrize("refusal", FOR_NOW)
@pytest.mark.parametrize("layers", ["Retry", "Retry and Classify", "all as one"])
async def test_a_transient_failure_is_retried(refusal: str, layers: str, virtual_time: VirtualClock) -> None:
    refused = FOR_NOW[refusal]
    async with refusing(refused, LAYERS[layers]()) as place:
        with pytest.raises(ConnectFailed) as caught:
            await place.call("POST", data=b"abc")
        assert place.wire.connections == 5
    assert type(caught.value) is refused.error
    assert caught.value.stopped is StopReason.ATTEMPTS_USED_UP
    assert refused.says in str(caught.value)
    async with refusing(refused, LAYERS[layers](), always=False) as place:
        assert await place.call("POST", data=b"abc") == 200


@pytest.mark.parametrize("refusal", [*FOR_GOOD.values(), *FOR_NOW.values()], ids=[*FOR_GOOD, *FOR_NOW])
async def test_the_message_of_a_permanent_failure_is_readable(refusal: Refusal) -> None:
    async with refusing(refusal, (Classify(RULES),)) as place:
        with pytest.raises(LamellaError) as caught:
            await place.call()
    error: BaseException | None = caught.value
    while error is not None:
        # Raw bytes, reprs of objects, or None.
        shown = str(error) if isinstance(error, LamellaError) else repr(error)
        for bad in ("\\x", "b'", "SSLContext object at", "[None]") if isinstance(error, LamellaError) else ("b'xx",):
            assert bad not in shown
        error = error.__cause__


async def test_a_handshake_that_takes_too_long_for_the_loop_is_a_timeout(virtual_time: VirtualClock) -> None:
    """asyncio has its own limit, which applies if aiohttp's is switched off."""

    async def silent(line: Line) -> None:
        await line.silence()

    async with refusing(Refusal(silent, ConnectFailed), (Classify(RULES),)) as place:
        with pytest.raises(ConnectFailed, match="handshake is taking longer") as caught:
            await place.session.get(place.url, timeout=aiohttp.ClientTimeout(None, sock_connect=None))
    assert isinstance(caught.value, TimeoutError)


async def test_spans_and_record_of_a_permanent_failure_have_its_class(
    virtual_time: VirtualClock, tracing: Tracing
) -> None:
    for refusal in (FOR_GOOD["expired"], FOR_GOOD["a proxy's 407"]):
        tracing.exporter.clear()
        async with refusing(refusal, stack(RULES, tracer_provider=tracing.provider)) as place:
            with pytest.raises(refusal.error) as caught:
                await place.call()
        assert [record.exception for record in caught.value.attempts] == [refusal.error.__name__]
        [send] = tracing.sends
        assert (send.attributes or {})["error.type"] == (tracing.call.attributes or {})["error.type"]
        assert (tracing.call.attributes or {})["error.type"] == refusal.error.__name__
        assert (tracing.call.attributes or {})["lamella.stop_reason"] == "not_retryable"


async def test_a_rule_can_make_a_permanent_failure_retryable(virtual_time: VirtualClock) -> None:
    """For example while a certificate is being replaced."""
    again = Backoff(initial=10, jitter=0)
    rules = RuleBook(*(Rule(failure, "Again", retry=again) for failure in Failure))
    for name in ("expired", "a proxy's 403"):
        async with refusing(FOR_GOOD[name], stack(rules), always=False) as place:
            assert await place.call("POST", data=b"abc") == 200


# It says nothing about whether the service works.


@pytest.mark.sampled(1)
@pytest.mark.parametrize("refusal", ["expired", "fingerprint", "plain HTTP", "a proxy's 407"])
@pytest.mark.parametrize(
    "layers",
    [
        lambda breaker: (breaker,),
        lambda breaker: (breaker, Classify(RULES)),
        lambda breaker: (together(stack(RULES, breaker)),),
    ],
    ids=["alone", "Classify", "all"],
)
async def test_a_permanent_failure_does_not_open_the_circuit(
    refusal: str, layers: Callable[[Breaker], Layers], virtual_time: VirtualClock
) -> None:
    async with refusing(FOR_GOOD[refusal], layers(Breaker(minimum=3))) as place:
        for _ in range(25):
            with pytest.raises((LamellaError, aiohttp.ClientError)) as caught:
                await place.call()
            assert not isinstance(caught.value, CircuitOpen)


def outage_rules() -> RuleBook:
    return RuleBook(Rule(Failure.CONNECT_FAILED, "Connection Failed", retry=Backoff(initial=1, jitter=0)))


async def collected(place: Place, many: int) -> tuple[list[ItemOutcome[int, int]], list[LamellaError | None]]:
    async def fetch(item: int) -> int:
        return await place.call(params={"item": item})

    outcomes, outages = [], []
    async with Batch(fetch, range(many), at_once=5) as batch:
        async for outcome in batch:
            outcomes.append(outcome)
            outages.append(batch.outage)
    return outcomes, outages


@pytest.mark.sampled(1)
@pytest.mark.parametrize("refusal", ["unknown authority", "fingerprint, tunnel", "plain HTTP", "a proxy's 407"])
async def test_a_permanent_failure_is_no_outage_and_fails_each_item_at_once(
    refusal: str, virtual_time: VirtualClock
) -> None:
    refused = FOR_GOOD[refusal]
    async with refusing(refused, stack(outage_rules(), Breaker(minimum=3))) as place:
        outcomes, outages = await collected(place, 40)
        assert place.wire.connections == 40
    assert {(type(outcome.error), outcome.paused) for outcome in outcomes} == {(refused.error, 0.0)}
    assert outages == [None] * 40
    assert virtual_time.elapsed < 2


@pytest.mark.slow
async def test_a_permanent_failure_ends_the_wait_of_items_in_an_outage(virtual_time: VirtualClock) -> None:
    """The service comes back with a certificate that is not trusted."""
    back = virtual_time.now + 60

    async def greet(line: Line) -> None:
        if virtual_time.now < back:
            line.close()
        else:
            await line.open(server_context("unknown authority"))

    refusal = Refusal(greet, CertificateInvalid)
    breaker = Breaker(minimum=3, open_for=10)
    async with refusing(refusal, stack(outage_rules(), breaker, retry_budget=None)) as place:
        outcomes, _ = await collected(place, 30)
    assert {type(outcome.error) for outcome in outcomes} == {CertificateInvalid}
    assert max(outcome.paused for outcome in outcomes) > 40
    assert virtual_time.now - back < 60


async def test_an_outage_reports_its_cause_instead_of_the_open_circuit(
    virtual_time: VirtualClock,
) -> None:
    """So is an item whose patience has ended, tried or not."""

    async def closes(line: Line) -> None:
        line.close()

    seen: set[type[LamellaError]] = set()
    async with refusing(
        Refusal(closes, ConnectFailed, route=Route.TLS), stack(outage_rules(), Breaker(minimum=3, open_for=30))
    ) as place:

        async def fetch(item: int) -> int:
            return await place.call(params={"item": item})

        async with Batch(fetch, range(30), at_once=5, patience=100) as batch:

            async def look_on() -> None:
                while True:
                    await asyncio.sleep(1)
                    if batch.outage is not None:
                        seen.add(type(batch.outage))

            looking = asyncio.create_task(look_on())
            outcomes = [outcome async for outcome in batch]
            looking.cancel()
    assert seen == {ConnectFailed}
    assert {type(outcome.error) for outcome in outcomes} == {ConnectFailed}


def test_permanent_failures_have_the_documented_base_classes() -> None:
    assert not issubclass(CertificateInvalid, ConnectFailed)
    assert issubclass(ProxyRefused, ConnectFailed)
