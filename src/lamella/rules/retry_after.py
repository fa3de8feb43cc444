"""Parse ``Retry-After`` (RFC 9110, section 10.2.3) as seconds from a given now."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

LONGEST = 366 * 86400.0
"""Upper bound of a wait in seconds: a year, so that the number stays finite."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_MOMENT, _MOMENT_IN_MILLISECONDS = 1e9, 1e11
"""A larger number is a time since the epoch in seconds or, if that would be after the year 5138, in milliseconds."""
# The three forms of RFC 9110, section 5.6.7: IMF-fixdate, then the obsolete RFC 850 and asctime.
# Compiled at the first date, because compiling at import would take a millisecond.
_DATES = (
    rf"[a-z]{{3}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
    rf"[a-z]{{6,9}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
    rf"[a-z]{{3}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",
)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return how many seconds from *now* (seconds since the epoch) the server asks to wait.

    None if the header is missing or invalid: a negative number, a nonexistent date, garbage. A time in the past is 0.0;
    more than a year is :data:`LONGEST`. Three forms outside the RFC are accepted because servers send them: a decimal
    fraction, and a time in seconds or milliseconds since the epoch (any number above 10⁹).
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return seconds_of(float(text), now)  # infinity if too large
    moment = parse_http_date(text, now)
    return None if moment is None else min(max(moment - now, 0.0), LONGEST)


def seconds_of(number: float, now: float) -> float:
    """Return *number* as a wait: seconds or, above 10⁹, a time in seconds or milliseconds since the epoch."""
    if number > _MOMENT:
        number = max(0.0, (number / 1000 if number >= _MOMENT_IN_MILLISECONDS else number) - now)
    return min(number, LONGEST)


def parse_http_date(value: str | None, now: float) -> float | None:
    """Return an HTTP-date as seconds since the epoch; None if invalid. *now* determines the century of a two-digit
    year."""
    text = (value or "").strip()
    for form in _DATES:
        if match := re.fullmatch(form, text, re.IGNORECASE):
            try:
                return _moment(match, datetime.fromtimestamp(now, UTC)).timestamp()
            except (ValueError, OverflowError):
                return None
    return None


def _moment(match: re.Match[str], now: datetime) -> datetime:
    digits = int(match["year"])
    if len(match["year"]) == 4:
        return _in_year(digits, match)
    # RFC 9110: a two-digit year that seems more than 50 years ahead is in the past.
    century = now.year - now.year % 100
    # 29 February does not exist in 50 years.
    latest = now.replace(year=now.year + 50, day=28 if (now.month, now.day) == (2, 29) else now.day)
    for base in (century + 100, century):
        with suppress(ValueError):
            moment = _in_year(base + digits, match)
            if moment <= latest:
                return moment
    return _in_year(century - 100 + digits, match)


def _in_year(year: int, match: re.Match[str]) -> datetime:
    # A leap second is a valid HTTP-date but not a valid datetime.
    second = int(match["second"])
    moment = datetime(
        year,
        _MONTHS.index(match["month"].lower()) + 1,
        int(match["day"]),
        int(match["hour"]),
        int(match["minute"]),
        min(second, 59) if second <= 60 else second,
        tzinfo=UTC,
    )
    return moment + timedelta(seconds=second == 60)
