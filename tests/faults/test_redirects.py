"""Redirects: where they lead is followed as without layers, and no credential goes along to anybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp
import pytest
from tests.faults.certificates import client_context
from tests.faults.wire import Line, Play, Route, Wire
from tests.sdk import Tracing

from lamella import HeaderAuth, LamellaError, ServerStatusError, maesn, stack
from lamella.testing import VirtualClock

KEY: Final = b"zq-plain-4711-key"
STATUSES: Final = (301, 302, 303, 307, 308)


def redirects(status: int, target: Callable[[], str]) -> Play:
    """Leads everybody to *target*."""

    async def play(line: Line) -> None:
        await line.request()
        line.answer(status, b"", f"Location: {target()}")

    return play


def method_after(status: int, method: str) -> str:
    """What aiohttp and the browsers make of a method (RFC 9110, section 15.4)."""
    if status == 303 and method != "HEAD":
        return "GET"
    return "GET" if status in {301, 302} and method == "POST" else method


def url_of(wire: Wire) -> str:
    return f"{'https' if wire.route is Route.TLS else 'http'}://127.0.0.1:{wire.port}"


class Walk:
    """A call through all layers to the first of some servers, and what each of them was sent."""

    def __init__(self, wires: Iterable[Wire], tracing: Tracing) -> None:
        self.wires = list(wires)
        self._provider = tracing.provider
        for wire in self.wires:
            wire.listen()
            wire.begin(always=True)

    async def call(self, method: str = "GET", data: Any = None, **options: Any) -> int:
        first = url_of(self.wires[0])
        auth = HeaderAuth({"X-API-KEY": KEY.decode()}, origin=first)
        layers = stack(maesn.RULES, auth=auth, tracer_provider=self._provider, attempts=2)
        connector = aiohttp.TCPConnector(ssl=client_context())
        try:
            async with aiohttp.ClientSession(connector=connector, middlewares=layers) as session:
                async with session.request(method, f"{first}/", data=data, **options) as response:
                    await response.read()
                    status = response.status
                assert not connector._acquired
            return status
        finally:
            for wire in self.wires:
                await wire.end()
                await wire.close()

    def keys(self) -> list[bool]:
        """Whether each request of each server had our credential."""
        return [KEY in head for wire in self.wires for head in wire.heads]


@pytest.mark.sampled
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    ("here", "there"), [(Route.PLAIN, Route.PLAIN), (Route.TLS, Route.PLAIN), (Route.PLAIN, Route.TLS)]
)
async def test_another_origin_gets_no_credential(
    here: Route, there: Route, status: int, method: str, tracing: Tracing
) -> None:
    elsewhere = Wire(there)
    walk = Walk([Wire(here, redirects(status, lambda: url_of(elsewhere) + "/x")), elsewhere], tracing)
    body = b"abc" if method in {"PUT", "POST"} else None
    assert await walk.call(method, body) == 200
    assert walk.keys() == [True, False]
    after = method_after(status, method)
    assert elsewhere.heads[0].startswith(f"{after} /x ".encode())
    assert elsewhere.bodies == [(body or b"") if after == method else b""]
    # One call span and one send a hop, all of them ended well.
    assert len(tracing.sends) == 2
    assert [(span.attributes or {}).get("http.request.resend_count") for span in tracing.sends] == [None, 1]


async def test_a_redirect_loop_ends(tracing: Tracing) -> None:
    walk = Walk([Wire(play=redirects(302, lambda: "/again"))], tracing)
    with pytest.raises(aiohttp.TooManyRedirects):
        await walk.call()
    assert len(walk.wires[0].heads) == 10
    assert len(tracing.sends) == 10


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("file:///etc/passwd", aiohttp.NonHttpUrlRedirectClientError),
        ("ftp://127.0.0.1/", aiohttp.NonHttpUrlRedirectClientError),
        ("javascript:alert(1)", aiohttp.NonHttpUrlRedirectClientError),
        ("http://", aiohttp.InvalidUrlRedirectClientError),
        ("http://[::", aiohttp.InvalidUrlRedirectClientError),
        ("http://127.0.0.1:99999/", aiohttp.InvalidUrlRedirectClientError),
    ],
)
async def test_a_redirect_to_a_non_http_url_is_not_followed(
    target: str, kind: type[Exception], tracing: Tracing
) -> None:
    walk = Walk([Wire(play=redirects(302, lambda: target))], tracing)
    with pytest.raises(kind) as caught:
        await walk.call()
    assert not isinstance(caught.value, LamellaError)
    assert len(walk.wires[0].heads) == 1


async def test_each_redirect_hop_has_its_own_attempts(tracing: Tracing, virtual_time: VirtualClock) -> None:
    async def fails(line: Line) -> None:
        await line.request()
        line.answer(503)

    elsewhere = Wire(play=fails)
    walk = Walk([Wire(play=redirects(307, lambda: url_of(elsewhere))), elsewhere], tracing)
    with pytest.raises(ServerStatusError) as caught:
        await walk.call("PUT", b"abc")
    assert (len(caught.value.attempts), elsewhere.bodies) == (2, [b"abc"] * 2)
    assert walk.keys() == [True, False, False]


async def test_a_redirect_is_a_response_if_it_is_not_followed(tracing: Tracing) -> None:
    walk = Walk([Wire(play=redirects(302, lambda: "/x"))], tracing)
    assert await walk.call(allow_redirects=False) == 302


async def test_a_redirect_loop_between_two_servers_ends(tracing: Tracing) -> None:
    wires: list[Wire] = []
    wires += [Wire(play=redirects(307, lambda: url_of(wires[1]))), Wire(play=redirects(307, lambda: url_of(wires[0])))]
    walk = Walk(wires, tracing)
    with pytest.raises(aiohttp.TooManyRedirects):
        await walk.call()
    assert walk.keys() == [True] * 5 + [False] * 5
