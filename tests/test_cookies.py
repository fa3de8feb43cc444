"""Cookies of failed attempts reach the session's jar, and the next attempt sends what the jar holds by then."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from http.cookies import BaseCookie, SimpleCookie
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.layering import together
from tests.sdk import Tracing
from tests.servers import Connection, Serve, ServeRaw
from tests.texts import strings_in
from yarl import URL

from lamella import (
    ApiError,
    AttemptTimeout,
    Backoff,
    Buffer,
    Classify,
    ConnectionLost,
    Failure,
    HeaderAuth,
    LamellaError,
    NotFound,
    Retry,
    Rule,
    RuleBook,
    Throttle,
    Timeout,
    stack,
)
from lamella.testing import VirtualClock

Layers = tuple[aiohttp.ClientMiddlewareType, ...]

NOW: Final = Backoff(initial=0)
RULES: Final = RuleBook(
    Rule(429, "Too Many Requests", retry=Backoff(1)),
    Rule(503, "Service Unavailable", retry=NOW),
    *(Rule(failure, failure.name.title(), retry=NOW) for failure in Failure),
)
HOST: Final = "shop.example.com"
ROOT: Final = URL()


class AnyHost(AbstractResolver):
    """Resolve every name to this machine. aiohttp keeps no cookies of IP addresses."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def named(url: str, host: str = HOST) -> str:
    """*url* with a name instead of the address."""
    return url.replace("127.0.0.1", host)


def session(layers: Layers = (), jar: aiohttp.abc.AbstractCookieJar | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=AnyHost()),
        middlewares=layers,
        cookie_jar=jar,
        timeout=aiohttp.ClientTimeout(),
    )


def in_jar(client: aiohttp.ClientSession, url: str) -> dict[str, str]:
    return {name: morsel.value for name, morsel in client.cookie_jar.filter_cookies(URL(url)).items()}


class Door:
    """A server that refuses requests without the cookie that it sets with the refusal. `seen`: what it received."""

    def __init__(self, *given: str, status: int = 503, key: str = "sid=new") -> None:
        self.given = given or (key,)
        self.status = status
        self.key = key
        self.seen: list[str | None] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request.headers.get("Cookie"))
        if self.key in (self.seen[-1] or "").split("; "):
            return web.Response(text="welcome")
        response = web.Response(status=self.status, text="who are you?")
        for cookie in self.given:
            response.headers.add("Set-Cookie", cookie)
        return response


WITH_RETRY: dict[str, Callable[[], Layers]] = {
    "Retry": lambda: (Retry(RULES),),
    "Retry and Classify": lambda: (Retry(RULES), Classify(RULES)),
    "Retry, Timeout and Buffer": lambda: (Retry(RULES), Timeout(60), Buffer()),
    "all": lambda: stack(RULES),
    "all as one": lambda: (together(stack(RULES)),),
    "all, nothing raised": lambda: stack(RULES, raise_errors=False),
    "all, with a deadline": lambda: stack(RULES, deadline=60),
}


@pytest.mark.parametrize("layers", WITH_RETRY.values(), ids=WITH_RETRY)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_the_next_attempt_sends_the_cookie_of_the_failed_one(
    serve: Serve, layers: Callable[[], Layers], method: str
) -> None:
    door = Door()
    url = named(await serve(door))
    async with session(layers()) as client:
        for _ in range(2):
            async with client.request(method, url) as response:
                assert (response.status, await response.text()) == (200, "welcome")
        assert in_jar(client, url) == {"sid": "new"}
    assert door.seen == [None, "sid=new", "sid=new"]


async def test_the_attempt_after_a_rate_limit_sends_its_cookie(serve: Serve, virtual_time: VirtualClock) -> None:
    door = Door(status=429)
    url = named(await serve(door))
    async with session((Retry(RULES), Throttle(RULES), Classify(RULES))) as client, client.post(url) as response:
        assert response.status == 200
    assert door.seen == [None, "sid=new"]


