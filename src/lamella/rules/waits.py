"""Every wait that a server can ask for in the headers of its answer, as seconds from an injected now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from lamella.rules.retry_after import LONGEST, parse_http_date, parse_retry_after

_MILLISECONDS: Final = ("retry-after-ms", "x-ms-retry-after-ms")
_NAMES: Final = frozenset(
    {"retry-after", *_MILLISECONDS, "ratelimit", "ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"}
)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
# Of one policy: draft 8 and later say r=0;t=30, drafts 4 to 7 remaining=0, reset=30.
_REMAINING: Final = re.compile(r"(?:^|[;,\s])(?:r|remaining)\s*=\s*([0-9]+)")
_RESET: Final = re.compile(r"(?:^|[;,\s])(?:t|reset)\s*=\s*([0-9]+)")


def asked_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return the longest wait that *headers* ask for, in seconds, at most `LONGEST`. None: they ask for none.

    A date or another moment is read against the server's clock: ``Date`` and the ``Age`` of a cached answer. Without a
    ``Date`` it is read against *now*, in seconds since the epoch.

    ==========================================  ==========================================================
    ``Retry-After``                             seconds, a date or a moment
    ``retry-after-ms``, ``x-ms-retry-after-ms`` milliseconds
    ``RateLimit``                               the IETF drafts: of each policy of which nothing remains
    ``RateLimit-Reset``                         seconds or a moment, unless ``RateLimit-Remaining`` is above 0
    ``X-RateLimit-Reset``, ``X-Rate-Limit-…``   the same, where ``…-Remaining`` is 0
    ==========================================  ==========================================================
    """
    if _NAMES.isdisjoint([name.lower() for name in headers]):
        return None  # most answers ask for nothing
    return max(_waits(headers, _server_now(headers, now)), default=None)


def _waits(headers: Mapping[str, str], now: float) -> Iterator[float]:
    for value in _all(headers, "Retry-After"):
        if (wait := parse_retry_after(value, now)) is not None:
            yield wait
    for name in _MILLISECONDS:
        for value in _all(headers, name):
            if (number := _number(value)) is not None:
                yield min(number / 1000, LONGEST)
    for value in _all(headers, "RateLimit"):
        yield from _of_policies(value)
    for prefix in ("RateLimit", "X-RateLimit", "X-Rate-Limit"):
        remaining = _number(headers.get(f"{prefix}-Remaining"))
        if remaining == 0 or (remaining is None and prefix == "RateLimit"):
            for value in _all(headers, f"{prefix}-Reset"):
                if (wait := parse_retry_after(value, now)) is not None:
                    yield wait


def _of_policies(value: str) -> Iterator[float]:
    value = _QUOTED.sub('""', value).lower()
    policies = value.split(",") if '"' in value or ";" in value else [value]
    for policy in policies:
        remaining, reset = _REMAINING.search(policy), _RESET.search(policy)
        if remaining and reset and not float(remaining[1]):
            yield min(float(reset[1]), LONGEST)


def _server_now(headers: Mapping[str, str], now: float) -> float:
    date = parse_http_date(headers.get("Date"), now)
    return now if date is None else date + min(_number(headers.get("Age")) or 0.0, LONGEST)


def _all(headers: Mapping[str, str], name: str) -> list[str]:
    getall = getattr(headers, "getall", None)
    if getall is not None:
        return list(getall(name, ()))
    value = headers.get(name)
    return [] if value is None else [value]


def _number(value: str | None) -> float | None:
    text = (value or "").strip()
    return float(text) if re.fullmatch(r"[0-9]+(?:\.[0-9]*)?", text) else None
