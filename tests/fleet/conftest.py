"""The Redis and the PostgreSQL that `make test-fleet` has started; without them nothing is collected here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from scripts.fleet import Postgres, Redis, Server
from tests import environment  # noqa: F401 - to clean it, as tests/conftest.py does in other runs
from tests.fleet.places import PostgresPlace, RedisPlace

_REDIS, _POSTGRES = "LAMELLA_REDIS_URL", "LAMELLA_POSTGRES_URL"

_FILES = [
    "test_stores.py",
    "test_postgres.py",
    "test_processes.py",
    "test_redis_kinds.py",
    "test_outage.py",
    "test_shown.py",
    "test_wakeups.py",
]
collect_ignore = [] if os.environ.get(_REDIS) else _FILES


@pytest.fixture
async def redis_place() -> AsyncIterator[RedisPlace]:
    """A separate Redis."""
    async with RedisPlace(os.environ[_REDIS]) as place:
        yield place


@pytest.fixture
async def postgres_place() -> AsyncIterator[PostgresPlace]:
    """A separate PostgreSQL."""
    async with PostgresPlace(os.environ[_POSTGRES]) as place:
        yield place


@pytest.fixture(params=["redis", "postgres"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[RedisPlace | PostgresPlace]:
    """Each of the two."""
    kind, url = (RedisPlace, _REDIS) if request.param == "redis" else (PostgresPlace, _POSTGRES)
    async with kind(os.environ[url]) as place:
        yield place


@pytest.fixture(scope="module", params=[Redis, Postgres], ids=["redis", "postgres"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of either kind."""
    with request.param() as server:
        yield server


@pytest.fixture
def server(own_server: Server) -> Iterator[Server]:
    """A server of either kind that a test may freeze and kill."""
    yield own_server
    own_server.thaw()
    own_server.start()


@pytest.fixture
async def own_place(server: Server) -> AsyncIterator[RedisPlace | PostgresPlace]:
    """What stores share on that server."""
    kind = RedisPlace if isinstance(server, Redis) else PostgresPlace
    async with kind(server.url) as place:
        yield place
        server.thaw()
