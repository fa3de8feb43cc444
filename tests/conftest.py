"""Real servers for the tests, and a real SDK to read the spans from."""

from __future__ import annotations

from tests import environment  # the first: what follows reads the environment when it is imported

# isort: split
import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

environment.use_memory()
# An assert of a shared module shows its values, as one of a test does.
pytest.register_assert_rewrite(*{f"tests.{path.stem}" for path in Path(__file__).parent.iterdir()} - sys.modules.keys())

# isort: split
from hypothesis import settings
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.sdk import Metering, Tracing
from tests.selection import (
    compile_together,
    pytest_configure_node,
    pytest_pycollect_makeitem,
    pytest_pycollect_sample,
    pytest_terminal_summary,
    pytest_xdist_auto_num_workers,
    take_slow_tests_if_named,
)
from tests.servers import Connection, Handler, Serve, ServeRaw, serving
from tests.telemetry.conformance import PAGE, Recorder

if sys.platform != "win32":
    import resource

__all__ = [
    "pytest_configure_node",
    "pytest_pycollect_makeitem",
    "pytest_pycollect_sample",
    "pytest_terminal_summary",
    "pytest_xdist_auto_num_workers",
]

# The same examples at every run, on every machine. `make test-all` takes the thorough profile; see tests/examples.py.
for _profile, _examples in (("quick", 10), ("thorough", 100)):
    settings.register_profile(
        _profile, settings.get_profile("default"), derandomize=True, deadline=None, max_examples=_examples
    )
settings.load_profile("quick")

RECORDER = Recorder()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep the objects of the collection away from the garbage collector: they are many, and they stay."""
    gc.disable()
    try:
        compile_together(session.config)
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Record all telemetry of the suite, also where a test does not ask for it; leave no core dump."""
    take_slow_tests_if_named(config)
    if config.option.color == "auto":
        config.option.color = environment.COLOR
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    RECORDER.install()
    metrics.set_meter_provider(MeterProvider())


@pytest.fixture(autouse=True)
def _telemetry_conforms() -> Iterator[None]:
    """Fail a test during which something was emitted that docs/reference/telemetry.md does not tell."""
    yield
    if faults := RECORDER.faults():
        pytest.fail("\n".join([f"emitted, but not so in {PAGE.name}:", *faults]), pytrace=False)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start an aiohttp server with one handler for everything; returns its URL."""
    async with AsyncExitStack() as stack:

        async def start(handler: Handler) -> str:
            return await stack.enter_async_context(serving(handler))

        yield start


@pytest.fixture
async def serve_raw() -> AsyncIterator[ServeRaw]:
    """Start a server that need not speak HTTP; returns its URL."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(connection: Connection) -> str:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            try:
                await connection(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        # One that closed with data to send, and has sent it since, has no loop to be aborted in.
        with suppress(AttributeError):
            writer.transport.abort()
    await asyncio.sleep(0)


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(provider, exporter)
    provider.shutdown()


@pytest.fixture
def metering() -> Iterator[Metering]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    yield Metering(provider, reader)
    provider.shutdown()
