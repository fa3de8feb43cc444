"""``PostgresStore``: states in PostgreSQL."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from lamella.store.network import VERSION, NetworkStore, Stored, Swap, Swapped
from lamella.store.wakeups import ID

_URLS: Final = ("postgresql://", "postgres://")
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")
_LOCK: Final = 7_233_176_210_117  # the advisory lock of those who create the table: any number of our own
_SHARES: Final = 10.0  # removals of expired states within a ttl
_REMOVED: Final = 1000  # states that are removed at once
_TRIES: Final = 5
_CONNECT: Final = 5.0  # seconds
_CHECK: Final = 30.0  # seconds between two checks of the connection for wake-ups
_CHANNEL: Final = "lamella_wake_"

# Without TOAST, which would need a vacuum, and with room in each page for the next version of a state.
_CREATE: Final = """
SELECT pg_advisory_xact_lock({lock});
CREATE UNLOGGED TABLE IF NOT EXISTS {table} (
  key text COLLATE "C" PRIMARY KEY, version text NOT NULL, state text NOT NULL, until timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE {table} ALTER COLUMN state SET STORAGE MAIN
"""

# It locks the rows in the order of their keys, and inserts in this order when it has locked all: two never deadlock.
_SWAP: Final = """
WITH wanted AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
    AS wanted (key, seen, version, state, place)
), locked AS MATERIALIZED (
  SELECT key, version, state, until FROM {table} WHERE key = ANY($1) ORDER BY key FOR UPDATE
), has AS MATERIALIZED (
  SELECT key, CASE WHEN until > clock_timestamp() THEN version ELSE '' END AS version, state FROM locked
), updated AS (
  UPDATE {table} AS stored
  SET version = wanted.version, state = wanted.state, until = clock_timestamp() + make_interval(secs => $5)
  FROM wanted JOIN has ON has.key = wanted.key AND has.version = wanted.seen
  WHERE stored.key = wanted.key AND wanted.version <> ''
  RETURNING stored.key
), inserted AS (
  INSERT INTO {table} (key, version, state, until)
  SELECT key, version, state, clock_timestamp() + make_interval(secs => $5) FROM wanted
  WHERE seen = '' AND version <> '' AND key NOT IN (SELECT key FROM locked) ORDER BY key
  ON CONFLICT DO NOTHING
  RETURNING key
), done AS (
  SELECT key FROM updated UNION ALL SELECT key FROM inserted
), woken AS MATERIALIZED (
  SELECT pg_notify('{channel}' || left(name, {id}), name) FROM unnest($6::text[], $7::text[]) AS wakes (key, name)
  WHERE key IN (SELECT key FROM done)
)
SELECT done.key IS NOT NULL, coalesce(has.version, ''),
  CASE WHEN done.key IS NULL AND has.version <> '' THEN has.state ELSE '' END,
  extract(epoch FROM clock_timestamp())::float8
