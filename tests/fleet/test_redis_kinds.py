"""A Redis with TLS, and a Redis Cluster."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from scripts.backends import free_ports
from scripts.fleet import Redis
from tests.environment import HANGS
from tests.fleet.test_wakeups import listening

from lamella import RedisStore, stack
from lamella.store.protocol import StoreUnavailable


class TlsRedis(Redis):
    """A Redis that accepts only TLS, with a certificate that it has signed itself."""

    name = "redis-tls"

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"

    @property
    def certificate(self) -> str:
        return str(self.folder / "certificate")

    def prepare(self) -> None:
        super().prepare()
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        make += ["-addext", "subjectAltName=IP:127.0.0.1"]
        make += ["-out", self.certificate, "-keyout", str(self.folder / "key")]
        subprocess.run(make, check=True, capture_output=True)  # noqa: S603

    def command(self) -> list[str]:
        tls = ["--tls-cert-file", self.certificate, "--tls-key-file", str(self.folder / "key")]
        tls += ["--tls-ca-cert-file", self.certificate, "--tls-auth-clients", "no"]
        return [*super().command(), "--port", "0", "--tls-port", str(self.port), *tls]

    def answers(self) -> bool:
        with suppress(OSError):
            return bool(ssl.get_server_certificate(("127.0.0.1", self.port), timeout=1))
        return False


class ClusterRedis(Redis):
    """A node of a cluster."""

    name = "redis-cluster"

    def prepare(self) -> None:
        super().prepare()
        [self.bus] = free_ports(1)

    def command(self) -> list[str]:
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus)]


@asynccontextmanager
async def cluster(nodes: int) -> AsyncIterator[list[ClusterRedis]]:
    """Start a cluster in which each node has as many slots as the others."""
    from redis.asyncio import Redis as Client

    async with AsyncExitStack() as stack:
        servers = [ClusterRedis() for _ in range(nodes)]
        for server in servers:
            stack.enter_context(server)
        clients: list[Any] = [Client.from_url(each.url, decode_responses=True) for each in servers]
        for client in clients:
            await stack.enter_async_context(client)
        bounds = [16384 * number // nodes for number in range(nodes + 1)]
        for client, first, last in zip(clients, bounds, bounds[1:], strict=False):
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        for each in servers[1:]:
            await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", each.port, each.bus)
        async with asyncio.timeout(HANGS):
            for client in clients:
                about = ""
                while not ("state:ok" in about and f"cluster_size:{nodes}" in about):
                    await asyncio.sleep(0.05)  # nothing tells when
                    about = await client.execute_command("CLUSTER", "INFO")
        yield servers


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsRedis]:
    with TlsRedis() as server:
        assert isinstance(server, TlsRedis)
        yield server


async def test_a_store_with_tls_verifies_the_server(tls: TlsRedis) -> None:
    async with RedisStore(f"{tls.url}?ssl_ca_certs={tls.certificate}") as store:
        assert (await store.swap("key", "", "state")).done
        assert (await store.swap("key", "")).state == "state"
    async with RedisStore(tls.url) as store:
        with pytest.raises(StoreUnavailable):
            await store.swap("key", "")


@pytest.mark.parametrize("nodes", [1, 3])
async def test_a_cluster_is_a_store(nodes: int) -> None:
    async with cluster(nodes) as servers, RedisStore(servers[0].url) as store:
        keys = [f"key {number}" for number in range(50)]
        assert await called(store) == [200] * 20
        done = await asyncio.gather(*(store.swap(key, "", "state") for key in keys))
        assert all(each.done for each in done)
        versions = [each.version for each in done]
        done = await asyncio.gather(*(store.swap(*each, "another") for each in zip(keys, versions, strict=True)))
        assert all(each.done for each in done)
        async with RedisStore(servers[-1].url) as another:
            found = await another.stored("key ", 20)
            sleeper = await listening(another)
            await sleeper.wakes(store)
        assert (len(found.states), found.number, found.is_exact) == (20, 50, True)
        if nodes > 1:
            servers[1].kill()
            with pytest.raises(StoreUnavailable):
                await asyncio.gather(*(store.swap(key, "") for key in keys))
            assert await called(store) == [200] * 20  # without the store


async def called(store: RedisStore) -> list[int]:
    """Call 20 accounts, and return the statuses of the answers."""

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response()

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        layers = stack(account=lambda request: request.headers["X-ACCOUNT-KEY"], store=store)
        async with aiohttp.ClientSession(middlewares=layers) as session:
            statuses = []
            for number in range(20):
                headers = {"X-ACCOUNT-KEY": f"account {number}"}
                async with session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/", headers=headers) as response:
                    statuses.append(response.status)
            return statuses
    finally:
        await runner.cleanup()
