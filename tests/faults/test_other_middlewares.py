"""Middlewares of others beside the stack: their own exceptions, and those that read error answers."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Sequence

import aiohttp
import pytest
from aiohttp import web
from tests.servers import Serve

from lamella import At, Classify, ConnectionLost, Slot, options, stack
from lamella.rules import RuleBook
from lamella.testing import VirtualClock

RULES = RuleBook()


class VaultError(OSError):
    """An error of somebody's own."""


NOT_OF_THE_TRANSPORT = [
    FileNotFoundError(errno.ENOENT, "no token"),
    PermissionError(errno.EACCES, "not yours"),
    OSError(errno.ENOSPC, "disk full"),
    BlockingIOError(errno.EAGAIN, "locked"),
    VaultError("sealed"),
    ssl.SSLError(1, "no such key"),  # of a context that it makes itself: aiohttp wraps those of a connection
    ValueError("not a token"),
]


@pytest.mark.parametrize("error", NOT_OF_THE_TRANSPORT, ids=repr)
@pytest.mark.parametrize("place", ["inside", "outside", "Classify alone"])
async def test_an_error_unrelated_to_the_connection_passes_unchanged(
    error: Exception, place: str, serve: Serve, virtual_time: VirtualClock
) -> None:
    calls = 0

    async def failing(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal calls
        calls += 1
        raise error

    url = await serve(in_by_digest)
    layers = {
        "inside": (*stack(RULES), failing),
        "outside": (failing, *stack(RULES)),
        "Classify alone": (Classify(RULES), failing),
    }
    seen: list[BaseException] = []
    for middlewares in ((failing,), layers[place]):
        async with aiohttp.ClientSession(middlewares=middlewares) as session:
            with pytest.raises((OSError, ValueError)) as caught:
                await session.get(url)
        # Of an OSError aiohttp makes one of its own.
        seen.append(caught.value if isinstance(error, ValueError) else caught.value.__cause__ or caught.value)
    assert seen == [error, error]
    assert calls == 2


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), OSError(errno.EHOSTUNREACH, "no route")], ids=repr)
async def test_a_connection_error_of_a_middleware_is_a_failed_attempt(
    error: Exception, serve: Serve, virtual_time: VirtualClock
) -> None:
    async def failing(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        raise error

    async with aiohttp.ClientSession(middlewares=(*stack(RULES), failing)) as session:
        with pytest.raises(ConnectionLost) as caught:
            await session.get(await serve(in_by_digest))
    assert len(caught.value.attempts) == 5


async def in_by_digest(request: web.Request) -> web.Response:
    await request.read()
    if "Authorization" not in request.headers:
        challenge = 'Digest realm="a", nonce="abc", qop="auth"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge}, text="who are you")
    return web.Response(text="in")


def digest() -> aiohttp.DigestAuthMiddleware:
    return aiohttp.DigestAuthMiddleware("user", "zq-digest-4711")


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (*stack(RULES), digest()),
        lambda: stack(RULES, At(Slot.INNERMOST, digest())),
        lambda: stack(RULES, At(Slot.BREAKER, digest()), raise_errors=False),
        lambda: stack(RULES, At(Slot.THROTTLE, digest()), raise_errors=False),
        lambda: (digest(), *stack(RULES, raise_errors=False)),
    ],
    ids=["inside", "innermost", "outside, nothing raised", "at each attempt, nothing raised", "around"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_digest_authentication_works(
    layers: object, method: str, serve: Serve, virtual_time: VirtualClock
) -> None:
    assert callable(layers)
    async with aiohttp.ClientSession(await serve(in_by_digest), middlewares=layers()) as session:
        for _ in range(2):
            async with session.request(method, "/", data=b"abc" if method == "POST" else None) as response:
                assert (response.status, await response.text()) == (200, "in")


@pytest.mark.parametrize("slot", [slot for slot in Slot if slot is not Slot.INNERMOST])
def test_digest_authentication_that_sees_no_401_is_rejected(slot: Slot) -> None:
    with pytest.raises(ValueError, match=r"DigestAuthMiddleware reads responses with status 401.*Slot\.INNERMOST"):
        stack(RULES, At(slot, digest()))
    with pytest.raises(ValueError, match="DigestAuthMiddleware"):
        stack(RULES, At(slot, digest()), Classify(RULES))


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (digest(), *stack(RULES)),
        lambda: (digest(), stack(RULES)),
        lambda: (digest(), Classify(RULES)),
        lambda: (digest(), *stack(RULES, At(Slot.AUTH, passes_on))),
    ],
    ids=["apart", "as one", "Classify alone", "in two pipelines"],
)
async def test_digest_authentication_around_a_raising_stack_is_rejected(
    layers: Callable[[], Sequence[aiohttp.ClientMiddlewareType]], serve: Serve
) -> None:
    async with aiohttp.ClientSession(await serve(in_by_digest), middlewares=layers()) as session:
        with pytest.raises(
            ValueError, match=r"DigestAuthMiddleware reads responses with status 401.*\*stack\(\), digest"
        ):
            await session.get("/")
        with options(raise_errors=False):
            async with session.get("/") as response:
                assert response.status == 200


async def passes_on(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    return await handler(request)
