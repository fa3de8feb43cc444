"""The arguments of ``lamella fleet``. tests/fleet has real stores."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lamella.cli.app import app

SECRET = "zq-pa55word"
HINT = "a URL such as redis://host:6379/0, rediss://, unix:// or postgresql://user@host/database\n"


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMELLA_STORE_URL", raising=False)


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}@localhost", f"postgresql://localhost/?password={SECRET}", f"unix://u:{SECRET}@/path"]
)
def test_a_password_in_an_argument_is_refused(url: str) -> None:
    result = CliRunner().invoke(app, ["fleet", url])
    message = "the argument must not contain a password: set LAMELLA_STORE_URL to the URL with the password"
    assert (result.exit_code, result.stderr) == (2, f"lamella: {message}\n")


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"http://{SECRET}@localhost",
        f"redis://user:{SECRET}/1@localhost",
        f"redis://user:{SECRET}#1@localhost",
        f"redis://user:1{SECRET}",
        f"redis://localhost?db={SECRET}",
    ],
)
def test_a_wrong_url_is_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_STORE_URL", url)
    result = CliRunner().invoke(app, ["fleet"])
    assert result.exit_code == 2
    assert result.stderr.endswith(HINT if url else "no store: give its URL, or set LAMELLA_STORE_URL\n")
    assert SECRET not in result.output


def test_the_place_of_the_other_kind_is_refused() -> None:
    for url, option in (("redis://localhost", "--table"), ("postgresql://localhost", "--prefix")):
        result = CliRunner().invoke(app, ["fleet", url, option, "name"])
        assert result.exit_code == 2
        assert result.stderr == "lamella: --prefix is for Redis and --table for PostgreSQL: leave the other one out\n"


def test_a_table_must_have_a_name() -> None:
    result = CliRunner().invoke(app, ["fleet", "postgresql://localhost", "--table", "a; b"])
    assert result.exit_code == 2
    assert "got 'a; b'" in result.stderr


@pytest.mark.parametrize("url", [f"redis://u:{SECRET}@127.0.0.1:9", f"postgresql://u:{SECRET}@127.0.0.1:9/x"])
def test_a_store_that_is_not_there_is_named_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_STORE_URL", url)
    result = CliRunner().invoke(app, ["fleet"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "127.0.0.1:9" in result.stderr
    assert "cannot be read: " in result.stderr
    assert SECRET not in result.stderr
