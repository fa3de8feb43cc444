"""``RedisStore``: states in Redis or Valkey."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from lamella.store.network import VERSION, NetworkStore, Stored, Swap, Swapped
from lamella.store.wakeups import ID

# The script only compares and replaces. It does not interpret states. A user may lack the right to publish. A value of
# another type is given as a state that is not valid, so that it affects only those who use this key.
_SWAP: Final = f"""
local time = redis.call('TIME')
local has = redis.pcall('GET', KEYS[1])
if has and has.err then
  if not string.find(has.err, 'WRONGTYPE', 1, true) then return has end
  return {{0, string.rep('?', {VERSION}) .. has.err, time[1], time[2]}}
end
local version = has and string.sub(has, 1, {VERSION}) or ''
if #ARGV > 1 and version == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  for i = 4, #ARGV, 2 do
    redis.pcall('PUBLISH', ARGV[i], ARGV[i + 1])
  end
  return {{1, string.sub(ARGV[2], 1, {VERSION}), time[1], time[2]}}
end
return {{0, has or '', time[1], time[2]}}
"""

_PATTERN: Final = re.compile(r"[\\*?\[\]^-]")  # characters that mean something in a pattern
_SCANNED: Final = 1000  # keys that Redis looks at in one command
_SCANS: Final = 2000
_MOST_KEYS: Final = 200_000
_READ: Final = 100  # states that are read in one command
_CHECK: Final = 30  # seconds between two checks of the connection for wake-ups


class RedisStore(NetworkStore):
    """Stores states in Redis or Valkey, for processes on many machines.

    Each state is stored under one key, a hash that contains no credential. The store's clock is that of the server. If
    the server is a node of a Redis Cluster, the store finds the other nodes; their clocks have to agree. A process that
    waits for another one, or has a stated limit of attempts in flight, opens one more connection, to channels below the
    prefix.
    Close it by `aclose`, or use it as ``async with RedisStore(url) as store``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as for redis-py.
        prefix: The prefix of all keys.
        ttl: Seconds for which an unused state is kept, at least 1.

    Raises:
        ImportError: redis-py is not installed. The extra ``redis`` installs it.
        ValueError: *url* or *ttl* is not valid.
    """

    def __init__(self, url: str, *, prefix: str = "lamella:", ttl: float = 3600.0) -> None:
        try:
            from redis.asyncio.connection import parse_url
        except ImportError:
            raise ImportError("RedisStore needs redis-py: install lamella[redis]") from None
        try:
            parse_url(url)  # fail now, not at the first call
        except ValueError:  # whose message may contain a part of the password
            raise ValueError(
                "url must be a URL with redis://, rediss:// or unix://, in which special characters of a password are "
                "percent-encoded, such as %2F for /"
            ) from None
        self._url = url
        self._prefix = prefix
        self._is_cluster = False  # whether other nodes have some of the keys
        super().__init__(ttl=ttl)

    def begin(self) -> None:
        """Begin without connections and tasks."""
        super().begin()
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _connected(self) -> Any:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to one event loop
            self._loop = loop
            kind = RedisCluster if self._is_cluster else Redis
            # Try twice: a connection may have been closed while it was idle.
            self._client = kind.from_url(
                self._url, decode_responses=True, encoding_errors="replace", retry=Retry(NoBackoff(), 1)
            )
        return self._client

    async def _find_nodes(self) -> None:
        """Connect to all nodes of the cluster from now on."""
        client, self._client, self._loop = self._client, None, None
        self._is_cluster = True
        if client is not None:
            await client.aclose()

    async def send(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Send *swaps* in one pipeline, to each node of a cluster."""
        from redis.exceptions import MovedError

        pipeline = self._connected().pipeline(transaction=False)
        for key, version, replacement, wakes in swaps:
            messages = [part for name in wakes for part in (self._channel(name[:ID]), name)]
            change = () if replacement is None else (replacement, int(self.ttl * 1000), *messages)
            pipeline.eval(_SWAP, 1, self._prefix + key, version, *change)
        replies = await pipeline.execute(raise_on_error=False)
        for each in replies:
            if isinstance(each, MovedError) and not self._is_cluster:
                await self._find_nodes()
                return await self.send(swaps)  # those that were done are recognized by their versions
            if isinstance(each, Exception):
                raise each
        return [_swapped(*reply) for reply in replies]

    def _channel(self, process: str) -> str:
        return f"{self._prefix}wake:{process}"

    async def listen(self, process: str, heard: Callable[[str], None]) -> None:
        """Subscribe on a separate connection. A node of a cluster gets the messages of all nodes."""
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        retry = Retry(NoBackoff(), 0)
        client = Redis.from_url(self._url, decode_responses=True, health_check_interval=_CHECK, retry=retry)
        channel: Any = client.pubsub()
        try:
            await channel.subscribe(self._channel(process))
            while True:
                message = await channel.get_message(timeout=_CHECK)  # None: nothing came, and it has sent a PING
                if message is not None:
                    heard(message["data"] if message["type"] == "message" else "")
        finally:
            await channel.aclose()
            await client.aclose()

    async def stored(self, prefix: str, most: int) -> Stored:
        """Read up to *most* of the states whose keys begin with *prefix*, without blocking the server.

        Raises:
            Exception: The server does not answer, or refuses.
        """
        from redis.exceptions import ResponseError

        try:
            about = await self._connected().execute_command("CLUSTER INFO")
        except ResponseError:
            about = ""  # it is not in a cluster
        if not self._is_cluster and "cluster_state" in str(about):
            await self._find_nodes()
        pattern = _PATTERN.sub(r"\\\g<0>", self._prefix + prefix) + "*"
        client = self._connected()
        found: set[str] = set()
        cursor = scans = 0
        if self._is_cluster:
            await client.initialize()
        for node in client.get_primaries() if self._is_cluster else [None]:
            cursor = -1
            while cursor and scans < _SCANS and len(found) <= _MOST_KEYS:
                cursor, keys = await _scanned(client, node, max(cursor, 0), pattern)
                found.update(keys)
                scans += 1
            if cursor:
                break
        chosen = sorted(found)[:most]
        states: dict[str, str] = {}
        for first in range(0, len(chosen), _READ):
            some = chosen[first : first + _READ]
            pipeline = client.pipeline(transaction=False)
            for key in some:
                pipeline.get(key)
            for key, text in zip(some, await pipeline.execute(raise_on_error=False), strict=True):
                if isinstance(text, Exception) and "WRONGTYPE" not in str(text):
                    raise text
                if text is not None:  # it has not expired meanwhile
                    states[key.removeprefix(self._prefix)] = str(text)[VERSION:]
        [clock] = await self.send([Swap("clock", "", None)])
        return Stored(states, len(found), not cursor, clock.server)

    async def aclose(self) -> None:
        """Close the connections. Calls that follow in this event loop go by what their process knows itself."""
        await self.finish()
        client, self._client, self._loop = self._client, None, None
        if client is not None:
            await client.aclose()

    def __repr__(self) -> str:
        return f"RedisStore(prefix={self._prefix!r}, ttl={self.ttl:g})"


async def _scanned(client: Any, node: Any, cursor: int, pattern: str) -> tuple[int, list[str]]:
    """Return the next cursor and some keys. *node* is one of a cluster, or None."""
    if node is None:
        found: tuple[int, list[str]] = await client.scan(cursor, match=pattern, count=_SCANNED)
        return found
    cursors, keys = await client.scan(cursor, match=pattern, count=_SCANNED, target_nodes=node)
    return cursors[node.name], keys


def _swapped(done: int, has: str, seconds: str, microseconds: str) -> Swapped:
    state = has[VERSION:] or ("" if done else has)  # a shorter value is not one of ours
    return Swapped(bool(done), has[:VERSION], state, int(seconds) + int(microseconds) / 1e6)
