"""``lamella sync --sandbox``: sync generated accounts with a local server that fails on purpose."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from yarl import URL

from lamella.breaker import Breaker
from lamella.cli.report import Check
from lamella.cli.terminal import count
from lamella.maesn import RULES, Account
from lamella.maesn.sandbox import Account as SandboxAccount
from lamella.maesn.sandbox import AccountState, Received, Sandbox
from lamella.sync import Part
from lamella.testing import Fault, FixedWindow

API_KEY: Final = "sandbox-api-key"
RESOURCES: Final = ("contacts", "invoices", "items")
SCALE: Final = 1 / 30  # the factor by which waits are shortened

_PAGE_SIZE: Final = 20
_REQUESTS_A_MINUTE: Final = 10
_OUTAGE: Final = 2.0  # seconds
_OUTAGE_AFTER: Final = 0.45  # the fraction of the needed requests after which the outage begins
_MOST_REQUESTS: Final = 2.0  # per needed request

_CHANCES: Final[dict[int | Fault, float]] = {500: 0.05, Fault.RESET_BEFORE_HEADERS: 0.01, Fault.CUT_BODY: 0.01}
_STATES: Final[dict[str, AccountState]] = {"Hafenkontor Emden": "expired", "Praxis am Markt": "inactive"}
_STATUSES: Final = {"expired": 401, "inactive": 403}
_NAMES: Final = (
    "Ahornhof Bäckerei", "Berger & Söhne", "Café Zentral", "Delta Logistik", "Eisenwaren Krüger", "Fahrrad Nord",
    "Gärtnerei Lindner", "Hafenkontor Emden", "Ilse Brandt Steuerberatung", "Juwelier Pfeiffer", "Kanzlei Dr. Ott",
    "Lichthaus Meier", "Möbelwerk Ost", "Nordsee-Fisch", "Optik Sommer", "Praxis am Markt", "Quellwasser AG",
    "Reisebüro Fernweh und Heimkehr, Inhaberin Annegret Wiesengrund-Osterholz", "Sägewerk Huber", "Tischlerei Voss",
    "Uhren-Atelier Faber", "Verlag Morgenrot", "Weinhandlung Rieth", "Zimmerei Falk",
)  # fmt: skip


def _made() -> dict[str, SandboxAccount]:
    """Return the accounts by name, with 5 to 250 records of each resource."""
    return {
        name: SandboxAccount(
            f"sandbox-account-key-{number + 1}", _STATES.get(name, "active"), records=5 + number * 97 % 246
        )
        for number, name in enumerate(_NAMES)
    }


def settings() -> dict[str, Any]:
    """Return the settings that do not come from options. The URL is known once the sandbox runs."""
    return {
        "api_key": API_KEY,
        "base_url": URL(),
        "accounts": tuple(Account(name, account.key) for name, account in _made().items()),
        "page_size": _PAGE_SIZE,
        "batch": "maesn sync of the sandbox",
        "rules": RULES.scaled(SCALE),
        "breaker": lambda: Breaker(window=30 * SCALE, open_for=15 * SCALE, minimum=10),
    }


def make_server(resources: Sequence[str]) -> Sandbox:
    """Return a server with the accounts that fails for a while in the middle of a sync of *resources*."""
    requests, outage_at = 0, round(_needed(resources) * _OUTAGE_AFTER)

    def on_answer(_: Received) -> None:
        nonlocal requests
        requests += 1
        if requests == outage_at:
            sandbox.set_outage(503)
            asyncio.get_running_loop().call_later(_OUTAGE, sandbox.set_outage, None)

    limit = FixedWindow(_REQUESTS_A_MINUTE, 60 * SCALE, retry_after=False)
    sandbox = Sandbox(
        accounts=_made().values(),
        api_key=API_KEY,
        limit=limit,
        chances=_CHANCES,
        latency=0.02,
        seed=1,
        on_answer=on_answer,
    )
    return sandbox


def _needed(resources: Sequence[str]) -> int:
    """Return how many requests a sync needs without failures."""
    return sum(
        -(-(account.records or 0) // _PAGE_SIZE) * len(resources) if account.state == "active" else 1
        for account in _made().values()
    )


def checks(sandbox: Sandbox, resources: Sequence[str], output: Path | None, parts: Sequence[Part]) -> tuple[Check, ...]:
    """Check that *output* has all records, and that *parts* report what could not be read."""
    requests, needed = len(sandbox.received), _needed(resources)
    # A resumed or incremental sync needs fewer.
    fault = f"more than {_MOST_REQUESTS:g} per needed request, of which there are {needed}"
    return (
        Check(
            f"Every record of every active account is in the output once, identical to the API's: {_counted(parts)}",
            _lost(sandbox, resources, output),
        ),
        Check("Exactly the other accounts are reported, with 401 and 403.", _unreported(parts)),
        Check(
            f"It took {requests:,} requests for the {needed:,} needed: {requests / needed:.2f} per needed request.",
            fault if requests > needed * _MOST_REQUESTS else None,
        ),
    )


def _lost(sandbox: Sandbox, resources: Sequence[str], output: Path | None) -> str | None:
    if output is None:
        return "there is no output"
    expected = {
        (name, resource, next(iter(record.values()))): record
        for name, account in _made().items()
        if account.state == "active"
        for resource in resources
        for record in sandbox.records(resource, account.key)
    }
    twice = differ = 0
    seen = set()
    for found, record in _rows_of(output):
        twice += found in seen
        seen.add(found)
        # An earlier sync into the same journal may have left others.
        differ += found[1] in resources and expected.get(found) != record
    missing = len(expected.keys() - seen)
    faults = {"missing": missing, "there twice": twice, "unlike the API's": differ}
    return "; ".join(f"{count(many, 'record')} {fault}" for fault, many in faults.items() if many) or None


def _counted(parts: Sequence[Part]) -> str:
    """Return how many lists are complete according to the API's own count."""
    totals = [part.total for part in parts if part.done and part.total is not None]
    return f"{count(len(totals), 'list')} hold as many distinct records as the API counts: {sum(totals):,}."


def _unreported(parts: Sequence[Part]) -> str | None:
    made = _made()
    wanted = {
        (part.account, part.resource): _STATUSES[state]
        for part in parts
        if (state := made[part.account].state) != "active"
    }
    found = {
        (part.account, part.resource): getattr(part.error, "status", None) or type(part.error).__name__
        for part in parts
        if not part.done
    }
    wrong = [part for part in wanted.keys() | found.keys() if wanted.get(part) != found.get(part)]
    if not wrong:
        return None
    account, resource = first = min(wrong)
    differ = "differs" if len(wrong) == 1 else "differ"
    ended = found.get(first, "no failure")
    return f"{count(len(wrong), 'part')} {differ}: {resource} of {account} ended with {ended}"


def _rows_of(path: Path) -> Iterator[tuple[tuple[str, str, str], Any]]:
    """Yield account, resource, id and record of each row of an output, read as any other program would."""
    names = ("account", "resource", "id", "record")
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".ndjson"}:
        with path.open(encoding="utf-8") as lines:
            for *found, record in (itemgetter(*names)(json.loads(line)) for line in lines):
                yield tuple(found), record
        return
    if suffix == ".parquet":
        from pyarrow import parquet

        rows = [itemgetter(*names)(row) for row in parquet.read_table(path).to_pylist()]
    else:
        with closing(sqlite3.connect(path)) as db:
            rows = db.execute("SELECT account, resource, id, record FROM records").fetchall()
    for *found, record in rows:
        yield tuple(found), json.loads(record)
