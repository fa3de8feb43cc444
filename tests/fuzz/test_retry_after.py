"""Any bytes as ``Retry-After`` and ``Date``: a number of seconds, or nothing; and never an exception."""

from __future__ import annotations

import asyncio
from math import isfinite

import aiohttp
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import examples

from lamella import Backoff, ConnectionLost, Rule, RuleBook, TooManyRequests, parse_retry_after, stack
from lamella.rules.retry_after import LONGEST, parse_http_date

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0.001)))

DAYS = st.sampled_from([b"Mon", b"Sunday", b"wed", b"Xyz", b""])
MONTHS = st.sampled_from([b"Jan", b"feb", b"DEC", b"Foo", "Mär".encode()])
DIGITS = st.sampled_from([b"0", b"00", b"01", b"29", b"31", b"60", b"61", b"99", b"1994", b"9999", b"0000", b"-1"])
MARKS = st.sampled_from([b" ", b", ", b"-", b":", b" GMT", b" UTC", b"\t", b"+", b".", b"e9", b"\xa0", "٣".encode()])
# Pieces of dates in any order go further into the parser than bytes by chance.
VALUES = st.lists(DAYS | MONTHS | DIGITS | MARKS, max_size=16).map(b"".join) | st.binary(max_size=80)


def _read(value: bytes) -> str:
    """As aiohttp reads a header."""
    return value.decode("utf-8", "surrogateescape")


@examples(1000)
@given(VALUES, VALUES, st.floats() | st.floats(0, 4e9))
@example(b"9" * 5000, b"", 0.0)
@example(b"Thu, 29 Feb 2100 23:59:60 GMT", b"Thursday, 29-Feb-00 23:59:60 GMT", 951868799.0)
@example("٣٣".encode(), b"", 0.0)
def test_any_retry_after_is_seconds_or_none(value: bytes, date: bytes, now: float) -> None:
    moment = parse_http_date(_read(date), now)
    assert moment is None or isfinite(moment)
    for clock in (now, moment):
        if clock is not None:
            seconds = parse_retry_after(_read(value), clock)
            assert seconds is None or (isfinite(seconds) and 0 <= seconds <= LONGEST)


@examples(20)
@given(values=st.lists(st.tuples(VALUES, VALUES), min_size=30, max_size=30))
def test_any_retry_after_is_parsed_over_the_wire(values: list[tuple[bytes, bytes]]) -> None:
    """Whatever stands there, the call ends as a 429, or aiohttp has refused the answer."""

    async def main() -> None:
        rest = list(values)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            value, date = rest.pop()
            writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: " + value + b"\r\nDate: " + date + b"\r\n")
            writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            layers = stack(RULES, attempts=1, throttle=False, spans=False)
            async with aiohttp.ClientSession(url, middlewares=layers) as session:
                while rest:
                    try:
                        await session.get("/")
                    except TooManyRequests as exc:
                        asked = exc.retry_after
                        assert asked is None or 0 <= asked <= LONGEST
                    except ConnectionLost:
                        pass

    asyncio.run(main())
