"""The table of docs/how-to/maesn.md: each published list, as a sync reads it from the sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lamella import maesn
from lamella.batch import Journal
from lamella.maesn.published import files
from lamella.maesn.published.operations import lists
from lamella.maesn.published.systems import REQUIRED
from lamella.maesn.sandbox import Odd, Sandbox
from lamella.pytest_maesn import MakeSandbox

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "maesn.md"


class Row(NamedTuple):
    name: str
    readable: bool
    ids: tuple[str, ...]
    dates: tuple[str, ...]
    needed: dict[str, str]
    """The parameters, by the target system."""
    incremental: bool


def rows() -> Iterator[Row]:
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"\| `[^`]+` \| (yes|no) \|.*", line):
            named = [tuple(re.findall(r"`([^`]+)`", cell)) for cell in cells]
            needed = dict(re.findall(r"`([^`]+)` \(([^)]+)\)", cells[4]))
            of_systems = {system: name for name, system in needed.items()}
            yield Row(named[0][0], cells[1] == "yes", named[2], named[3], of_systems, cells[5] == "yes")


ROWS = list(rows())


def test_the_table_has_each_published_list() -> None:
    published = {operation.path.removeprefix("accounting/") for operation in lists()}
    assert len(ROWS) == len(published)
    assert {row.name for row in ROWS} == published
    assert {row.name for row in ROWS if not row.readable} == {
        *("auth/companies", "auth/companiesFlow", "auth/environments", "webhooks")
    }
    assert {row.name: row.needed for row in ROWS if row.needed} == {
        name: dict(needs) for name, needs in REQUIRED.items()
    }


def path_of(row: Row, sandbox: Sandbox) -> str:
    """Return the path of a list that has records."""
    head, _, tail = row.name.partition("/{")
    if not tail:
        return row.name
    if head == "v2/dimensions":
        return f"{head}/costCenter"
    found = next(each["id"] for each in sandbox.records(head) if each.get("lineItems", True))
    return f"{head}/{found}{tail[tail.index('}') + 1 :]}"


async def synced(sandbox: Sandbox, path: Path, resource: str, **options: Any) -> tuple[Any, list[Any]]:
    async with (
        maesn.session(sandbox.api_key, base_url=sandbox.url) as session,
        Journal.open(path / "journal", batch="lists") as journal,
    ):
        accounts = {"north": sandbox.account_key}
        output = path / "records.jsonl"
        report = await maesn.sync(session, accounts, [resource], journal=journal, output=output, limit=5, **options)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    [part] = report.parts
    return part, lines


@pytest.mark.sampled(4)
@pytest.mark.parametrize("row", [row for row in ROWS if row.readable], ids=lambda row: row.name)
async def test_each_published_list_is_read_as_tabulated(make_sandbox: MakeSandbox, tmp_path: Path, row: Row) -> None:
    sandbox = await make_sandbox(records=12)
    resource = path_of(row, sandbox)
    part, lines = await synced(sandbox, tmp_path, resource)
    assert part.done, part.error
    listed = await whole(sandbox, resource)
    assert [line["record"] for line in sorted(lines, key=lambda line: json.dumps(line["record"]))] == sorted(
        listed, key=json.dumps
    )
    assert len(lines) > 0
    has_ids = bool(row.ids)
    assert part.nameless == (0 if has_ids else len(lines))
    for line in lines:
        found = next((str(line["record"][name]) for name in row.ids if line["record"].get(name)), None)
        assert (line["id"] == found) if has_ids else re.fullmatch(r"content:[0-9a-f]{32}:\d+", line["id"])
        assert set(row.dates) <= line["record"].keys()
        assert {"updatedDate", "lastModifiedDate"} & line["record"].keys() == set(row.dates)

    before = len(sandbox.received)
    again, lines_again = await synced(sandbox, tmp_path, resource)
    assert again.done
    assert lines_again == lines
    assert again.records == 0
    asked = ["lastModifiedAt" in received.query for received in sandbox.received[before:]]
    assert asked == [row.incremental] * len(asked) != []


async def whole(sandbox: Sandbox, resource: str) -> list[Any]:
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        return [record async for record in maesn.records(session, resource, limit=100)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("row", [row for row in ROWS if row.needed], ids=lambda row: row.name)
async def test_a_list_with_a_required_parameter_is_read(make_sandbox: MakeSandbox, tmp_path: Path, row: Row) -> None:
    [(system, name)] = row.needed.items()
    sandbox = await make_sandbox(records=7, system=system)
    part, _ = await synced(sandbox, tmp_path, row.name)
    assert not part.done
    assert name in str(part.error)
    part, lines = await synced(sandbox, tmp_path, row.name, params={row.name: {name: "2026"}})
    assert part.done
    assert len(lines) == 7
    assert {received.query.get(name) for received in sandbox.received[1:]} == {"2026"}


async def test_other_parameters_make_it_another_list(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(records=40)
    many = []
    for status, dropped in (("PAID", False), ("OPEN", True), ("OPEN", False)):
        part, lines = await synced(sandbox, tmp_path, "bills", params={"bills": {"status": status}})
        assert part.done
        assert part.dropped is dropped
        assert {line["record"]["status"] for line in lines} == {status}
        many.append(part.records)
    assert many[2] == 0
    assert sandbox.received[-1].query.get("lastModifiedAt")


async def test_accounts_may_have_their_own_parameters(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(accounts=2, records=3)
    [one, other] = sandbox.accounts
    accounts = [
        maesn.Account("one", one.key, params={"openItems": {"fiscalYear": "2025"}}),
        maesn.Account("other", other.key),
    ]
    async with (
        maesn.session(sandbox.api_key, base_url=sandbox.url) as session,
        Journal.open(tmp_path / "journal", batch="lists") as journal,
    ):
        params = {"openItems": {"fiscalYear": "2026", "type": "BILL"}}
        report = await maesn.sync(session, accounts, ["openItems", "items"], journal=journal, params=params)
    assert report.done
    asked = {
        (received.account, received.path, received.query.get("fiscalYear"), received.query.get("type"))
        for received in sandbox.received
    }
    assert asked == {
        (one.key, "/accounting/openItems", "2025", "BILL"),
        (other.key, "/accounting/openItems", "2026", "BILL"),
        (one.key, "/accounting/items", None, None),
        (other.key, "/accounting/items", None, None),
    }


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"page": "2"}, "params must not contain 'page', which lamella sets itself"),
        ({"fiscalyear": "2026"}, "unknown parameter 'fiscalyear'; expected one of: accountCode, "),
        ({"fiscalYear": ""}, "parameter 'fiscalYear' must be a non-empty line of text"),
        ({"fiscalYear": "20\n26"}, "parameter 'fiscalYear' must be a non-empty line of text"),
    ],
)
async def test_bad_parameters(sandbox: Sandbox, params: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        maesn.source("openItems", params=params)
    with pytest.raises(ValueError, match=r"params must name resources of this sync \(bills\), got 'items'"):
        await maesn.plan({"north": "key"}, ["bills"], journal=None, params={"items": {}})
    with pytest.raises(ValueError, match=re.escape(said)):
        await maesn.plan([maesn.Account("a", "k", params={"openItems": params})], ["openItems"], journal=None)


async def test_records_without_an_id(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(records=23, odd=Odd(nameless=4))
    part, lines = await synced(sandbox, tmp_path, "bills")
    assert part.done
    assert part.nameless == 5
    assert len(lines) == 23
    before = len(sandbox.received)
    again, _ = await synced(sandbox, tmp_path, "bills")
    assert (again.done, again.records, again.nameless) == (True, 0, 5)
    assert not any("lastModifiedAt" in received.query for received in sandbox.received[before:])


async def test_a_list_answered_with_tasks_is_read(
    make_sandbox: MakeSandbox, tmp_path: Path, virtual_time: object
) -> None:
    sandbox = await make_sandbox(records=12, later={"journalEntries"})
    part, lines = await synced(sandbox, tmp_path, "journalEntries")
    assert part.done, part.error
    assert part.total == 12
    assert {line["id"]: line["record"] for line in lines} == {
        each["id"]: each for each in sandbox.records("journalEntries")
    }


async def test_a_missing_list_is_requested_only_once(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(records=100)
    sandbox.script(200, *[404] * 40, path="/accounting/offers")
    part, lines = await synced(sandbox, tmp_path, "offers", at_once=1)
    assert not part.done
    assert len(lines) == 5
    assert len(sandbox.received) == 2


async def test_an_unsupported_list_is_requested_once(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    sandbox = await make_sandbox(records=100, unsupported={"offers"})
    part, _ = await synced(sandbox, tmp_path, "offers", resume=True)
    assert not part.done
    assert "does not support" in str(part.error)
    assert len(sandbox.received) == 1


def test_a_missing_table_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        files.rows("absent.txt")
