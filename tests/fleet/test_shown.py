"""``lamella fleet`` with a real store."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from scripts.fleet import PASSWORD, Server
from tests.fleet.places import Place, PostgresPlace, RedisPlace
from tests.fleet.test_stores import calls_with_secrets
from typer.testing import CliRunner, Result

from lamella import RetryBudget
from lamella.breaker.circuit import CircuitState
from lamella.cli import fleet
from lamella.cli.app import app
from lamella.retry.budget import Spent, take
from lamella.throttle.estimate import RateEstimate
from lamella.throttle.lease import Holder, LeaseState, as_text

SECRET = PASSWORD
ACCOUNT = "0123456789abcdef" * 2
MANY = 2500
STATE = '{"known": {"logs": {}}, "clock": 1000.0, "server": null, "holders": {}, "serial": 0, "closed_until": -1.0}'


async def shown(place: Place, *arguments: str, columns: int = 80) -> Result:
    env = {"LAMELLA_STORE_URL": place.url, "COLUMNS": str(columns)}
    return await asyncio.to_thread(CliRunner().invoke, app, ["fleet", *arguments], env=env)


async def as_json(place: Place, *arguments: str) -> Any:
    result = await shown(place, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def put(place: Place, prefix: str, state: str, number: int = 1) -> None:
    """Store *number* times the same state."""
    if isinstance(place, RedisPlace):
        text = "0" * 16 + state
        await place.client.mset({f"lamella:{prefix}{each:06}": text for each in range(number)})
        return
    async with place.store() as store:  # creates the table
        await store.swap("other", "", "state")
    await place.ask(
        "INSERT INTO lamella SELECT $1 || lpad((n - 1)::text, 6, '0'), 'version', $2, now() + interval '1 h' "
        "FROM generate_series(1, $3) AS n",
        prefix,
        state,
        number,
    )


def opens(state: CircuitState, now: float) -> None:
    state.epoch, state.since, state.opened = "attempt", now, now


async def put_states(place: Place) -> None:
    """Store a blocked account with two holders, an open circuit and a budget that is partly used."""
    known = RateEstimate(untouched=False, phase="steady", requests=100.0, period=60.0, blocked_until=1030.0)
    holders = {"here": Holder(seen=998.0, wanting=4, open=[[1000.0, 0, 1, 1.0]] * 2), "there": Holder(seen=990.0)}
    async with place.store() as store:
        clock = (await store.swap("other", "")).server
        await store.swap(f"lease:{ACCOUNT}", "", as_text(LeaseState(known, 1000.0, clock, holders)))
        await store.update("breaker:cc", CircuitState, opens)
        await store.update("retry-budget", Spent, take, RetryBudget(), 0, 7)


async def test_limits_holders_circuits_and_the_budget_are_shown(place: Place) -> None:
    await put_states(place)
    before = await place.keys()
    found = await as_json(place)
    [account] = found["accounts"]["states"]
    assert 0 < account["blocked_for"] <= 30
    assert [(each["holder"], each["permits"], each["waiting"]) for each in account["holders"]] == [
        ("here", 2, 4),
        ("there", 0, 0),
    ]
    assert [each["seen"] // 10 for each in account["holders"]] == [0, 1]
    expected = {"account": ACCOUNT, "kind": "window", "requests": 100.0, "period": 60.0, "permits": 2, "waiting": 4}
    assert account | expected == account
    [circuit] = found["circuits"]["states"]
    assert (circuit["circuit"], circuit["phase"]) == ("cc", "open")
    assert 0 <= circuit["since"] < 10
    assert found["retry_budgets"]["states"] == [{"missing": 7.0}]
    for columns in (80, 200):
        text = (await shown(place, columns=columns)).stdout
        assert "100 in 1 min (window), blocked" in text
        assert "open, failing for " in text
        assert "Retry budget: 7 used" in text
        assert max(map(len, text.splitlines())) <= columns
    assert (await as_json(place, "--account", ACCOUNT[:8]))["accounts"]["count"] == 1
    assert (await as_json(place, "--account", "b"))["accounts"]["count"] == 0
    assert sorted(await place.keys()) == sorted(before)


async def test_no_secret_is_shown(place: Place) -> None:
    async with place.store() as store:
        await calls_with_secrets(store)
    found = await as_json(place)
    stated = [each["used"] for each in found["accounts"]["states"] if each["kind"] == "stated"]
    assert [[each["period"] for each in used] for used in stated] == [[1.0]]
    assert [each["phase"] for each in found["circuits"]["states"]] == ["closed"]
    assert SECRET not in json.dumps(found)
    assert SECRET not in (await shown(place)).output


async def test_an_empty_store_stays_empty(place: Place) -> None:
    result = await shown(place)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith(": 0 accounts, 0 circuits\n")
    if isinstance(place, PostgresPlace):
        assert await place.ask("SELECT to_regclass('lamella')") == [None]


async def test_more_accounts_than_are_shown_are_counted(place: Place) -> None:
    await put(place, "lease:", STATE, MANY)
    result = await shown(place, "--limit", "3")
    assert result.exit_code == 0
    assert f"{MANY - 3:,} more accounts: --limit N shows more" in result.stdout
    assert len(result.stdout.splitlines()) == 7


async def test_redis_is_not_blocked_by_a_command_that_reads_all(redis_place: RedisPlace) -> None:
    await put(redis_place, "lease:", STATE, MANY)
    await redis_place.client.config_resetstat()
    assert (await shown(redis_place)).exit_code == 0
    stats = await redis_place.client.info("commandstats")
    assert not {"cmdstat_keys", "cmdstat_mget"} & stats.keys()
    assert stats["cmdstat_scan"]["calls"] >= MANY / 1000
    assert stats["cmdstat_get"]["calls"] <= 2000 + 3  # and one for the clock, three times


async def test_states_of_another_prefix_are_not_shown(redis_place: RedisPlace) -> None:
    for prefix in ("a*", "ab"):
        await redis_place.client.set(f"{prefix}lease:00", "0" * 16 + STATE)
    assert (await as_json(redis_place, "--prefix", "a*"))["accounts"]["count"] == 1


async def test_a_state_of_another_version_is_counted(place: Place) -> None:
    await put(place, "lease:", '{"known": {}}')
    await put(place, "breaker:", "no JSON")
    result = await shown(place)
    assert result.exit_code == 0
    assert "2 states cannot be read: another version of lamella has written them" in result.stdout


async def test_a_frozen_store_is_reported(server: Server, own_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_SECONDS", 0.2)
    server.freeze()
    result = await shown(own_place)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(" cannot be read: no answer within 0.2 s\n")
    assert SECRET not in result.stderr
