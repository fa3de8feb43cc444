"""``lamella sync`` as its users run it, against a real server."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks
from tests.cli.collector import collector
from tests.cli.conftest import environment, lamella, lamella_to_nobody, minding_ctrl_c, start, without
from tests.cli.pages import Page
from tests.cli.serving import API_KEY, KEYS, served, write_accounts
from tests.environment import HANGS
from typer.testing import CliRunner, Result

from lamella import maesn
from lamella.cli import options
from lamella.cli import sync as sync_module
from lamella.cli.app import app
from lamella.cli.options import Settings
from lamella.maesn.sandbox import Sandbox

# So long that a sync which ends has not waited for it.
LONG_GRACE = """
import sys
from functools import partial
import lamella.sync
run = sys.modules["lamella.sync.run"]
run.Batch = partial(run.Batch, grace=3600.0)
"""
SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to send")


@pytest.fixture
def server() -> Iterator[Sandbox]:
    with served() as sandbox:
        yield sandbox


pytestmark = pytest.mark.usefixtures("in_own_folder")


def arguments(server: Sandbox, *more: str, resources: str = "invoices,contacts") -> list[str]:
    accounts = [] if "--accounts" in more else ["--accounts", "accounts.csv"]
    return ["sync", *accounts, "--resource", resources, "--base-url", server.url, *more]


def sync(server: Sandbox, *more: str, resources: str = "invoices,contacts") -> Result:
    """Run it, and look that no key has got anywhere."""
    if not Path("accounts.csv").exists():
        write_accounts(Path())
    shown = CliRunner().invoke(app, arguments(server, *more, resources=resources))
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    texts = [shown.output.encode(), *(path.read_bytes() for path in Path().iterdir() if path.name != "accounts.csv")]
    assert not [key for key in (API_KEY, *KEYS.values()) if any(key.encode() in text for text in texts)]
    return shown


def asked(server: Sandbox) -> Counter[tuple[str | None, str]]:
    """How often was asked for which list of which account."""
    names = {key: name for name, key in KEYS.items()}
    return Counter(
        (names[received.account or ""], received.path.removeprefix("/accounting/")) for received in server.received
    )


def rows(path: str = "records.jsonl") -> dict[tuple[str, str], list[Any]]:
    """The records of an output, by account and resource."""
    found: dict[tuple[str, str], list[Any]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault((row["account"], row["resource"]), []).append(row["record"])
    return found


def has_all(server: Sandbox, found: dict[tuple[str, str], list[Any]], *names: str) -> bool:
    """Whether the records are those of the server, each once, of two resources of these accounts and of no other."""
    wanted = {
        (name, resource): server.records(resource, KEYS[name])
        for name in names
        for resource in ("invoices", "contacts")
    }
    return {key: sorted(map(str, some)) for key, some in found.items()} == {
        key: sorted(map(str, some)) for key, some in wanted.items()
    }


class TestTheEnd:
    def test_a_sync_reports_that_all_is_done(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada", "Bob")
        shown = sync(server, "--output", "records.jsonl")
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert has_all(server, rows(), "Ada", "Bob")
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert ["accounts", "2", "2", "done"] in lines
        assert ["parts", "4", "4", "done"] in lines
        assert ["pages", "4", "stored"] in lines
        assert ["records", "180", "new", "or", "changed"] in lines
        assert "Failures\nNone.\n" in shown.stdout
        assert "records.jsonl has all records.\n" in shown.stdout

    def test_failures_are_reported_by_cause_and_resumed(self, server: Sandbox) -> None:
        shown = sync(server, "--output", "records.jsonl", resources="invoices,contacts,unicorns")
        assert shown.exit_code == 1
        failures = shown.stdout.partition("\nFailures\n")[2].partition("\nOutput\n")[0]
        assert [line for line in failures.splitlines() if " × " in line] == [
            "3 × 401 Unauthorized, stopped: not retryable",
            "2 × 404 Not Found, stopped: not retryable",
        ]
        for text in (
            "    Eve\n",
            "    Ada, Bob\n",
            "has expired",
            "The end user has to authenticate again",
            "'unicorns'",
        ):
            assert text in failures
        assert has_all(server, rows(), "Ada", "Bob"), "what could be had is there"
        told = "lamella: 5 of 9 parts failed; continue with: "
        assert shown.stderr.startswith(told)
        command = shlex.split(shown.stderr.removeprefix(told))
        server.received.clear()
        again = CliRunner().invoke(app, command[1:])
        assert again.exit_code == 1
        assert {key for key in asked(server) if key[0] != "Eve"} == {("Ada", "unicorns"), ("Bob", "unicorns")}
        assert "4 done before, 5 failed" in again.stdout

    def test_the_next_sync_reads_only_changes(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada")
        sync(server)
        server.received.clear()
        shown = sync(server, "--output", "records.sqlite")
        assert shown.exit_code == 0
        assert all("lastModifiedAt" in received.query for received in server.received)
        with closing(sqlite3.connect("records.sqlite")) as db:
            assert db.execute("SELECT count(*), count(DISTINCT id) FROM records").fetchone() == (90, 90)

    def test_since_reads_only_later_changes(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada")
        shown = sync(server, "--since", "2025-06-01T00:00:00Z")
        assert shown.exit_code == 0
        assert {received.query["lastModifiedAt"] for received in server.received} == {"2025-06-01T00:00:00Z"}

    def test_a_sync_can_use_the_account_of_the_environment(
        self, server: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MAESN_ACCOUNT_KEY", KEYS["Ada"])
        monkeypatch.setenv("MAESN_BASE_URL", server.url)
        shown = CliRunner().invoke(app, ["sync", "--resource", "invoices", "--output", "records.jsonl"])
        assert shown.exit_code == 0
        assert set(rows()) == {("default", "invoices")}
        assert KEYS["Ada"] not in shown.output

    def test_a_full_disk_at_the_end_is_reported(self, server: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        async def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "records.jsonl")

        monkeypatch.setattr(sys.modules["lamella.sync.export"], "_export", full)
        write_accounts(Path(), "Ada")
        shown = sync(server, "--output", "records.jsonl")
        assert shown.exit_code == 1
        assert (
            "records.jsonl was not written.\nThe journal lamella-sync.journal has the records read so far.\n"
            in shown.stdout
        )
        assert shown.stderr.startswith(
            "lamella: the output cannot be written: No space left on device: records.jsonl; "
            "continue with: lamella sync "
        )

    def test_report_writes_a_page_of_the_calls(self, server: Sandbox) -> None:
        shown = sync(server, "--report", "page.html")
        assert stat.S_IMODE(os.stat("page.html").st_mode) == 0o600
        assert shown.exit_code == 1
        page = Page(Path("page.html").read_text(encoding="utf-8"))
        assert len(page.data) == len(server.received)
        assert "3 × 401 Unauthorized" not in page.texts["strong"]
        assert "2 × 401 Unauthorized" in page.texts["strong"]
        assert "lamella sync" in page.texts["h1"]
        assert not [text for text in page.texts["summary"] if "Checked" in text]
        assert "page.html, " in shown.stdout

    def test_otlp_sends_the_spans_to_a_backend(self, server: Sandbox) -> None:
        with collector() as kept:
            shown = sync(server, "--otlp", kept.url)
        assert f"{len(kept.spans)} spans of the service lamella-sync sent to" in shown.stdout.replace("\n", " ")
        assert len(kept.spans) == 2 * len(server.received)

    def test_stamina_prints_no_lines(self, server: Sandbox) -> None:
        """Its hooks write a line a retry, perhaps to stdout."""
        told: list[RetryDetails] = []

        def hook(details: RetryDetails) -> None:
            told.append(details)

        before = get_on_retry_hooks()
        set_on_retry_hooks([hook])
        try:
            server.script(500, account=KEYS["Ada"])
            rules = maesn.RULES.scaled(0.001)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(options, "Settings", partial(Settings, rules=rules))
                sync(server)
            assert len(server.received) > len(asked(server))
            assert told == []
            assert get_on_retry_hooks() == (hook,)
        finally:
            set_on_retry_hooks(before)

    def test_a_readable_accounts_file_causes_a_warning(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada").chmod(0o644)
        shown = sync(server)
        assert (shown.exit_code, shown.stderr) == (
            0,
            "lamella: other users can read the keys in accounts.csv: run chmod 600 on it\n",
        )


class TestInAPipe:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "variables", [pytest.param({}, marks=pytest.mark.slow), {"FORCE_COLOR": "1", "TERM": "xterm"}]
    )
    def test_a_pipe_gets_lines_instead_of_a_live_display(self, server: Sandbox, variables: dict[str, str]) -> None:
        write_accounts(Path(), "Ada")
        shown = lamella(*arguments(server), **variables)
        assert (shown.stderr, shown.returncode) == ("", 0)
        assert "\x1b[?25l" not in shown.stdout, "nothing hides the cursor"
        assert re.match(r"\d\d:\d\d:\d\d  run 1, 1 account, 2 parts to read\n", shown.stdout)
        assert variables or "\x1b" not in shown.stdout

    @pytest.mark.slow
    def test_a_closed_pipe_ends_the_sync(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada")
        result = lamella_to_nobody(*arguments(server, "--output", "records.jsonl"))
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert has_all(server, rows(), "Ada"), "it has done its work all the same"


class TestJson:
    def test_json_is_alone_on_stdout(self, server: Sandbox) -> None:
        shown = sync(server, "--json", "--output", "records.jsonl")
        report = json.loads(shown.stdout)
        assert shown.exit_code == report["exit_code"] == 1
        assert "\nOutcome\n" in shown.stderr
        assert (report["version"], report["run"], report["resumed"], report["interrupted"]) == (1, 1, False, False)
        assert (report["output"], report["fault"]) == ("records.jsonl", None)
        assert report["totals"] == {
            "accounts": 3, "parts": 6, "done": 4, "skipped": 0, "failed": 2, "open": 0, "pages": 4, "records": 180,
        }  # fmt: skip
        first, *_, last = report["parts"]
        assert first == {
            "account": "Ada", "resource": "invoices", "since": None, "pages": 1, "total_pages": 1, "records": 45,
            "total": 45, "state": "done", "error": None, "warnings": [], "bad_records": [],
        }  # fmt: skip
        assert (last["account"], last["state"]) == ("Eve", "failed")
        error = last["error"]
        assert (error["type"], error["status"], error["stopped"]) == ("Unauthorized", 401, "not_retryable")
        assert "401 Unauthorized" in error["message"]
        assert error["hint"].startswith("The end user has to authenticate again")
        [cause] = report["causes"]
        assert (cause["parts"], cause["accounts"], cause["what"]) == (2, ["Eve"], "401 Unauthorized")

    @pytest.mark.slow
    def test_json_describes_a_resumed_sync(self, server: Sandbox) -> None:
        sync(server)
        report = json.loads(sync(server, "--json", "--resume").stdout)
        assert (report["run"], report["resumed"]) == (1, True)
        assert Counter(part["state"] for part in report["parts"]) == {"skipped": 4, "failed": 2}


class TestADryRun:
    def test_a_dry_run_sends_and_writes_nothing(self, server: Sandbox) -> None:
        shown = sync(server, "--dry-run", "--output", "records.jsonl")
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert shown.stdout.splitlines()[:2] == ["6 parts; nothing was sent", "Ada  invoices  everything"]
        assert server.received == []
        assert [path.name for path in Path().iterdir()] == ["accounts.csv"]

    def test_a_dry_run_shows_what_is_done(self, server: Sandbox) -> None:
        sync(server)
        server.received.clear()
        before = Path("lamella-sync.journal").read_bytes()
        shown = sync(server, "--dry-run", "--resume")
        assert "Ada  invoices  nothing: already done\n" in shown.stdout
        assert "Eve  contacts  everything\n" in shown.stdout
        report = json.loads(sync(server, "--dry-run", "--json").stdout)
        assert (report["version"], report["dry_run"], report["exit_code"]) == (1, True, 0)
        assert [part["since"] is None for part in report["parts"]] == [False] * 4 + [True] * 2
        assert server.received == []
        assert Path("lamella-sync.journal").read_bytes() == before

    def test_a_long_plan_is_truncated(self, server: Sandbox) -> None:
        names = ",".join(f"resource{number}" for number in range(20))
        lines = sync(server, "--dry-run", resources=names).stdout.splitlines()
        assert (len(lines), lines[-2:]) == (43, ["… and 20 more", ""])


class TestAJournalThatCannotBeUsed:
    @pytest.mark.slow
    def test_a_journal_of_another_api_is_rejected(self, server: Sandbox) -> None:
        sync(server)
        server.received.clear()
        with served() as other:
            shown = sync(other)
            assert other.received == []
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert shown.stderr.startswith("lamella: --journal: ")
        assert "belongs to another batch" in shown.stderr
        assert shown.stderr.count("\n") == 1

    def test_a_journal_in_use_is_rejected(self, server: Sandbox) -> None:
        sync(server)
        server.received.clear()
        with closing(sqlite3.connect("lamella-sync.journal")) as db:
            db.execute("BEGIN EXCLUSIVE")
            shown = sync(server)
            db.rollback()
        assert (shown.exit_code, shown.stdout) == (2, "")
        assert "is in use by another process" in shown.stderr
        assert server.received == []


@SIGNALS
class TestInterrupted:
    @pytest.mark.slow
    @pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
    def test_an_interrupted_sync_ends_gracefully_and_can_be_resumed(self, by: signal.Signals) -> None:
        write_accounts(Path(), "Ada", "Bob")
        records = 1000
        with served(records=records, latency=0.05, accounts=_two_accounts(records)) as server:
            more = ("--output", "records.jsonl", "--concurrency", "2")
            with start(*arguments(server, *more)) as process:
                _wait_for(process, lambda: len(server.received) > 5)
                process.send_signal(by)
                output, errors = process.communicate(timeout=HANGS)
            assert process.returncode == 130
            assert errors.startswith("lamella: interrupted; continue with: lamella sync --accounts accounts.csv ")
            assert errors.count("\n") == 1
            assert "Stopping: requests in flight have 10 s to end." in output
            assert re.search(r"^records +[1-9]", output, re.MULTILINE)
            assert not Path("records.jsonl").exists()

            _, command = errors.split("continue with: ")
            shown = CliRunner().invoke(app, shlex.split(command)[1:])
            assert (shown.exit_code, shown.stderr) == (0, "")
            assert has_all(server, rows(), "Ada", "Bob")
            assert len(server.received) <= 40 + 2, "what had been read was not read again"

    def test_a_second_signal_ends_the_sync_at_once(self) -> None:
        write_accounts(Path(), "Ada")
        with served(latency=3600.0) as server:
            with start(*arguments(server), changes=LONG_GRACE) as process:
                assert process.stdout is not None
                _wait_for(process, lambda: bool(server.received))
                process.send_signal(signal.SIGINT)
                assert any("Stopping:" in line for line in process.stdout)
                assert process.poll() is None
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=HANGS)
        assert process.returncode == 130
        assert errors.startswith("lamella: interrupted; continue with: ")
        assert "Traceback" not in errors

    @pytest.mark.slow
    def test_an_ignored_signal_stays_ignored(self) -> None:
        """As in the background of a shell."""
        write_accounts(Path(), "Ada", "Bob")
        with served(records=100, latency=0.05, accounts=_two_accounts(100)) as server:
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "lamella", *arguments(server)],
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            finally:
                signal.signal(signal.SIGINT, before)
            with process:
                _wait_for(process, lambda: bool(server.received))
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 0
        assert b"Stopping" not in output

    @pytest.mark.slow
    def test_an_interrupted_sync_prints_json(self) -> None:
        write_accounts(Path(), "Ada")
        with served(latency=60.0) as server:
            with start(*arguments(server, "--json")) as process:
                _wait_for(process, lambda: bool(server.received))
                for _ in range(2):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)
                output, errors = process.communicate(timeout=HANGS)
        report = json.loads(output)
        assert (process.returncode, report["exit_code"], report["interrupted"]) == (130, 130, True)
        assert {part["state"] for part in report["parts"]} == {"open"}
        assert errors.splitlines()[-1].startswith("lamella: interrupted; continue with: ")

    @pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
    def test_a_sync_can_be_interrupted_before_it_sends(
        self, server: Sandbox, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        async def interrupted(*_: object) -> None:
            raise error

        monkeypatch.setattr(sync_module, "run", interrupted)
        shown = sync(server)
        assert (shown.exit_code, shown.stdout) == (130, "")
        assert shown.stderr.startswith("lamella: interrupted; continue with: lamella sync --accounts accounts.csv ")
        shown = CliRunner().invoke(app, ["sync", "--sandbox"])
        assert shown.exit_code == 130
        assert shown.stderr == "lamella: interrupted; with --journal FILE, --resume could continue from there\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("by", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
    def test_an_interrupted_sync_restores_the_terminal(self, by: signal.Signals) -> None:
        import pty

        write_accounts(Path(), "Ada", "Bob")
        ours, theirs = pty.openpty()
        with served(records=1000, latency=0.05, accounts=_two_accounts(1000)) as server:
            variables = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
            with minding_ctrl_c():
                process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "lamella", *arguments(server, "--concurrency", "2")],
                    env=environment(**variables),
                    stdout=theirs,
                    stderr=theirs,
                )
            with process:
                os.close(theirs)
                output, is_sent = b"", False
                try:
                    while chunk := os.read(ours, 65536):
                        output += chunk
                        # Once it has been drawn with something on it.
                        if not is_sent and b"in flight" in output and len(server.received) > 5:
                            process.send_signal(by)
                            is_sent = True
                except OSError:  # how Linux tells that the other end is closed
                    pass
                os.close(ours)
        assert process.returncode == 130
        text = output.decode()
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
        assert text.index("\x1b[?25l") < text.index("in flight") < text.index("Stopping:") < text.index("\x1b[?25h")
        assert text.index("\x1b[?25h") < text.index("Outcome")
        assert "Traceback" not in text
        assert text.rstrip().splitlines()[-1].startswith("lamella: interrupted; continue with: ")


def _two_accounts(records: int) -> list[Any]:
    from lamella.maesn.sandbox import Account

    return [Account(KEYS[name], records=records) for name in ("Ada", "Bob")]


def _wait_for(process: subprocess.Popen[Any], condition: Callable[[], bool]) -> None:
    """Until it is so, in a server that runs in another thread and that *process* calls."""
    deadline = time.monotonic() + HANGS
    while not condition():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
class TestWhatIsNotInstalled:
    @pytest.mark.parametrize("option", [("--otlp", "http://localhost:4318"), ("--report", "page.html"), ("--sandbox",)])
    def test_a_missing_sdk_is_reported(self, option: tuple[str, ...]) -> None:
        write_accounts(Path())
        more = [] if option == ("--sandbox",) else ["--accounts", "accounts.csv", "--resource", "invoices"]
        result = without("opentelemetry.sdk", "sync", *more, *option)
        assert (result.stdout, result.returncode) == ("", 2)
        assert result.stderr == f"lamella: {option[0]} needs OpenTelemetry's SDK: pip install 'lamella[cli,sdk]'\n"

    def test_a_disabled_sdk_is_reported(self, server: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        shown = sync(server, "--report", "page.html")
        assert shown.exit_code == 2
        assert shown.stderr == "lamella: --report needs OpenTelemetry's SDK, but OTEL_SDK_DISABLED disables it\n"
        assert server.received == []

    def test_jinja(self) -> None:
        write_accounts(Path())
        result = without("jinja2", "sync", "--accounts", "accounts.csv", "--resource", "invoices", "--report", "a.html")
        assert (result.stdout, result.returncode) == ("", 2)
        assert result.stderr == "lamella: jinja2 is missing: pip install 'lamella[cli]'\n"

    def test_pyarrow(self) -> None:
        write_accounts(Path())
        more = ("--accounts", "accounts.csv", "--resource", "invoices", "--output", "records.parquet")
        result = without("pyarrow", "sync", *more)
        assert (result.stdout, result.returncode) == ("", 2)
        assert result.stderr == "lamella: pyarrow is missing: pip install 'lamella[parquet]'\n"

    def test_a_sync_works_without_optional_packages(self, server: Sandbox) -> None:
        write_accounts(Path(), "Ada")
        result = without("opentelemetry.sdk", *arguments(server, "--output", "records.jsonl"))
        assert (result.stderr, result.returncode) == ("", 0)
        assert has_all(server, rows(), "Ada")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files must be UTF-8")
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_may_have_names_that_are_not_utf_8(server: Sandbox, suffix: str) -> None:
    names = {option: os.fsdecode(b"b\xfccher." + option.encode()) for option in ("journal", "report")}
    output = os.fsdecode(b"b\xfccher." + suffix.encode())
    schema = []
    if suffix == "parquet":
        Path("schema.toml").write_text('[invoices]\ncurrency = "text"\n')
        schema = ["--schema", "schema.toml"]
    write_accounts(Path(), "Ada")
    given = ["--output", output, *schema, *(f"--{name}={value}" for name, value in names.items())]
    for _ in range(2):
        shown = sync(server, *given)
        assert shown.exit_code == 0, shown.output
    assert {output, *names.values()} <= {path.name for path in Path().iterdir()}
