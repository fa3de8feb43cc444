"""Each query of the dashboard has an answer of a real Prometheus while a sandbox misbehaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from tests.backends.conftest import until

from lamella import Breaker, HeaderAuth, LamellaError, Token, Tokens, maesn
from lamella.maesn.sandbox import Sandbox
from lamella.testing import Fault, FixedWindow

if TYPE_CHECKING:
    from tests.backends.conftest import Prometheus

DASHBOARD = Path(__file__).parents[2] / "examples" / "observability" / "lamella-dashboard.json"
VARIABLES = {"$job": "dashboard", "$server": ".*", "$__rate_interval": "1m"}


def queries() -> list[str]:
    """The queries of all panels and variables, with the variables that Grafana would replace."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    # Grafana asks for the values of a label: those of one series each.
    found += [re.sub(r"label_values\((.*), (\w+)\)", r"count by (\2) (\1)", query) for query in variables]
    for name, value in VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    return found


@pytest.fixture
def exported() -> Iterator[tuple[MeterProvider, int]]:
    """A provider whose metrics are served, and the port."""
    provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
    server, thread = start_http_server(0, addr="127.0.0.1")
    yield provider, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()
    provider.shutdown()


async def use_tokens(url: str, provider: MeterProvider) -> None:
    """Make calls whose tokens expire soon."""

    async def fetch() -> Token:
        return Token("Bearer made-up", expires_in=0.2)

    auth = HeaderAuth({"Authorization": Tokens(fetch, meter_provider=provider)}, origin=url)
    async with aiohttp.ClientSession(url, middlewares=(auth,)) as session:
        while True:
            async with session.get("/"):
                await asyncio.sleep(0.05)


async def test_no_dashboard_query_is_empty(prometheus: Prometheus, exported: tuple[MeterProvider, int]) -> None:
    provider, port = exported
    chances: dict[int | Fault, float] = {500: 0.2, 404: 0.05, Fault.CUT_BODY: 0.05}
    limit = FixedWindow(10, 1.0, retry_after=False)

    async def work(session: aiohttp.ClientSession, account: str) -> None:
        with maesn.account(account):
            for page in itertools.count(1):
                with suppress(LamellaError):
                    await session.get("/accounting/invoices", params={"page": str(page)})
                await asyncio.sleep(0.02)

    async with (
        Sandbox(accounts=2, chances=chances, limit=limit, seed=5, latency=0.01) as sandbox,
        maesn.session(
            sandbox.api_key,
            sandbox.account_key,
            sandbox.url,
            rules=maesn.RULES.scaled(0.01),
            # It opens often, and lets calls wait and succeed in between.
            breaker=Breaker(failures=0.5, minimum=4, window=1.0, open_for=0.1, probes=1),
            meter_provider=provider,
        ) as session,
    ):
        tasks = [asyncio.create_task(work(session, account.key)) for account in sandbox.accounts for _ in range(4)]
        tasks.append(asyncio.create_task(use_tokens(sandbox.url, provider)))
        await asyncio.to_thread(prometheus.scrape, "dashboard", port)
        asked = queries()
        assert len(asked) > 22
        for query in asked:
            # Not a number is what a quantile of nothing is.
            await asyncio.to_thread(
                until,
                partial(prometheus.query, query),
                lambda found: any(value == value for _, value in found),  # noqa: PLR0124 - not NaN
                query,
            )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
