"""Read the limits that a server states in response headers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from multidict import istr

from lamella.logger import LOGGER
from lamella.rules.retry_after import seconds_of
from lamella.rules.waits import QUOTED, number_in, reset_in, server_now
from lamella.throttle.stated import StatedLimit

# Looked up in each answer. With istr a look-up takes a third of the time.
_DRAFT: Final = istr("RateLimit")
_REMAINING: Final = (istr("RateLimit-Remaining"), istr("X-RateLimit-Remaining"), istr("X-Rate-Limit-Remaining"))
_ITEM: Final = re.compile(r'\s*(?P<name>"(?:[^"\\]|\\.)*"|[\w*.-]+)(?P<values>(?:\s*;[^,]*)?)')
_PAIR: Final = re.compile(r"(?:^|[;,\s])(?P<key>[a-z]+)\s*=\s*(?P<number>[0-9]{1,15})")
_OTHER_UNIT: Final = re.compile(r';\s*qu\s*=\s*"(?!requests")')


def stated_limits(headers: Mapping[str, str]) -> Sequence[StatedLimit]:
    """Return the limits that *headers* state in one of the usual forms.

    These are ``RateLimit`` with ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers, revisions 8 to 10, and
    ``RateLimit`` of revision 7), and ``Limit``, ``Remaining`` and ``Reset`` after ``RateLimit-``, ``X-RateLimit-`` or
    ``X-Rate-Limit-``; the reset is in seconds or a moment. A limit in another unit than requests is left out.
    """
    if _DRAFT in headers:
        return _by_draft(headers[_DRAFT], headers.get("RateLimit-Policy", ""), server_now(headers, time.time()))
    for name in _REMAINING:
        if name in headers and (number := number_in(headers[name])) is not None:
            prefix = name.removesuffix("-Remaining")
            reset = reset_in(headers.get(f"{prefix}-Reset"), server_now(headers, time.time()))
            return [StatedLimit(number, number_in(headers.get(f"{prefix}-Limit")) or 0.0, reset)]
    return ()


def _by_draft(value: str, policy: str, now: float) -> list[StatedLimit]:
    if "=" in QUOTED.sub("", value).partition(";")[0]:  # revision 7: limit=100, remaining=50, reset=30
        numbers = _numbers(value)
        if "remaining" not in numbers:
            return []
        reset = numbers.get("reset")
        reset = None if reset is None else seconds_of(reset, now)
        return [StatedLimit(numbers["remaining"], numbers.get("limit", 0.0), reset)]
    policies = {item["name"]: item["values"] for item in _ITEM.finditer(policy)}
    found = []
    for item in _ITEM.finditer(value):
        numbers, quota = _numbers(item["values"]), policies.get(item["name"], "")
        if "r" in numbers and not _OTHER_UNIT.search(quota):
            stated = _numbers(quota)
            reset = numbers.get("t", stated.get("w"))
            reset = None if reset is None else seconds_of(reset, now)
            found.append(StatedLimit(numbers["r"], stated.get("q", 0.0), reset, name=item["name"]))
    return found


def _numbers(text: str) -> dict[str, float]:
    return {pair["key"]: float(pair["number"]) for pair in _PAIR.finditer(text)}


Reader = Callable[[Mapping[str, str]], Sequence[StatedLimit]]
"""Reads the limits that the headers of an answer state."""


def read_by(readers: Sequence[Reader]) -> Reader:
    """Return one function for all *readers*. It never raises."""
    safe = [_guarded(reader) for reader in readers]
    return safe[0] if len(safe) == 1 else lambda headers: [each for reader in safe for each in reader(headers)]


def _guarded(limits: Reader) -> Reader:
    """Return *limits* as a function that never raises. It logs its first exception and then returns no limits."""
    logged = False

    def stated(headers: Mapping[str, str]) -> Sequence[StatedLimit]:
        nonlocal logged
        try:
            return limits(headers)
        except Exception as exc:  # noqa: BLE001 - of the user's own
            if not logged:
                logged = True
                # The text of the exception may contain header values.
                LOGGER.warning("limits= of Throttle failed, so no limit is read: %s", type(exc).__name__)
            return ()

    return stated
