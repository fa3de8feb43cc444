"""``AttemptRecord``: what happened in one attempt of a call, and `attempts`: the records of a call that ended well."""

from __future__ import annotations

from typing import Final, NamedTuple

import aiohttp

from lamella.rules import WaitSource

RECORDS_KEY: Final = "_lamella_attempts"
"""Where an answer keeps what `attempts` returns, or what it makes that of."""


class AttemptRecord(NamedTuple):
    """One attempt of a call. ``status`` or ``exception`` (the name of its class) is None; times are in seconds."""

    number: int
    status: int | None
    exception: str | None
    took: float
    waited: float = 0.0
    """How long the call waited after it; 0.0 after the last one."""
    rule: str | None = None
    """The title of the rule that applied. None: the attempt did not fail."""
    wait_source: WaitSource | None = None
    """Where the length of the wait came from. None: there was none."""
    attempts_left: int | None = None
    """How many attempts were left after it. None: there is no limit."""
    deadline_left: float | None = None
    """How many seconds were left until the deadline. None: there is no deadline."""
    queued: float = 0.0
    """How long it was in the queue of its account before it was sent; not a part of ``took``."""


def attempts(response: aiohttp.ClientResponse) -> tuple[AttemptRecord, ...]:
    """Return a record of each attempt of the call that *response* came from, the last one included.

    After a redirect these are the attempts of its last hop. The tuple is empty if ``Retry`` did not handle the call, as
    in a session without it, or with a mock of the answer. An error has them in ``error.attempts``.
    """
    kept = vars(response).get(RECORDS_KEY, ())
    if not kept or isinstance(kept[0], AttemptRecord):
        return tuple(kept)
    # The only attempt: its record is made when somebody asks for it.
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
