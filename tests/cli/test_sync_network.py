"""``lamella sync`` behind a proxy, with an authority of one's own, and with a lookback."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from tests.cli.serving import answering, served, write_accounts
from tests.environment import HANGS
from typer.testing import CliRunner, Result

from lamella.cli.app import app
from lamella.sync import contact

PROXIES = [name for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for name in (each, each.lower())]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_own_folder: None) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    write_accounts(tmp_path, "Ada")


def arguments(url: str) -> list[str]:
    return ["sync", "--accounts", "accounts.csv", "--resource", "items", "--base-url", url]


def sync(url: str, *more: str) -> Result:
    return CliRunner().invoke(app, [*arguments(url), *more])


@pytest.mark.parametrize("user", ["", "ada:zq-password@"])
def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: str) -> None:
    (tmp_path / "netrc").write_text("default login somebody password zq-netrc")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with served() as server:
        monkeypatch.setenv("http_proxy", server.url.replace("http://", f"http://{user}"))
        shown = sync("http://books.example")
        assert shown.exit_code == 0, shown.output
        assert {request.headers["Host"] for request in server.received} == {"books.example"}
        assert ["Proxy-Authorization" in request.headers for request in server.received] == [bool(user)]
        assert "Authorization" not in server.received[0].headers
    assert "zq-" not in shown.output


async def refused(_: web.Request) -> web.Response:
    return web.Response(status=407)


def test_a_proxy_that_refuses_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(refused) as url:
        for variable, target in (("http_proxy", "http://books.example"), ("https_proxy", "https://books.example")):
            monkeypatch.setenv(variable, url.replace("http://", "http://ada:zq-password@"))
            shown = sync(target, "--journal", variable)
            assert shown.exit_code == 1
            assert "407" in shown.output
            assert "zq-password" not in shown.output


@pytest.mark.parametrize("proxy", ["socks5://ada:zq-password@proxy:1080", "a proxy", "http://:3128", "http://proxy:zq"])
def test_another_kind_of_proxy_is_rejected(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    shown = sync("https://books.example")
    told = "lamella: HTTPS_PROXY must be the URL of an HTTP proxy, such as http://proxy:3128\n"
    assert (shown.exit_code, shown.stdout, shown.stderr) == (2, "", told)


@pytest.mark.parametrize("name", ["127.0.0.1", "*", "127.0.0.1:{port}", "books.example, 127.0.0.0/8"])
def test_no_proxy_hosts_are_reached_directly(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with socket.socket() as nobody, served() as server:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", name.format(port=server.url.rpartition(":")[2]))
        assert sync(server.url).exit_code == 0


@pytest.mark.parametrize("name", ["10.0.0.0/8", "127.0.0.1:1", "127.0.0.0/99", "::/0", "example", "7.0.0.1"])
def test_other_hosts_than_those_of_no_proxy_are_reached_by_the_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with served() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", name)
        assert sync("http://127.0.0.1:9").exit_code == 0
        assert {request.headers["Host"] for request in proxy.received} == {"127.0.0.1:9"}


@contextmanager
def https(authority: trustme.CA) -> Iterator[str]:
    """A server that answers each request with an empty list."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": [], "meta": {"pagination": {"total": 0, "totalPages": 0}}}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(HANGS)
        server.server_close()


@pytest.mark.slow
def test_a_custom_certificate_authority_is_accepted(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with https(authority) as url:
        assert sync(url).exit_code == 1
        # OpenSSL reads the variable once for a process.
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "lamella", *arguments(url)],
            check=False,
            env=os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
        assert done.returncode == 0, done.stderr


def test_lookback_reads_earlier_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as server:
        moments = []
        for more in ((), ("--lookback", "0s"), ("--lookback", "2d")):
            assert sync(server.url, *more).exit_code == 0
            moments.append(server.received[-1].query.get("lastModifiedAt"))
        assert moments[0] is None
        assert moments[1] is not None
        assert moments[2] is not None
        assert moments[2] < moments[1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "it contains no certificate"),
        (b"not PEM", "it contains no certificate"),
    ],
)
def test_a_wrong_file_of_authorities_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    """OpenSSL ignores it, and then either trusts other authorities or says only that the certificate is unknown."""
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", "ca.pem")
    shown = sync("https://books.example")
    told = f"lamella: SSL_CERT_FILE must name a PEM file of certificate authorities: {why}: ca.pem\n"
    assert (shown.exit_code, shown.stdout, shown.stderr) == (2, "", told)


def test_the_file_of_authorities_is_not_needed_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "no.pem")
    with served() as server:
        assert sync(server.url).exit_code == 0


def test_a_proxy_that_closes_the_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def closed(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    monkeypatch.setattr(contact, "_PATIENCE", 0.0)
    with answering(closed) as url:
        monkeypatch.setenv("https_proxy", url)
        shown = sync("https://books.example")
    assert shown.exit_code == 1
    assert "1 of 1 part failed: Connection Failed (proxy: " in shown.stderr
