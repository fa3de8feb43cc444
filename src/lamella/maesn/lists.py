"""The lists of the Maesn API as sources: page by page, record by record, and for a sync."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from os import PathLike
from types import MappingProxyType
from typing import Any, TypeAlias, TypedDict, Unpack

import aiohttp

from lamella import sync as syncing
from lamella.batch import Journal
from lamella.maesn.account import Account
from lamella.maesn.sources import Caller, checked_params, checked_resource, source
from lamella.sync import Page, Part, Progress, Report, Source, Table
from lamella.sync.marks import OVERLAP
from lamella.sync.stored import Departed

Params: TypeAlias = Mapping[str, Mapping[str, str]]


class ListOptions(TypedDict, total=False):
    """Options of :func:`pages` (documented there) and :func:`records`."""

    account: str | None
    company_id: str | None
    environment_name: str | None
    params: Mapping[str, str] | None
    parse_float: Callable[[str], Any] | None


class ReadOptions(TypedDict, total=False):
    """Options of :func:`lamella.maesn.sync`, with ``on=`` or a journal, that :func:`lamella.sync.run` explains."""

    tables: Mapping[str, Table]
    since: datetime | str | None
    resume: bool
    lookback: float
    full_every: float | None
    departed: Departed
    at_once: int | None
    at_once_per_account: int
    patience: float | None


class SyncOptions(ReadOptions, total=False):
    """Options of :func:`lamella.maesn.sync` with a journal."""

    output: str | PathLike[str] | None
    on_progress: Callable[[Progress], object] | None


def pages(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    *,
    first: int = 1,
    **options: Unpack[ListOptions],
) -> AsyncIterator[Page]:
    """Yield the pages of a list in order, reading each one when it is requested. Raises the errors of
    :func:`lamella.pages`.

    Args:
        session: One made by :func:`lamella.maesn.session`, or with its layers and the same base URL.
        resource: A list, such as ``"invoices"``, ``"v2/contacts"`` or ``"invoices/4711/lineItems"``.
        limit: The number of records per page: 5, 10, 20, 50 or 100.
        since: Only records changed since this time: a datetime with a time zone, or ISO 8601 text. None means all.
        first: The page to begin with, from 1.
        account: The account's key. None means the key of :func:`lamella.maesn.account`, or of the session.
        company_id: For the target systems that have several companies in one account.
        environment_name: For the target systems that have environments.
        params: Further query parameters, such as ``{"fiscalYear": "2026"}``, which some target systems require.
        parse_float: Called with the text of each number that has a decimal point or an exponent; None means float.
    """
    found = source(resource, limit, options.get("params"))
    return syncing.pages(session, found, since=since, first=first, **_options(**options))


def records(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    **options: Unpack[ListOptions],
) -> AsyncIterator[dict[str, Any]]:
    """Yield the records of a list one by one; the arguments are those of :func:`pages`."""
    found = source(resource, limit, options.get("params"))
    return syncing.records(session, found, since=since, **_options(**options))


async def sync_here(
    session: aiohttp.ClientSession,
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal,
    limit: int = 100,
    params: Params = MappingProxyType({}),
    **options: Unpack[SyncOptions],
) -> Report:
    """Implement :func:`lamella.maesn.sync` with a journal."""
    lists, named = checked_sources(resources, limit, params), checked_accounts(accounts)
    return await syncing.run(
        session, lists, named, journal=journal, absent=_absent(named), identity=_identity, **options
    )


async def plan(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal | None,
    limit: int = 100,
    params: Params = MappingProxyType({}),
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
    departed: Departed = "keep",
) -> tuple[Part, ...]:
    """Return the parts that a sync would start with, as :func:`lamella.sync.plan` does. Send and write nothing."""
    lists, named = checked_sources(resources, limit, params), checked_accounts(accounts)
    return await syncing.plan(
        lists,
        named,
        journal=journal,
        since=since,
        resume=resume,
        lookback=lookback,
        full_every=full_every,
        departed=departed,
        absent=_absent(named),
        identity=_identity,
    )


def _options(
    *,
    account: str | None = None,
    company_id: str | None = None,
    environment_name: str | None = None,
    params: Mapping[str, str] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    return {"account": Caller(account, company_id, environment_name), "parse_float": parse_float}


def _identity(of: Account) -> str:
    return json.dumps([of.company_id or None, of.environment_name or None])  # an empty value is not sent, like None


def _absent(accounts: Mapping[str, Account]) -> set[tuple[str, str]]:
    return {(name, resource) for name, each in accounts.items() for resource in each.without}


def checked_sources(resources: Iterable[str], limit: int, params: Params) -> dict[str, Source]:
    """Return the sources by their names, or raise ValueError."""
    names = list(resources)
    _check_names("resources", names)
    if others := sorted(params.keys() - set(names)):
        raise ValueError(f"params must name resources of this sync ({', '.join(names)}), got {others[0]!r}")
    return {name: source(name, limit, params.get(name)) for name in names}


def checked_accounts(accounts: Iterable[Account] | Mapping[str, str]) -> dict[str, Account]:
    """Return the accounts by their names, or raise ValueError."""
    if isinstance(accounts, Mapping):
        accounts = [Account(name, key) for name, key in accounts.items()]  # pyright: ignore[reportArgumentType]
    many = list(accounts)
    _check_names("accounts", [each.name for each in many])
    for each in many:
        for resource, params in each.params.items():
            checked_resource(resource)
            checked_params(params)
    return {each.name: each for each in many}


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{what} must not be empty")
    [(most, times)] = Counter(names).most_common(1)
    if times > 1:
        raise ValueError(f"{what} must have unique names, got {most!r} {times} times")
