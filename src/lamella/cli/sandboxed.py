"""``lamella sync --sandbox``: the same sync, of made-up accounts at a server on this machine that misbehaves."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from yarl import URL

from lamella.breaker import Breaker
from lamella.cli.check import Check
from lamella.cli.sync import Settings, Synced
from lamella.cli.words import count
from lamella.maesn import RULES, Account
from lamella.maesn.sandbox import Account as SandboxAccount
from lamella.maesn.sandbox import AccountState, Sandbox
from lamella.testing import Fault, FixedWindow

__all__ = ["API_KEY", "RESOURCES", "SCALE", "accounts", "checks", "play"]

API_KEY: Final = "sandbox-api-key"
RESOURCES: Final = ("contacts", "invoices", "items")
SCALE: Final = 1 / 30
"""How many seconds a second of the rules takes."""

_PAGE_SIZE: Final = 20
_REQUESTS_A_MINUTE: Final = 10
_OUTAGE: Final = 2.0
"""Seconds."""
_OUTAGE_AFTER: Final = 0.45
"""Of the requests that are needed."""
_LOOK_EVERY: Final = 0.05
_MOST_SENDS: Final = 2.0
"""How many sends a page may take."""

_CHANCES: Final[dict[int | Fault, float]] = {500: 0.05, Fault.RESET_BEFORE_HEADERS: 0.01, Fault.CUT_BODY: 0.01}
_STATES: Final[dict[int, AccountState]] = {7: "expired", 15: "inactive"}
_NAMES: Final = (
    "Ahornhof Bäckerei",
    "Berger & Söhne",
    "Café Zentral",
    "Delta Logistik",
    "Eisenwaren Krüger",
    "Fahrrad Nord",
    "Gärtnerei Lindner",
    "Hafenkontor Emden",
    "Ilse Brandt Steuerberatung",
    "Juwelier Pfeiffer",
    "Kanzlei Dr. Ott",
    "Lichthaus Meier",
    "Möbelwerk Ost",
    "Nordsee-Fisch",
    "Optik Sommer",
    "Praxis am Markt",
    "Quellwasser AG",
    "Reisebüro Fernweh und Heimkehr, Inhaberin Annegret Wiesengrund-Osterholz",
    "Sägewerk Huber",
    "Tischlerei Voss",
    "Uhren-Atelier Faber",
    "Verlag Morgenrot",
    "Weinhandlung Rieth",
    "Zimmerei Falk",
)


class _Made(NamedTuple):
    account: Account
    theirs: SandboxAccount


def _made() -> list[_Made]:
    """The accounts, as we know them and as the sandbox does: from 5 to 250 records of each resource."""
    found = []
    for number, name in enumerate(_NAMES):
        key = f"sandbox-account-key-{number + 1}"
        records = 5 + number * 97 % 246
        theirs = SandboxAccount(key, state=_STATES.get(number, "active"), records=records)
        found.append(_Made(Account(name, key), theirs))
    return found


def accounts() -> tuple[Account, ...]:
    """The made-up accounts."""
    return tuple(made.account for made in _made())


@dataclass(frozen=True, slots=True)
class Stage:
    """The server while it plays, and the settings for a sync with it."""

    sandbox: Sandbox
    settings: Settings


@asynccontextmanager
async def play(settings: Settings) -> AsyncIterator[Stage]:
    """Serve it, with an outage in the middle."""
    made = _made()
    limit = FixedWindow(_REQUESTS_A_MINUTE, 60 * SCALE, retry_after=False)
    sandbox = Sandbox(
        accounts=[each.theirs for each in made], api_key=API_KEY, limit=limit, chances=_CHANCES, latency=0.02, seed=1
    )
    async with sandbox:
        failing = asyncio.create_task(_fail_in_the_middle(sandbox, _needed(made, settings.resources)))
        try:
            yield Stage(
                sandbox,
                replace(
                    settings,
                    base_url=URL(f"{sandbox.url}/"),
                    page_size=_PAGE_SIZE,
                    batch="maesn sync of the sandbox",
                    rules=RULES.scaled(SCALE),
                    breaker=_breaker,
                ),
            )
        finally:
            failing.cancel()
            with suppress(asyncio.CancelledError):
                await failing


def _breaker() -> Breaker:
    return Breaker(window=30 * SCALE, open_for=15 * SCALE, minimum=10)


def _needed(made: Sequence[_Made], resources: Sequence[str]) -> int:
    """How many requests would do, if all were answered."""
    return sum(
        -(-(each.theirs.records or 0) // _PAGE_SIZE) * len(resources) if each.theirs.state == "active" else 1
        for each in made
    )


async def _fail_in_the_middle(sandbox: Sandbox, needed: int) -> None:
    while len(sandbox.received) < needed * _OUTAGE_AFTER:  # noqa: ASYNC110 - the sandbox tells nobody
        await asyncio.sleep(_LOOK_EVERY)
    sandbox.set_outage(503)
    await asyncio.sleep(_OUTAGE)
    sandbox.set_outage(None)


def checks(stage: Stage, synced: Synced) -> tuple[Check, ...]:
    """Whether all came over, and whether what could not is reported."""
    sends = len(stage.sandbox.received)
    needed = _needed(_made(), stage.settings.resources)
    # A sync that is resumed, or reads only what is new, needs fewer.
    fault = None if sends <= needed * _MOST_SENDS else f"more than {_MOST_SENDS:g} for each of the {needed} needed"
    return (
        Check("Every record of every account that works is in the output once, as the API has it.", _lost(stage)),
        Check("The accounts that do not work are reported, with 401 and 403, and no others.", _unreported(synced)),
        Check(f"It took {sends:,} requests where {needed:,} would do: {sends / needed:.2f} for each.", fault),
    )


def _lost(stage: Stage) -> str | None:
    settings, sandbox = stage.settings, stage.sandbox
    if settings.output is None:
        return "there is no output"
    keys = {account.name: account.key for account in settings.accounts}
    working = {each.account.name for each in _made() if each.theirs.state == "active"}
    expected = {
        (name, resource, next(iter(record.values()))): record
        for name in working
        for resource in settings.resources
        for record in sandbox.records(resource, keys[name])
    }
    twice = differ = 0
    seen = set()
    for row in _rows_of(settings.output):
        found = row[:3]
        twice += found in seen
        seen.add(found)
        # Of an earlier sync into the same journal there may be others.
        differ += found[1] in settings.resources and expected.get(found) != row.record
    missing = len(expected.keys() - seen)
    faults = {"missing": missing, "there twice": twice, "not as the API has it": differ}
    return "; ".join(f"{count(many, 'record')} {fault}" for fault, many in faults.items() if many) or None


def _unreported(synced: Synced) -> str | None:
    wanted = {
        (each.account.name, part.resource): {"expired": 401, "inactive": 403}[each.theirs.state]
        for each in _made()
        if each.theirs.state != "active"
        for part in synced.parts
        if part.account == each.account.name
    }
    found = {(part.account, part.resource): _ended_in(part.error) for part in synced.parts if not part.done}
    wrong = [part for part in wanted.keys() | found.keys() if wanted.get(part, "done") != found.get(part, "done")]
    if not wrong:
        return None
    account, resource = first = min(wrong)
    return f"{count(len(wrong), 'part')} otherwise: {resource} of {account} ended in {found.get(first, 'nothing bad')}"


def _ended_in(error: Exception | None) -> object:
    return getattr(error, "status", None) or type(error).__name__


class _Row(NamedTuple):
    account: str
    resource: str
    id: str
    record: Any


def _rows_of(path: Path) -> Iterator[_Row]:
    """What an output holds, read as anybody would."""
    suffix = path.suffix.lower()
    if suffix in {".jsonl", ".ndjson"}:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield _Row(**json.loads(line))
    elif suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield _Row(**{**row, "record": json.loads(row["record"])})
    else:
        with closing(sqlite3.connect(path)) as db:
            for account, resource, id_, record in db.execute("SELECT account, resource, id, record FROM records"):
                yield _Row(account, resource, id_, json.loads(record))
