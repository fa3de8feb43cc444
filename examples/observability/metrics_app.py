"""Provide lamella's metrics for Prometheus: endless calls to a faulty server.

    pip install 'lamella[sdk]' 'opentelemetry-exporter-prometheus>=0.64b0'
    python examples/observability/metrics_app.py
    prometheus --config.file=examples/observability/prometheus.yml

The waits are shortened: a minute of the rules takes 3 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from contextlib import suppress

import aiohttp
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server

from lamella import LamellaError, maesn
from lamella.maesn.sandbox import Sandbox
from lamella.testing import Fault, FixedWindow

AT_ONCE = 6


async def work(session: aiohttp.ClientSession, account: str) -> None:
    """Make calls for one account repeatedly."""
    with maesn.account(account):
        for page in itertools.count(1):
            with suppress(LamellaError):  # a service would handle the error; here the metrics show it
                await session.get("/accounting/invoices", params={"page": str(page)})
            await asyncio.sleep(0.05)


async def main(port: int) -> None:
    # The reader answers each scrape with the current values of the instruments.
    provider = MeterProvider(metric_readers=[PrometheusMetricReader()])
    server, thread = start_http_server(port, addr="127.0.0.1")
    print(f"metrics: http://127.0.0.1:{server.server_port}/metrics (Ctrl-C ends it)", flush=True)
    limit = FixedWindow(5, 3.0, retry_after=False)
    chances: dict[int | Fault, float] = {500: 0.5, 404: 0.05, Fault.CUT_BODY: 0.05}
    try:
        async with (
            Sandbox(accounts=AT_ONCE, limit=limit, chances=chances, latency=0.02) as sandbox,
            maesn.session(
                sandbox.api_key,
                sandbox.account_key,
                sandbox.url,
                rules=maesn.RULES.scaled(0.05),
                attempts=3,
                meter_provider=provider,
            ) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for account in sandbox.accounts:
                tasks.create_task(work(session, account.key))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve lamella's metrics for a Prometheus.")
    parser.add_argument("--port", type=int, default=9464, help="where to serve them; 0: a free port")
    with suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().port))
