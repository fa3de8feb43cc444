"""``lamella sync`` says what it has not got: by its exit code, its last words, its reports and its page."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli.pages import Page
from tests.cli.serving import API_KEY, KEYS, answering
from tests.maesn.lists import START, ListServer, numbered, record
from typer.testing import CliRunner, Result

from lamella.cli.app import app


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, in_own_folder: None, short_waits: None) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys.modules["lamella.sync.page"], "_PAUSES", (0.0, 0.0), raising=False)
    write_accounts()


def write_accounts(*, company_id: str = "", environment_name: str = "") -> None:
    Path("accounts.csv").write_text(
        f"name,key,company_id,environment_name\nAda,{KEYS['Ada']},{company_id},{environment_name}\n", encoding="utf-8"
    )
    Path("accounts.csv").chmod(0o600)


@dataclass
class Run:
    """What a sync has shown, in lines that are not broken."""

    result: Result

    @property
    def code(self) -> int:
        return self.result.exit_code

    @property
    def text(self) -> str:
        return " ".join(self.result.stdout.split())

    @property
    def last_line(self) -> str:
        return self.result.stderr.rstrip().splitlines()[-1] if self.result.stderr else ""


def sync(url: str, *more: str, resources: str = "bills") -> Run:
    arguments = ["sync", "--accounts", "accounts.csv", "--resource", resources, "--base-url", url, *more]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    texts = [shown.output.encode(), *(path.read_bytes() for path in Path().iterdir() if path.name != "accounts.csv")]
    assert not [key for key in (API_KEY, *KEYS.values()) if any(key.encode() in text for text in texts)]
    return Run(shown)


def stored(path: str = "out.jsonl") -> set[str]:
    return {json.loads(line)["id"] for line in Path(path).read_text(encoding="utf-8").splitlines()}


def of(many: int) -> set[str]:
    return {f"b{number}" for number in range(many)}


def moving(server: ListServer, page: int, given: Any) -> None:
    if page == 1:
        server.records.append(server.records.pop(0))


def moving_once(server: ListServer, page: int, given: Any) -> None:
    if server.pages == [1]:
        server.records.append(server.records.pop(0))


def empty_once(server: ListServer, page: int, given: dict[str, Any]) -> Any:
    return given | {"data": []} if page == 2 and server.pages.count(2) == 1 else None


def counted(total: int | None, total_pages: int | None) -> Callable[[int, int], Any]:
    return lambda *_: {"pagination": {"total": total, "totalPages": total_pages}}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "server",
    [
        ListServer(numbered(250), 50, counted(250, 3)),
        ListServer(numbered(250), count=counted(250, 1)),
        ListServer(numbered(250), instead=empty_once),
        ListServer(numbered(250), instead=moving_once),
    ],
    ids=["pages are capped", "one page by its count", "a page is empty once", "a record moves once"],
)
def test_all_counted_records_are_read(server: ListServer) -> None:
    with answering(server) as url:
        shown = sync(url, "--output", "out.jsonl")
    assert (shown.code, shown.last_line) == (0, "")
    assert stored() == of(250)
    assert "out.jsonl has all records. The journal lamella-sync.journal has all records" in shown.text


INCOMPLETE: dict[str, tuple[Callable[[], ListServer], str, str, str]] = {
    "a record moves each time": (
        lambda: ListServer(numbered(250), instead=moving),
        "Unsteady list",
        "249 different records were read, and the API counts 250",
        "UnsteadyList",
    ),
    "a page is always empty": (
        lambda: ListServer(numbered(250), instead=lambda _, page, given: given | {"data": []} if page == 2 else None),
        "Empty page",
        "page 2 of bills is empty, and the API counts 250 records on 3 pages",
        "EmptyPage",
    ),
    "page is ignored": (
        lambda: ListServer(
            [], count=counted(None, None), instead=lambda _, page, given: given | {"data": numbered(100)}
        ),
        "Repeated page",
        "page 2 of bills brought no new record",
        "RepeatedPage",
    ),
    "the total is text": (
        lambda: ListServer(numbered(249), count=lambda *_: {"pagination": {"total": "250", "totalPages": "3"}}),
        "Unsteady list",
        "249 different records were read, and the API counts 250",
        "UnsteadyList",
    ),
    "an answer has an error": (
        lambda: ListServer([], instead=lambda *_: {"data": [], "error": f"no books of {KEYS['Ada']}"}),
        "Errors in a response",
        "page 1 of bills failed: the answer has status 200, and errors: no books of REDACTED",
        "AnswerFailed",
    ),
    "an answer has errors": (
        lambda: ListServer([], instead=lambda *_: {"data": [], "errors": {"message": f"no books of {KEYS['Ada']}"}}),
        "Errors in a response",
        "page 1 of bills failed: the answer has status 200, and errors: no books of REDACTED",
        "AnswerFailed",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
class TestWhatIsMissing:
    @pytest.mark.sampled(1)
    def test_missing_records_are_reported_at_the_end(self, case: str) -> None:
        make, what, said, _ = INCOMPLETE[case]
        with answering(make()) as url:
            shown = sync(url, "--output", "out.jsonl", "--report", "page.html")
            again = sync(url, "--output", "out.jsonl", "--resume")
        for run in (shown, again):
            assert run.code == 1
            assert run.last_line.startswith("lamella: 1 of 1 part failed; continue with: lamella sync")
            assert f"1 × {what}" in run.text
            assert said in run.text
            assert "has all records" not in run.text
            assert "all records;" not in run.text
            assert (
                "out.jsonl has the records read so far. The journal lamella-sync.journal has the records read so far."
                in run.text
            )
            assert "Records are missing: 1 of 1 part is not done." in run.text
        page = Page(Path("page.html").read_text(encoding="utf-8"))
        assert [text for text in page.texts["p"] if "Records are missing: 1 of 1 part is not done." in text]
        assert [text for text in page.texts["p"] if said in text]

    @pytest.mark.sampled(1)
    def test_missing_records_are_in_the_json_report(self, case: str) -> None:
        make, what, said, error = INCOMPLETE[case]
        with answering(make()) as url:
            shown = sync(url, "--output", "out.jsonl", "--json")
        report = json.loads(shown.result.stdout)
        assert (shown.code, report["exit_code"], report["complete"]) == (1, 1, False)
        [part] = report["parts"]
        assert (part["state"], part["error"]["type"]) == ("failed", error)
        assert said in part["error"]["message"]
        assert report["causes"][0]["what"] == what
        assert "has all records" not in shown.result.stderr


class TestWithFailedParts:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        bills = ListServer(numbered(250))

        async def handle(request: Any) -> Any:
            if request.path.endswith("bills"):
                return await bills(request)
            return await ListServer([], instead=lambda *_: 404)(request)

        with answering(handle) as url:
            yield url

    def test_the_last_line_counts_failed_parts(self, url: str) -> None:
        for more in ((), ("--resume",)):
            shown = sync(url, "--output", "out.jsonl", *more, resources="bills,items,offers")
            assert shown.code == 1
            assert "out.jsonl has the records read so far." in shown.text
            assert "Records are missing: 2 of 3 parts are not done." in shown.text
            assert "all records" not in shown.text
            assert shown.last_line.startswith("lamella: 2 of 3 parts failed; continue with: ")
            assert stored() == of(250)

    @pytest.mark.slow
    def test_the_last_line_says_that_all_is_done(self, url: str) -> None:
        sync(url, resources="bills,items")
        shown = sync(url, "--output", "out.jsonl")
        assert (shown.code, shown.last_line) == (0, "")
        assert "out.jsonl has all records." in shown.text


class TestAFirstRunWithSince:
    @pytest.fixture
    def server(self) -> ListServer:
        return ListServer([*(record(number, START - timedelta(days=400)) for number in range(14)), *numbered(20)[14:]])

    def test_a_first_run_with_since_reports_missing_older_records(self, server: ListServer) -> None:
        with answering(server) as url:
            first = sync(url, "--output", "out.jsonl", "--since", "2025-11-01", "--report", "page.html")
            assert stored() == of(20) - of(14)
            resumed = sync(url, "--output", "out.jsonl", "--resume")
            again = sync(url, "--output", "out.jsonl", "--since", "2025-11-01", "--json")
            last = sync(url, "--output", "out.jsonl")
        told = "In 1 part, records last changed before 2025-11-01 were not read: a sync without --since"
        for run in (first, resumed):
            assert (run.code, run.last_line) == (0, "")
            assert told in run.text
            assert (
                "out.jsonl has the records read so far. The journal lamella-sync.journal has the records read so far."
                in run.text
            )
            assert "all records" not in run.text
        page = Page(Path("page.html").read_text(encoding="utf-8"))
        assert [text for text in page.texts["p"] if told in text]
        report = json.loads(again.result.stdout)
        assert (report["complete"], report["exit_code"]) == (False, 0)
        assert report["gaps"] == [{"account": "Ada", "resource": "bills", "since": "2025-11-01"}]
        assert told in " ".join(again.result.stderr.split())
        assert stored() == of(20)
        assert "out.jsonl has all records." in last.text
        assert told not in last.text


class TestACorrectedCompany:
    @pytest.mark.slow
    def test_a_corrected_company_replaces_all_records(self) -> None:
        server = ListServer(numbered(20))
        with answering(server) as url:
            write_accounts(company_id="4711")
            sync(url, "--output", "out.jsonl")
            server.records = [record(number) for number in range(30, 40)]
            write_accounts(company_id="4712")
            plan = sync(url, "--dry-run")
            assert (
                "stored records will be dropped because company_id, environment_name or a parameter has changed"
                in plan.text
            )
            assert json.loads(sync(url, "--dry-run", "--json").result.stdout)["dropped"] == ["Ada"]
            assert stored() == of(20)
            shown = sync(url, "--output", "out.jsonl", "--report", "page.html")
            assert stored() == {f"b{number}" for number in range(30, 40)}
            again = sync(url, "--output", "out.jsonl", "--json")
        told = "Stored records of Ada were dropped because company_id, environment_name or a parameter has changed."
        assert (shown.code, shown.last_line) == (0, "")
        assert told in shown.text
        assert "out.jsonl has all records." in shown.text
        page = Page(Path("page.html").read_text(encoding="utf-8"))
        assert [text for text in page.texts["p"] if told in text]
        report = json.loads(again.result.stdout)
        assert (report["dropped"], report["complete"]) == ([], True)

    @pytest.mark.slow
    def test_the_resume_command_keeps_the_corrected_company(self) -> None:
        server = ListServer(numbered(250), instead=lambda server, page, given: 404 if page == 2 else None)
        with answering(server) as url:
            write_accounts(company_id="4711")
            shown = sync(url, "--output", "out.jsonl")
            command = shlex.split(shown.last_line.partition("continue with: ")[2])
            server.instead = lambda *_: None
            server.records = [record(number) for number in range(500, 510)]
            write_accounts(company_id="4712", environment_name="production")
            again = CliRunner().invoke(app, command[1:])
        assert (again.exit_code, again.stderr) == (0, "")
        assert stored() == {f"b{number}" for number in range(500, 510)}
