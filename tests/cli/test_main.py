"""The program as a whole: how it starts, what it needs, and what it writes into a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.cli.conftest import environment, lamella, lamella_to_nobody, without
from tests.cli.serving import API_KEY, served, write_accounts
from typer.testing import CliRunner

from lamella import cli
from lamella.cli.app import app


@pytest.mark.slow
def test_the_command_prints_its_version() -> None:
    result = lamella("--version")
    assert (result.stdout, result.stderr, result.returncode) == (f"lamella {version('lamella')}\n", "", 0)


def test_help_fits_80_columns() -> None:
    for arguments in ([], ["sync"], ["sandbox"], ["explain"], ["fleet"]):
        result = CliRunner().invoke(app, [*arguments, "--help"], prog_name="lamella")
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80
        assert "..." not in result.output.replace("[ARGS]...", "")


def test_ctrl_c_during_the_import_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_main", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


@pytest.mark.parametrize("module", ["rich", pytest.param("typer", marks=pytest.mark.slow)])
def test_without_the_extra_cli_the_command_says_what_to_install(module: str) -> None:
    result = without(module, "explain")
    assert (result.stdout, result.returncode) == ("", 2)
    assert result.stderr == f"lamella: {module} is missing: pip install 'lamella[cli]'\n"


@pytest.mark.slow
def test_other_commands_work_without_the_extra_sdk() -> None:
    assert without("opentelemetry.sdk", "explain", "429").stdout.startswith("429 Too Many Requests\n")


def test_a_closed_pipe_ends_the_command() -> None:
    result = lamella_to_nobody("explain")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_an_encoding_without_our_characters_is_supported() -> None:
    result = lamella("explain", "429", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "1 min ? 1 min 6 s" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("no_color", [False, True])
def test_the_command_uses_colours_on_a_terminal(tmp_path: Path, no_color: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "80", **({"NO_COLOR": "1"} if no_color else {})}
    with served() as server:
        accounts = ("--accounts", str(write_accounts(tmp_path)), "--base-url", server.url)
        command = [sys.executable, "-m", "lamella", "sync", "--resource", "items", *accounts]
        own = environment(**variables, MAESN_API_KEY=API_KEY)
        with subprocess.Popen(command, env=own, cwd=tmp_path, stdout=theirs) as process:  # noqa: S603
            os.close(theirs)
            output = b""
            try:
                while chunk := os.read(ours, 65536):
                    output += chunk
            except OSError:  # how Linux tells that the other end is closed
                pass
            os.close(ours)
    assert process.returncode == 1
    text = output.decode()
    assert "2 of 3 parts done" in text, "the display"
    assert "\x1b[1;4mOutcome\x1b[0m" in text
    assert ("\x1b[1;31m401 Unauthorized\x1b[0m" in text) is not no_color
    assert ("\x1b[1m401 Unauthorized\x1b[0m" in text) is no_color
