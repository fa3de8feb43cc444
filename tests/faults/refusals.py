"""Servers and proxies that refuse a connection, permanently or for a while."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import aiohttp
from tests.faults.certificates import HOST, client_context, server_context, trusted_server_context
from tests.faults.wire import Greet, Line, Route, Wire, head

from lamella import CertificateInvalid, ConnectFailed, LamellaError, ProxyRefused

__all__ = ["FOR_GOOD", "FOR_NOW", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """One way to refuse a connection."""

    greet: Greet
    error: type[LamellaError]
    says: str = ""
    """Text that the error must contain."""
    route: Route = Route.TLS
    client: Callable[[], ssl.SSLContext] = client_context
    """What the client trusts."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the request."""

    def wire(self) -> Wire:
        """The server, or the proxy."""
        return Wire(self.route, greet=self.greet)

    def target(self, wire: Wire) -> tuple[str, dict[str, Any]]:
        """The URL, and the options of the request."""
        near = f"127.0.0.1:{wire.port}"
        if self.route is Route.TLS:
            return f"https://{near}/", dict(self.options)
        return f"https://{HOST}/", {"proxy": f"http://{near}", **self.options}


def _shows(kind: str) -> Greet:
    """A certificate of some kind."""

    async def greet(line: Line) -> None:
        await _reach(line)
        await line.open(server_context(kind))

    return greet


async def _reach(line: Line) -> None:
    """Get to the handshake, through the proxy if there is one."""
    if line.wire.route is Route.TUNNEL:
        await line.open()
        await line.read_head()
        line.wire.heads.pop()
        line.send(b"HTTP/1.1 200 Connected\r\n\r\n")


def _shakes_hands(make: Callable[[], ssl.SSLContext]) -> Greet:
    """A handshake that sends an alert before it fails, as real servers do. asyncio's server sends none."""

    async def greet(line: Line) -> None:
        await _reach(line)
        await line.open()
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = make().wrap_bio(received, sent, server_side=True)
        while True:
            try:
                server.do_handshake()
            except ssl.SSLWantReadError:
                line.send(sent.read())
                received.write(await line.some())
            except ssl.SSLError:
                line.send(sent.read())
                break
        await line.silence()

    return greet


@cache
def _old_server() -> ssl.SSLContext:
    context = trusted_server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@cache
def _new_server() -> ssl.SSLContext:
    context = trusted_server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@cache
def _server_of_one_cipher() -> ssl.SSLContext:
    context = trusted_server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES128-GCM-SHA256")
    return context


@cache
def _asks_for_a_certificate(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = trusted_server_context(asks=True)
    context.minimum_version = context.maximum_version = version
    return context


@cache
def _new_client() -> ssl.SSLContext:
    return client_context(oldest=ssl.TLSVersion.TLSv1_3)


@cache
def _old_client() -> ssl.SSLContext:
    context = client_context.__wrapped__()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@cache
def _client_of_another_cipher() -> ssl.SSLContext:
    context = client_context.__wrapped__()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES256-GCM-SHA384")
    return context


def _says(alert: int) -> Greet:
    """Answer the client's hello with the alert of this number."""
    return _answers(bytes([21, 3, 3, 0, 2, 2, alert]))


def _answers(said: bytes) -> Greet:
    async def greet(line: Line) -> None:
        await _reach(line)
        await line.open()
        await line.some()
        line.send(said)
        line.close()

    return greet


def _proxy(status: int, phrase: str = "No") -> Greet:
    """A proxy's answer to CONNECT."""

    async def greet(line: Line) -> None:
        await line.open()
        await line.read_head()
        line.send(head(f"{status} {phrase}", "Content-Length: 0", "Connection: close"))
        line.close()

    return greet


def _tls(greet: Greet, says: str, **more: Any) -> Refusal:
    return Refusal(greet, CertificateInvalid, says, **more)


def _refused(status: int) -> Refusal:
    return Refusal(_proxy(status), ProxyRefused, f"proxy: {status} No", Route.TUNNEL)


_MISMATCH: Final = "the certificate's fingerprint is "

FOR_GOOD: Final[dict[str, Refusal]] = {
    "unknown authority": _tls(_shows("unknown authority"), "unable to get local issuer certificate"),
    "expired": _tls(_shows("expired"), "certificate has expired"),
    "another host": _tls(_shows("another host"), "certificate is not valid for '127.0.0.1'"),
    "unknown authority, tunnel": _tls(_shows("unknown authority"), "unable to get local issuer", route=Route.TUNNEL),
    "expired, tunnel": _tls(_shows("expired"), "certificate has expired", route=Route.TUNNEL),
    "another host, tunnel": _tls(_shows("another host"), f"not valid for '{HOST}'", route=Route.TUNNEL),
    "fingerprint": _tls(_shows("right"), f"not {(b'x' * 32).hex()}", options={"ssl": aiohttp.Fingerprint(b"x" * 32)}),
    "fingerprint, tunnel": _tls(
        _shows("right"), _MISMATCH, route=Route.TUNNEL, options={"ssl": aiohttp.Fingerprint(b"x" * 32)}
    ),
    "an old server": _tls(_shakes_hands(_old_server), "PROTOCOL_VERSION", client=_new_client),
    "a new server": _tls(_shakes_hands(_new_server), "PROTOCOL_VERSION", client=_old_client),
    "no common cipher": _tls(
        _shakes_hands(_server_of_one_cipher), "HANDSHAKE_FAILURE", client=_client_of_another_cipher
    ),
    "an old server, tunnel": _tls(
        _shakes_hands(_old_server), "PROTOCOL_VERSION", client=_new_client, route=Route.TUNNEL
    ),
    "wants a certificate, TLS 1.2": _tls(
        _shakes_hands(lambda: _asks_for_a_certificate(ssl.TLSVersion.TLSv1_2)), "HANDSHAKE_FAILURE"
    ),
    "wants a certificate, TLS 1.3": _tls(
        _shakes_hands(lambda: _asks_for_a_certificate(ssl.TLSVersion.TLSv1_3)), "CERTIFICATE_REQUIRED"
    ),
    "knows no such name": _tls(_says(112), "UNRECOGNIZED_NAME"),
    "denies access": _tls(_says(49), "ACCESS_DENIED"),
    "plain HTTP": _tls(_answers(head("400 Bad Request", "Content-Length: 0")), "[SSL: "),
    "no TLS": _tls(_answers(bytes(range(100, 220))), "[SSL: "),
    **{f"a proxy's {status}": _refused(status) for status in (302, 400, 401, 403, 404, 405, 407, 451, 501, 511)},
}
"""These fail in the same way again."""

FOR_NOW: Final[dict[str, Refusal]] = {
    **{
        f"a proxy's {status}": Refusal(_proxy(status), ConnectFailed, f"proxy: {status} No", Route.TUNNEL)
        for status in (408, 425, 429, 500, 502, 503, 504)
    },
    "an internal error": Refusal(_says(80), ConnectFailed, "INTERNAL_ERROR"),
    "a handshake that is called off": Refusal(_says(90), ConnectFailed, "USER_CANCELLED"),
    "a broken record": Refusal(_says(20), ConnectFailed, "RECORD_MAC"),
    "a polite end of the handshake": Refusal(_says(0), ConnectFailed),
    "the end of the handshake": Refusal(_answers(b""), ConnectFailed),
    "half a handshake": Refusal(_answers(bytes([22, 3, 3, 0, 200, 2])), ConnectFailed),
}
"""These may succeed the next time."""
