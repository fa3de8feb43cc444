"""A sync: read all records of many accounts, and continue where the last run ended."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice, repeat
from os import PathLike
from typing import Any, Final, get_args

import aiohttp

from lamella.batch import Batch, Journal, JournalError
from lamella.checks import check_seconds
from lamella.errors import RateLimited, Unauthorized
from lamella.sync.decode import check_msgspec
from lamella.sync.export import check_output, export_changes
from lamella.sync.marks import OVERLAP, Ask, Wanted, asked, begin, look, opened
from lamella.sync.page import checked_moment
from lamella.sync.progress import Part, Progress, Report, part_of
from lamella.sync.reading import ListToRead, NewList, Reading
from lamella.sync.source import Source
from lamella.sync.stored import Departed, check_departed, not_read, of_others
from lamella.sync.stored import departed as others_in
from lamella.sync.tables import NO_TABLES, Table

_MOST_AT_ONCE: Final = 1000
"""The maximum of *at_once* by default."""
_CLOCKS_DIFFER: Final = 86400.0
"""Seconds by which a time in the journal, which is of the clock of the API, may be later than ours."""
_CHUNK: Final = 64
"""Lists per look-up in the journal."""
ALONE: Final[Mapping[str, Any]] = {"default": None}
"""The default accounts: a single one, whose credentials the session has."""


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
    """Bring the records of all *sources* of all *accounts* up to date, page by page, and return a report.

    *journal* stores the records, each as the JSON text that the API sent, without the white space between its tokens.
    The next sync of a list continues from its high-water mark, minus *lookback*. The mark moves only when as many
    different records are stored as the API counts, and never beyond the time at which the first of them was read. A
    list is read up to three times if records may be missing: it changes during the reading, contains fewer records than
    the API counts, or has a page without a new record. Then its part fails with an :class:`IncompleteList`.

    A record that is deleted at the API stays in the journal. The output marks it as deleted once a reading of the whole
    list has proved that the API no longer has it: see :attr:`Part.compared` and *full_every*.

    An error that affects the whole account ends its parts: 401, and a rate limit that lasts too long
    (:class:`lamella.RateLimited`, for example a daily quota). Any other failure ends only its part, and the other pages
    of the part are stored. An outage pauses the sync, as in :class:`lamella.batch.Batch`. If the sync is cancelled, the
    stored records stay, and *resume* continues from there.

    Args:
        session: The URLs of *sources* are relative to its base URL. Use the layers of ``stack()`` and a ``Breaker``.
        sources: The lists by name. The journal and the output contain this name.
        accounts: The accounts by name. Each value is the argument of the ``within`` and ``params`` of the sources. The
            default is one account, ``"default"``, with the credentials of the session.
        journal: Stores the state of this sync and the next ones. Its ``batch`` should be the name of the API.
        output: The file to which :func:`lamella.sync.export` writes all records at the end, unless it is up to date.
            None means no file.
        tables: The typed columns of *output* by name of the source. See :attr:`Report.misfits`.
        since: Read only records changed since this time, regardless of the marks. See :attr:`Part.gap`. None means
            since the mark, or all records if there is no mark.
        resume: Whether to continue the last run, if there is one, and read only the rest.
        lookback: Seconds before its mark from which a list is read again, to allow for clock differences and for
            records that appear late with an old date.
        full_every: Seconds after which a list is read from its beginning again and compared with the stored records. 0
            means in this run. None means never, unless the API cannot select changed records.
        departed: What to do with the records of accounts that are in the journal but not in *accounts*: ``"keep"``,
            ``"mark"`` as deleted, or ``"forget"``. More accounts than stay are forgotten only if they are marked.
        absent: The lists that do not exist and are not read, each as the names of its account and source. Their stored
            records stay.
        identity: Returns a text for an account, such as its company. If the text differs from that of the previous run,
            all stored records of the account are dropped, and it is read from the beginning.
        at_once: Maximum number of pages read concurrently. None means as many as the accounts may have, up to 1,000.
            Fewer are read while records of more than about 2 MiB wait for the journal.
        at_once_per_account: Maximum number of pages of one account read concurrently.
        patience: Maximum total pause of a page by outages, in seconds. None means no limit.
        on_progress: Called at the beginning and after each change of a part.

    Raises:
        ValueError: An argument is out of range. Raised before anything is sent.
        TooManyDeparted: More accounts would be forgotten than stay. Raised before anything is sent.
        ModuleNotFoundError: msgspec is missing: ``pip install 'lamella[sync]'``.
        lamella.batch.JournalError: The journal cannot be written.
        OSError: The output cannot be written.
    """
    wanted, ask = _checked(
        sources,
        accounts,
        since,
        identity,
        absent,
        departed=departed,
        resume=resume,
        lookback=lookback,
        full_every=full_every,
    )
    check_msgspec()
    if output is not None:
        check_output(output, tables)
    elif tables:
        raise ValueError("tables need an output, got none")
    if at_once is None:
        at_once = max(1, min(len(accounts) * at_once_per_account, _MOST_AT_ONCE))
    reading = Reading(session, journal, on_progress, at_once)
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
    number, resumed, parts = await journal.commit(partial(begin, wanted=wanted, ask=ask, made=part_of))
    others = tuple(await journal.read(lambda db: not_read(db, accounts, sources)))
    progress = Progress(number, parts, batch, resumed=resumed, departed=gone, not_read=others)
    del ask, wanted, parts  # with many accounts, they take much memory
    reading.pages.more = partial(_opened, journal, sources, accounts, progress.parts, _unread(progress.parts))
    async with batch:
        reading.begin(progress)
        async for outcome in batch:
            if isinstance(outcome.error, JournalError):
                raise outcome.error
            reading.ended(outcome)
    if output is not None:
        progress.misfits = await export_changes(journal, output, tables)
    took = time.monotonic() - began
    return Report(number, resumed, tuple(progress.parts.values()), took, gone, progress.misfits, others)


def _unread(parts: Mapping[tuple[str, str], Part]) -> Iterator[Wanted]:
    return (Wanted(*each) for each, part in parts.items() if not part.done)


async def _opened(
    journal: Journal,
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any],
    parts: Mapping[tuple[str, str], Part],
    unread: Iterator[Wanted],
) -> Sequence[NewList]:
    """Return the next lists to read. Only these are in memory."""
    order = list(sources)
    # One list of each account first: pages of one account that are sent together exceed its limit together.
    chunk = sorted(islice(unread, _CHUNK), key=lambda each: order.index(each.resource))
    found = await journal.read(lambda db: [opened(db, each, sources[each.resource]) for each in chunk]) if chunk else ()
    return [
        (
            ListToRead(
                each,
                sources[each.resource],
                accounts[each.account],
                replace(at, dropped=True) if parts[each].dropped else at,
                parts[each],
            ),
            numbers,
            token,
        )
        for each, (at, numbers, token) in zip(chunk, found, strict=True)
    ]


async def plan(
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any] = ALONE,
    *,
    journal: Journal | None,
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
    departed: Departed = "keep",
    absent: Collection[tuple[str, str]] = (),
    identity: Callable[[Any], str] = _one_and_all,
) -> tuple[Part, ...]:
    """Return the parts with which :func:`run` would begin. Send and write nothing.

    Args:
        sources: The lists by name, as for :func:`run`.
        accounts: The accounts by name. The default is one account, ``"default"``.
        journal: The journal of the runs. None means that no journal exists yet.
        since: As for :func:`run`.
        resume: As for :func:`run`.
        lookback: As for :func:`run`, in seconds.
        full_every: As for :func:`run`, in seconds.
        departed: As for :func:`run`.
        absent: As for :func:`run`.
        identity: As for :func:`run`.

    Raises:
        ValueError: An argument is out of its range.
        TooManyDeparted: As for :func:`run`.
    """
    wanted, ask = _checked(
        sources,
        accounts,
        since,
        identity,
        absent,
        departed=departed,
        resume=resume,
        lookback=lookback,
        full_every=full_every,
    )
    if journal is None:
        return tuple(Part(*each, asked(ask, each)) for each in wanted)
    return await journal.read(lambda db: _planned(db, accounts, wanted, ask))


def _planned(db: sqlite3.Connection, accounts: Collection[str], wanted: list[Wanted], ask: Ask) -> tuple[Part, ...]:
    check_departed(db, accounts, ask.departed)
    return tuple(map(part_of, wanted, look(db, wanted, ask, of_others(db, ask.made()))[2]))


def _checked(
    sources: Mapping[str, Source],
    accounts: Mapping[str, Any],
    since: datetime | str | None,
    identity: Callable[[Any], str],
    absent: Collection[tuple[str, str]],
    *,
    departed: Departed,
    resume: bool,
    lookback: float,
    full_every: float | None,
) -> tuple[list[Wanted], Ask]:
    for what, names in (("accounts", accounts), ("sources", sources)):
        if not names or not all(names):
            raise ValueError(f"{what} and no name in it may be empty")
    if since is not None and resume:
        raise ValueError("since begins a new run and resume continues the last one: give only one of them")
    check_seconds("lookback", lookback, zero=True)
    if departed not in get_args(Departed):
        raise ValueError(f"departed must be one of {', '.join(get_args(Departed))}, got {departed!r}")
    check_seconds("full_every", 0 if full_every is None else full_every, zero=True)
    now = time.time()
    full_before = None if full_every is None else int((now - full_every) * 1_000_000) if full_every else 2**62
    wanted = [
        Wanted(account, resource) for account in accounts for resource in sources if (account, resource) not in absent
    ]
    return wanted, Ask(
        sources,
        accounts,
        None if since is None else checked_moment(since),
        resume,
        lookback,
        full_before,
        departed=departed,
        latest=int((now + _CLOCKS_DIFFER) * 1_000_000),
        made=_identities(sources, accounts, wanted, identity),
    )


def _identities(
    sources: Mapping[str, Source], accounts: Mapping[str, Any], wanted: list[Wanted], identity: Callable[[Any], str]
) -> Callable[[], Iterator[tuple[str, str, str]]]:
    """Return a function that yields each account and list with the identity of its records."""
    texts: dict[str, str] = {}  # equal texts are one object
    of_sources = {name: source.identity for name, source in sources.items()}
    of_accounts = [texts.setdefault(text := identity(account), text) for account in accounts.values()]
    of_lists = [
        texts.setdefault(
            text := of_sources[each.resource] + sources[each.resource].variant(accounts[each.account]), text
        )
        for each in wanted
    ]

    def made() -> Iterator[tuple[str, str, str]]:
        yield from zip(accounts, repeat(""), of_accounts)
        for (account, resource), text in zip(wanted, of_lists, strict=True):
            yield account, resource, text

    return made
