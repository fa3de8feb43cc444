"""``Timeout``: no attempt takes longer than this."""

from __future__ import annotations

import asyncio
from math import isfinite

import aiohttp

from lamella.call import ORDER, Call, secrets_of
from lamella.errors import AttemptTimeout
from lamella.policy import Failure, RuleBook

__all__ = ["Timeout"]

_RULE = RuleBook().rule_for(Failure.ATTEMPT_TIMEOUT)


class Timeout:
    """Ends an attempt that takes too long with :class:`lamella.AttemptTimeout`.

    It stands inside of ``Retry``, so that a timeout is one attempt that failed, and outside of ``Buffer``, so that
    a body which does not end is a timeout too. Without ``Buffer`` it ends with the headers of the answer.

    Args:
        seconds: The longest that one attempt may take: connecting, sending, the answer's headers and, with
            ``Buffer``, its body.

    Raises:
        ValueError: *seconds* is not a finite number greater than 0.
    """

    rank = ORDER.index("Timeout")

    def __init__(self, seconds: float) -> None:
        if not isfinite(seconds) or seconds <= 0:
            raise ValueError(f"seconds must be a finite number greater than 0, not {seconds!r}")
        self._seconds = seconds

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        call = Call.of(request)
        outside = call.enter(self.rank)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await handler(request)
        except TimeoutError as exc:
            # Somebody else's timeout passes as it is.
            if not limit.expired():
                raise
            reason = f"no whole answer within {self._seconds:g} s"
            raise AttemptTimeout(request.method, request.url, _RULE, reason, secrets=secrets_of(request)) from exc
        finally:
            call.inside = outside

    def __repr__(self) -> str:
        return f"Timeout({self._seconds:g})"
