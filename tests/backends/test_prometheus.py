"""What a real Prometheus has scraped while a sandbox misbehaves is what the sandbox and the callers counted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from tests.backends.conftest import until

from lamella import LamellaError, maesn
from lamella.maesn.sandbox import Received, Reply, Sandbox
from lamella.testing import Fault, FixedWindow

if TYPE_CHECKING:
    from tests.backends.conftest import Prometheus

PATHS = ("/accounting/invoices", "/accounting/customers", "/accounting/no-such-thing")


@dataclass(frozen=True)
class Exporter:
    """The SDK's Prometheus exporter, serving."""

    provider: MeterProvider
    port: int


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
    server, thread = start_http_server(0, addr="127.0.0.1")
    yield Exporter(provider, server.server_port)
    server.shutdown()
    server.server_close()
    thread.join()
    provider.shutdown()


@dataclass
class Ends:
    """How the calls ended, as the callers saw it."""

    outcomes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    stops: Counter[tuple[str, ...]] = field(default_factory=Counter)

    async def call(self, session: aiohttp.ClientSession, method: str, path: str) -> None:
        try:
            async with session.request(method, path, json={} if method == "POST" else None) as response:
                await response.read()
            self.outcomes["success",] += 1
        except LamellaError as error:
            self.outcomes["failure",] += 1
            self.stops[str(error.stopped), error.rule.title] += 1
        except asyncio.CancelledError:
            self.outcomes["cancelled",] += 1
            raise


def end_of_send(received: Received) -> tuple[str, str]:
    """Status and error.type of a send, from what the sandbox did with it."""
    match received.outcome:
        case Fault.CUT_BODY if received.path == PATHS[-1]:
            # Of an error's body a part is enough: the status has said it all.
            return "404", "404"
        case Fault.CUT_BODY:
            # Its status had come before the body broke off.
            return "201" if received.method == "POST" else "200", "ConnectionLost"
        case Fault():
            return "", "ConnectionLost"
        case int() as status:
            return str(status), str(status) if status >= 400 else ""
        case None:
            return pytest.fail(f"without an end: {received}")


def session_for(sandbox: Sandbox, exporter: Exporter, scale: float) -> aiohttp.ClientSession:
    return maesn.session(
        sandbox.api_key,
        sandbox.account_key,
        sandbox.url,
        rules=maesn.RULES.scaled(scale),
        meter_provider=exporter.provider,
        # A connection a send: none can be stale, so that each send reaches the sandbox.
        connector=aiohttp.TCPConnector(force_close=True),
    )


def check(prometheus: Prometheus, job: str, sandbox: Sandbox, ends: Ends) -> None:
    """Compare what a Prometheus has with what was counted; nothing is running any more."""
    prometheus.wait_for_scrape(job)
    of = f'{{job="{job}"}}'
    sends = prometheus.by(
        f"sum by (http_response_status_code, error_type) (http_client_request_duration_seconds_count{of})",
        "http_response_status_code",
        "error_type",
    )
    assert sends == Counter(map(end_of_send, sandbox.received))
    ended = prometheus.by(f"sum by (lamella_outcome) (lamella_call_duration_seconds_count{of})", "lamella_outcome")
    assert ended == ends.outcomes
    stops = prometheus.by(
        f"sum by (lamella_stop_reason, lamella_rule) (lamella_call_stops_total{of})",
        "lamella_stop_reason",
        "lamella_rule",
    )
    assert stops == ends.stops
    # Each attempt but the first is a retry; one is also decided on if a call is cancelled while it waits.
    retries = prometheus.value(f"sum(lamella_call_retries_total{of})")
    assert retries == len(sandbox.received) - sum(ends.outcomes.values()) + ends.outcomes["cancelled",]

    waited = prometheus.value(f"sum(lamella_call_wait_seconds_sum{of})")
    sending = prometheus.value(f"sum(http_client_request_duration_seconds_sum{of})")
    assert waited > 0
    assert prometheus.value(f"sum(lamella_call_duration_seconds_sum{of})") >= waited + sending

    for gauge in ("lamella_attempts_active", "lamella_calls_waiting"):
        # There is a series, and it is 0.
        assert [value for _, value in prometheus.query(f"sum({gauge}{of})")] == [0]
        assert prometheus.value(f"max(max_over_time({gauge}{of}[5m]))") > 0

    series = str(prometheus.get("series", **{"match[]": of}))
    assert "lamella_call_stops_total" in series
    for secret in (sandbox.api_key, *(account.key for account in sandbox.accounts)):
        assert secret not in series


async def test_prometheus_receives_the_metrics_of_scripted_calls(prometheus: Prometheus, exporter: Exporter) -> None:
    await asyncio.to_thread(prometheus.scrape, "scripted", exporter.port)
    ends = Ends()
    async with Sandbox(accounts=2) as sandbox, session_for(sandbox, exporter, 0.01) as session:

        async def call(*steps: int | Fault | Reply, method: str = "GET") -> None:
            sandbox.script(*steps)
            await ends.call(session, method, PATHS[0])

        await call(200)
        await call(429, 429, 200)  # waits of 0.6 s and more: longer than the time between two scrapes
        await call(500, Fault.CUT_BODY, Fault.RESET_BEFORE_HEADERS, 503, 200)
        await call(Fault.GARBAGE, 200)
        await call(404)
        await call(*[500] * 5)
        await call(500, method="POST")
        with maesn.account(sandbox.accounts[1].key):  # which is blocked for two hours by that
            await call(Reply(429, headers={"Retry-After": "7200"}))
        await call(Reply(200, delay=1.0))  # in flight during some scrapes

        waiting = asyncio.create_task(call(Reply(429, headers={"Retry-After": "30"})))
        queued = 'sum(lamella_calls_waiting{job="scripted"})'
        await asyncio.to_thread(until, lambda: prometheus.value(queued), lambda value: value == 1, "a call that waits")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    ends.stops["cancelled", "Too Many Requests"] += 1

    assert ends.outcomes == {("success",): 5, ("failure",): 4, ("cancelled",): 1}
    await asyncio.to_thread(check, prometheus, "scripted", sandbox, ends)


async def test_prometheus_receives_the_metrics_of_a_random_load(prometheus: Prometheus, exporter: Exporter) -> None:
    await asyncio.to_thread(prometheus.scrape, "random", exporter.port)
    ends = Ends()
    rng = random.Random(5)
    chances: dict[int | Fault, float] = {
        500: 0.1,
        503: 0.05,
        418: 0.02,
        Fault.CUT_BODY: 0.05,
        Fault.RESET_BEFORE_HEADERS: 0.05,
    }
    limit = FixedWindow(25, 0.5, retry_after=False)
    async with (
        Sandbox(accounts=3, chances=chances, limit=limit, seed=5, latency=0.05) as sandbox,
        session_for(sandbox, exporter, 0.01) as session,
    ):

        async def work(account: str, todo: list[tuple[str, str]]) -> None:
            with maesn.account(account):
                for method, path in todo:
                    await ends.call(session, method, path)

        async with asyncio.TaskGroup() as tasks:
            for account in sandbox.accounts:
                for _ in range(8):
                    todo = [(rng.choice(("GET", "GET", "GET", "POST")), rng.choice(PATHS)) for _ in range(10)]
                    tasks.create_task(work(account.key, todo))

    assert sum(ends.outcomes.values()) == 240
    assert {429, 500, 503, 404, Fault.CUT_BODY} <= {received.outcome for received in sandbox.received}
    assert {"not_retryable", "unsafe_method"} <= {reason for reason, _ in ends.stops}
    await asyncio.to_thread(check, prometheus, "random", sandbox, ends)
