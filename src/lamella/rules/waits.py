"""Read the waits in response headers as seconds from a given now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from lamella.rules.retry_after import LONGEST, parse_http_date, parse_retry_after

_MILLISECONDS: Final = ("retry-after-ms", "x-ms-retry-after-ms")
_NAMES: Final = frozenset(
    {"retry-after", *_MILLISECONDS, "ratelimit", "ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"}
)
_DAY: Final = 86400.0
_MOMENT: Final = 1e9  # a larger number is a time since the epoch
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
# One policy: r=0;t=30 in draft 8 and later, remaining=0, reset=30 in drafts 4 to 7.
_REMAINING: Final = re.compile(r"(?:^|[;,\s])(?:r|remaining)\s*=\s*([0-9.]+)")
_RESET: Final = re.compile(r"(?:^|[;,\s])(?:t|reset)\s*=\s*([0-9.]+)")


def asked_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return the longest wait that *headers* ask for, in seconds, at most `LONGEST`; None if they ask for none.

    Dates and times are compared with the server's clock: ``Date``, and ``Age`` of a cached response. Without ``Date``
    they are compared with *now*, in seconds since the epoch.

    ==========================================  ==========================================================
    ``Retry-After``                             seconds, a date or a time
    ``retry-after-ms``, ``x-ms-retry-after-ms`` milliseconds, or a time: a number above 10⁹
    ``RateLimit``                               the IETF drafts: each policy with nothing left
    ``RateLimit-Reset``                         seconds or a time, unless ``RateLimit-Remaining`` is above 0
    ``X-RateLimit-Reset``, ``X-Rate-Limit-…``   the same, where ``…-Remaining`` is 0. More than a day in seconds is
                                                taken for another unit, and ignored
    ==========================================  ==========================================================
    """
    if not _may_ask(tuple(headers)):
        return None  # most responses ask for no wait
    return max(_waits(headers, server_now(headers, now)), default=None)


# The responses of a server share a few sets of header names.
@lru_cache(maxsize=256)
def _may_ask(names: tuple[str, ...]) -> bool:
    """Return whether one of the header *names* may ask for a wait."""
    return not _NAMES.isdisjoint([name.lower() for name in names])


def _waits(headers: Mapping[str, str], now: float) -> Iterator[float]:
    for value in _all(headers, "Retry-After"):
        if (wait := parse_retry_after(value, now)) is not None:
            yield wait
    for name in _MILLISECONDS:
        for value in _all(headers, name):
            if (number := number_in(value)) is not None and number <= _MOMENT:
                yield number / 1000
            elif (wait := parse_retry_after(value, now)) is not None:
                yield wait
    for value in _all(headers, "RateLimit"):
        yield from _of_policies(value, now)
    for prefix in ("RateLimit", "X-RateLimit", "X-Rate-Limit"):
        remaining = number_in(headers.get(f"{prefix}-Remaining"))
        if remaining == 0 or (remaining is None and prefix == "RateLimit"):
            for value in _all(headers, f"{prefix}-Reset"):
                if (wait := reset_in(value, now)) is not None:
                    yield wait


def reset_in(value: str | None, now: float) -> float | None:
    """Return the seconds from *now* until the time in a reset header; None if it states none.

    A number above a day that is not a time must be in another unit, such as milliseconds, and is ignored.
    """
    wait = parse_retry_after(value, now)
    return None if wait is not None and wait > _DAY and (number_in(value) or _MOMENT) < _MOMENT else wait


def _of_policies(value: str, now: float) -> Iterator[float]:
    value = QUOTED.sub('""', value).lower()
    policies = value.split(",") if '"' in value or ";" in value else [value]
    for policy in policies:
        remaining, reset = _REMAINING.search(policy), _RESET.search(policy)
        if remaining and reset and number_in(remaining[1]) == 0:
            wait = parse_retry_after(reset[1], now)
            if wait is not None:
                yield wait


def server_now(headers: Mapping[str, str], now: float) -> float:
    """Return the server's time in seconds since the epoch; *now* if the headers do not state it."""
    date = parse_http_date(headers.get("Date"), now)
    return now if date is None else date + min(number_in(headers.get("Age")) or 0.0, LONGEST)


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    getall = getattr(headers, "getall", None)
    if getall is not None:
        return list(getall(name, ()))
    value = headers.get(name)
    return [] if value is None else [value]


def number_in(value: str | None) -> float | None:
    """Return a decimal number, 0 or more, or None."""
    text = (value or "").strip()
    return float(text) if re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", text) else None
