"""Track whether an API has ever answered. Before that, a failure to connect is not an outage.

A typing error in an address, or an unknown certificate authority, does not go away by itself. A sync that treated it as
an outage would wait for an hour and report that the API is down.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from lamella.batch import AccountStopped
from lamella.classify.failures import service_works
from lamella.errors import (
    ApiError,
    AttemptTimeout,
    CertificateInvalid,
    CircuitOpen,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    LamellaError,
    ProxyRefused,
    RateLimited,
    RequestRejected,
)
from lamella.retry.connecting import connecting_once

_T = TypeVar("_T")

_PATIENCE: Final = 5.0
"""Seconds for which to try an address that has never answered."""
_PAUSES: Final = (0.5, 1.0, 2.0)
"""Seconds between two tries. The last value repeats."""
_ENOUGH: Final = 20
"""After this many pages with a permanent failure and no answer, no other page is tried."""
_UNKNOWN_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class Contact:
    """Tracks whether an address has answered in this run. There is one for each origin."""

    def __init__(self) -> None:
        self._is_made = False
        self._failure: LamellaError | None = None
        """The last failure to connect."""
        self._since: float | None = None
        """When the first failed attempt began."""
        self._permanent = 0
        """The number of pages with a permanent failure."""

    async def read(self, page: Callable[[], Awaitable[_T]]) -> _T:
        """Call *page*, which makes requests to the address, and return its result.

        Raises:
            AccountStopped: The address has never answered and will not answer. ``__cause__`` is the last failure.
        """
        number = 0
        while not self._is_made:
            if self._failure is not None and self._permanent >= _ENOUGH:
                raise AccountStopped(self._failure)
            began = anyio.current_time()
            try:
                with connecting_once():
                    found = await page()
            except Exception as exc:
                if not _is_unreached(exc):
                    if _is_answer(exc):
                        self._is_made = True
                    raise
                self._note(exc, began)
            else:
                self._is_made = True
                return found
            await anyio.sleep(_PAUSES[min(number, len(_PAUSES) - 1)])
            number += 1
        return await page()

    def _note(self, exc: Exception, began: float) -> None:
        """Record a failure to connect. Raises AccountStopped if the next attempt would fail as well."""
        if self._is_made:
            return  # another page was answered in the meantime, so this is an outage
        self._since = began if self._since is None else self._since
        if isinstance(exc, LamellaError) and (self._failure is None or not isinstance(exc, CircuitOpen)):
            self._failure = exc
        if _is_permanent(exc):
            self._permanent += 1
        elif anyio.current_time() - self._since < _PATIENCE:
            return
        # Wrap the failure: for the failure itself, Batch would wait for the end of an outage.
        raise AccountStopped(self._failure or exc)


def _is_unreached(exc: Exception) -> bool:
    """Return whether there is no sign of an API at the address."""
    if isinstance(exc, ConnectTimeout) and exc.in_pool:
        return False
    return isinstance(exc, ConnectFailed | ConnectionLost | CertificateInvalid | CircuitOpen)


def _is_answer(exc: Exception) -> bool:
    """Return whether the address has answered, or has at least accepted the request."""
    if isinstance(exc, RequestRejected):
        return isinstance(exc, RateLimited)
    return not isinstance(exc, LamellaError) or isinstance(exc, ApiError | AttemptTimeout) or bool(service_works(exc))


def _is_permanent(exc: Exception) -> bool:
    """Return whether a failure to connect lasts until someone changes the configuration."""
    if isinstance(exc, CertificateInvalid | ProxyRefused):
        return True
    cause = getattr(exc.__cause__, "os_error", None)
    return isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN_NAME
