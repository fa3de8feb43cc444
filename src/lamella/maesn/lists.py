"""The lists of the Maesn API as sources: page by page, record by record, and for a sync."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from typing import Any, Final, TypedDict, Unpack

import aiohttp

from lamella import sync as syncing
from lamella.batch import Journal
from lamella.maesn.account import Account, account
from lamella.maesn.rules import RULES
from lamella.sync import Numbered, Page, Part, Progress, Report, Source
from lamella.sync.marks import OVERLAP
from lamella.sync.stored import Departed

PAGE_LIMITS: Final = (5, 10, 20, 50, 100)
"""The page sizes that the API accepts."""
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9]*")


class ListOptions(TypedDict, total=False):
    """Options of :func:`pages`, which explains them, and of :func:`records`."""

    account: str | None
    company_id: str | None
    environment_name: str | None
    parse_float: Callable[[str], Any] | None


class SyncOptions(TypedDict, total=False):
    """Options of :func:`sync` that :func:`lamella.sync.run` explains."""

    output: str | PathLike[str] | None
    since: datetime | str | None
    resume: bool
    lookback: float
    full_every: float | None
    departed: Departed
    at_once: int | None
    at_once_per_account: int
    patience: float | None
    on_progress: Callable[[Progress], object] | None


def source(resource: str, limit: int = 100) -> Source:
    """Return the list of a resource, such as ``"invoices"``, for accounts of :class:`lamella.maesn.Account`.

    Raises:
        ValueError: *resource* is no name, or *limit* a page size that the API does not accept.
    """
    checked_resource(resource)
    if limit not in PAGE_LIMITS:
        raise ValueError(f"limit must be one of {', '.join(map(str, PAGE_LIMITS))}, not {limit!r}")
    singular = f"{resource[:-3]}y" if resource.endswith("ies") else resource.removesuffix("s")
    return Source(
        f"accounting/{resource}",
        Numbered(page_size=limit),
        id=(f"{singular}Id", "id"),
        changed=("updatedDate", "lastModifiedDate"),
        since="lastModifiedAt",
        total="meta.pagination.total",
        total_pages="meta.pagination.totalPages",
        errors="errors",
        warnings="meta.warnings",
        params=_params,
        within=_within,
        rules=RULES,
    )


def checked_resource(resource: str) -> str:
    """Return *resource*, or raise ValueError."""
    if not _RESOURCE.fullmatch(resource):
        raise ValueError(f"resource must be a name such as 'invoices', not {resource!r}")
    return resource


def pages(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    *,
    first: int = 1,
    **options: Unpack[ListOptions],
) -> AsyncIterator[Page]:
    """Yield the pages of a list, in order, each read when it is asked for: :func:`lamella.pages`, with its errors.

    Args:
        session: One made by :func:`lamella.maesn.session`, or with its layers and the same base URL.
        resource: For example ``"invoices"``.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
        since: Only what was changed since this moment: a datetime with a time zone, or ISO 8601. None means all.
        first: The page to begin with, from 1.
        account: The account's key. None means the one of :func:`lamella.maesn.account` or of the session.
        company_id: For the target systems that have several companies in one account.
        environment_name: For the target systems that have environments.
        parse_float: Called with the text of each number that has a point or an exponent; None means float.
    """
    return syncing.pages(session, source(resource, limit), since=since, first=first, **_options(**options))


def records(
    session: aiohttp.ClientSession,
    resource: str,
    limit: int = 100,
    since: datetime | str | None = None,
    **options: Unpack[ListOptions],
) -> AsyncIterator[dict[str, Any]]:
    """Yield the records of a list, one by one, with the arguments of :func:`pages`."""
    return syncing.records(session, source(resource, limit), since=since, **_options(**options))


async def sync(
    session: aiohttp.ClientSession,
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal,
    limit: int = 100,
    **options: Unpack[SyncOptions],
) -> Report:
    """Bring the records of all *accounts* up to date: :func:`lamella.sync.run`, with its options and errors.

    The journal records the `company_id` and `environment_name` of each account. If they differ from those of the run
    before, all that is stored for the account is dropped, and it is read from the beginning.

    Args:
        session: One made by :func:`lamella.maesn.session`, best with a ``Breaker``, or with its layers and a base URL.
        accounts: Accounts with names that differ, or names with their keys.
        resources: For example ``["contacts", "invoices"]``.
        journal: Where all is kept, for this sync and the next ones. Its ``batch`` should name the API.
        limit: How many records a page holds: 5, 10, 20, 50 or 100.
    """
    lists, named = _sources(resources, limit), _named(accounts)
    return await syncing.run(
        session, lists, named, journal=journal, absent=_absent(named), identity=_identity, **options
    )


async def plan(
    accounts: Iterable[Account] | Mapping[str, str],
    resources: Iterable[str],
    *,
    journal: Journal | None,
    limit: int = 100,
    since: datetime | str | None = None,
    resume: bool = False,
    lookback: float = OVERLAP,
    full_every: float | None = None,
) -> tuple[Part, ...]:
    """Return the parts that :func:`sync` would begin with: :func:`lamella.sync.plan`. It sends and writes nothing."""
    lists, named = _sources(resources, limit), _named(accounts)
    return await syncing.plan(
        lists,
        named,
        journal=journal,
        since=since,
        resume=resume,
        lookback=lookback,
        full_every=full_every,
        absent=_absent(named),
        identity=_identity,
    )


@dataclass(frozen=True, slots=True)
class _Caller:
    """What of an account a single list is read for. The key is here, and in no variable that a traceback might show."""

    key: str | None = field(repr=False)
    company_id: str | None
    environment_name: str | None


def _options(
    *,
    account: str | None = None,
    company_id: str | None = None,
    environment_name: str | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    return {"account": _Caller(account, company_id, environment_name), "parse_float": parse_float}


def _within(caller: Account | _Caller) -> AbstractContextManager[object]:
    return nullcontext() if caller.key is None else account(caller.key)


def _params(caller: Account | _Caller) -> dict[str, str | None]:
    return {"companyId": caller.company_id, "environmentName": caller.environment_name}


def _identity(of: Account) -> str:
    return json.dumps([of.company_id or None, of.environment_name or None])  # an empty value is not sent, like None


def _absent(accounts: Mapping[str, Account]) -> set[tuple[str, str]]:
    return {(name, resource) for name, each in accounts.items() for resource in each.without}


def _sources(resources: Iterable[str], limit: int) -> dict[str, Source]:
    names = list(resources)
    _check_names("resources", names)
    return {name: source(name, limit) for name in names}


def _named(accounts: Iterable[Account] | Mapping[str, str]) -> dict[str, Account]:
    if isinstance(accounts, Mapping):
        accounts = [Account(name, key) for name, key in accounts.items()]  # pyright: ignore[reportArgumentType]
    many = list(accounts)
    _check_names("accounts", [each.name for each in many])
    return {each.name: each for each in many}


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{what} must not be empty")
    [(most, times)] = Counter(names).most_common(1)
    if times > 1:
        raise ValueError(f"{what} must differ by name, and {most!r} is there {times} times")
