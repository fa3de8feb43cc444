from __future__ import annotations

import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import Popen

import pytest
from multidict import CIMultiDict, MultiDict
from tests.cli.conftest import start
from tests.environment import HANGS
from typer.testing import CliRunner

from lamella.cli.app import app
from lamella.cli.sandbox import line_for, parse_chance, parse_limit
from lamella.maesn.sandbox import Received
from lamella.testing import Fault, FixedWindow

ON_SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")


@dataclass(frozen=True)
class Running:
    process: Popen[str]
    url: str
    greeting: list[str]

    def get(self, path: str, account: str) -> int:
        headers = {"X-API-KEY": "sandbox-api-key", "X-ACCOUNT-KEY": account}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def stop(self, by: signal.Signals) -> tuple[str, str, int]:
        self.process.send_signal(by)
        output, errors = self.process.communicate(timeout=HANGS)
        return output, errors, self.process.returncode


@contextmanager
def running(*arguments: str) -> Iterator[Running]:
    with start("sandbox", "--port", "0", *arguments) as process:
        assert process.stdout is not None
        greeting = [line.rstrip("\n") for line in iter(process.stdout.readline, "\n")]
        yield Running(process, greeting[0].split()[2], greeting)


@ON_SIGNALS
def test_the_sandbox_serves_until_ctrl_c() -> None:
    with running("--limit", "2/60", "--accounts", "2") as sandbox:
        assert sandbox.greeting == [
            f"Listening on {sandbox.url} (stop with Ctrl-C). All keys are fictitious.",
            "  X-API-KEY      sandbox-api-key",
            "  X-ACCOUNT-KEY  sandbox-account-key-1",
            "  X-ACCOUNT-KEY  sandbox-account-key-2",
            "Try it:",
            "  curl -H 'X-API-KEY: sandbox-api-key' \\",
            "       -H 'X-ACCOUNT-KEY: sandbox-account-key-1' \\",
            f"       '{sandbox.url}/accounting/invoices?limit=5'",
        ]
        path = "/accounting/invoices?limit=5"
        assert [sandbox.get(path, "sandbox-account-key-1") for _ in range(3)] == [200, 200, 429]
        assert sandbox.get("/accounting/%1b[2J[red]", "real-looking-secret") == 401
        output, errors, code = sandbox.stop(signal.SIGINT)
    assert output.splitlines() == [
        "200 GET /accounting/invoices …-key-1",
        "200 GET /accounting/invoices …-key-1",
        "429 GET /accounting/invoices …-key-1",
        "401 GET /accounting/ [2J[red] …secret",
        "Stopped after 4 requests.",
    ]
    assert (errors, code) == ("", 0)


@pytest.mark.slow
@ON_SIGNALS
def test_the_quiet_sandbox_serves_until_sigterm() -> None:
    with running("--quiet", "--chance", "503=1") as sandbox:
        assert sandbox.get("/accounting/invoices", "sandbox-account-key-1") == 503
        assert sandbox.stop(signal.SIGTERM) == ("Stopped after 1 request.\n", "", 0)


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        shown = CliRunner().invoke(app, ["sandbox", "--port", str(port)])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr == f"lamella: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_an_invalid_host_is_reported() -> None:
    shown = CliRunner().invoke(app, ["sandbox", "--host", "256.0.0.1"])
    assert shown.exit_code == 2
    assert shown.stderr.startswith("lamella: cannot listen on 256.0.0.1:8080: ")
    assert shown.stderr.count("\n") == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--limit", "100"),
        ("--limit", "0/60"),
        ("--limit", "1/0"),
        ("--limit", "x/1"),
        ("--limit", "1/nan"),
        ("--chance", "500"),
        ("--chance", "nothing=0.5"),
        ("--chance", "500=much"),
    ],
)
def test_bad_arguments(arguments: tuple[str, str]) -> None:
    shown = CliRunner().invoke(app, ["sandbox", *arguments])
    assert shown.exit_code == 2
    assert shown.stderr.splitlines()[3].startswith(
        f"Error: Invalid value for {arguments[0]}: {arguments[1]!r} must be "
    )


@pytest.mark.parametrize(
    "arguments",
    [["--chance", "500=1.5"], ["--chance", "200=0.5"], ["--host", ""], ["--port", "65536"], ["--accounts", "0"]],
)
def test_invalid_sandbox_options_are_rejected(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, ["sandbox", *arguments])
    assert shown.exit_code == 2
    assert "Error: Invalid value" in shown.stderr


def test_limits_and_chances_are_parsed() -> None:
    assert parse_limit("100/60") == FixedWindow(100, 60.0)
    assert parse_limit("5/0.5") == FixedWindow(5, 0.5)
    assert parse_chance("500=0.05") == (500, 0.05)
    assert parse_chance("Cut-Body=1") == (Fault.CUT_BODY, 1.0)


@pytest.mark.parametrize(
    ("account", "outcome", "line"),
    [
        (None, 403, "403 GET /x -"),
        ("ab", 401, "401 GET /x …b"),
        ("sandbox-account-key-12", 200, "200 GET /x …key-12"),
        ("sandbox-account-key-1", Fault.CUT_BODY, "cut_body GET /x …-key-1"),
    ],
)
def test_a_request_is_printed_as_one_line(account: str | None, outcome: int | Fault, line: str) -> None:
    received = Received(1, 0.0, "GET", "/x", MultiDict(), CIMultiDict(), account, outcome=outcome)
    assert line_for(received).split() == line.split()
