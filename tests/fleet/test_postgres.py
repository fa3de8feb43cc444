"""What is particular to PostgreSQL: its table, its locks, and who may connect."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import asyncpg
import pytest
from tests.fleet.places import PostgresPlace
from tests.fleet.test_stores import Tally, add, swapped_in_the_end

from lamella import PostgresStore
from lamella.store.network import Swap
from lamella.store.protocol import StoreUnavailable


async def test_several_stores_create_the_table_at_once(
    postgres_place: PostgresPlace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.store.network._PATIENCE", 30.0)
    stores = [postgres_place.store() for _ in range(8)]
    replies = await asyncio.gather(*(store.swap("key", "", f"{n}") for n, store in enumerate(stores)))
    assert sum(reply.done for reply in replies) == 1
    assert await postgres_place.ask("SELECT relpersistence::text FROM pg_class WHERE relname = 'lamella'") == ["u"]
    assert not caplog.records
    for store in stores:
        await store.aclose()


async def test_a_table_that_was_dropped_is_created_again(postgres_place: PostgresPlace) -> None:
    async with postgres_place.store() as store:
        assert await store.update("key", Tally, add, 1) == 1
        await postgres_place.ask("DROP TABLE lamella")
        assert await store.update("key", Tally, add, 1) == 2


async def test_a_user_who_may_not_create_uses_a_table_that_is_there(postgres_place: PostgresPlace) -> None:
    async with postgres_place.store() as store:
        await store.swap("key", "", "one")
    await postgres_place.ask("DROP ROLE IF EXISTS reader")
    await postgres_place.ask("CREATE ROLE reader")
    await postgres_place.ask("GRANT SELECT, INSERT, UPDATE, DELETE ON lamella TO reader")
    async with PostgresStore(f"{postgres_place.url}?options={quote('-c role=reader')}") as store:
        assert (await store.swap("key", "")).state == "one"
        assert (await store.swap("another", "", "two")).done
    await postgres_place.ask("DROP OWNED BY reader")
    await postgres_place.ask("DROP ROLE reader")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_batches_of_the_same_keys_in_any_order_never_deadlock(
    postgres_place: PostgresPlace, isolation: str
) -> None:
    escaped = isolation.replace(" ", "\\ ")
    options = quote(f"-c default_transaction_isolation={escaped} -c deadlock_timeout=10ms")
    stores = [PostgresStore(f"{postgres_place.url}?options={options}") for _ in range(4)]
    keys = [f"key {number}" for number in range(20)]

    async def work(store: PostgresStore, ours: list[str]) -> None:
        for _ in range(5):
            await asyncio.gather(*(store.update(key, Tally, add, 1) for key in ours))

    await asyncio.gather(*(work(store, keys[n:] + keys[:n]) for n, store in enumerate(stores)))
    assert [await stores[0].update(key, Tally, add, 0) for key in keys] == [20] * len(keys)
    for store in stores:
        await store.aclose()
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"
    assert await postgres_place.ask(deadlocks) == [0]


async def test_a_batch_is_one_statement(postgres_place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = 0
    fetch = asyncpg.Connection.fetch

    async def counted(self: asyncpg.Connection, *args: object) -> object:
        nonlocal statements
        statements += 1
        return await fetch(self, *args)

    async with postgres_place.store() as store:
        await store.swap("key", "", "state")
        monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
        replies = await asyncio.gather(*(store.swap(f"key {number}", "", "state") for number in range(100)))
        assert all(reply.done for reply in replies)
        assert statements == 1


async def test_expired_states_are_removed(postgres_place: PostgresPlace) -> None:
    async with postgres_place.store() as other:
        await other.swap("of another", "", "state")
        async with postgres_place.store() as store:
            store.ttl = 0.1  # less than a store accepts, so that the test is short
            await asyncio.gather(*(store.swap(f"key {number}", "", "state") for number in range(10)))
            await asyncio.sleep(0.2)
            await store.swap("new", "", "state")
            await store.swap("new", "")
            assert sorted(await postgres_place.keys()) == ["new", "of another"]


async def test_a_lock_on_the_table_is_a_store_that_does_not_answer(
    postgres_place: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    async with postgres_place.store() as store:
        done = await store.swap("key", "", "state")
        connection = await asyncpg.connect(postgres_place.url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE lamella IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(StoreUnavailable):
                    await store.swap("key", done.version, "another")
        finally:
            await connection.close()
        assert (await swapped_in_the_end(store, "key")).state in {"state", "another"}
        assert [vars(line)["lamella.store_error"] for line in caplog.records] == ["TimeoutError"]


async def test_a_send_that_is_cancelled_leaves_nothing_behind(postgres_place: PostgresPlace) -> None:
    async with postgres_place.store() as store:
        await store.swap("key", "", "state")
        for turns in range(20):
            sending = asyncio.create_task(store.send([Swap("key", "", None)]))
            for _ in range(turns):
                await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait({sending})
            [reply] = await store.send([Swap("key", "", None)])
            assert reply.state == "state"
        others = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%FOR UPDATE%' AND pid <> pg_backend_pid()"
        async with asyncio.timeout(10):
            while await postgres_place.ask(others) != [1]:  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0.05)


async def test_a_wrong_password_is_not_shown(postgres_place: PostgresPlace, caplog: pytest.LogCaptureFixture) -> None:
    url = postgres_place.url.replace("lamella:", "lamella:zq-wrong-")
    async with PostgresStore(url) as store:
        with pytest.raises(StoreUnavailable):
            await store.swap("key", "")
    [line] = caplog.records
    assert vars(line)["lamella.store_error"] == "InvalidPasswordError"
    assert "zq-wrong" not in caplog.text


async def test_a_schema_may_be_given(postgres_place: PostgresPlace) -> None:
    await postgres_place.ask('CREATE SCHEMA IF NOT EXISTS "Of_Mine"')
    async with PostgresStore(postgres_place.url, table="Of_Mine.States") as store:
        assert (await store.swap("key", "", "state")).done
    assert await postgres_place.ask('SELECT key FROM "Of_Mine"."States"') == ["key"]
    await postgres_place.ask('DROP SCHEMA "Of_Mine" CASCADE')