FROM wanted LEFT JOIN done ON done.key = wanted.key LEFT JOIN has ON has.key = wanted.key
WHERE (SELECT count(*) FROM woken) >= 0  -- PostgreSQL executes only what is read
ORDER BY wanted.place
"""

_REMOVE: Final = """
DELETE FROM {table} WHERE key = ANY(ARRAY(
  SELECT key FROM {table} WHERE until < clock_timestamp() LIMIT {removed} FOR UPDATE SKIP LOCKED
))
"""

_STORED: Final = """
SELECT key, state FROM {table} WHERE starts_with(key, $1) AND until > clock_timestamp() ORDER BY key LIMIT $2
"""
_COUNT: Final = """
SELECT count(*), extract(epoch FROM clock_timestamp())::float8 FROM {table}
WHERE starts_with(key, $1) AND until > clock_timestamp()
"""


class PostgresStore(NetworkStore):
    """Keeps states in PostgreSQL 12 or later, for the processes of many machines.

    Each state is one row, under a hash that holds no credential. The table is unlogged: PostgreSQL empties it after a
    crash, and the processes restore what they have seen. It is created when it is first needed. The store's clock is
    that of the server. A process has one connection, and a second one if it waits for another process or has a stated
    limit of attempts in flight. Close them by `aclose`, or use it as ``async with PostgresStore(dsn) as store``.

    Args:
        dsn: ``postgresql://…`` or ``postgres://…``, as asyncpg takes it.
        table: The table, with its schema if that is not the first of the search path: ``"schema.table"``.
        ttl: Seconds for which an unused state is kept, at least 1.

    Raises:
        ImportError: asyncpg is not installed: it comes with the extra ``postgres``.
        ValueError: *dsn*, *table* or *ttl* is not valid.
    """

    def __init__(self, dsn: str, *, table: str = "lamella", ttl: float = 3600.0) -> None:
        try:
            import asyncpg
        except ImportError:
            raise ImportError("PostgresStore needs asyncpg: install lamella[postgres]") from None
        if not dsn.startswith(_URLS):
            raise ValueError(f"dsn must begin with {' or '.join(_URLS)}")  # it may hold a password
        if not _TABLE.fullmatch(table):
            raise ValueError(f"table must be a name, or schema.name, of letters, digits and _, got {table!r}")
        self._asyncpg: Any = asyncpg
        self._dsn = dsn
        self._table = table
        self._remove_at = 0.0  # by the loop's clock
        quoted = ".".join(f'"{part}"' for part in table.split("."))
        self._create = _CREATE.format(table=quoted, lock=_LOCK)
        self._swap = _SWAP.format(table=quoted, channel=_CHANNEL, id=ID)
        self._stored = _STORED.format(table=quoted)
        self._count = _COUNT.format(table=quoted)
        self._remove = _REMOVE.format(table=quoted, removed=_REMOVED)
        super().__init__(ttl=ttl)

    def begin(self) -> None:
        """Begin without connections and tasks."""
        super().begin()
        self._opening: asyncio.Task[Any] | None = None  # its result is the connection

    async def _connected(self) -> Any:
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening.get_loop() is not loop or _is_of_no_use(self._opening):
            self._opening = loop.create_task(self._asyncpg.connect(self._dsn, timeout=_CONNECT))
            self._remove_at = loop.time() + self.ttl / _SHARES * random.random()  # not all processes at once
        return await asyncio.shield(self._opening)  # it may take longer than a swap

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Send *swaps* in one statement."""
        of = self._asyncpg
        # The last one: the server has closed the connection, and the client has not read that yet.
        lost = of.PostgresConnectionError, of.InterfaceError, ConnectionError, of.InternalClientError
        was_open = self._opening is not None and self._opening.done()
        try:
            return await self._send(swaps)
        except lost:
            if not was_open:
                raise
            return await self._send(swaps)  # the connection was closed while it was idle

    async def _send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        connection = await self._connected()
        try:
            # One for each key: a swap of a later one does not see what an earlier one of the same statement has done.
            chosen = {swap.key: swap for swap in swaps if swap.replacement is None}
            chosen |= {swap.key: swap for swap in reversed(swaps) if swap.replacement is not None}
            rows = await self._fetch(connection, list(chosen.values()))
            if asyncio.get_running_loop().time() >= self._remove_at:
                self._remove_at = asyncio.get_running_loop().time() + self.ttl / _SHARES
                await connection.execute(self._remove)
        except BaseException:
            connection.terminate()  # what it waits for would come as the answer to something else
            raise
        found = {swap.key: Swapped(*row) for swap, row in zip(chosen.values(), rows, strict=True)}
        return [_swapped(swap, chosen[swap.key], found[swap.key]) for swap in swaps]

    async def _fetch(self, connection: Any, swaps: Sequence[Swap]) -> Any:
        keys, seen = [swap.key for swap in swaps], [swap.version for swap in swaps]
        new = [swap.replacement or "" for swap in swaps]
        versions, states = [each[:VERSION] for each in new], [each[VERSION:] for each in new]
        wakes = [(swap.key, name) for swap in swaps for name in swap.wakes]
        keys_of, names = [key for key, _ in wakes], [name for _, name in wakes]
        arguments = keys, seen, versions, states, self.ttl, keys_of, names
        for _ in range(_TRIES - 1):
            try:
                return await connection.fetch(self._swap, *arguments)
            except self._asyncpg.UndefinedTableError:
                await connection.execute(self._create)
            except self._asyncpg.TransactionRollbackError:
                pass  # the database isolates transactions more than the statement needs
        return await connection.fetch(self._swap, *arguments)

    async def stored(self, prefix: str, most: int) -> Stored:
        """Read up to *most* of the states whose keys begin with *prefix*.

        Raises:
            Exception: The server does not answer, or refuses.
        """
        connection = await self._connected()
        try:
            rows = await connection.fetch(self._stored, prefix, most)
            count, server = await connection.fetchrow(self._count, prefix)
        except self._asyncpg.UndefinedTableError:
            return Stored({}, 0, True, 0.0)
        return Stored(dict(map(tuple, rows)), count, True, server)

    async def listen(self, process: str, heard: Callable[[str], None]) -> None:
        """Listen on a separate connection."""
        lost = asyncio.Event()
        connection = await self._asyncpg.connect(self._dsn, timeout=_CONNECT)
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(_CHANNEL + process, lambda *message: heard(message[-1]))
            heard("")
            while not lost.is_set():
                try:
                    async with asyncio.timeout(_CHECK):
                        await lost.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1", timeout=_CONNECT)
        finally:
            connection.terminate()
            await asyncio.sleep(0)  # until the socket is closed

    async def aclose(self) -> None:
        """Close the connections. Calls that follow in this event loop go by what their process knows itself."""
        await self.finish()
        opening, self._opening = self._opening, None
        if opening is not None and opening.get_loop() is asyncio.get_running_loop():
            opening.cancel()
            await asyncio.wait({opening})
            if not opening.cancelled() and opening.exception() is None:
                opening.result().terminate()  # says so to the server, and does not wait for it
                await asyncio.sleep(0)  # until the socket is closed

    def __repr__(self) -> str:
        return f"PostgresStore(table={self._table!r}, ttl={self.ttl:g})"


def _is_of_no_use(opening: asyncio.Task[Any]) -> bool:
    if not opening.done():
        return False
    return opening.cancelled() or opening.exception() is not None or opening.result().is_closed()


def _swapped(swap: Swap, sent: Swap, found: Swapped) -> Swapped:
    """Return the result of *swap*, where *sent* was sent for all with its key and has *found* a state."""
    if swap is sent and found.done:
        return found._replace(version=(swap.replacement or "")[:VERSION], state="")
    if found.done and sent.replacement is not None:
        return Swapped(False, sent.replacement[:VERSION], sent.replacement[VERSION:], found.server)
    return found
