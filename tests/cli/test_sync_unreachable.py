"""``lamella sync`` when the API cannot be reached: final failures fail at once, and the cause is always named."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from tests.cli.serving import API_KEY, KEYS, answering, served, write_accounts
from tests.environment import HANGS
from tests.faults.certificates import server_context
from tests.maesn.lists import ListServer, numbered
from typer.testing import CliRunner, Result

from lamella import Breaker, maesn
from lamella.cli import options
from lamella.cli.app import app
from lamella.cli.display import Lines
from lamella.cli.options import Settings
from lamella.sync import contact
from lamella.testing import VirtualClock

RULES = maesn.RULES.scaled(0.001)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, in_own_folder: None) -> None:
    """With a breaker that opens soon."""
    breaker = partial(Breaker, minimum=2, open_for=0.05)
    monkeypatch.setattr(options, "Settings", partial(Settings, rules=RULES, breaker=breaker))
    write_accounts(Path())


def sync(url: str, resources: str, *more: str) -> Result:
    arguments = ["sync", "--accounts", "accounts.csv", "--resource", resources, "--base-url", url, *more]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1
    assert not [key for key in (API_KEY, *KEYS.values()) if key in shown.output]
    return shown


def last_line(shown: Result) -> str:
    """The last line of stderr, without the command to go on with."""
    return shown.stderr.splitlines()[-1].partition("; continue with: lamella sync ")[0]


@contextmanager
def untrusted() -> Iterator[tuple[str, list[int]]]:
    """Serve with a certificate of an unknown authority; also yields the number of connections."""
    ready, over = threading.Event(), threading.Event()
    ports: list[int] = []
    connections = [0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    class Counting(asyncio.StreamReaderProtocol):
        def __init__(self) -> None:
            connections[0] += 1
            super().__init__(asyncio.StreamReader(), connected)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        # The client breaks off each handshake.
        loop.set_exception_handler(lambda *_: None)
        server = await loop.create_server(Counting, "127.0.0.1", 0, ssl=server_context("unknown authority"))
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await asyncio.to_thread(over.wait)
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(HANGS)
        yield f"https://127.0.0.1:{ports[0]}", connections
    finally:
        over.set()
        thread.join(HANGS)


def test_an_untrusted_certificate_fails_each_part_at_once_and_is_named() -> None:
    with untrusted() as (url, connections):
        shown = sync(url, "invoices,contacts,items,projects")
        # One for each part: no retry, no parking.
        assert connections == [12]
    assert last_line(shown).startswith("lamella: 12 of 12 parts failed: Certificate Invalid (127.0.0.1:")
    assert "unable to get local issuer certificate" in last_line(shown) or "self-signed" in last_line(shown)
    assert "12 × Certificate Invalid, stopped: not retryable" in shown.stdout
    assert "Circuit Open" not in shown.output
    assert "the API is down" not in shown.output


def test_an_unknown_host_name_ends_the_sync_at_once(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in --base-url: the name server says that there is no such name."""
    asked = []

    def unknown(*_: object, **__: object) -> None:
        asked.append(1)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(options, "Settings", Settings)  # with the waits of the rules
    shown = sync("https://api.maesm.test", "invoices,contacts,items,projects")
    assert clock.elapsed < 3
    assert len(asked) <= 12
    assert last_line(shown).startswith("lamella: 12 of 12 parts failed: ")
    assert "Connection Failed (Cannot connect to host api.maesm.test:443" in last_line(shown)
    assert "Name or service not known" in last_line(shown)
    assert "the API is down" not in shown.output
    assert "Circuit Open" not in shown.output


@pytest.mark.slow
def test_only_the_first_parts_try_a_permanently_failing_address() -> None:
    with untrusted() as (url, connections):
        shown = sync(url, "invoices,contacts,items,projects,bills,units,offers,payments", "--concurrency", "1")
        assert connections == [20]
    assert last_line(shown).startswith("lamella: 24 of 24 parts failed: Certificate Invalid (127.0.0.1:")


@pytest.fixture
def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_closed_port_ends_the_sync_soon(free_port: int, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "_PATIENCE", 0.2)
    monkeypatch.setattr(contact, "_PAUSES", (0.05,))
    monkeypatch.setattr(options, "Settings", Settings)
    shown = sync(f"http://127.0.0.1:{free_port}", "invoices,contacts,items,projects")
    assert 0.2 <= clock.elapsed < 3
    assert last_line(shown).startswith("lamella: 12 of 12 parts failed: Connection Failed (Cannot connect to host 127")
    assert "the API is down" not in shown.output
    assert "Circuit Open" not in shown.output


def test_the_wrong_scheme_ends_the_sync_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "_PATIENCE", 0.2)
    monkeypatch.setattr(contact, "_PAUSES", (0.05,))
    with served() as sandbox:
        shown = sync(sandbox.url.replace("http://", "https://"), "invoices,contacts")
    assert last_line(shown).startswith("lamella: 6 of 6 parts failed: TLS Failed (127.0.0.1:")
    with untrusted() as (url, _):
        shown = sync(url.replace("https://", "http://"), "invoices,contacts", "--journal", "other")
    assert last_line(shown).startswith("lamella: 6 of 6 parts failed: Connection Lost (")
    assert "the API is down" not in shown.output


@pytest.mark.slow
def test_a_failure_after_an_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that fail end the parts of an address that has never answered, and no others."""
    monkeypatch.setattr(contact, "_PATIENCE", 0.0)
    monkeypatch.setattr(maesn, "sync", partial(maesn.sync, patience=0.3))
    monkeypatch.setattr(Lines, "every", 0.01)
    answers = ListServer(numbered(1000))

    async def handle(request: web.Request) -> web.StreamResponse:
        if len(answers.pages) >= 3 and request.transport is not None:
            request.transport.abort()
        return await answers(request)

    with answering(handle) as url:
        shown = sync(url, "bills", "--concurrency", "1")
    assert "the API is down: Connection Lost" in shown.stdout


def test_the_last_line_does_not_repeat_an_api_response() -> None:
    with served() as sandbox:
        shown = sync(sandbox.url, "unicorns")
    assert last_line(shown) == "lamella: 3 of 3 parts failed"
