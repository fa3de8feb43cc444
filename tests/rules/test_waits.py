"""Every wait that a server can ask for in its headers."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from tests.examples import CHARACTERS
from tests.rules.answers import Reply, Serve, Server, call, client, fails

from lamella import Answer, ApiError, Backoff, Rule, RuleBook, StopReason, WaitSource
from lamella.rules import asked_wait, parse_retry_after
from lamella.rules.retry_after import LONGEST
from lamella.testing import VirtualClock

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"  # half a minute later
NAMES = ["Retry-After", "retry-after-ms", "RateLimit", "RateLimit-Reset", "RateLimit-Remaining", "Date", "Age"]
EMPTY = {"X-RateLimit-Remaining": "0"}


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": DATE}, 30),
        ({"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT"}, 30),
        ({"Retry-After": "Sun Nov  6 08:49:37 1994"}, 30),
        # A moment, in seconds and milliseconds; nothing before 2001 is one.
        ({"Retry-After": "1790000030", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"Retry-After": "1790000030.5", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30.5),
        ({"Retry-After": "1790000030000", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"Retry-After": "1790000000", "Date": "Mon, 21 Sep 2026 14:13:21 GMT"}, 0),
        ({"Retry-After": "1000000000"}, LONGEST),
        ({"Retry-After": "9" * 30}, LONGEST),
        # The server's clock, and how long the answer lay in a cache.
        ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 08:49:27 GMT"}, 10),
        ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 08:49:27 GMT", "Age": "4"}, 6),
        ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 08:49:27 GMT", "Age": "60"}, 0),
        ({"Retry-After": DATE, "Date": "Sun, 06 Nov 1994 08:49:27 GMT", "Age": "-1"}, 10),
        ({"Retry-After": DATE, "Age": "4"}, 30),
        ({"Retry-After": "30", "Date": "Sun, 06 Nov 1994 08:49:27 GMT", "Age": "4"}, 30),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"x-ms-retry-after-ms": "20"}, 0.02),
        ({"retry-after-ms": "9" * 30}, LONGEST),
        ({"retry-after-ms": "soon"}, None),
        ({"retry-after-ms": "1790000030000", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"retry-after-ms": "1790000030", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"RateLimit": '"default";r=0;t=1790000030', "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"RateLimit": "limit=9, remaining=0, reset=1790000030", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 30),
        ({"RateLimit": '"default";r=0;t=1.5'}, 1.5),
        ({"RateLimit": '"default";r=0;t=...'}, None),
        ({"RateLimit-Reset": "7"}, 7),
        ({"RateLimit-Reset": "7", "RateLimit-Remaining": "0"}, 7),
        ({"RateLimit-Reset": "7", "RateLimit-Remaining": "3"}, None),
        ({"RateLimit-Reset": DATE, "RateLimit-Remaining": "0"}, 30),
        ({"RateLimit": '"default";r=0;t=30'}, 30),
        ({"RateLimit": '"default"; r=0; t=30'}, 30),
        ({"RateLimit": '"default";t=30;r=0'}, 30),
        ({"RateLimit": "default;r=0;t=30"}, 30),
        ({"RateLimit": '"default";r=1;t=30'}, None),
        ({"RateLimit": '"default";r=0'}, None),
        ({"RateLimit": '"minute";r=0;t=30, "day";r=0;t=600, "month";r=9;t=9999'}, 600),
        ({"RateLimit": '"a,b;r=0;t=99";r=0;t=3;pk=:dHJpYWw=:'}, 3),
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, 30),
        ({"RateLimit": "limit=100,remaining=0,reset=30"}, 30),
        ({"RateLimit": "limit=100, remaining=5, reset=30"}, None),
        ({"RateLimit": f'"x";r=0;t={"9" * 400}'}, LONGEST),
        ({"RateLimit": "garbage"}, None),
        ({**EMPTY, "X-RateLimit-Reset": "7"}, 7),
        # More than a day, and no moment: it is in another unit.
        ({**EMPTY, "X-RateLimit-Reset": "86400"}, 86400),
        ({**EMPTY, "X-RateLimit-Reset": "900000"}, None),
        ({**EMPTY, "X-RateLimit-Reset": "1790000007000", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 7),
        ({**EMPTY, "X-RateLimit-Reset": "1790000007", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"}, 7),
        ({"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": "7"}, 7),
        ({"X-RateLimit-Remaining": "1", "X-RateLimit-Reset": "7"}, None),
        ({"X-RateLimit-Reset": "7"}, None),
        (EMPTY, None),
        # The longest counts.
        ({"Retry-After": "5", **EMPTY, "X-RateLimit-Reset": "7", "retry-after-ms": "6000"}, 7),
        ({"Retry-After": "soon", "retry-after-ms": "6000"}, 6),
        ([("Retry-After", "5"), ("Retry-After", "9"), ("Retry-After", "7")], 9),
    ],
)
def test_the_longest_requested_wait_applies(headers: Any, wait: float | None) -> None:
    for given_headers in (CIMultiDict(headers), Answer(429, dict(headers)).headers):
        if isinstance(headers, dict) or isinstance(given_headers, CIMultiDict):
            assert asked_wait(given_headers, NOW) == wait


@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.text(CHARACTERS)
        | st.text('0123456789.,;=rt" ')
        | st.from_regex(r'"a";r=0;t=[0-9]{1,9}', alphabet=CHARACTERS),
    ),
    st.floats(0, 4e9),
)
def test_no_header_makes_it_raise_or_wait_forever(headers: dict[str, str], now: float) -> None:
    wait = asked_wait(CIMultiDict(headers), now)
    assert wait is None or 0 <= wait <= LONGEST


def test_a_number_above_one_billion_is_a_time() -> None:
    assert parse_retry_after("1790000030", 1.79e9) == 30
    assert parse_retry_after("1790000030000", 1.79e9) == 30
    assert parse_retry_after("100000", 1.79e9) == 100000


ANY = RuleBook(
    Rule(None, retry=Backoff(1, maximum=100, jitter=0)),
    Rule([303, 307], "Try Later", when=lambda a: "Location" not in a.headers, retry=Backoff(1, maximum=100, jitter=0)),
    Rule(503, retry=Backoff(1, maximum=100, jitter=0), rate_limit=False),
)


@pytest.mark.sampled
@pytest.mark.parametrize("status", [303, 307, 408, 429, 500, 503, 529])
@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "42"},
        {"Retry-After": "41.5"},
        {"Retry-After": "Mon, 21 Sep 2026 14:14:02 GMT", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"},
        {"Retry-After": "1790000042", "Date": "Mon, 21 Sep 2026 14:13:20 GMT"},
        {"retry-after-ms": "42000"},
        {"RateLimit": '"default";r=0;t=42'},
        {"RateLimit-Remaining": "0", "RateLimit-Reset": "42"},
        {**EMPTY, "X-RateLimit-Reset": "42"},
    ],
)
async def test_a_requested_wait_applies_to_any_retried_status(
    serve: Serve, virtual_time: VirtualClock, status: int, headers: dict[str, str]
) -> None:
    async with client(await serve(server := Server(Reply(status, headers))), ANY) as session:
        assert await call(session) == (200, "")
        server.replies = [Reply(status, headers)]
        error = await fails(session, "POST") if status != 429 else None
    assert server.waits[0] == pytest.approx(42, abs=1)
    if error is not None:
        assert error.retry_after == pytest.approx(42, abs=1)


async def test_a_wait_beyond_the_maximum_has_its_own_stop_reason(serve: Serve) -> None:
    async with client(await serve(Server(Reply(500, {"retry-after-ms": "101000"}))), ANY) as session:
        error = await fails(session)
    assert error.stopped is StopReason.WAIT_TOO_LONG
    assert error.retry_after == 101


def book(retry_after: Any) -> RuleBook:
    return RuleBook(Rule([429, 500], retry=Backoff(1, maximum=100, jitter=0)), retry_after=retry_after)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [
        (lambda a: a.json["wait"], 42),
        (lambda a: float(a.headers["X-Wait"]), 21),
        (lambda a: None, 7),
        (lambda a: 0, 1),
        (lambda a: time.time() + 42, 42),
        (lambda a: (time.time() + 42) * 1000, 42),
        # A failure is no answer, and the headers count.
        (lambda a: a.json["nothing"], 7),
        (lambda a: "42", 7),
        (lambda a: -1, 7),
        (lambda a: float("nan"), 7),
    ],
)
@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("raise_errors", [True, False])
async def test_retry_after_of_a_book_reads_custom_waits(
    serve: Serve, virtual_time: VirtualClock, retry_after: Any, wait: float, status: int, raise_errors: bool
) -> None:
    server = Server(Reply(status, {"Retry-After": "7", "X-Wait": "21"}, {"wait": 42}))
    async with client(await serve(server), book(retry_after), raise_errors=raise_errors) as session:
        assert await call(session) == (200, "")
    assert server.waits == [pytest.approx(wait, abs=1)]


async def test_an_endless_custom_wait_stops_the_call(serve: Serve) -> None:
    async with client(await serve(Server(Reply(429))), book(lambda a: 1e300)) as session:
        error = await fails(session)
    assert isinstance(error, ApiError)
    assert (error.retry_after, error.stopped) == (LONGEST, StopReason.WAIT_TOO_LONG)


async def test_the_record_states_the_source_of_the_wait(serve: Serve, virtual_time: VirtualClock) -> None:
    server = Server(Reply(429, {"RateLimit": '"a";r=0;t=5'}), Reply(429), Reply(400))
    async with client(await serve(server), ANY, attempts=3, throttle=False) as session:
        error = await fails(session)
    assert [record.wait_source for record in error.attempts] == [WaitSource.RETRY_AFTER, WaitSource.RULE, None]
    await asyncio.sleep(0)
