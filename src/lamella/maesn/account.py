"""The account that a call is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from lamella.auth import HeaderAuth
from lamella.maesn.published import needs_account

API_KEY = "X-API-KEY"
ACCOUNT_KEY = "X-ACCOUNT-KEY"


@dataclass(frozen=True, slots=True)
class Account:
    """An end user's account.

    Raises:
        ValueError: The name is empty, not printable, or the same as the key; or the key is not allowed in a header.
    """

    name: str
    """Identifies it on screens, in files and in the journal. It stays when the end user gets another key."""
    key: str = field(repr=False)
    """A credential, which is never shown or stored."""
    company_id: str | None = None
    """For the target systems that have several companies in one account."""
    environment_name: str | None = None
    """For the target systems that have environments."""
    without: tuple[str, ...] = ()
    """Lists that its target system does not have, such as ``("offers",)``: a sync does not ask for them."""
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    """What its target system needs to be asked for a list, by the list: ``{"openItems": {"fiscalYear": "2026"}}``."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"the name of an account must be a line of text that is not empty, not {self.name!r}")
        if not self.key.strip() or not self.key.isascii() or not self.key.isprintable():
            raise ValueError(f"the key of the account {self.name!r} must be printable ASCII, and not empty")
        if self.name == self.key:
            raise ValueError("the name of an account must not be its key, which nothing may show")


_current: ContextVar[str | None] = ContextVar("lamella_maesn_account", default=None)


@contextmanager
def account(key: str) -> Iterator[None]:
    """Make the calls inside the ``with`` block for the account with this *key*.

    It holds for the current task, and for the tasks started inside: thousands of tasks can use one session, each for
    its own account.

    Raises:
        ValueError: *key* is empty.
    """
    if not key.strip():
        raise ValueError("the account key is empty")
    token = _current.set(key)
    try:
        yield
    finally:
        _current.reset(token)


def current_account(account_key: str | None = None) -> str | None:
    """Return the key of the account that a call is made for, or *account_key* outside of :func:`account`."""
    return _current.get() or account_key


def account_of(account_key: str | None) -> Callable[[aiohttp.ClientRequest], str | None]:
    """Return what `current_account` returns, as a function of a request."""
    return lambda _: _current.get() or account_key


def auth(api_key: str, account_key: str | None, base_url: URL) -> HeaderAuth:
    """Return the layer that adds both keys; *account_key* is for calls made outside of :func:`account`.

    Operations that concern no account, such as those that make one, need no account key.
    """
    folder = base_url.path.rstrip("/")

    def key(request: aiohttp.ClientRequest) -> str | None:
        found = _current.get() or account_key
        if found is None and needs_account(request.method, request.url.path.removeprefix(folder)):
            raise ValueError(
                "no account key for this call: set MAESN_ACCOUNT_KEY, give account_key=, "
                "or make the call inside of maesn.account(key)"
            )
        return found

    return HeaderAuth({API_KEY: api_key, ACCOUNT_KEY: key}, origin=base_url)
