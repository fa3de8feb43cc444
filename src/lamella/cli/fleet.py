"""Show what a store knows that many processes share: limits, permits, holders, circuits and the retry budget."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lamella.cli.terminal import count, duration, fail, make_console, print_json, show
from lamella.redaction import one_line, redact_url
from lamella.store.network import Stored
from lamella.store.postgres import PostgresStore
from lamella.store.redis import RedisStore
from lamella.throttle.belief import believed
from lamella.throttle.lease import Holder, LeaseState, of_text
from lamella.throttle.lease_policy import Learned, Stated
from lamella.throttle.stated import stated_now

if TYPE_CHECKING:
    from rich.table import Table
    from yarl import URL

VARIABLE: Final = "LAMELLA_STORE_URL"

_REDIS: Final = ("redis", "rediss", "unix")
_POSTGRES: Final = ("postgresql", "postgres")
_EXPECTED: Final = "a URL such as redis://host:6379/0, rediss://, unix:// or postgresql://user@host/database"
_SECONDS: Final = 10.0
_MOST_READ: Final = 2000  # states of a kind, from which those with the most waiting calls are shown
_HOLDERS: Final = 8  # shown for each account
_DIGITS: Final = 8  # of an account's hash: as many as traces and the log show
_LEASE, _CIRCUIT, _BUDGET = "lease:", "breaker:", "retry-budget"
_LEARNED, _STATED = Learned(0.0), Stated(())

_Json = dict[str, Any]


class Chosen(NamedTuple):
    """What to show."""

    account: str
    """The first digits of the hashes of accounts. Empty: all accounts."""
    most: int
    """The maximum number of accounts, and of circuits."""


def main(given: str | None, prefix: str | None, table: str | None, chosen: Chosen, *, as_json: bool) -> None:
    """Read the store and print what it knows."""
    url = _url(given)
    if (prefix if url.scheme in _POSTGRES else table) is not None:
        fail("--prefix is for Redis and --table for PostgreSQL: leave the other one out")
    shown = redact_url(url)
    try:
        store = _store(url, prefix, table)
    except ImportError as exc:
        fail(str(exc))
    except ValueError as exc:  # redis-py's message may contain a part of a password
        fail(str(exc) if table is not None else f"the store must be {_EXPECTED}")
    try:
        found = asyncio.run(_read(store, chosen))
    except Exception as exc:  # noqa: BLE001 - of a client library
        fail(f"{shown} cannot be read: {_reason(exc)}")
    if as_json:
        print_json({"store": shown, **found})
        return
    _print(shown, found)


def _url(given: str | None) -> URL:
    from yarl import URL

    name, text = ("the argument", given) if given is not None else (VARIABLE, os.environ.get(VARIABLE, ""))
    if not text:
        fail(f"no store: give its URL, or set {VARIABLE}")
    try:
        url = URL(text.strip())
    except ValueError:
        url = URL()
    if url.scheme not in {*_REDIS, *_POSTGRES} or "@" in url.raw_path + url.raw_fragment:
        fail(f"{name} must be {_EXPECTED}")  # the text may contain a password in the wrong place
    if given is not None and _has_password(url):
        # Other users of the machine can see the arguments of a process.
        fail(f"the argument must not contain a password: set {VARIABLE} to the URL with the password")
    return url


def _has_password(url: URL) -> bool:
    return url.raw_password is not None or any("password" in name.lower() for name in url.query)


def _store(url: URL, prefix: str | None, table: str | None) -> RedisStore | PostgresStore:
    if url.scheme in _REDIS:
        return RedisStore(str(url), prefix="lamella:" if prefix is None else prefix)
    return PostgresStore(str(url), table="lamella" if table is None else table)


def _reason(exc: BaseException) -> str:
    """Return why the store cannot be read, without the client library's message: it may contain the address."""
    if isinstance(exc, TimeoutError):
        return f"no answer within {_SECONDS:g} s"
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, OSError):
            return one_line(seen.strerror or str(seen))
        seen = seen.__cause__ or seen.__context__
    return type(exc).__qualname__


async def _read(store: RedisStore | PostgresStore, chosen: Chosen) -> _Json:
    try:
        async with asyncio.timeout(_SECONDS):
            accounts = await store.stored(_LEASE + chosen.account, max(chosen.most, _MOST_READ))
            circuits = await store.stored(_CIRCUIT, max(chosen.most, _MOST_READ))
            budgets = await store.stored(_BUDGET, 1)
    finally:
        await store.aclose()
    return {
        "accounts": _listed(accounts, _LEASE, _account, chosen.most),
        "circuits": _listed(circuits, _CIRCUIT, _circuit, chosen.most),
        "retry_budgets": _listed(budgets, _BUDGET, _budget, chosen.most),
    }


def _listed(stored: Stored, prefix: str, read: Callable[[str, str, float], _Json], most: int) -> _Json:
    states, unreadable = [], 0
    for key, text in stored.states.items():
        try:
            states.append(read(one_line(key.removeprefix(prefix)), text, stored.server))
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += 1
    states.sort(key=_rank)
    shown = states[:most]
    return {"count": stored.number, "count_is_exact": stored.is_exact, "unreadable": unreadable, "states": shown}


def _rank(state: _Json) -> tuple[float, ...]:
    """Return the position of an account or a circuit: those that hold calls up come first."""
    return (
        -state.get("waiting", 0),
        -state.get("permits", 0),
        state.get("phase") == "closed",
        -state.get("failures", 0),
        state.get("seen") or 0.0,
    )


