"""--quiet, --verbose, and the completion of a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.serving import API_KEY, KEYS, served, write_accounts
from typer.testing import CliRunner, Result

from lamella.cli.app import app
from lamella.maesn.sandbox import Account

WELL = [Account(key, records=5) for key in KEYS.values()]


def lamella(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env=variables, prog_name="lamella")


def sync(folder: Path, url: str, *options: str) -> tuple[int, str, str]:
    accounts = ("--accounts", str(write_accounts(folder)), "--base-url", url, "--journal", str(folder / "j"))
    done = lamella("sync", "--resource", "items", *accounts, *options, MAESN_API_KEY=API_KEY)
    return done.exit_code, done.stdout, done.stderr


def test_quiet_prints_nothing_if_all_is_done(tmp_path: Path) -> None:
    with served(accounts=WELL) as server:
        assert sync(tmp_path, server.url, "--quiet") == (0, "", "")


def test_quiet_prints_the_result_on_stderr_when_something_failed(tmp_path: Path) -> None:
    with served() as server:  # the key of one account has expired
        code, out, err = sync(tmp_path, server.url, "-q")
    assert (code, out) == (1, "")
    assert "401 Unauthorized" in err
    assert "Eve" in err
    assert "--quiet" in err, "the command line that goes on"


def test_verbose_prints_each_failed_attempt_without_a_key(tmp_path: Path) -> None:
    with served() as server:
        code, out, err = sync(tmp_path, server.url, "--verbose")
    assert code == 1
    assert "401 Unauthorized" in out
    [line] = [line for line in err.splitlines() if "stopped: not retryable" in line]
    assert line.startswith(f"lamella: GET {server.url}/accounting/items?")
    assert line.endswith(": 401; stopped: not retryable")
    assert not [key for key in (API_KEY, *KEYS.values()) if key in out + err]


def test_quiet_and_verbose_together_are_rejected(tmp_path: Path) -> None:
    code, out, err = sync(tmp_path, "http://127.0.0.1:9", "-q", "-v")
    assert (code, out) == (2, "")
    assert err == "lamella: --quiet and --verbose exclude each other: leave one of them out\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_completion(shell: str) -> None:
    done = lamella(_LAMELLA_COMPLETE=f"source_{shell}")
    assert done.exit_code == 0
    assert "_LAMELLA_COMPLETE" in done.stdout


def test_the_help_names_the_exit_codes_and_no_color() -> None:
    assert "NO_COLOR" in lamella("--help").stdout
    text = lamella("sync", "--help").stdout
    assert [code for code in ("0  ", "1  ", "2  ", "130") if f"\n    {code}" not in text] == []
