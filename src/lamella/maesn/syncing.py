"""``maesn.sync``: on this machine with a journal, or on many workers with a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Unpack, overload

import aiohttp

from lamella.batch import Journal
from lamella.dataset import DatasetProgress, DatasetReport, Engine
from lamella.maesn.account import Account
from lamella.maesn.lists import Params, ReadOptions, SyncOptions, sync_here
from lamella.maesn.shards import sync_on
from lamella.sync import Report


class OnOptions(ReadOptions, total=False):
    """Options of :func:`sync` with ``on=``, which :func:`lamella.maesn.shards.sync_on` explains."""

    session: str
    base_url: str | None
    shards: int | None
    suffix: str | None
    limit: int
    params: Params
    checkpoint: float
    watch: float
    on_progress: Callable[[DatasetProgress], object] | None


@overload
async def sync(
    session: aiohttp.ClientSession,
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal,
    limit: int = 100,
    params: Params = ...,
    **options: Unpack[SyncOptions],
) -> Report: ...


@overload
async def sync(
    accounts: str | PathLike[str],
    resources: Iterable[str],
    *,
    on: Engine | Any,
    output: str | PathLike[str],
    **options: Unpack[OnOptions],
) -> DatasetReport: ...


async def sync(*given: Any, **options: Any) -> Report | DatasetReport:
    """Bring the records of all *accounts* up to date, with the options and errors of :func:`lamella.sync.run`.

    With ``on=``, many workers do the work and the output is a dataset: ``sync("accounts.csv", resources, on=client,
    output="records/")``. Its options are those of :func:`lamella.maesn.shards.sync_on`.

    The journal records the `company_id` and `environment_name` of each account. If they differ from those of the
    previous run, the stored records of the account are dropped and read again from the beginning. The same applies to a
    list whose parameters differ.

    Args:
        *given: The session (made by :func:`lamella.maesn.session`, best with a ``Breaker``), the accounts (with unique
            names, or a mapping of names to keys) and the names of the lists. With ``on=``: the path of the accounts
            file and the names of the lists.
        **options: ``journal`` stores all state; its ``batch`` should name the API. ``limit`` is the number of records
            of a page: 5, 10, 20, 50 or 100. ``params`` maps lists to query parameters, such as ``{"openItems":
            {"fiscalYear": "2026"}}``; parameters of an account take precedence.
    """
    if "on" in options:
        return await sync_on(*given, **options)
    return await sync_here(*given, **options)
