"""A Redis with TLS, and a Redis Cluster of one node."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from scripts.backends import free_ports
from scripts.fleet import Redis

from lamella import RedisStore
from lamella.store.network import StoreUnavailable


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
    """A node of a cluster that has all slots."""

    name = "redis-cluster"

    def command(self) -> list[str]:
        [bus] = free_ports(1)
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(bus)]


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


async def test_a_cluster_of_one_node_is_a_store() -> None:
    from redis.asyncio import Redis as Client

    with ClusterRedis() as server:
        opened: Any = Client.from_url(server.url, decode_responses=True)
        async with opened as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(20):
                while "state:ok" not in await client.execute_command("CLUSTER", "INFO"):  # noqa: ASYNC110 - nothing tells when
                    await asyncio.sleep(0.05)
        async with RedisStore(server.url) as store:
            done = await asyncio.gather(*(store.swap(f"key {number}", "", "state") for number in range(50)))
            assert all(each.done for each in done)
