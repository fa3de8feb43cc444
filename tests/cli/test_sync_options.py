"""The options of ``lamella sync``: what goes wrong is told in one line, before anything is sent, and without a key."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lamella.cli.app import app
from lamella.cli.options import JOURNAL, Options, settings_of
from lamella.maesn import Account

SECRET = "s3cr3t-k3y"
GIVEN = ("--accounts", "accounts.csv", "--resource", "invoices")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAESN_API_KEY", SECRET)
    for name in ("MAESN_ACCOUNT_KEY", "MAESN_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "accounts.csv").write_text(f"name,key\nAda,{SECRET}-of-ada\n")
    (tmp_path / "accounts.csv").chmod(0o600)
    (tmp_path / "folder").mkdir()


URL = "must be a URL such as https://api.maesn.dev, without user, query and fragment"
SUFFIXES = ".jsonl, .ndjson, .sqlite, .sqlite3, .db or .parquet"
ONE_OF_THEM = "--since begins a new run and --resume continues the last one: give only one of them"
NOTHING_TO_SHOW = "--dry-run sends nothing that --otlp or --report could show: remove them"
TWO_FILES = "must be different files, got"
A_LIST = "resource must be a list such as 'invoices', 'v2/contacts' or 'invoices/4711/lineItems'"
BAD = [
    ((), "--resource NAME is missing: invoices, contacts, … Repeatable"),
    (("--resource", "invoices"), "no accounts: give --accounts FILE, or set MAESN_ACCOUNT_KEY for a single one"),
    (("--resource", ","), "--resource NAME is missing: invoices, contacts, … Repeatable"),
    ((*GIVEN, "--resource", "a/b"), f"--resource: {A_LIST}, got 'a/b'"),
    (("--accounts", "no.csv", "--resource", "a"), "--accounts: no.csv: cannot be read: No such file or directory"),
    ((*GIVEN, "--output", "a.xls"), f"--output: the output must end in {SUFFIXES}, not 'a.xls'"),
    ((*GIVEN, "--output", "no/a.db"), "--output: cannot be written: No such file or directory: no/a.db"),
    ((*GIVEN, "--output", "a.db", "--output", "a.jsonl"), "--output may be given only once, got 2 of them"),
    ((*GIVEN, "--journal", "no/a"), "--journal: folder no does not exist"),
    ((*GIVEN, "--report", "no/a.html"), "--report: cannot be written: No such file or directory: no/a.html"),
    ((*GIVEN, "--since", "friday"), "--since: since must be ISO 8601, as in 2026-01-31T00:00:00Z, not 'friday'"),
    ((*GIVEN, "--since", "2026-01-31", "--resume"), ONE_OF_THEM),
    ((*GIVEN, "--concurrency", "0"), "--concurrency: must be a whole number, 1 or more, got '0'"),
    ((*GIVEN, "--concurrency", "-1"), "--concurrency: must be a whole number, 1 or more, got '-1'"),
    ((*GIVEN, "--concurrency", "many"), "--concurrency: must be a whole number, 1 or more, got 'many'"),
    ((*GIVEN, "--lookback", "-1d"), "--lookback: must be a duration such as 90s, 30m, 12h or 7d, got '-1d'"),
    ((*GIVEN, "--lookback", "7"), "--lookback: must be a duration such as 90s, 30m, 12h or 7d, got '7'"),
    ((*GIVEN, "--base-url", "maesn"), f"--base-url {URL}, not 'maesn'"),
    ((*GIVEN, "--base-url", "ftp://a"), f"--base-url {URL}, not 'ftp://a'"),
    ((*GIVEN, "--base-url", "http://a b"), f"--base-url {URL}, not 'http://a b'"),
    ((*GIVEN, "--base-url", f"https://a?key={SECRET}"), f"--base-url {URL}, not 'https://a/?key=REDACTED'"),
    ((*GIVEN, "--base-url", f"https://ada:{SECRET}@a"), f"--base-url {URL}"),
    ((*GIVEN, "--base-url", f"ada:{SECRET}@a"), f"--base-url {URL}"),
    ((*GIVEN, "--otlp", "here"), "--otlp: must be a URL such as http://localhost:4318"),
    ((*GIVEN, "--dry-run", "--report", "a.html"), NOTHING_TO_SHOW),
    ((*GIVEN, "--dry-run", "--otlp", "http://a"), NOTHING_TO_SHOW),
    ((*GIVEN, "--sandbox"), "--sandbox has its own accounts and address: remove --accounts and --base-url"),
    ((*GIVEN, "--journal", "accounts.csv"), f"--journal and --accounts {TWO_FILES} accounts.csv for both"),
    ((*GIVEN, "--output", "folder/../a.db", "--journal", "a.db"), f"--journal and --output {TWO_FILES} a.db for both"),
    ((*GIVEN, "--output", "lamella-sync.journal"), f"--journal and --output {TWO_FILES} lamella-sync.journal for both"),
    ((*GIVEN, "--api-key", SECRET), "No such option: --api-key"),
    ((*GIVEN, f"--api-key={SECRET}"), "No such option: --api-key"),
    ((*GIVEN, SECRET), "sync takes only options, got an argument: see lamella sync --help"),
    ((*GIVEN, "--since"), "Option '--since' requires an argument."),
]  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("arguments", "told"), BAD)
def test_bad_usage(arguments: tuple[str, ...], told: str) -> None:
    shown = CliRunner().invoke(app, ["sync", *arguments])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr == f"lamella: {told}\n"
    assert SECRET not in shown.output
    assert sorted(path.name for path in Path().iterdir()) == ["accounts.csv", "folder"]


@pytest.mark.parametrize("key", ["", " ", None])
def test_a_missing_api_key_is_reported(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    if key is None:
        monkeypatch.delenv("MAESN_API_KEY")
    else:
        monkeypatch.setenv("MAESN_API_KEY", key)
    shown = CliRunner().invoke(app, ["sync", *GIVEN])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith("lamella: no API key: set MAESN_API_KEY.")


def test_an_invalid_api_key_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESN_API_KEY", f"{SECRET}\x7f")
    shown = CliRunner().invoke(app, ["sync", *GIVEN])
    assert shown.stderr == "lamella: MAESN_API_KEY must be printable ASCII, because it is sent in a header\n"


def test_the_base_url_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESN_BASE_URL", "nowhere")
    assert CliRunner().invoke(app, ["sync", *GIVEN]).stderr == f"lamella: MAESN_BASE_URL {URL}, not 'nowhere'\n"


def test_options_become_settings(tmp_path: Path) -> None:
    found = settings_of(
        Options(
            accounts=Path("accounts.csv"),
            resources=("invoices, contacts", "items", "contacts"),
            output=Path("records.db"),
            concurrency="7",
            since="2026-01-31",
            base_url="https://api.example.com/base",
        ),
        tmp_path,
    )
    assert found.accounts == (Account("Ada", f"{SECRET}-of-ada"),)
    assert found.resources == ("invoices", "contacts", "items")
    assert (found.journal, found.output, found.at_once) == (Path("lamella-sync.journal"), Path("records.db"), 7)
    assert (found.since, found.resume, found.page_size) == ("2026-01-31", False, 100)
    assert str(found.base_url) == "https://api.example.com/base/"
    assert found.identity == "maesn sync of https://api.example.com/base"
    assert SECRET not in repr(found)


def test_the_same_address_uses_the_same_journal(tmp_path: Path) -> None:
    given = Options(accounts=Path("accounts.csv"), resources=("a",))
    urls = (None, "https://api.maesn.dev", "https://api.maesn.dev/", " https://API.maesn.dev:443")
    identities = {
        settings_of(Options(given.accounts, given.resources, base_url=url), tmp_path).identity for url in urls
    }
    assert identities == {"maesn sync of https://api.maesn.dev"}


def test_the_resume_command_has_the_given_options_without_since() -> None:
    arguments = [
        "--accounts", "my accounts.csv", "--resource", "invoices,contacts", "--resource", "items", "--output", "a.db",
        "--journal", "j", "--lookback", "7d", "--concurrency", "7", "--otlp", "http://a", "--report", "a.html",
        "--base-url", "https://a", "--json",
    ]  # fmt: skip
    options = Options(
        accounts=Path("my accounts.csv"),
        resources=("invoices,contacts", "items"),
        output=Path("a.db"),
        journal=Path("j"),
        since="2026-01-31",
        lookback="7d",
        concurrency="7",
        otlp="http://a",
        as_json=True,
        page=Path("a.html"),
        base_url="https://a",
    )
    assert shlex.split(options.to_go_on()) == ["lamella", "sync", *arguments, "--resume"]


def test_the_resume_command_shows_no_password() -> None:
    told = Options(otlp=f"https://ada:{SECRET}@traces.example.com?token={SECRET}").to_go_on()
    assert SECRET not in told
    assert "--otlp 'https://traces.example.com/?token=REDACTED'" in told


def test_the_help_names_the_default_journal() -> None:
    assert f"[default: {JOURNAL}]" in " ".join(CliRunner().invoke(app, ["sync", "--help"]).output.split())
