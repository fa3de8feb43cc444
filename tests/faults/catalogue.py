"""The faults: what each does on the wire, and the facts of it that a client can know."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.faults.calls import Request
from tests.faults.certificates import client_context, server_context
from tests.faults.wire import WHOLE, Greet, Line, Play, Route, head, healthy, in_one, tunnel

from lamella import AnswerInvalid, CertificateInvalid, ProxyRefused, TransportError

__all__ = ["FAULTS", "End", "Fault", "Names", "Phase", "sends_later"]


class Phase(IntEnum):
    """How far an exchange gets."""

    CONNECT = 0
    """There is no connection to the origin: no byte of the request can have left."""
    REQUEST = 1
    """The server has not read the request, or not all of it."""
    HEAD = 2
    """The server has the whole request, and the client not the whole head of an answer."""
    BODY = 3
    """The client has the head of the answer, and not the whole body."""
    DONE = 4
    """The client has the whole answer."""


class End(Enum):
    """How it ends there."""

    BREAKS = "the connection ends, or what comes is not HTTP"
    SILENCE = "nothing comes any more"
    DRIP = "it all comes, but takes longer than an attempt may"
    ENDLESS = "there is always more without an end, or nothing, but where no limit of aiohttp's own counts"
    WHOLE = "well"


def _any(request: Request) -> bool:
    return not request.large


@dataclass(frozen=True)
class Fault:
    """One way in which a call can go wrong."""

    name: str
    phase: Phase
    end: End
    play: Play = healthy
    greet: Greet | None = None
    status: int = 200
    """Of the answer, as far as there is one."""
    answer: bytes | None = WHOLE
    """The body of the answer, where the phase is DONE. None: it tells what the request was."""
    route: Route = Route.PLAIN
    sized: bool = True
    """Whether the answer says how long its body is."""
    kept: bool = False
    """Whether the connection is good for another request afterwards."""
    requests: Callable[[Request], bool] = _any
    """For which requests it can happen."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For ``session.request``."""
    resolver: Callable[[], AbstractResolver] | None = None
    opens: bool = True
    """Whether the server takes connections at all, before the fault has struck once."""
    unread: bool = False
    """Whether the server answers without having read the request."""
    lasts: bool = False
    """Whether it is the client's own doing, so that each send meets it."""
    context: ssl.SSLContext | None = None
    """What the client makes of TLS. None means what it usually does."""
    final: type[TransportError] | None = None
    """The error of a connection that would fail in the same way again. None: it may not."""

    def __str__(self) -> str:
        return self.name


# The ways in which a connection ends under somebody's hands.


async def _closes(line: Line) -> None:
    line.close()


async def _resets(line: Line) -> None:
    line.reset()


async def _is_silent(line: Line) -> None:
    await line.silence()


def sends_later(sent: bytes) -> Play:
    """*sent* is a packet of its own, and the last one."""

    async def play(line: Line) -> None:
        await asyncio.sleep(0.01)
        line.send(sent)
        line.close()

    return play


_ENDS: Final[dict[str, tuple[End, Play]]] = {
    "closed": (End.BREAKS, _closes),
    "reset": (End.BREAKS, _resets),
    "silence": (End.SILENCE, _is_silent),
}


def _after(sent: bytes, end: Play) -> Play:
    """The request is read; then a part of the answer, and the end."""

    async def play(line: Line) -> None:
        await line.request()
        if sent:
            line.send(sent)
        await end(line)

    return play


_ZIPPED: Final = gzip.compress(WHOLE, mtime=0)
_HEADS: Final = {
    "before the status line": b"",
    "within the status line": b"HTTP/1.1 20",
    "within the headers": b"HTTP/1.1 200 OK\r\nContent-Le",
    "after the headers' last line": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
    "after a 103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
}


