"""A sync of the Maesn API by many workers. Each worker reads the keys itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp

from lamella.batch import Journal
from lamella.breaker import Breaker
from lamella.dataset import Dataset, DatasetProgress, DatasetReport, Engine, Process, Work, sync_shards
from lamella.dataset.work import named
from lamella.maesn.account import Account
from lamella.maesn.accounts_file import accounts_in
from lamella.maesn.guard import ErrorGuard
from lamella.maesn.lists import Params, checked_accounts, checked_sources, sync_here
from lamella.maesn.session import BASE_URL, session
from lamella.sync import Progress, Report, Table
from lamella.sync.marks import OVERLAP
from lamella.sync.page import checked_moment
from lamella.sync.stored import Departed
from lamella.sync.tables import NO_TABLES

READ: Final = "lamella.maesn.shards:read_shard"
SESSION: Final = "lamella.maesn.shards:worker_session"


def worker_session(base_url: str | None = None) -> aiohttp.ClientSession:
    """Return the session of a worker, with the API key from its ``MAESN_API_KEY``."""
    return session(base_url=base_url, breaker=Breaker(), guard=ErrorGuard())


async def sync_on(
    accounts: str | PathLike[str],
    resources: Iterable[str],
    *,
    on: Engine | Any,
    output: str | PathLike[str],
    session: str = SESSION,
    base_url: str | None = None,
    shards: int | None = None,
    suffix: str | None = None,
    limit: int = 100,
    params: Params = MappingProxyType({}),
    tables: Mapping[str, Table] = NO_TABLES,
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
    departed: Departed = "keep",
    at_once: int | None = None,
    at_once_per_account: int = 4,
    patience: float | None = 3600.0,
    checkpoint: float = 60.0,
    watch: float = 5.0,
    on_progress: Callable[[DatasetProgress], object] | None = None,
) -> DatasetReport:
    """Bring the records of all *accounts* up to date on many workers, with :func:`lamella.dataset.sync_shards`.

    No key is sent to a worker: each one reads the accounts itself, and takes the API key from its own environment.

    Args:
        accounts: The path of an accounts file (CSV or TOML) that exists on each worker, or ``package.module:function``,
            a function that returns accounts, or a mapping of names to keys.
        resources: Lists, such as ``["contacts", "invoices"]``.
        on: A ``distributed.Client``, or another :class:`lamella.dataset.Engine`.
        output: The dataset: a folder that all workers can access, or an ``s3://`` URL.
        session: ``package.module:function``, a function that returns the session of a worker. It is called once in each
            worker, with the argument ``base_url`` if *base_url* is given.
        base_url: The URL of the API. None means ``MAESN_BASE_URL`` of this process, else Maesn's.
        shards: The number of shards of a new dataset. None means 64.
        suffix: The file format of a new dataset, ``".jsonl"`` or ``".parquet"``. None means ``.jsonl``.
        limit: The number of records per page: 5, 10, 20, 50 or 100.
        params: Further query parameters, by list.
        tables: The typed columns of a dataset of Parquet files, by list.
        since: As for :func:`lamella.sync.run`, like the arguments up to *patience*. *at_once* applies to one shard.
        resume: Whether to continue the last run, if there is one.
        lookback: Seconds before its mark from which a list is read again.
        full_every: Seconds after which a list is read from its beginning again.
        departed: ``"keep"``, ``"mark"`` or ``"forget"``.
        at_once: Maximum number of pages of one shard read concurrently.
        at_once_per_account: The same for one account.
        patience: Maximum total pause of a page by outages, in seconds.
        checkpoint: Seconds between two copies of the journal of a shard to the dataset.
        watch: Seconds between two checks of a worker that it still has its shard.
        on_progress: Called about once a second for each shard that has changed.

    Raises:
        ValueError: An argument is out of range. Raised before anything is sent.
        lamella.dataset.DatasetError: The dataset cannot be read or written, or belongs to another API.
    """
    if since is not None and resume:
        raise ValueError("since begins a new run and resume continues the last one: give only one of them")
    names = list(resources)
    checked_sources(names, limit, params)
    if not isinstance(accounts, str | PathLike):
        raise ValueError(  # noqa: TRY004 - like every other bad value
            "accounts must be the path of a file or 'package.module:function': keys are never sent to workers"
        )
    where = _where(accounts)
    url = base_url or os.environ.get("MAESN_BASE_URL") or BASE_URL
    batch = f"maesn sync of {url.rstrip('/')}"
    options = {
        "accounts": where,
        "session": session,
        # Workers use the URL that names the dataset, regardless of their environment.
        "base_url": url if base_url is not None or session == SESSION else None,
        "resources": names,
        "limit": limit,
        "params": {of: dict(each) for of, each in params.items()},
        "since": None if since is None else checked_moment(since),
        "lookback": lookback,
        "full_every": full_every,
        "at_once": at_once,
        "at_once_per_account": at_once_per_account,
        "patience": patience,
    }
    of_accounts = list(await asyncio.to_thread(_accounts_at, where))
    dataset = await asyncio.to_thread(Dataset.create, output, batch=batch, shards=shards, suffix=suffix)
    return await sync_shards(
        _engine(on),
        dataset,
        of_accounts,
        READ,
        options,
        tables=tables,
        resume=resume,
        departed=departed,
        checkpoint=checkpoint,
        watch=watch,
        on_progress=on_progress,
    )


async def read_shard(
    process: Process,
    work: Work,
    journal: Journal,
    *,
    resume: bool,
    on_progress: Callable[[Progress], object],
) -> Report:
    """Sync the accounts of a shard; a :class:`lamella.dataset.Read`."""
    given: dict[str, Any] = dict(work.options)
    where, name, base_url = given.pop("accounts"), given.pop("session"), given.pop("base_url")
    resources: Collection[str] = given.pop("resources")

    def make() -> aiohttp.ClientSession:
        """Return a new session."""
        made: aiohttp.ClientSession = named(name)() if base_url is None else named(name)(base_url=base_url)
        return made

    found = await process.shared(("accounts", where, work.run), lambda: _read_accounts(where))
    missing = [account for account in work.accounts if account not in found]
    if missing:
        raise ValueError(f"{where} lacks the account {missing[0]!r} here, and where the run was begun it has")
    if resume:
        given["since"] = None
    return await sync_here(
        await process.shared(("session", name, base_url), make),
        [found[account] for account in work.accounts],
        resources,
        journal=journal,
        resume=resume,
        departed=work.departed,
        on_progress=on_progress,
        **given,
    )


@asynccontextmanager
async def _read_accounts(where: str) -> AsyncIterator[Mapping[str, Account]]:
    yield await asyncio.to_thread(_accounts_at, where)


def _where(accounts: str | PathLike[str]) -> str:
    text = os.fspath(accounts)
    is_function = isinstance(accounts, str) and ":" in text and not os.path.exists(text)
    return text if is_function else f"{Path(text).absolute()}"


def _accounts_at(where: str) -> Mapping[str, Account]:
    return checked_accounts(accounts_in(Path(where)) if os.path.isabs(where) else named(where)())


def _engine(on: Any) -> Engine:
    if type(on).__module__.partition(".")[0] == "distributed":
        from lamella.dataset.on_dask import OnDask

        return OnDask(on)
    engine: Engine = on
    return engine