def _account(name: str, text: str, server: float) -> _Json:
    is_stated = "logs" in json.loads(text)["known"]
    state = of_text(text, _STATED if is_stated else _LEARNED)
    now = state.clock if state.server is None else state.clock + max(server - state.server, 0.0)
    holders = sorted(state.holders.items(), key=lambda each: (-each[1].seen, each[0]))
    return {
        "account": name,
        **(_usage(state, now) if is_stated else _belief(state, now)),
        "permits": sum(len(holder.open) for _, holder in holders),
        "waiting": sum(holder.wanting for _, holder in holders),
        "seen": min((max(now - holder.seen, 0.0) for _, holder in holders), default=None),
        "holders": [_holder(name, holder, now) for name, holder in holders],
    }


def _belief(state: LeaseState, now: float) -> _Json:
    belief = believed(state.known, None, stated_now(state.known, now))
    return {
        "kind": belief.kind,
        "requests": belief.requests,
        "period": belief.period,
        "in_flight": belief.in_flight,
        "blocked_for": max(state.known.blocked_until - now, 0.0),
        "headers": [{"name": each.name, "limit": each.limit, "remaining": each.remaining} for each in belief.stated],
    }


def _usage(state: LeaseState, now: float) -> _Json:
    used = []
    for per, log in sorted(state.known.logs.items(), key=lambda each: float(each[0])):
        points = sum(points for _, last, points in log if last > now - float(per))
        used.append({"period": float(per), "points": points})
    return {"kind": "stated", "used": used}


def _holder(name: str, holder: Holder, now: float) -> _Json:
    seen = max(now - holder.seen, 0.0)
    return {"holder": one_line(name), "permits": len(holder.open), "waiting": holder.wanting, "seen": seen}


def _circuit(name: str, text: str, server: float) -> _Json:
    whole = json.loads(text)
    state, since = whole["state"], whole["state"]["since"]
    now = float(whole["clock"]) + max(server - float(whole["server"]), 0.0)
    phase = "closed" if since is None else "half_open" if state["probed"] else "open"
    return {
        "circuit": name,
        "phase": phase,
        "since": None if since is None else max(now - since, 0.0),
        "attempts": sum(state["attempts"]),
        "failures": sum(state["failures"]),
    }


def _budget(_name: str, text: str, _server: float) -> _Json:
    return {"missing": float(json.loads(text)["state"]["missing"])}


def _print(shown: str, found: _Json) -> None:
    accounts, circuits, budgets = found["accounts"], found["circuits"], found["retry_budgets"]
    console = make_console()
    totals = (
        (accounts, "account"),
        (circuits, "circuit"),
    )
    numbers = [("" if of["count_is_exact"] else "at least ") + count(of["count"], thing) for of, thing in totals]
    console.print(f"{shown}: {', '.join(numbers)}")
    if accounts["states"]:
        show(console, "", _accounts_table(accounts["states"]))
    _print_rest(accounts, "account", ", --account HASH one of them")
    if circuits["states"]:
        show(console, "", _circuits_table(circuits["states"]))
    _print_rest(circuits, "circuit", "")
    for each in budgets["states"]:
        console.print(f"\nRetry budget: {each['missing']:.0f} used, and not yet refilled by calls")
    unreadable = sum(each["unreadable"] for each in (accounts, circuits, budgets))
    if unreadable:
        console.print(f"\n{count(unreadable, 'state')} cannot be read: another version of lamella has written them")


def _print_rest(of: _Json, thing: str, hint: str) -> None:
    left = of["count"] - len(of["states"]) - of["unreadable"]
    if left > 0:
        make_console().print(f"… and {left:,} more {thing}{'' if left == 1 else 's'}: --limit N shows more{hint}")


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(*columns[:2], box=None, pad_edge=False)
    for column in columns[2:]:
        table.add_column(column, justify="right")
    return table


def _accounts_table(accounts: list[_Json]) -> Table:
    table = _table("account", "limit", "permits", "waiting", "seen")
    for each in accounts:
        holders = each["holders"]
        table.add_row(each["account"][:_DIGITS], _limit(each), *_counts(each))
        for holder in holders[:_HOLDERS] if len(holders) > 1 else ():
            table.add_row(f"  {holder['holder'][:12]}", "", *_counts(holder))
        if len(holders) > _HOLDERS:
            table.add_row("", f"and {len(holders) - _HOLDERS} more holders")
    return table


def _counts(of: _Json) -> tuple[str, str, str]:
    seen = "" if of["seen"] is None else f"{duration(of['seen'])} ago"
    return f"{of['permits']:,}", f"{of['waiting']:,}", seen


def _limit(account: _Json) -> str:
    if account["kind"] == "stated":
        used = [f"{each['points']:g} used in {duration(each['period'])}" for each in account["used"]]
        return ", ".join(["stated", *used])
    parts = []
    if account["requests"]:
        parts.append(f"{account['requests']:.0f} in {duration(account['period'])} ({account['kind']})")
    if account["in_flight"]:
        parts.append(f"{account['in_flight']} in flight")
    parts += [
        f"{each['remaining']:.0f} of {each['limit']:.0f} left ({one_line(each['name']) or 'headers'})"
        for each in account["headers"]
    ]
    if account["blocked_for"]:
        parts.append(f"blocked for {duration(account['blocked_for'])}")
    return ", ".join(parts) or "not known"


def _circuits_table(circuits: list[_Json]) -> Table:
    table = _table("circuit", "phase", "attempts", "failures")
    for each in circuits:
        phase = each["phase"].replace("_", "-")
        if each["since"] is not None:
            phase = f"{phase}, failing for {duration(each['since'])}"
        table.add_row(each["circuit"][:_DIGITS], phase, f"{each['attempts']:,}", f"{each['failures']:,}")
    return table