def _framed(status: int) -> Iterator[tuple[str, bytes, bool]]:
    """Half an answer for each way to frame one, and whether it says its length."""
    middle = len(WHOLE) // 2
    chunked = head(f"{status} X", "Transfer-Encoding: chunked")
    length = f"Content-Length: {len(WHOLE)}"
    yield "before the body", head(f"{status} X", length), True
    yield "within the body", head(f"{status} X", length) + WHOLE[:middle], True
    yield "within a chunk", chunked + in_one([WHOLE])[:-middle], False
    yield "before the last chunk", chunked + in_one([WHOLE]), False
    zipped = head(f"{status} X", "Content-Encoding: gzip", f"Content-Length: {len(_ZIPPED)}")
    yield "within the gzip", zipped + _ZIPPED[: len(_ZIPPED) // 2], True


def _breaks() -> Iterator[Fault]:
    """Each end in each phase, on each way."""
    for ending, (end, play) in _ENDS.items():
        for route in Route:
            where = "" if route is Route.PLAIN else f", {route.value}"
            heads = _HEADS if route is Route.PLAIN else {"before the status line": b""}
            yield Fault(
                f"{ending} before the request is read{where}",
                Phase.REQUEST,
                end,
                play,
                route=route,
            )
            for cut, sent in heads.items():
                # After an interim answer aiohttp's sock_read does not count any more.
                unseen = end is End.SILENCE and sent.startswith(b"HTTP/1.1 1")
                how = End.ENDLESS if unseen else end
                yield Fault(f"{ending} {cut}{where}", Phase.HEAD, how, _after(sent, play), route=route)
            for cut, sent, sized in _framed(200) if route is Route.PLAIN else list(_framed(200))[1:2]:
                yield Fault(
                    f"{ending} {cut}{where}",
                    Phase.BODY,
                    end,
                    _after(sent, play),
                    sized=sized,
                    route=route,
                    requests=_has_a_body_in_the_answer,
                )
        for status in (400, 503):
            for cut, sent, sized in _framed(status):
                yield Fault(
                    f"{ending} {cut} of a {status}",
                    Phase.BODY,
                    end,
                    _after(sent, play),
                    sized=sized,
                    status=status,
                    requests=_has_a_body_in_the_answer,
                )


def _has_a_body_in_the_answer(request: Request) -> bool:
    return request.method != "HEAD" and not request.large


def _is_large(request: Request) -> bool:
    return request.large


async def _deaf(line: Line) -> None:
    await line.read_head()
    await line.deafness()


async def _head_then_close(line: Line) -> None:
    await line.read_head()
    # What is under way meets a closed socket: a reset, as from a server that dies.
    line.close()


async def _head_then_reset(line: Line) -> None:
    await line.read_head()
    line.reset()


async def _early(line: Line) -> None:
    """An answer before the request is read; the rest of it is read, as RFC 9112, section 9.6, asks for."""
    await line.read_head()
    line.send(head("413 Too Large", f"Content-Length: {len(WHOLE)}", "Connection: close") + WHOLE)
    await line.silence()


def _while_written() -> Iterator[Fault]:
    """While the request is being written."""
    yield Fault("closed within the request", Phase.REQUEST, End.BREAKS, _head_then_close, requests=_is_large)
    yield Fault("reset within the request", Phase.REQUEST, End.BREAKS, _head_then_reset, requests=_is_large)
    yield Fault("silence within the request", Phase.REQUEST, End.SILENCE, _deaf, requests=_is_large)
    yield Fault(
        "an answer before the request is read",
        Phase.DONE,
        End.WHOLE,
        _early,
        status=413,
        unread=True,
        requests=_is_large,
    )


# No connection.


class Names(AbstractResolver):
    """A resolver that fails, always or at first."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self.good = False

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        if not self.good:
            if self._silent:
                await asyncio.get_running_loop().create_future()
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass


def _certificate(kind: str) -> Greet:
    async def greet(line: Line) -> None:
        if line.wire.route is Route.TUNNEL:
            await tunnel(line, kind)
        else:
            await line.open(server_context(kind))

    return greet


async def _speaks_http(line: Line) -> None:
    await line.open()
    line.send(head("400 Bad Request", "Content-Length: 0"))
    await line.more()
    line.close()


def _handshake(end: Play) -> Greet:
    async def greet(line: Line) -> None:
        await line.open()
        if line.wire.route is Route.TUNNEL:
            await line.read_head()
            line.wire.heads.pop()
            line.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        await line.more()
        await end(line)

    return greet


def _connect(end: Play, sent: bytes = b"") -> Greet:
    """A proxy's answer to CONNECT."""

    async def greet(line: Line) -> None:
        await line.open()
        await line.read_head()
        line.wire.heads.pop()
        if sent:
            line.send(sent)
        await end(line)

    return greet


def _unconnected() -> Iterator[Fault]:
    no = Phase.CONNECT
    yield Fault("no such host", no, End.BREAKS, resolver=Names)
    yield Fault("DNS is silent", no, End.SILENCE, resolver=lambda: Names(silent=True), lasts=True)
    yield Fault("refused", no, End.BREAKS, opens=False)
    yield Fault("refused, TLS", no, End.BREAKS, opens=False, route=Route.TLS)
    yield Fault("refused by the proxy", no, End.BREAKS, opens=False, route=Route.PROXY)
    yield Fault("refused by the proxy of a tunnel", no, End.BREAKS, opens=False, route=Route.TUNNEL)
    for route in (Route.TLS, Route.TUNNEL):
        through = "" if route is Route.TLS else ", tunnel"
        for kind in ("expired", "another host", "unknown authority"):
            yield Fault(
                f"a certificate: {kind}{through}",
                no,
                End.BREAKS,
                greet=_certificate(kind),
                route=route,
                final=CertificateInvalid,
            )
        for ending, (end, play) in _ENDS.items():
            yield Fault(f"{ending} in the handshake{through}", no, end, greet=_handshake(play), route=route)
    yield Fault("HTTP in the handshake", no, End.BREAKS, greet=_speaks_http, route=Route.TLS, final=CertificateInvalid)
    # asyncio's server closes without an alert, so the client cannot know the reason. refusals.py has one with alerts.
    yield Fault(
        "no common version of TLS",
        no,
        End.BREAKS,
        greet=_certificate("old protocol"),
        route=Route.TLS,
        context=client_context(oldest=ssl.TLSVersion.TLSv1_3),
    )
    yield Fault(
        "another fingerprint",
        no,
        End.BREAKS,
        route=Route.TLS,
        greet=_certificate("right"),
        options={"ssl": aiohttp.Fingerprint(b"x" * 32)},
        lasts=True,
        final=CertificateInvalid,
    )
    for status in (403, 407, 502, 503):
        answer = head(f"{status} No", "Content-Length: 0", "Connection: close")
        yield Fault(
            f"a proxy answers {status}",
            no,
            End.BREAKS,
            greet=_connect(_closes, answer),
            route=Route.TUNNEL,
            final=ProxyRefused if status < 500 else None,
        )
    for ending, (end, play) in _ENDS.items():
        yield Fault(f"{ending} after CONNECT", no, end, greet=_connect(play), route=Route.TUNNEL)
    yield Fault(
        "garbage after CONNECT", no, End.BREAKS, greet=_connect(_closes, b"\x16\x03\x01 no\r\n\r\n"), route=Route.TUNNEL
    )


# What comes is not HTTP, or a bad one.

_LINE: Final = b"X-Filler: " + b"." * 54 + b"\r\n"
_NOT_HTTP: Final = {
    "garbage": bytes(range(128, 256)) + b"\r\n\r\n",
    "an SSH server": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/0.9": WHOLE,
    "HTTP/2": b"\0\0\x12\x04\0\0\0\0\0" + b"\0\3\0\0\0\x80\0\4\0\1\0\0\0\5\0\xff\xff\xff",
    "a status of two digits": head("99 X", "Content-Length: 0"),
    "a status in letters": head("abc X", "Content-Length: 0"),
    "a header of 1 MB": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20 + b"\r\nContent-Length: 0\r\n\r\n",
    "10,000 headers": b"HTTP/1.1 200 OK\r\n" + _LINE * 10_000 + b"Content-Length: 0\r\n\r\n",
    "a status line of 1 MB": b"HTTP/1.1 200 " + b"x" * 2**20 + b"\r\n\r\n",
    "two lengths": head("200 OK", "Content-Length: 1", "Content-Length: 2") + b"ab",
    "a negative length": head("200 OK", "Content-Length: -1"),
    "a length in letters": head("200 OK", "Content-Length: abc"),
    "a header without a name": b"HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n",
    "a header with a zero byte": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n",
}
_BAD_CHUNKS: Final = {
    "a chunk's size in letters": b"xyz\r\nabc\r\n0\r\n\r\n",
    "a chunk's size below zero": b"-5\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": b"3\r\nabcdef\r\n0\r\n\r\n",
    "a chunk's size of 1,000 digits": b"1" * 1000 + b"\r\nabc\r\n0\r\n\r\n",
}


def _with_an_echo(sent: bytes) -> Play:
    """*sent*, and behind it the request, with all that is secret in it."""

    async def play(line: Line) -> None:
        await line.request()
        line.send(sent + line.head)
        line.close()

    return play


COUNTS_HEADERS: Final = "max_headers" in inspect.signature(aiohttp.ClientSession).parameters
"""Whether this aiohttp limits the number of headers. An older one rejects some 10,000 as no HTTP."""
_BEYOND_LIMITS: Final = {"a header of 1 MB", "a status line of 1 MB", *(["10,000 headers"] if COUNTS_HEADERS else [])}


def _malformed() -> Iterator[Fault]:
    for name, sent in _NOT_HTTP.items():
        final = AnswerInvalid if name in _BEYOND_LIMITS else None
        yield Fault(name, Phase.HEAD, End.BREAKS, _with_an_echo(sent), final=final)
    chunked = head("200 OK", "Transfer-Encoding: chunked")
    for name, chunks in _BAD_CHUNKS.items():
        # aiohttp notices it and tells nobody: test_aiohttp.py.
        later = _after(chunked, sends_later(chunks))
        yield Fault(name, Phase.BODY, End.ENDLESS, later, sized=False, requests=_has_a_body_in_the_answer)
        # In one piece with the head, the head is lost as well.
        at_once = _after(chunked + chunks, _closes)
        yield Fault(f"{name}, at once", Phase.HEAD, End.BREAKS, at_once, requests=_has_a_body_in_the_answer)
    short = head("200 OK", f"Content-Length: {len(WHOLE)}") + WHOLE
    at_once = _after(short + b"and more", _closes)
    yield Fault(
        "a length that is too short, at once", Phase.HEAD, End.BREAKS, at_once, requests=_has_a_body_in_the_answer
    )
    zipped = "Content-Encoding: gzip"
    for name, body in {
        "a cut gzip": _ZIPPED[: len(_ZIPPED) // 2],
        "a gzip that is none": b"no gzip at all",
        "a gzip with a wrong checksum": _ZIPPED[:-8] + b"\0" * 8,
    }.items():
        for status in (200, 400, 503) if name == "a gzip that is none" else (200,):
            sent = head(f"{status} X", zipped, f"Content-Length: {len(body)}") + body
            yield Fault(
                name if status == 200 else f"{name} in a {status}",
                Phase.BODY,
                End.BREAKS,
                _after(sent, _closes),
                status=status,
                requests=_has_a_body_in_the_answer,
                final=None if name == "a cut gzip" else AnswerInvalid,
            )
    too_long = head("200 OK", f"Content-Length: {len(WHOLE) + 100}") + WHOLE
    yield Fault(
        "a length that is too long",
        Phase.BODY,
        End.BREAKS,
        _after(too_long, _closes),
        requests=_has_a_body_in_the_answer,
    )


# Whole answers, some of them strange.


def _answers(status: int, body: bytes = WHOLE, *headers: str) -> Play:
    async def play(line: Line) -> None:
        await line.request()
        line.answer(status, body, *headers)

    return play


def _tells(status: int) -> Play:
    """An error that says what the request was, with all that is secret in it."""

    async def play(line: Line) -> None:
        await line.request()
        said = line.head.decode("latin-1")
        line.answer(status, json.dumps({"errors": {"message": said}}).encode(), phrase=said.split("\r\n")[0])

    return play


def _strange() -> Iterator[Fault]:
    done, whole = Phase.DONE, End.WHOLE
    for status in (400, 401, 403, 404, 405, 418, 429, 500, 501, 502, 503, 504, 599, 600, 999):
        yield Fault(f"{status}", done, whole, _tells(status), status=status, answer=None, kept=True)
    for status in (204, 304):
        yield Fault(f"{status}", done, whole, _answers(status), status=status, answer=b"", kept=True)
    yield Fault("503 by the proxy", done, whole, _answers(503), status=503, kept=True, route=Route.PROXY)
    yield Fault("503 through the tunnel", done, whole, _answers(503), status=503, kept=True, route=Route.TUNNEL)
    yield Fault("503 by TLS", done, whole, _answers(503), status=503, kept=True, route=Route.TLS)
    long = b"x" * 2**20
    yield Fault("503 with 1 MB", done, whole, _answers(503, long), status=503, answer=long, kept=True)
    http_1_0 = head("200 OK", version="HTTP/1.0") + WHOLE
    yield Fault("HTTP/1.0", done, whole, _after(http_1_0, _closes), requests=_has_a_body_in_the_answer)
    yield Fault(
        "200 until the end", done, whole, _after(head("200 OK") + WHOLE, _closes), requests=_has_a_body_in_the_answer
    )
    too_short = _after(head("200 OK", f"Content-Length: {len(WHOLE)}") + WHOLE, sends_later(b"and more"))
    yield Fault("a length that is too short", done, whole, too_short, kept=True, requests=_has_a_body_in_the_answer)
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000
    yield Fault("1,000 hints first", done, whole, _floods(hints), kept=True)
    bomb = b"\0" * (4 * 2**20)
    # Kept, the connection would meet test_aiohttp.py's second fault.
    zipped = "Content-Encoding: gzip", "Connection: close"
    yield Fault(
        "a gzip bomb",
        done,
        whole,
        _answers(200, gzip.compress(bomb, mtime=0), *zipped),
        answer=bomb,
        requests=_has_a_body_in_the_answer,
    )
    yield Fault(
        "a gzip bomb in a 500",
        done,
        whole,
        _answers(500, gzip.compress(bomb, mtime=0), *zipped),
        status=500,
        answer=bomb,
        requests=_has_a_body_in_the_answer,
    )
    for status in (200, 417):
        # A server that does not know of "100 Continue".
        yield Fault(
            f"{status} in place of 100",
            done,
            whole,
            _no_continue(status),
            status=status,
            unread=True,
            options={"expect100": True},
            requests=lambda request: bool(request.body),
        )
    yield Fault(
        "100 never comes",
        Phase.REQUEST,
        End.ENDLESS,  # nor does it before the request is written
        _no_continue(None),
        options={"expect100": True},
        requests=lambda request: bool(request.body),
    )


def _no_continue(status: int | None) -> Play:
    async def play(line: Line) -> None:
        await line.read_head()
        if status is not None:
            line.answer(status, WHOLE, "Connection: close")
        await line.silence()

    return play


def _floods(flood: bytes) -> Play:
    async def play(line: Line) -> None:
        await line.request()
        line.send(flood)
        line.answer(200)

    return play


# Everything comes, and takes its time.

_PIECES: Final = 3
_PAUSE: Final = 6.0


def _drips(*, body: bool, status: int = 200) -> Play:
    async def play(line: Line) -> None:
        await line.request()
        start = head(f"{status} X", f"Content-Length: {len(WHOLE)}")
        if body:
            line.send(start)
        slow = WHOLE if body else start
        size = -(-len(slow) // _PIECES)
        for at in range(0, len(slow), size):
            line.send(slow[at : at + size])
            await asyncio.sleep(_PAUSE)
            if line.gone:
                line.close()
                return
        if not body and line.method != "HEAD":
            line.send(WHOLE)

    return play


async def _hints_for_ever(line: Line) -> None:
    await line.request()
    while not line.gone:
        line.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(_PAUSE)
    line.close()


async def _body_for_ever(line: Line) -> None:
    await line.request()
    line.send(head("200 OK", "Transfer-Encoding: chunked"))
    while not line.gone:
        line.send(b"1\r\nx\r\n")
        await asyncio.sleep(_PAUSE)
    line.close()


async def _headers_for_ever(line: Line) -> None:
    await line.request()
    line.send(b"HTTP/1.1 200 OK\r\n")
    while not line.gone:
        line.send(b"X: y\r\n")
        await asyncio.sleep(_PAUSE)
    line.close()


def _slow() -> Iterator[Fault]:
    yield Fault("a drip of headers", Phase.HEAD, End.DRIP, _drips(body=False), kept=True)
    for status in (200, 503):
        yield Fault(
            f"a drip of a body of a {status}",
            Phase.BODY,
            End.DRIP,
            _drips(body=True, status=status),
            status=status,
            kept=True,
            requests=_has_a_body_in_the_answer,
        )
    yield Fault("hints without end", Phase.HEAD, End.ENDLESS, _hints_for_ever)
    yield Fault("headers without end", Phase.HEAD, End.ENDLESS, _headers_for_ever)
    yield Fault(
        "a body without end",
        Phase.BODY,
        End.ENDLESS,
        _body_for_ever,
        sized=False,
        requests=_has_a_body_in_the_answer,
    )


FAULTS: Final = (
    *_unconnected(),
    *_breaks(),
    *_while_written(),
    *_malformed(),
    *_strange(),
    *_slow(),
)
