"""What stores of either kind share, for tests that do the same with both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lamella import PostgresStore, RedisStore

__all__ = ["Place", "PostgresPlace", "RedisPlace", "store_of"]

_LISTENING = "FROM pg_stat_activity WHERE query LIKE 'LISTEN %lamella_wake_%'"


def store_of(url: str) -> RedisStore | PostgresStore:
    """Return the store for an address."""
    return RedisStore(url) if url.startswith("redis:") else PostgresStore(url)


class RedisPlace:
    """A Redis, empty at first."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import Redis

        self.url = url
        self.client: Any = Redis.from_url(url, decode_responses=True)

    async def __aenter__(self) -> RedisPlace:
        await self.forget()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    def store(self, *, ttl: float = 3600.0) -> RedisStore:
        """Return a store of one process."""
        return RedisStore(self.url, ttl=ttl)

    async def forget(self) -> None:
        """Lose all states."""
        await self.client.flushall()
        await self.client.script_flush()

    async def lifetime(self, key: str) -> float:
        """Return the seconds for which the state is kept."""
        return float(await self.client.pttl(f"lamella:{key}")) / 1000

    async def expire(self, key: str) -> None:
        """Let the state expire now."""
        await self.client.pexpire(f"lamella:{key}", 0)

    async def keys(self) -> list[str]:
        """Return the keys of all states."""
        return [key.removeprefix("lamella:") for key in await self.client.keys()]

    async def listeners(self) -> int:
        """Return the number of connections for wake-ups."""
        return len(await self.client.pubsub_channels("lamella:wake:*"))

    async def cut(self) -> None:
        """Break these connections."""
        await self.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def cut_all(self) -> None:
        """Break all connections but this one."""
        await self.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await self.client.aclose()

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Answer reads and refuse to store anything."""
        await self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await self.client.config_set("maxmemory", 0)


class PostgresPlace:
    """A PostgreSQL, without the table at first."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> PostgresPlace:
        await self.ask("DROP TABLE IF EXISTS lamella")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is open."""

    def store(self, *, ttl: float = 3600.0) -> PostgresStore:
        """Return a store of one process."""
        return PostgresStore(self.url, ttl=ttl)

    async def ask(self, statement: str, *values: object) -> list[Any]:
        """Return the first column of the rows of a statement."""
        import asyncpg

        connection = await asyncpg.connect(self.url)
        try:
            return [row[0] for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    async def forget(self) -> None:
        """Lose all states, as after a crash."""
        if await self.ask("SELECT to_regclass('lamella')") != [None]:
            await self.ask("TRUNCATE lamella")

    async def lifetime(self, key: str) -> float:
        """Return the seconds for which the state is kept."""
        seconds = "SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM lamella WHERE key = $1"
        [left] = await self.ask(seconds, key)
        return float(left)

    async def expire(self, key: str) -> None:
        """Let the state expire now."""
        await self.ask("UPDATE lamella SET until = clock_timestamp() WHERE key = $1", key)

    async def keys(self) -> list[str]:
        """Return the keys of all states."""
        return await self.ask("SELECT key FROM lamella")

    async def listeners(self) -> int:
        """Return the number of connections for wake-ups."""
        [number] = await self.ask(f"SELECT count(*) {_LISTENING}")
        return int(number)

    async def cut(self) -> None:
        """Break these connections."""
        await self.ask(f"SELECT pg_terminate_backend(pid) {_LISTENING}")

    async def cut_all(self) -> None:
        """Break all connections but this one."""
        others = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        await self.ask(f"SELECT pg_terminate_backend(pid, 10000) {others}")

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Answer reads and refuse to store anything."""
        await self.ask("ALTER TABLE lamella ADD CONSTRAINT is_full CHECK (false) NOT VALID")
        try:
            yield
        finally:
            await self.ask("ALTER TABLE lamella DROP CONSTRAINT is_full")


Place = RedisPlace | PostgresPlace
