"""``lamella sync`` compares whole lists, marks what is deleted, and knows accounts that leave and lists that lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli.pages import Page
from tests.cli.serving import API_KEY, KEYS, answering, served, write_accounts
from tests.maesn.lists import START, ListServer, numbered, record
from typer.testing import CliRunner, Result

from lamella.cli.app import app
from lamella.cli.options import Options


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, in_own_folder: None, short_waits: None) -> None:
    write_accounts(tmp_path, "Ada")


@pytest.fixture
def books() -> ListServer:
    return ListServer(numbered(250))


@pytest.fixture
def url(books: ListServer) -> Iterator[str]:
    with answering(books) as url:
        yield url


def sync(url: str, *more: str, resources: str = "bills") -> Result:
    arguments = ["sync", "--accounts", "accounts.csv", "--resource", resources, "--base-url", url, *more]
    shown = CliRunner().invoke(app, [*arguments, "--output", "out.jsonl"])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    assert not [key for key in (API_KEY, *KEYS.values()) if key in shown.output]
    return shown


def words(shown: Result) -> str:
    return " ".join(shown.stdout.split())


def marked() -> set[str]:
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    return {f"{line['account']} {line['id']}" for line in lines if "deleted" in line}


def test_verify_reports_missing_and_deleted_records(books: ListServer, url: str) -> None:
    assert sync(url).exit_code == 0
    del books.records[7]
    books.records.insert(0, record(1000, START - timedelta(days=400)))  # late, with an old date
    quiet = sync(url)
    assert "deleted" not in quiet.stdout
    assert "missing" not in quiet.stdout
    shown = sync(url, "--verify", "--report", "page.html")
    assert shown.exit_code == 0
    assert "1 record had been missing: an earlier run should have read" in words(shown)
    assert "Stored now: Ada bills b1000." in words(shown)
    assert "1 record is marked as deleted: the API no longer has it: Ada bills b7." in words(shown)
    assert "Compared with the API record by record: 1 of 1 list." in words(shown)
    assert "out.jsonl has all records." in words(shown)
    assert marked() == {"Ada b7"}
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert [text for text in page.texts["p"] if "is marked as deleted" in text]
    again = json.loads(sync(url, "--verify", "--json").stdout)
    [found] = again["comparisons"]
    assert found == {
        "account": "Ada", "resource": "bills", "proved": True,
        "missing": 0, "missing_ids": [], "deleted": 0, "deleted_ids": [], "unmet": 0,
    }  # fmt: skip
    assert (again["complete"], again["departed"], again["absent"]) == (True, [], [])


def test_the_number_of_deleted_records_without_a_name_is_right(books: ListServer, url: str) -> None:
    """The report of a list has only its first ten ids."""
    assert sync(url).exit_code == 0
    del books.records[:25]
    shown = sync(url, "--verify")
    assert "25 records are marked as deleted: Ada bills b0, " in words(shown)
    assert " and 20 more." in words(shown)


@pytest.mark.slow
def test_verify_without_a_total_reports_that_nothing_is_proved(books: ListServer, url: str) -> None:
    books.count = lambda *_: {"pagination": {"totalPages": 3}}
    sync(url)
    del books.records[7]
    shown = sync(url, "--verify")
    assert shown.exit_code == 0
    assert "record by record: 0 of 1 list." in words(shown)
    assert "The API gives no total for 1 part" in words(shown)
    assert "1 stored record did not appear in the whole list, but nothing proves that it is deleted" in words(shown)
    assert marked() == set()


@pytest.mark.slow
def test_an_interrupted_comparison_can_be_resumed(books: ListServer, url: str) -> None:
    sync(url)
    del books.records[7]
    books.instead = lambda _, page, __: 404 if page == 2 else None
    shown = sync(url, "--verify")
    assert shown.exit_code == 1
    assert marked() == set()
    books.instead = lambda *_: None
    books.queries.clear()
    command = shown.stderr.partition("continue with: ")[2]
    assert "--resume" in command
    assert "--verify" not in command
    assert sync(url, "--resume").exit_code == 0
    assert "lastModifiedAt" not in books.queries[0]
    assert marked() == {"Ada b7"}


def test_full_every_reads_whole_lists_again(books: ListServer, url: str) -> None:
    sync(url, "--full-every", "1d")
    asked = [query.get("lastModifiedAt") for query in books.queries]
    sync(url, "--full-every", "36500d")
    asked.append(books.queries[-1].get("lastModifiedAt"))
    assert asked == [None, None, None, books.queries[-1]["lastModifiedAt"]]
    plan = sync(url, "--full-every", "1s", "--dry-run")
    assert "everything" in plan.stdout


BAD: list[tuple[list[str], str]] = [
    (["--verify", "--resume"], "--verify reads all lists from the beginning: remove --resume, --since and"),
    (["--verify", "--since", "2026-01-01"], "--verify reads all lists from the beginning"),
    (["--verify", "--full-every", "7d"], "--verify reads all lists from the beginning"),
    (["--full-every", "weekly"], "--full-every: must be a duration such as 90s, 30m, 12h or 7d, got 'weekly'"),
    (["--full-every", "0d"], "--full-every must be greater than 0: --verify reads everything in this run"),
    (["--departed", "drop"], "--departed: must be one of keep, mark, forget, got 'drop'"),
]


@pytest.mark.parametrize(("more", "told"), BAD)
def test_bad_usage(more: list[str], told: str) -> None:
    shown = sync("http://127.0.0.1:9", *more)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert shown.stderr.startswith(f"lamella: {told}")


def test_the_resume_command_keeps_the_options() -> None:
    told = Options(verify=True, full_every="7d", departed="mark").to_go_on()
    assert told == "lamella sync --full-every 7d --departed mark --resume"


@pytest.mark.slow
def test_a_departed_account_is_reported(tmp_path: Path) -> None:
    with served() as sandbox:
        write_accounts(tmp_path, "Ada", "Bob")
        sync(sandbox.url, resources="items")
        write_accounts(tmp_path, "Ada")
        shown = sync(sandbox.url, resources="items")
        assert "no longer synced, Bob, are kept: --departed mark or forget changes that." in words(shown)
        assert marked() == set()
        shown = sync(sandbox.url, "--departed", "mark", resources="items")
        assert "no longer synced, Bob, are marked as deleted." in words(shown)
        assert len(marked()) == 45
        report = json.loads(sync(sandbox.url, "--json", resources="items").stdout)
        assert report["departed"] == [], "it is marked"
        shown = sync(sandbox.url, "--departed", "forget", resources="items")
        assert "no longer synced, Bob, are forgotten." in words(shown)
        assert "Bob" not in Path("out.jsonl").read_text(encoding="utf-8")
        assert "no longer synced" not in sync(sandbox.url, resources="items").stdout


def test_a_cut_accounts_file_does_not_forget_most_accounts(tmp_path: Path) -> None:
    """Forgetting cannot be undone. Marking can, and shows that the file is meant."""
    with served() as sandbox:
        write_accounts(tmp_path, "Ada", "Bob", "Eve")
        sync(sandbox.url, resources="items")
        write_accounts(tmp_path, "Ada")
        requests, before = len(sandbox.received), Path("out.jsonl").read_bytes()
        for more in ((), ("--dry-run",), ("--dry-run", "--json")):
            shown = sync(sandbox.url, "--departed", "forget", *more, resources="items")
            assert (shown.exit_code, shown.stdout, len(sandbox.received)) == (2, "", requests)
            assert shown.stderr == (
                "lamella: --departed forget would remove the records of 2 accounts, more than the 1 that stay. "
                "If the accounts file is complete, run once with --departed mark first\n"
            )
        assert sync(sandbox.url, "--departed", "mark", "--dry-run", resources="items").exit_code == 0
        assert Path("out.jsonl").read_bytes() == before
        for how, told in (("mark", "are marked as deleted"), ("forget", "are forgotten")):
            shown = sync(sandbox.url, "--departed", how, resources="items")
            assert (shown.exit_code, f"Bob, Eve, {told}." in words(shown)) == (0, True)
        assert "Bob" not in Path("out.jsonl").read_text(encoding="utf-8")


def test_a_list_that_is_no_longer_read_is_named() -> None:
    """It is in the output as of an earlier run, here without its second page."""
    lists = {"bills": ListServer(numbered(20)), "offers": ListServer([{"id": number} for number in range(150)])}
    lists["offers"].instead = lambda _, page, __: 404 if page == 2 else None

    async def handle(request: Any) -> Any:
        return await lists[request.path.rpartition("/")[2]](request)

    with answering(handle) as url:
        assert sync(url, resources="bills,offers").exit_code == 1
        shown = sync(url)
        report = json.loads(sync(url, "--json").stdout)
    assert shown.exit_code == 0
    assert "out.jsonl has all records of the lists in this run." in words(shown)
    assert "has all records of the lists in this run; the next sync" in words(shown)
    assert "Not read in this run, so their records are those of an earlier one: offers." in words(shown)
    assert report["not_read"] == ["offers"]


@pytest.mark.slow
@pytest.mark.parametrize("stated", ["csv", "toml"])
def test_a_list_declared_absent_is_not_read(books: ListServer, stated: str) -> None:
    async def handle(request: Any) -> Any:
        return await (books if request.path.endswith("bills") else ListServer([], instead=lambda *_: 404))(request)

    with answering(handle) as url:
        shown = sync(url, resources="bills,offers,units")
        assert shown.exit_code == 1
        assert "or, if the account's system does not have the list, name it in the column 'without'" in words(shown)
        path = Path(f"with.{stated}")
        path.write_text(
            {
                "csv": f"name,key,without\nAda,{KEYS['Ada']},offers units payments\n",
                "toml": f'[[accounts]]\nname = "Ada"\nkey = "{KEYS["Ada"]}"\nwithout = ["offers", "units"]\n',
            }[stated]
        )
        path.chmod(0o600)
        shown = sync(url, "--accounts", str(path), resources="bills,offers,units")
        assert (shown.exit_code, shown.stderr) == (0, "")
        told = "Not read, because the accounts file declares them absent: offers of Ada, units of Ada."
        assert told in words(shown)
        assert "out.jsonl has all records." in words(shown)
        report = json.loads(sync(url, "--accounts", str(path), "--json", resources="bills,offers,units").stdout)
    assert report["absent"] == [{"account": "Ada", "resource": name} for name in ("offers", "units")]
    assert [part["resource"] for part in report["parts"]] == ["bills"]
    assert report["complete"]


def test_a_wrongly_declared_list_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "accounts.csv"
    path.write_text(f"name,key,without\nAda,{KEYS['Ada']},off/ers\n")
    shown = sync("http://127.0.0.1:9")
    assert shown.exit_code == 2
    told = "accounts.csv: line 2: without must name lists such as offers, separated by spaces\n"
    assert shown.stderr.endswith(told)
