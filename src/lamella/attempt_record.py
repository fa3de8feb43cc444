"""``AttemptRecord``: the result of one attempt of a call; `attempts`: the records of a successful call."""

from __future__ import annotations

from typing import Final, NamedTuple

import aiohttp

from lamella.rules import WaitSource

RECORDS_KEY: Final = "_lamella_attempts"
"""Attribute of a response that holds the result of `attempts`, or the data to make it."""


class AttemptRecord(NamedTuple):
    """One attempt of a call. ``status`` or ``exception`` (the name of its class) is None; times are in seconds."""

    number: int
    status: int | None
    exception: str | None
    took: float
    waited: float = 0.0
    """The wait after this attempt; 0.0 after the last one."""
    rule: str | None = None
    """The title of the rule that applied. None: the attempt did not fail."""
    wait_source: WaitSource | None = None
    """The source of the length of the wait. None: no wait."""
    attempts_left: int | None = None
    """How many attempts were left after this one. None: no limit."""
    deadline_left: float | None = None
    """Seconds left until the deadline. None: no deadline."""
    queued: float = 0.0
    """Time in the queue of the account before the attempt was sent; not included in ``took``."""


def attempts(response: aiohttp.ClientResponse) -> tuple[AttemptRecord, ...]:
    """Return the records of all attempts of the call that returned *response*, including the last one.

    After a redirect these are the attempts of the last hop. The tuple is empty if ``Retry`` did not handle the call,
    for example in a session without it or with a mocked response. For a failed call see ``error.attempts``.
    """
    kept = vars(response).get(RECORDS_KEY, ())
    if not kept or isinstance(kept[0], AttemptRecord):
        return tuple(kept)
    # The only attempt: its record is created on demand.
    began, ended, queued, allowed, deadline = kept
    record = AttemptRecord(
        1,
        response.status,
        None,
        took=ended - began - queued,
        queued=queued,
        attempts_left=None if allowed is None else allowed - 1,
        deadline_left=None if deadline is None else max(deadline - ended, 0.0),
    )
    return (record,)