async def test_a_cookie_stored_by_another_call_in_the_meantime_is_sent(serve: Serve) -> None:
    """All calls begin with the old cookie, which must not be taken for the request's own."""
    seen: list[str | None] = []
    all_there = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Cookie"))
        number = len(seen)
        if number == 5:
            all_there.set()
        await all_there.wait()
        response = web.Response(status=503 if seen[number - 1] == "sid=old" else 200)
        if response.status == 503:
            response.set_cookie("sid", f"new{number}")
        return response

    url = named(await serve(handle))
    async with session((together((Retry(RULES), Classify(RULES))),)) as client:
        client.cookie_jar.update_cookies({"sid": "old"}, URL(url))
        answers = await asyncio.gather(*(client.get(url) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert seen[:5] == ["sid=old"] * 5
    assert {cookie and cookie[:7] for cookie in seen[5:]} == {"sid=new"}


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=new\r\nContent-Length: 10\r\n\r\nhalf")
    await writer.drain()


def hanging(status: int) -> Connection:
    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nSet-Cookie: sid=new\r\nContent-Length: 10\r\n\r\nhalf" % status)
        await reader.read()

    return connection


FINAL: dict[str, tuple[Callable[[], Layers], type[LamellaError]]] = {
    "Classify": (lambda: (Classify(RULES),), NotFound),
    "Timeout, Buffer and Classify": (lambda: (Timeout(60), Buffer(), Classify(RULES)), NotFound),
    "all": (lambda: stack(RULES), NotFound),
    "all as one": (lambda: (together(stack(RULES)),), NotFound),
}


@pytest.mark.parametrize(("layers", "error"), FINAL.values(), ids=FINAL)
async def test_the_cookie_of_a_final_error_is_sent_by_the_next_call(
    serve: Serve, layers: Callable[[], Layers], error: type[LamellaError]
) -> None:
    door = Door(status=404)
    url = named(await serve(door))
    async with session(layers()) as client:
        with pytest.raises(error):
            await client.get(url)
        assert in_jar(client, url) == {"sid": "new"}
        async with client.get(url) as response:
            assert response.status == 200


BROKEN: dict[str, tuple[Connection, Layers, type[LamellaError]]] = {
    "a body that was cut": (cut, (Buffer(),), ConnectionLost),
    "a body that was cut, and no other attempt": (cut, stack(RULES, attempts=1), ConnectionLost),
    "a body that never ends": (hanging(200), (Timeout(1), Buffer()), AttemptTimeout),
    "a body that never ends, with a deadline": (hanging(200), (Retry(RULES, deadline=1), Buffer()), AttemptTimeout),
    "an error's body that never ends": (hanging(404), (Classify(RULES),), NotFound),
    "an error's body that takes longer than the attempt": (hanging(404), (Timeout(1), Classify(RULES)), NotFound),
}


@pytest.mark.parametrize(("connection", "layers", "error"), BROKEN.values(), ids=BROKEN)
async def test_the_cookie_of_a_truncated_response_is_sent_by_the_next_call(
    serve_raw: ServeRaw, virtual_time: VirtualClock, connection: Connection, layers: Layers, error: type[LamellaError]
) -> None:
    url = named(await serve_raw(connection))
    async with session(layers) as client:
        with pytest.raises(error):
            await client.get(url)
        assert in_jar(client, url) == {"sid": "new"}


async def test_a_call_cancelled_while_reading_stores_its_cookie(serve_raw: ServeRaw) -> None:
    arrived = asyncio.Event()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await hanging(503)(reader, writer)

    url = named(await serve_raw(connection))
    async with session(stack(RULES, raise_errors=False)) as client:
        call = asyncio.create_task(client._request("GET", url))
        await arrived.wait()
        async with asyncio.timeout(5):
            while not in_jar(client, url):  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


# The second attempt has to send what a second call of bare aiohttp sends.


class Case:
    """The cookies that the server sets with a refusal, the jar's content before, and the request's own cookies."""

    def __init__(
        self,
        *given: str,
        before: Mapping[str, str] | None = None,
        request: Mapping[str, Any] | None = None,
        path: str = "/shop/cart",
        host: str = HOST,
        jar: Callable[[str], aiohttp.abc.AbstractCookieJar] = lambda _: aiohttp.CookieJar(),
    ) -> None:
        self.given = given
        self.before = before or {}
        self.request = request or {}
        self.path = path
        self.host = host
        self.jar = jar

    async def seen(self, serve: Serve, layers: Layers, calls: int) -> tuple[list[str | None], list[Any]]:
        """The Cookie headers that arrived, and what the jar holds at the end."""
        seen: list[str | None] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            seen.append(request.headers.get("Cookie"))
            response = web.Response(status=503 if len(seen) == 1 else 200)
            for cookie in self.given if len(seen) == 1 else ():
                response.headers.add("Set-Cookie", cookie)
            return response

        url = named(await serve(handle), self.host)
        jar = self.jar(url)
        if self.before:
            jar.update_cookies(self.before, URL(url) / "shop/")
        async with session(layers, jar) as client:
            for _ in range(calls):
                async with client.get(f"{url}{self.path}", **self.request):
                    pass
            held = sorted((morsel.key, morsel.value, morsel["domain"], morsel["path"]) for morsel in client.cookie_jar)
        return seen, held


CASES: dict[str, Case] = {
    "a new one": Case("sid=new"),
    "several": Case("sid=new", "lang=de", 'q="a b"; Path=/'),
    "a value in quotes with a semicolon": Case('q="a;b"', before={"p": "1"}),
    "a value with equals signs": Case("sid=a=b==; Path=/", before={"p": "x="}),
    "without a value": Case("sid="),
    "one that is changed": Case("sid=new; Path=/shop", before={"sid": "old", "other": "1"}),
    "one that is deleted by its age": Case("sid=; Max-Age=0; Path=/shop", before={"sid": "old", "other": "1"}),
    "one that is deleted by a date": Case(
        "sid=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/shop", before={"sid": "old"}
    ),
    "the same again": Case("sid=old; Path=/shop", before={"sid": "old"}),
    "nothing": Case(before={"sid": "old"}),
    "for another path": Case("sid=new; Path=/admin", before={"other": "1"}),
    "for a longer path": Case("sid=new; Path=/shop/cart/items"),
    "the same name for two paths": Case("sid=a; Path=/", "sid=b; Path=/shop"),
    "for the parent domain": Case("sid=new; Domain=example.com; Path=/"),
    "for another domain": Case("sid=new; Domain=example.org"),
    "for secure connections": Case("sid=new; Secure"),
    "that is no cookie": Case("", "; ;", "=x", "sid=new"),
    "of an address": Case("sid=new", host="127.0.0.1"),
    "of an address, with a jar that takes it": Case(
        "sid=new", host="127.0.0.1", jar=lambda _: aiohttp.CookieJar(unsafe=True)
    ),
    "with a jar that does not quote": Case('sid="new"', "b=a c", jar=lambda _: aiohttp.CookieJar(quote_cookie=False)),
    "with a jar that takes plain http for secure": Case(
        "sid=new; Secure", jar=lambda url: aiohttp.CookieJar(treat_as_secure_origin=[url])
    ),
    "with a jar that keeps nothing": Case(
        "sid=new", request={"cookies": {"a": "1"}}, jar=lambda _: aiohttp.DummyCookieJar()
    ),
    "beside one of the request": Case("sid=new", request={"cookies": {"a": "1"}}, before={"b": "2"}),
    "beside a header": Case("sid=new", request={"headers": {"Cookie": "z=1; a=2"}}, before={"b": "2"}),
    "beside a header and one of the request": Case(
        "sid=new", request={"headers": {"Cookie": "z=1; a=2"}, "cookies": {"a": "3", "c": 'd"e'}}, before={"b": "2"}
    ),
    "that the request already has itself": Case("sid=new", request={"cookies": {"sid": "own"}}),
    "that the request already has in place of the jar's": Case(
        "sid=new; Path=/shop", request={"cookies": {"sid": "own"}}, before={"sid": "old"}
    ),
    "that is deleted, and that the request already has itself": Case(
        "sid=; Max-Age=0; Path=/shop", request={"cookies": {"sid": "own"}}, before={"sid": "old", "b": "2"}
    ),
    "with a query": Case("sid=new", path="/shop/cart?a=b;c#d"),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    "layers", [lambda: (Retry(RULES),), lambda: (together(stack(RULES)),)], ids=["Retry", "all as one"]
)
async def test_the_second_attempt_sends_the_cookies_of_a_second_bare_call(
    serve: Serve, case: Case, layers: Callable[[], Layers]
) -> None:
    bare = await case.seen(serve, (), calls=2)
    ours = await case.seen(serve, layers(), calls=1)
    assert ours == bare
    assert len(ours[0]) == 2


async def test_a_cookie_of_an_explicit_header_stays_the_requests_own(serve: Serve) -> None:
    """It cannot be told apart from one of ``cookies=``, which takes precedence over the jar."""
    door = Door("sid=new; Path=/", key="never=1")
    url = named(await serve(door))
    async with session((Retry(RULES, attempts=2),)) as client:
        await client.get(url, headers={"Cookie": "sid=own"})
    assert door.seen == ["sid=own", "sid=own"]


async def test_cookie_header_changes_by_other_middlewares_are_kept(serve: Serve) -> None:
    door = Door()

    async def adds(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        if "extra" not in request.headers.get("Cookie", ""):
            request.headers["Cookie"] = "; ".join(filter(None, [request.headers.get("Cookie"), "extra=1"]))
        return await handler(request)

    url = named(await serve(door))
    for layers in ((adds, Retry(RULES)), (Retry(RULES), adds)):
        door.seen.clear()
        async with session(layers) as client:
            await client.get(url)
        assert door.seen == ["extra=1", "extra=1; sid=new"]


async def test_a_credential_in_the_cookie_header_stays(serve: Serve) -> None:
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Cookie"))
        return web.Response(status=503 if len(seen) == 1 else 200, headers={"Set-Cookie": "a=1"})

    url = named(await serve(handle))
    async with session(stack(RULES, auth=HeaderAuth({"Cookie": "token=4711"}, origin=url))) as client:
        await client.get(url)
    assert seen == ["token=4711", "token=4711"]


# Redirects, connections that break.


async def test_cookies_are_stored_at_each_redirect_hop(serve: Serve) -> None:
    seen: list[tuple[str, str | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers.get("Cookie")))
        number = len(seen)
        if request.path == "/a" and number > 1:
            response = web.Response(status=302, headers={"Location": "/b"})
        else:
            response = web.Response(status=200 if number == 4 else 503)
        response.set_cookie(f"c{number}", "x")
        return response

    url = named(await serve(handle))
    async with session(stack(RULES)) as client:
        await client.get(f"{url}/a")
        assert in_jar(client, url) == {"c1": "x", "c2": "x", "c3": "x", "c4": "x"}
    assert seen == [("/a", None), ("/a", "c1=x"), ("/b", "c1=x; c2=x"), ("/b", "c1=x; c2=x; c3=x")]


async def test_the_cookie_of_another_host_is_not_sent_to_the_first(serve: Serve) -> None:
    seen: dict[str, list[str | None]] = {"a.test": [], "b.test": []}

    async def handle(request: web.Request) -> web.StreamResponse:
        here = seen[str(request.url.host)]
        here.append(request.headers.get("Cookie"))
        if request.url.host == "a.test":
            return web.Response(status=307, headers={"Location": f"http://b.test:{request.url.port}/"})
        response = web.Response(status=503 if len(here) == 1 else 200)
        response.set_cookie("sid", "of-b")
        return response

    url = named(await serve(handle), "a.test")
    async with session(stack(RULES)) as client:
        for _ in range(2):
            await client.get(url)
    assert seen == {"a.test": [None, None], "b.test": [None, "sid=of-b", "sid=of-b"]}


async def test_the_attempt_after_a_broken_connection_sends_the_current_jar(serve_raw: ServeRaw) -> None:
    """The server closes a kept connection, and the next attempt follows at once."""
    seen: list[bytes] = []

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid=a\r\n\r\n")
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        jar.update_cookies({"sid": "b"}, URL(url))

    jar = aiohttp.CookieJar()
    url = named(await serve_raw(connection))
    async with session(stack(RULES), jar) as client:
        for _ in range(2):
            await client.get(url)
    assert [b"sid=a" in head for head in seen] == [False, True, False]
    assert b"Cookie: sid=b\r\n" in seen[2]


# An exception of the jar propagates, as it does without layers.


class BadJar(aiohttp.CookieJar):
    """A jar that cannot be written, or read once more."""

    def __init__(self, writes: Exception | None = None, reads: Exception | None = None) -> None:
        super().__init__()
        self.writes, self.reads, self.asked = writes, reads, 0

    def update_cookies(self, *args: Any, **options: Any) -> None:
        if self.writes is not None:
            raise self.writes
        super().update_cookies(*args, **options)

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        for header in headers:
            self.update_cookies(SimpleCookie(header), response_url)

    def filter_cookies(self, request_url: URL = ROOT) -> BaseCookie[str]:
        self.asked += 1
        if self.reads is not None and self.asked > 1:
            raise self.reads
        return super().filter_cookies(request_url)


@pytest.mark.parametrize("layers", WITH_RETRY.values(), ids=WITH_RETRY)
@pytest.mark.parametrize("error", [KeyError("jar"), OSError("jar"), FileNotFoundError(2, "jar")], ids=repr)
async def test_a_jar_that_fails_to_store_ends_the_call_with_its_error(
    serve: Serve, layers: Callable[[], Layers], error: Exception
) -> None:
    door = Door()
    url = named(await serve(door))
    async with session((), BadJar(writes=error)) as bare:
        with pytest.raises(type(error), match="jar"):
            await bare.get(url)
    async with session(layers(), BadJar(writes=error)) as client:
        # Inside of a middleware aiohttp makes a ClientOSError of an OSError.
        with pytest.raises((type(error), aiohttp.ClientOSError), match="jar") as caught:
            await client.get(url)
        assert error in {caught.value, caught.value.__cause__}
        assert isinstance(client.connector, aiohttp.TCPConnector)
        assert not client.connector._acquired
    assert len(door.seen) == 2


async def test_a_broken_body_does_not_hide_an_error_of_the_jar(serve_raw: ServeRaw) -> None:
    error = PermissionError(13, "jar")
    for layers in ((Buffer(),), stack(RULES)):
        async with session(layers, BadJar(writes=error)) as client:
            with pytest.raises(OSError, match="jar") as caught:
                await client.get(named(await serve_raw(cut)))
            assert caught.value.__cause__ is error
            assert isinstance(client.connector, aiohttp.TCPConnector)
            assert not client.connector._acquired


async def test_a_jar_that_fails_to_read_ends_the_call_with_its_error(serve: Serve) -> None:
    door = Door()
    async with session((Retry(RULES), Classify(RULES)), BadJar(reads=OSError("jar"))) as client:
        with pytest.raises(OSError, match="jar") as caught:
            await client.get(named(await serve(door)))
    assert not isinstance(caught.value, LamellaError)
    assert len(door.seen) == 1


async def test_no_message_shows_a_cookie(serve: Serve, tracing: Tracing, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the one that was sent nor its replacements, even if the server's messages contain them."""
    caplog.set_level(logging.DEBUG)
    old, new, newer = "0ld-c00kie-4711", "n3w-c00kie-4712", "n3west-c00kie-4713"
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Cookie"))
        said = {"message": f"no longer {old}, now {new}, soon {newer}"}
        response = web.json_response(said, status=503 if len(seen) == 1 else 400)
        response.set_cookie("sid", new if len(seen) == 1 else newer)
        return response

    url = named(await serve(handle))
    layers = stack(RULES, tracer_provider=tracing.provider)
    async with session(layers) as client:
        client.cookie_jar.update_cookies(SimpleCookie(f"sid={old}; Path=/"), URL(url))
        with pytest.raises(ApiError) as caught:
            await client.get(f"{url}/{new}")
    assert seen == [f"sid={old}", f"sid={new}"]
    spans = [
        str([span.name, span.attributes, span.status.description, [event.attributes for event in span.events]])
        for span in tracing.spans
    ]
    texts = [*strings_in(vars(caught.value)), str(caught.value), *spans, caplog.text]
    assert not [text for text in texts if "c00kie" in text]
