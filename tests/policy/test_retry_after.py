"""``Retry-After`` and the dates in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import isfinite

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.examples import CHARACTERS

from lamella.rules import parse_http_date, parse_retry_after
from lamella.rules.retry_after import LONGEST

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def imf(moment: datetime) -> str:
    return f"{DAYS[moment.weekday()][:3]}, {moment:%d} {MONTHS[moment.month - 1]} {moment:%Y} {moment:%H:%M:%S} GMT"


def rfc850(moment: datetime) -> str:
    return f"{DAYS[moment.weekday()]}, {moment:%d}-{MONTHS[moment.month - 1]}-{moment:%y} {moment:%H:%M:%S} GMT"


def asctime(moment: datetime) -> str:
    return f"{DAYS[moment.weekday()][:3]} {MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year:04}"


def at(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


NOW = at(1994, 11, 6, 8, 49, 7)  # half a minute before the RFC's own example


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" \t120 ", 120),
        ("007", 7),
        ("1.5", 1.5),
        ("31622399.5", 31622399.5),
        ("31622400", LONGEST),
        ("31622401", LONGEST),
        ("9" * 10_000, LONGEST),
        ("0" * 10_000 + "5", 5),
        ("1" * 10_000 + ".5", LONGEST),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30),
        ("Sun Nov  6 08:49:37 1994", 30),
        ("Wed Nov 16 08:49:37 1994", 10 * 86400 + 30),
        ("  Sun, 06 Nov 1994 08:49:37 GMT ", 30),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:06 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST),
        ("Thu, 29 Feb 1996 00:00:00 GMT", LONGEST),
    ],
)
def test_retry_after_is_parsed_as_seconds(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "-1",
        "+1",
        "1e3",
        "0x10",
        "1_000",
        ".5",
        "1.5.2",
        "1,5",
        "5 10",
        "5, 10",
        "5s",
        "soon",
        "nan",
        "inf",
        "1" * 10_000 + "x",
        "\u0661\u0662",  # Arabic digits: str.isdigit() and int() take them
        "\uff15",  # a full-width digit
        "\u00b2",  # a superscript
        "\u0660\u0666 Nov 1994",
        "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT",
        "Wed, 31 Feb 1996 00:00:00 GMT",
        "Wednesday, 31-Feb-96 00:00:00 GMT",
        "Wed Feb 31 00:00:00 1996",
        "Wed, 29 Feb 1995 00:00:00 GMT",
        "Sun, 00 Nov 1994 08:49:37 GMT",
        "Sun, 06 Foo 1994 08:49:37 GMT",
        "Sun, 06 \u017fep 1994 08:49:37 GMT",  # a long s is an s to a regular expression that ignores case
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Nov 1994 24:00:00 GMT",
        "Sun, 06 Nov 1994 08:60:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 +0000",
        "Sun, 06 Nov 1994 08:49:37 GMT; 5",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ],
)
def test_an_invalid_retry_after_is_ignored(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None
    assert parse_http_date(value, NOW) is None


@pytest.mark.parametrize("month", range(1, 13))
def test_retry_after_dates_accept_each_month_name(month: int) -> None:
    moment = datetime(1994, month, 28, 23, 59, 58, tzinfo=UTC)
    for form in (imf, rfc850, asctime):
        for text in (form(moment), form(moment).upper(), form(moment).lower()):
            assert parse_http_date(text, NOW) == moment.timestamp()


@pytest.mark.parametrize(
    "value", ["Sat, 31 Dec 2016 23:59:60 GMT", "Saturday, 31-Dec-16 23:59:60 GMT", "Sat Dec 31 23:59:60 2016"]
)
def test_a_leap_second_is_the_one_before_midnight(value: str) -> None:
    assert parse_http_date(value, at(2016, 12, 31)) == at(2017, 1, 1)
    assert parse_retry_after(value, at(2016, 12, 31, 23, 59, 50)) == 10


@pytest.mark.parametrize(
    ("now", "value", "moment"),
    [
        (at(2026, 6, 15), "Monday, 15-Jun-26 00:00:10 GMT", at(2026, 6, 15, 0, 0, 10)),
        (at(2026, 6, 15), "Saturday, 15-Jun-30 00:00:00 GMT", at(2030, 6, 15)),
        (at(2026, 6, 15), "Thursday, 01-Jan-70 00:00:00 GMT", at(2070, 1, 1)),
        (at(2026, 6, 15), "Wednesday, 01-Jan-76 00:00:00 GMT", at(2076, 1, 1)),
        (at(2026, 6, 15), "Monday, 15-Jun-76 00:00:00 GMT", at(2076, 6, 15)),
        (at(2026, 6, 15), "Wednesday, 15-Dec-76 00:00:00 GMT", at(1976, 12, 15)),
        (at(2026, 6, 15), "Saturday, 01-Jan-77 00:00:00 GMT", at(1977, 1, 1)),
        (at(2026, 6, 15), "Friday, 31-Dec-99 00:00:00 GMT", at(1999, 12, 31)),
        (at(2026, 6, 15), "Saturday, 01-Jan-00 00:00:00 GMT", at(2000, 1, 1)),
        (at(1999, 12, 31, 23, 59, 30), "Saturday, 01-Jan-00 00:00:00 GMT", at(2000, 1, 1)),
        (at(2099, 12, 31, 23, 59, 30), "Friday, 01-Jan-00 00:00:00 GMT", at(2100, 1, 1)),
        (at(2001, 1, 1), "Sunday, 31-Dec-00 23:59:59 GMT", at(2000, 12, 31, 23, 59, 59)),
        (at(2026, 6, 15), "Sunday, 20-Jun-76 00:00:00 GMT", at(1976, 6, 20)),
        (at(2026, 1, 31), "Thursday, 30-Jan-76 00:00:00 GMT", at(2076, 1, 30)),
        # In 2074 there is no 29 February.
        (at(2024, 2, 29), "Wednesday, 28-Feb-74 00:00:00 GMT", at(2074, 2, 28)),
        (at(2024, 2, 29), "Friday, 01-Mar-74 00:00:00 GMT", at(1974, 3, 1)),
    ],
)
def test_a_year_of_two_digits_is_at_most_fifty_years_ahead(now: float, value: str, moment: float) -> None:
    assert parse_http_date(value, now) == moment
    assert parse_http_date(f"\t{value} ", now) == moment


@given(
    st.none()
    | st.text(CHARACTERS)
    | st.text("0123456789. ", max_size=400)
    | st.from_regex(
        r"[A-Za-z]{3}, [0-9]{2} (Jan|Feb|jun|Foo) [0-9]{4} [0-2][0-9]:[0-6][0-9]:[0-6][0-9] GMT", alphabet=CHARACTERS
    )
    | st.from_regex(
        r"[A-Za-z]{6,9}, [0-9]{2}-(Jan|Feb|jun|Foo)-[0-9]{2} [0-2][0-9]:[0-6][0-9]:[0-6][0-9] GMT", alphabet=CHARACTERS
    )
    | st.from_regex(
        r"[A-Za-z]{3} (Jan|Feb|jun|Foo) [ 0-9][0-9] [0-2][0-9]:[0-6][0-9]:[0-6][0-9] [0-9]{4}", alphabet=CHARACTERS
    ),
    st.floats(),
)
@example("Mon, 01 Jan 0001 00:00:00 GMT", -1e300)
def test_no_retry_after_raises_or_waits_forever(value: str | None, now: float) -> None:
    seconds = parse_retry_after(value, now)

    assert seconds is None or (isfinite(seconds) and 0 <= seconds <= LONGEST)


MOMENTS = st.integers(0, int(at(9900, 1, 1))).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(MOMENTS, st.integers(-(10**8), 10**8))
def test_a_date_with_a_whole_year_is_read_as_it_was_written(now: datetime, offset: int) -> None:
    moment = now + timedelta(seconds=offset)

    for form in (imf, asctime):
        assert parse_http_date(form(moment), now.timestamp()) == moment.timestamp()
        assert parse_retry_after(form(moment), now.timestamp()) == min(max(offset, 0), LONGEST)


@given(MOMENTS, st.integers(-(15 * 10**8), 15 * 10**8))
def test_a_date_with_a_short_year_within_fifty_years_is_read_as_it_was_written(now: datetime, offset: int) -> None:
    moment = now + timedelta(seconds=offset)

    assert parse_http_date(rfc850(moment), now.timestamp()) == moment.timestamp()
