"""Stores on a network: how they are made, and what no server is needed for. tests/fleet has real servers."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from tests.local_store import Database, LocalStore

from lamella import PostgresStore, RedisStore
from lamella.store.network import NetworkStore, Swap, Swapped
from lamella.store.protocol import StoreUnavailable
from lamella.testing import VirtualClock

SECRET = "zq-pa55word"


@dataclass
class Tally:
    count: int = 0


def add(tally: Tally, _now: float, number: int) -> int:
    tally.count += number
    return tally.count


class SendsTwice(LocalStore):
    """Has lost each answer once, and sent the swaps again."""

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        await super().send(swaps)
        return await super().send(swaps)


async def test_a_swap_that_is_sent_twice_is_done_once() -> None:
    store = SendsTwice(Database())
    assert [await store.update("key", Tally, add, 1) for _ in range(3)] == [1, 2, 3]
    assert (await store.swap("another", "", "state")).done


async def test_a_store_that_is_closed_is_not_opened_again_in_the_same_loop(caplog: pytest.LogCaptureFixture) -> None:
    async with LocalStore(Database()) as store:
        await store.swap("key", "", "state")
    with pytest.raises(StoreUnavailable):
        await store.swap("key", "")
    async with store:
        assert (await store.swap("key", "")).state == "state"
    assert not caplog.records


async def test_a_store_that_is_closed_finishes_what_it_sends(virtual_time: VirtualClock) -> None:
    store = LocalStore(Database(slow=0.5))
    swapping = asyncio.create_task(store.swap("key", "", "state"))
    await asyncio.sleep(0.1)
    await store.aclose()
    assert swapping.done()
    assert (await swapping).done


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [
        (lambda: RedisStore("redis://redis.example"), "redis.asyncio.connection", "redis"),
        (lambda: PostgresStore("postgresql://postgres.example/states"), "asyncpg", "postgres"),
    ],
    ids=["redis", "postgres"],
)
def test_a_client_that_is_not_installed_is_named_with_its_extra(
    make: Callable[[], NetworkStore], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"install lamella\[{extra}\]$"):
        make()


@pytest.mark.parametrize("dsn", [f"mysql://user:{SECRET}@db.example", f"user={SECRET}", ""])
def test_a_dsn_of_another_kind_is_refused_and_not_shown(dsn: str) -> None:
    with pytest.raises(ValueError, match=r"^dsn must begin with postgresql:// or postgres://$"):
        PostgresStore(dsn)


@pytest.mark.parametrize(
    "url",
    [f"redis://user:{SECRET}/?@redis.example", f"redis://:{SECRET}#@redis.example", f"{SECRET}@redis.example", ""],
)
def test_a_url_that_redis_cannot_parse_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url must be a URL with redis://") as caught:
        RedisStore(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value, chain=True))


@pytest.mark.parametrize("table", ["", "a b", 'a"b', "a.b.c", ".a", "a.", "1a", "a" * 64, "größe"])
def test_a_table_must_be_a_name(table: str) -> None:
    with pytest.raises(ValueError, match=r"^table must be a name, or schema\.name, of letters, digits and _, got "):
        PostgresStore("postgresql://", table=table)


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), 0.5, 1e10])
def test_a_ttl_outlives_the_time_between_two_exchanges(ttl: float) -> None:
    with pytest.raises(ValueError, match=r"^ttl must be "):
        PostgresStore("postgresql://", ttl=ttl)


def test_a_store_shows_what_is_no_secret() -> None:
    store = PostgresStore(f"postgresql://user:{SECRET}@db.example", table="of_mine.states", ttl=60)
    assert repr(store) == "PostgresStore(table='of_mine.states', ttl=60)"
    assert repr(RedisStore(f"redis://user:{SECRET}@redis.example")) == "RedisStore(prefix='lamella:', ttl=3600)"
