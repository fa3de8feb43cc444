"""Any bytes as the body of an error: what can be understood of it is told, a secret never, and nothing is raised."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from tests.examples import CHARACTERS, examples
from yarl import URL

from lamella import AnswerInvalid, ApiError, ConnectionLost, Rule, RuleBook, stack

SECRET = "zq-s3cr3t"
NAMES = st.sampled_from(
    ["message", "errors", "error", "details", "validationErrors", "downstreamErrors", "title", "code", "field", SECRET]
)
TEXTS = st.text(CHARACTERS, max_size=8) | st.sampled_from(
    [SECRET, f"no {SECRET}!", "\x1b[2J\r\n", "\ud800", "\u202e", ""]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=25,
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
BODIES = st.one_of(
    st.binary(max_size=200),
    # JSON with a part cut out: it gets further than bytes by chance.
    st.builds(
        lambda value, encoding, start, many: _cut(json.dumps(value).encode(encoding, "replace"), start, many),
        JSON,
        ENCODINGS,
        st.integers(0, 300),
        st.sampled_from([0, 0, 0, 1, 5]),
    ),
    # As many brackets as one likes, opened and not closed.
    st.builds(
        lambda bracket, many, end: bracket * many + end,
        st.sampled_from([b"[", b'{"errors":', b'{"message":[', b'{"validationErrors":[{"field":']),
        st.integers(0, 20_000),
        st.binary(max_size=20),
    ),
)


def _cut(text: bytes, start: int, many: int) -> bytes:
    return text[:start] + text[start + many :]


def _strings(value: Any) -> list[str]:
    """All the texts in it, not by recursion: it may be deep."""
    found, rest = [], [value]
    while rest:
        match rest.pop():
            case str() as text:
                found.append(text)
            case list() | tuple() as items:
                rest.extend(items)
            case dict() as items:
                rest.extend((*items, *items.values()))
    return found


def _check(said: ApiError) -> None:
    lines = said.details + said.validation_errors + said.downstream_errors
    assert len(lines) <= 60
    assert all(isinstance(line, str) for line in lines)
    assert len(said.body) <= 64 * 1024
    assert SECRET.encode() not in said.body
    assert not any(SECRET in text for text in (*_strings(said.payload), *lines))


@examples(500)
@given(BODIES)
@example(b'{"message": "zq\\u002ds3cr3t"}')
@example(b"9" * 70_000)
@example(b'{"errors": {"zq-s3cr3t": "zq-s3cr3t"}}')
def test_any_bytes_can_be_parsed_as_an_error_body(body: bytes) -> None:
    info = aiohttp.RequestInfo(URL("http://h/"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://h/"))
    _check(ApiError(info, status=500, rule=Rule(500, "Error"), body=body, secrets=(SECRET,)))


@examples(20)
@given(st.lists(BODIES, min_size=20, max_size=20), st.sampled_from(["identity", "gzip", "deflate", "br", "x"]))
def test_any_error_body_is_parsed_over_the_wire(bodies: list[bytes], coding: str) -> None:
    """Whatever it is compressed with, or says that it is: the status is known, so that is what it ends in."""

    async def main() -> None:
        rest = list(bodies)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = rest.pop()
            head = f"HTTP/1.1 400 Bad\r\nContent-Length: {len(body)}\r\nContent-Encoding: {coding}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            layers = stack(RuleBook(), attempts=1, throttle=False, spans=False)
            async with aiohttp.ClientSession(url, middlewares=layers, headers={"X-Key": SECRET}) as session:
                while rest:
                    try:
                        await session.get("/")
                    except (AnswerInvalid, ApiError, ConnectionLost) as exc:
                        assert str(exc).isprintable()  # noqa: PT017 - it has to be raised, as is said below
                        if isinstance(exc, ApiError):
                            _check(exc)
                    else:
                        raise AssertionError("a 400 was no error")

    asyncio.run(main())
