"""Where a credential goes: to its own origin, and to nobody on the way there."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve, ServeRaw

from lamella import Classify, ConnectFailed, HeaderAuth, LamellaError, RuleBook, maesn, stack
from lamella.maesn.sandbox import Reply, Sandbox
from lamella.pytest_maesn import MakeSandbox

API_KEY, ACCOUNT_KEY = "zq-api-key-4711", "zq-account-key-0815"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_redirect_forwards_a_key(status: int, method: str, make_sandbox: MakeSandbox, serve: Serve) -> None:
    seen: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(f"{request.rel_url} {request.headers} {await request.text()}")
        return web.json_response({"data": []})

    sandbox = await make_sandbox(api_key=API_KEY)
    sandbox.script(Reply(status, {"Location": f"{await serve(elsewhere)}/accounting/invoices"}))
    async with maesn.session(API_KEY, sandbox.account_key, sandbox.url) as session:
        await session.request(method, "/accounting/invoices", json={} if method == "POST" else None)
    [request] = seen
    assert API_KEY not in request
    assert sandbox.account_key not in request


async def test_a_redirect_to_another_scheme_is_not_followed(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("zq-file")
    sandbox.script(Reply(302, {"Location": secret.as_uri()}))
    async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
        with pytest.raises(aiohttp.NonHttpUrlRedirectClientError) as caught:
            await session.get("/accounting/invoices")
    assert "zq-file" not in repr(caught.value)


async def test_no_key_is_sent_from_https_to_plain_http(serve: Serve) -> None:
    """A downgrade: the same host and the same port, but whoever is in between reads along."""
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(str(request.headers))
        return web.Response()

    url = await serve(handle)
    layers = maesn.layers(API_KEY, ACCOUNT_KEY, url.replace("http:", "https:"))
    async with aiohttp.ClientSession(url, middlewares=layers, timeout=aiohttp.ClientTimeout()) as session:
        await session.get("/accounting/invoices")
    [headers] = seen
    assert API_KEY not in headers
    assert ACCOUNT_KEY not in headers


async def test_an_https_proxy_gets_only_host_and_port(serve_raw: ServeRaw) -> None:
    """The request goes through a tunnel, of which it sees bytes that are encrypted."""
    seen = bytearray()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        seen.extend(await reader.read(4096))  # what opens the TLS connection

    async with maesn.session(API_KEY, ACCOUNT_KEY, "https://api.example", attempts=1) as session:
        with pytest.raises(ConnectFailed):
            await session.get("/accounting/invoices", proxy=await serve_raw(proxy))
    head, _, tunnelled = bytes(seen).partition(b"\r\n\r\n")
    assert head.startswith(b"CONNECT api.example:443 ")
    assert tunnelled.startswith(b"\x16\x03")
    for key in (API_KEY, ACCOUNT_KEY):
        assert key.encode() not in seen


async def test_proxies_and_passwords_of_the_environment_are_ignored(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password zq-netrc")
        monkeypatch.setenv("NETRC", str(netrc))
        async with maesn.session(sandbox.api_key, sandbox.account_key, sandbox.url) as session:
            await session.get("/accounting/invoices")
    assert "Authorization" not in sandbox.received[0].headers


@pytest.mark.parametrize("key", ["zq-key\r\nX-Injected: yes", "zq-key\nX-Injected: yes", "zq-key\rx", "zq-key\0"])
async def test_a_key_cannot_inject_a_header(sandbox: Sandbox, key: str) -> None:
    async with maesn.session(sandbox.api_key, None, sandbox.url) as session:
        with maesn.account(key), pytest.raises(ValueError, match="X-ACCOUNT-KEY") as caught:
            await session.get("/accounting/invoices")
        with pytest.raises(ValueError, match="X-API-KEY") as also:
            maesn.session(key, None, sandbox.url)
    assert "zq-key" not in f"{caught.value!r}{also.value!r}"
    assert not sandbox.received


async def test_credentials_in_a_url_are_sent_but_never_shown(serve: Serve) -> None:
    seen: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.Response(status=404, text=f"not for {request.headers.get('Authorization')}")

    url = (await serve(handle)).replace("//", "//somebody:zq-pa55word@")
    async with aiohttp.ClientSession(middlewares=stack(RuleBook(), spans=False)) as session:
        with pytest.raises(LamellaError) as caught:
            await session.get(url)
    assert seen[0].startswith("Basic ")
    assert seen[0].removeprefix("Basic ") not in repr(vars(caught.value))
    assert "zq-pa55word" not in f"{caught.value}{vars(caught.value)}"


async def test_cookies_can_be_kept_separate_by_account(serve: Serve) -> None:
    """An aiohttp session keeps cookies, and one session may serve many accounts (docs/explanation/security.md)."""
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        response = web.json_response({"data": []})
        response.set_cookie("sid", request.headers["X-ACCOUNT-KEY"])
        return response

    url = (await serve(handle)).replace("127.0.0.1", "localhost")  # of an address no cookie is kept
    for jar, kept in ((aiohttp.DummyCookieJar(), None), (aiohttp.CookieJar(), "sid=north")):
        seen.clear()
        async with maesn.session(API_KEY, None, url, cookie_jar=jar) as session:
            for key in ("north", "south"):
                with maesn.account(key):
                    await session.get("/accounting/invoices")
        assert seen == [None, kept]


async def test_a_session_header_follows_redirects_as_in_aiohttp(serve: Serve) -> None:
    """Why a credential belongs into HeaderAuth: aiohttp takes any other header along to wherever a redirect leads."""
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.extend((request.headers.get("X-Session"), request.headers.get("X-Own")))
        return web.Response()

    other = await serve(elsewhere)

    async def here(request: web.Request) -> web.Response:
        raise web.HTTPFound(other)

    auth = HeaderAuth({"X-Own": "zq-own"})
    async with aiohttp.ClientSession(
        middlewares=(auth, Classify(RuleBook())), headers={"X-Session": "zq-session"}
    ) as session:
        await session.get(await serve(here))
    assert seen == ["zq-session", None]
