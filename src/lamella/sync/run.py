"""A sync: all records of many accounts, from where the last one has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from os import PathLike
from typing import Any, Final, get_args

import aiohttp

from lamella.batch import Batch, Journal, JournalError
from lamella.checks import check_seconds
from lamella.errors import RateLimited, Unauthorized
from lamella.sync.decode import check_msgspec
from lamella.sync.export import check_output, export_changes
from lamella.sync.marks import OVERLAP, Ask, Wanted, asked, begin, look, missing
from lamella.sync.page import checked_moment
from lamella.sync.progress import Part, Progress, Report, part_of
from lamella.sync.reading import ListToRead, Reading
from lamella.sync.source import Source
from lamella.sync.stored import Departed
from lamella.sync.stored import departed as others_in
from lamella.sync.tables import NO_TABLES, Table

_MOST_AT_ONCE: Final = 1000
"""The largest default of *at_once*."""
ALONE: Final[Mapping[str, Any]] = {"default": None}
"""The accounts where there is one, whose credentials the session has."""


def _one_and_all(_: object) -> str:
    return ""


async def run(
    session: aiohttp.ClientSession,
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any] = ALONE,
    *,
    journal: Journal,
    output: str | PathLike[str] | None = None,
    tables: Mapping[str, Table] = NO_TABLES,
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
    departed: Departed = "keep",
    absent: Collection[tuple[str, str]] = (),
    identity: Callable[[Any], str] = _one_and_all,
    at_once: int | None = None,
    at_once_per_account: int = 4,
    patience: float | None = 3600.0,
    on_progress: Callable[[Progress], object] | None = None,
) -> Report:
    """Bring the records of all *sources* of all *accounts* up to date, page by page, and report what could not be read.

    The records are kept in *journal*, each as the JSON text that the API sent, without the white space between its
    tokens. The next sync of a list continues from its high-water mark, less *lookback*. The mark moves only when as
    many different records are stored as the API counts, and never beyond the moment at which the first of them was
    read. A list that changes while it is read so that records may be missing, that holds fewer records than the API
    counts, or of which a page brings no new record, is read up to three times; then its part fails with an
    :class:`IncompleteList`.

    A record that is deleted at the API stays, and the output marks it as deleted when a reading of the whole list has
    proved that the API no longer has it: see :attr:`Part.compared` and *full_every*.

    An error that concerns the whole account ends its parts: 401, and a rate limit that lasts too long
    (:class:`lamella.RateLimited`: for example a daily quota). Any other failure ends its part alone, and the other
    pages of the part are stored. An outage pauses the sync, as in :class:`lamella.batch.Batch`. When it is cancelled,
    stored records stay, and *resume* continues from there.

    Args:
        session: Its base URL is what the URLs of *sources* are relative to. Best with the layers of ``stack()`` and a
            ``Breaker``.
        sources: The lists, by the name that each has in the journal and the output.
        accounts: By its name, what each source's ``within`` and ``params`` are called with. By default one,
            ``"default"``, with the credentials of the session.
        journal: Where all is kept, for this sync and the next ones. Its ``batch`` should name the API.
        output: The file that gets all records at the end, by :func:`lamella.sync.export`, unless it is up to date.
            None means none.
        tables: The typed columns of *output*, by the name of the source; see :attr:`Report.misfits`.
        since: Only what was changed since this moment, whatever the marks say; see :attr:`Part.gap`. None means from
            the mark on, or everything where there is none.
        resume: Whether to continue the last run, if there is one: only the rest is read.
        lookback: How many seconds before its mark a list is read again: for clocks that differ, and for records that
            appear late with an old date.
        full_every: After so many seconds a list is read from its beginning again, and compared with what is stored. 0
            means in this run. None means never, where the API can be asked for what has changed.
        departed: What becomes of the records of accounts that the journal knows, and that are not given: ``"keep"``,
            ``"mark"`` as deleted, or ``"forget"``.
        absent: The lists that are not there and not read, each by the names of its account and source. What is stored
            of them stays.
        identity: Returns a text for an account, such as its company. If it differs from that of the run before, all
            that is stored for the account is dropped, and it is read from the beginning.
        at_once: How many pages may be read at a time. None means as many as the accounts may have, up to 1,000.
        at_once_per_account: How many pages of one account may be read at a time.
        patience: How many seconds outages may pause a page in total. None means no limit.
        on_progress: Called at the beginning, and whenever a part has changed.

    Raises:
        ValueError: An argument is out of its range; before anything is sent.
        ModuleNotFoundError: msgspec is missing: ``pip install 'lamella[sync]'``.
        lamella.batch.JournalError: The journal cannot be written.
        OSError: The output cannot be written.
    """
    wanted, ask = _checked(
        sources, accounts, since, identity, absent, resume=resume, lookback=lookback, full_every=full_every
    )
    if departed not in get_args(Departed):
        raise ValueError(f"departed must be one of {', '.join(get_args(Departed))}, got {departed!r}")
    ask = ask._replace(departed=departed)
    check_msgspec()
    if output is not None:
        check_output(output, tables)
    elif tables:
        raise ValueError("tables need an output, and there is none")
    if at_once is None:
        at_once = max(1, min(len(accounts) * at_once_per_account, _MOST_AT_ONCE))
    reading = Reading(session, journal, on_progress)
    batch = Batch(
        reading.read,
        reading.pages,
        at_once=at_once,
        account=lambda page: page.of.wanted.account,
        at_once_per_account=at_once_per_account,
        stop_on=(Unauthorized, RateLimited),
        patience=patience,
    )
    began = time.monotonic()
    gone = tuple(await journal.read(lambda db: others_in(db, accounts, unmarked=departed == "keep")))
    number, resumed, positions = await journal.commit(lambda db: begin(db, wanted, ask))
    lists = [
        ListToRead(each, sources[each.resource], accounts[each.account], at)
        for each, at in zip(wanted, positions, strict=True)
    ]
    gaps = await journal.read(lambda db: [missing(db, of.wanted, of.position, of.list.source) for of in lists])
    for each, (numbers, token) in zip(lists, gaps, strict=True):
        reading.pages.add(each, numbers, token)
    progress = Progress(number, [each.part for each in lists], batch, resumed=resumed, departed=gone)
    async with batch:
        reading.begin(progress)
        async for outcome in batch:
            if isinstance(outcome.error, JournalError):
                raise outcome.error
            reading.ended(outcome)
    if output is not None:
        progress.misfits = await export_changes(journal, output, tables)
    took = time.monotonic() - began
    return Report(number, resumed, tuple(progress.parts.values()), took, gone, progress.misfits)


async def plan(
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any] = ALONE,
    *,
    journal: Journal | None,
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
    absent: Collection[tuple[str, str]] = (),
    identity: Callable[[Any], str] = _one_and_all,
) -> tuple[Part, ...]:
    """Return the parts that :func:`run` would begin with. It sends nothing, and writes nothing.

    Args:
        sources: The lists by name, as for :func:`run`.
        accounts: The accounts by name. Default: one without a name.
        journal: The journal of the runs. None means that there is none yet.
        since: As for :func:`run`.
        resume: As for :func:`run`.
        lookback: As for :func:`run`, in seconds.
        full_every: As for :func:`run`, in seconds.
        absent: As for :func:`run`.
        identity: As for :func:`run`.

    Raises:
        ValueError: An argument is out of its range.
    """
    wanted, ask = _checked(
        sources, accounts, since, identity, absent, resume=resume, lookback=lookback, full_every=full_every
    )
    if journal is None:
        return tuple(Part(*each, asked(ask, each)) for each in wanted)
    _, _, positions = await journal.read(lambda db: look(db, wanted, ask))
    return tuple(part_of(each, position) for each, position in zip(wanted, positions, strict=True))


def _checked(
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any],
    since: datetime | str | None,
    identity: Callable[[Any], str],
    absent: Collection[tuple[str, str]],
    *,
    resume: bool,
    lookback: float,
    full_every: float | None,
) -> tuple[list[Wanted], Ask]:
    for what, names in (("accounts", accounts), ("sources", sources)):
        if not names or not all(names):
            raise ValueError(f"{what} must not be empty, and have names that are not")
    if since is not None and resume:
        raise ValueError("since begins a new run and resume continues the last one: give only one of them")
    check_seconds("lookback", lookback, zero=True)
    check_seconds("full_every", 0 if full_every is None else full_every, zero=True)
    full_before = None if full_every is None else int((time.time() - full_every) * 1_000_000) if full_every else 2**62
    wanted = [
        Wanted(account, resource) for account in accounts for resource in sources if (account, resource) not in absent
    ]
    made = {(name, ""): identity(account) for name, account in accounts.items()}
    for each in wanted:
        of = sources[each.resource]
        made[each.account, each.resource] = of.identity + of.variant(accounts[each.account])
    return wanted, Ask(
        sources, None if since is None else checked_moment(since), resume, lookback, full_before, made=made
    )
