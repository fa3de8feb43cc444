"""Choose the account for which a call is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from lamella.auth import HeaderAuth
from lamella.maesn.published.operations import needs_account

API_KEY = "X-API-KEY"
ACCOUNT_KEY = "X-ACCOUNT-KEY"


@dataclass(frozen=True, slots=True)
class Account:
    """An end user's account.

    Raises:
        ValueError: The name is empty, not printable, or the same as the key; or the key is not allowed in a header.
    """

    name: str
    """Identifies the account on screens, in files and in the journal. It stays the same when the end user gets a new
    key."""
    key: str = field(repr=False)
    """A credential; it is never shown or stored."""
    company_id: str | None = None
    """For the target systems that have several companies in one account."""
    environment_name: str | None = None
    """For the target systems that have environments."""
    without: tuple[str, ...] = ()
    """Lists that the target system does not have, such as ``("offers",)``. A sync skips them."""
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    """Query parameters that the target system requires for a list: ``{"openItems": {"fiscalYear": "2026"}}``."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable():
            raise ValueError(f"the name of an account must be a non-empty line of text, got {self.name!r}")
        if not self.key.strip() or not self.key.isascii() or not self.key.isprintable():
            raise ValueError(f"the key of the account {self.name!r} must be non-empty printable ASCII")
        if self.name == self.key:
            raise ValueError("the name of an account must differ from its key, because names are shown")


_current: ContextVar[str | None] = ContextVar("lamella_maesn_account", default=None)


@contextmanager
def account(key: str) -> Iterator[None]:
    """Use the account with this *key* for the calls inside the ``with`` block.

    The setting applies to the current task and to tasks started inside the block, so thousands of tasks can share one
    session, each with its own account.

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
    """Return the key of the current :func:`account` block, or *account_key* outside one."""
    return _current.get() or account_key


def account_of(account_key: str | None) -> Callable[[aiohttp.ClientRequest], str | None]:
    """Return :func:`current_account` as a function of a request, in one step because each attempt calls it."""
    return lambda _: _current.get() or account_key


def auth(api_key: str, account_key: str | None, base_url: URL) -> HeaderAuth:
    """Return the layer that adds both keys; *account_key* is used for calls made outside :func:`account`.

    Operations that concern no account, such as those that create one, need no account key.
    """
    folder = base_url.path.rstrip("/")

    def key(request: aiohttp.ClientRequest) -> str | None:
        found = _current.get() or account_key
        if found is None and needs_account(request.method, request.url.path.removeprefix(folder)):
            raise ValueError(
                "no account key for this call: set MAESN_ACCOUNT_KEY, give account_key=, "
                "or make the call inside maesn.account(key)"
            )
        return found

    return HeaderAuth({API_KEY: api_key, ACCOUNT_KEY: key}, origin=base_url)
