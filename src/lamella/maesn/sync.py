"""``maesn.sync``: all records of many accounts, from where the last sync has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from os import PathLike
from typing import Final

import aiohttp

from lamella.batch import Batch, Journal, JournalError
from lamella.errors import RateLimited, Unauthorized
from lamella.maesn.account import Account
from lamella.maesn.export import check_output, export
from lamella.maesn.marks import Wanted, begin, look, missing
from lamella.maesn.page import checked_limit, checked_moment, checked_resource
from lamella.maesn.progress import Part, Progress, Report, part_of
from lamella.maesn.reading import ListToRead, Reading
from lamella.maesn.stored import Books

__all__ = ["plan", "sync"]

_MOST_AT_ONCE: Final = 1000
"""The largest default of *at_once*."""


async def sync(
    session: aiohttp.ClientSession,
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal,
    output: str | PathLike[str] | None = None,
    since: datetime | str | None = None,
    resume: bool = False,
    limit: int = 100,
    at_once: int | None = None,
    at_once_per_account: int = 4,
    patience: float | None = 3600.0,
    on_progress: Callable[[Progress], object] | None = None,
) -> Report:
    """Bring the records of all *accounts* up to date, page by page, and report what could not be read.

    The records are kept in *journal*, each as the JSON text that the API sent, without the white space between its
    tokens. The next sync of an account and resource goes on from its high-water mark, less five minutes for clocks
    that differ. The mark moves only when as many different records are stored as the API counts, and never beyond the
    moment at which the first of them was read. A list that changes while it is read so that records may be missing,
    that holds fewer records than the API counts, or of which a page brings no new record, is read up to three times;
    then its part fails with an :class:`IncompleteList`. Records that are deleted at the API stay.

    An error that concerns the whole account ends its parts: 401, and a rate limit that lasts too long
    (:class:`lamella.RateLimited`: for example a daily quota). Any other failure ends its part alone, and the other
    pages of the part are stored. An outage pauses the sync, as in :class:`lamella.batch.Batch`. When it is cancelled,
    what is stored stays, and *resume* goes on from there.

    The journal records the `company_id` and `environment_name` of each account. If they differ from those of the run
    before, all that is stored for the account is dropped, and it is read from the beginning.

    Args:
        session: One made by :func:`lamella.maesn.session`, best with a ``Breaker``, or with its layers and a base URL.
        accounts: Accounts with names that differ, or names with their keys.
        resources: For example ``["contacts", "invoices"]``.
        journal: Where all is kept, for this sync and the next ones. Its ``batch`` should name the API.
        output: The file that gets all records at the end, by :func:`lamella.maesn.export`. None means none.
        since: Only what was changed since this moment, whatever the marks say; see :attr:`Part.gap`. None means from
            the mark on, or everything where there is none.
        resume: Whether to go on with the last run, if there is one: only what it has not done is read.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
        at_once: How many pages may be read at a time. None means as many as the accounts may have, up to 1,000.
        at_once_per_account: How many pages of one account may be read at a time.
        patience: How many seconds outages may pause a page, in sum. None means no limit.
        on_progress: Called at the beginning, and whenever a part has changed.

    Raises:
        ValueError: An argument is out of its range; before anything is sent.
        lamella.batch.JournalError: The journal cannot be written.
        OSError: The output cannot be written.
    """
    wanted, chosen, since = _checked(accounts, resources, since, resume=resume)
    checked_limit(limit)
    if output is not None:
        check_output(output)
    if at_once is None:
        at_once = max(1, min(len(chosen) * at_once_per_account, _MOST_AT_ONCE))
    reading = Reading(session, journal, on_progress)
    batch = Batch(
        reading.read,
        reading.pages,
        at_once=at_once,
        account=lambda page: page.list.wanted.account,
        at_once_per_account=at_once_per_account,
        stop_on=(Unauthorized, RateLimited),
        patience=patience,
    )
    began = time.monotonic()
    books = _books(chosen)
    run, resumed, positions = await journal.commit(
        lambda db: begin(db, wanted, since, resume=resume, page_size=limit, books=books)
    )
    gaps = await journal.read(lambda db: [missing(db, *each) for each in zip(wanted, positions, strict=True)])
    lists = [ListToRead(of, chosen[of.account], limit, at) for of, at in zip(wanted, positions, strict=True)]
    for each, numbers in zip(lists, gaps, strict=True):
        reading.pages.add(each, numbers)
    progress = Progress(run, [each.part for each in lists], batch, resumed=resumed)
    async with batch:
        reading.begin(progress)
        async for outcome in batch:
            if isinstance(outcome.error, JournalError):
                raise outcome.error
            reading.ended(outcome)
    if output is not None:
        await export(journal, output)
    return Report(run, resumed, tuple(progress.parts.values()), time.monotonic() - began)


async def plan(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal | None,
    since: datetime | str | None = None,
    resume: bool = False,
) -> tuple[Part, ...]:
    """Return the parts that :func:`sync` would begin with. It sends nothing, and writes nothing.

    Args:
        accounts: As for :func:`sync`, like *resources*, *since* and *resume*.
        journal: None means that there is none yet.

    Raises:
        ValueError: An argument is out of its range.
    """
    wanted, chosen, since = _checked(accounts, resources, since, resume=resume)
    if journal is None:
        return tuple(Part(*each, since) for each in wanted)
    books = _books(chosen)
    _, _, positions = await journal.read(lambda db: look(db, wanted, since, resume=resume, books=books))
    return tuple(part_of(each, position) for each, position in zip(wanted, positions, strict=True))


def _checked(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    since: datetime | str | None,
    *,
    resume: bool,
) -> tuple[list[Wanted], dict[str, Account], str | None]:
    if isinstance(accounts, Mapping):
        accounts = [Account(name, key) for name, key in accounts.items()]  # pyright: ignore[reportArgumentType]
    many, kinds = list(accounts), [checked_resource(resource) for resource in resources]
    for what, names in (("accounts", [account.name for account in many]), ("resources", kinds)):
        if not names:
            raise ValueError(f"{what} must not be empty")
        [(most, times)] = Counter(names).most_common(1)
        if times > 1:
            raise ValueError(f"{what} must differ by name, and {most!r} is there {times} times")
    if since is not None and resume:
        raise ValueError("since begins a new run, and resume goes on with the last one: give one of them")
    wanted = [Wanted(account.name, kind) for account in many for kind in kinds]
    return wanted, {account.name: account for account in many}, None if since is None else checked_moment(since)


def _books(accounts: Mapping[str, Account]) -> dict[str, Books]:
    # An empty value is not sent, like None.
    return {name: Books(of.company_id or None, of.environment_name or None) for name, of in accounts.items()}
