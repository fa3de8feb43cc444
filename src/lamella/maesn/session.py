"""Make an aiohttp session for the Maesn API, or its layers for a session of your own."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Unpack

import aiohttp
from aiohttp.abc import AbstractCookieJar
from yarl import URL

from lamella.breaker import Breaker
from lamella.buffer import Buffer
from lamella.checks import check_options
from lamella.maesn.account import account_of, auth
from lamella.maesn.guard import ErrorGuard
from lamella.maesn.published.operations import template_of
from lamella.maesn.rules import RULES
from lamella.origins import parsed_origin
from lamella.rules import RuleBook
from lamella.stacking import StackOptions, stack
from lamella.telemetry.attributes import UrlTemplate
from lamella.telemetry.others import without_other_instrumentation

BASE_URL = "https://api.maesn.dev"
"""The URL of the API, unless ``base_url`` or ``MAESN_BASE_URL`` is set."""

_UNKNOWN: Final = re.compile(r"(accounting/[A-Za-z]+)(/[^/]+)?/?")
"""Paths of lists and records that are not published yet."""
_WHOLE: Final = {"application/json": 64 * 2**20}
"""Content types that the API never streams, and the maximum size in bytes that is read inside the attempt: that of a
page."""


class SessionOptions(StackOptions, total=False):
    """Options of :func:`session`: those of :func:`lamella.stack` and ``aiohttp.ClientSession``."""

    auto_decompress: bool
    connector: aiohttp.BaseConnector | None
    connector_owner: bool
    cookie_jar: AbstractCookieJar | None
    cookies: Mapping[str, str]
    headers: Mapping[str, str]
    json_serialize: Callable[[Any], str]
    proxy: str | URL | None
    proxy_auth: aiohttp.BasicAuth | None
    raise_for_status: bool | Callable[[aiohttp.ClientResponse], Awaitable[None]]
    read_bufsize: int
    requote_redirect_url: bool
    skip_auto_headers: Iterable[str] | None
    timeout: aiohttp.ClientTimeout
    trace_configs: list[aiohttp.TraceConfig]
    trust_env: bool


def session(
    api_key: str | None = None,
    account_key: str | None = None,
    base_url: str | None = None,
    *,
    rules: RuleBook = RULES,
    breaker: Breaker | None = None,
    guard: ErrorGuard | None = None,
    **options: Unpack[SessionOptions],
) -> aiohttp.ClientSession:
    """Return an ``aiohttp.ClientSession`` with all of :func:`layers` and URLs relative to *base_url*.

    It has no total timeout, because that would include the waits between attempts. Use *attempt_timeout* and *deadline*
    instead.

    Args:
        api_key: The integrator's key. None means the environment variable ``MAESN_API_KEY``.
        account_key: The key of the end user's account. None means ``MAESN_ACCOUNT_KEY``; if that is not set either,
            each call needs :func:`lamella.maesn.account`.
        base_url: None means ``MAESN_BASE_URL``, else :data:`BASE_URL`.
        rules: The meaning of each status, and the waits.
        breaker: Rejects calls while the API is down. None means no breaker.
        guard: Stops calls before a target system blocks the key for too many errors. None means no guard.
        options: Options of :func:`lamella.stack`; all others are passed to ``aiohttp.ClientSession``.

    Raises:
        TypeError: The option is unknown.
        ValueError: A key is missing or not allowed in a header, or an argument is out of its range.
    """
    if "middlewares" in options:
        raise ValueError(
            "middlewares is not an option here, because you choose the order of your own middlewares and lamella's. "
            "Create your own session with middlewares=(*outer, *maesn.layers(), *inner)"
        )
    check_options("maesn.session", options, _OPTIONS)
    of_stack: Any = {name: value for name, value in options.items() if name in StackOptions.__annotations__}
    others: Any = {name: value for name, value in options.items() if name not in of_stack}
    others.setdefault("timeout", aiohttp.ClientTimeout(total=None))
    chosen = layers(api_key, account_key, base_url, rules=rules, breaker=breaker, guard=guard, **of_stack)
    return without_other_instrumentation(aiohttp.ClientSession(_url(base_url), middlewares=chosen, **others))


def layers(
    api_key: str | None = None,
    account_key: str | None = None,
    base_url: str | None = None,
    *,
    rules: RuleBook = RULES,
    breaker: Breaker | None = None,
    guard: ErrorGuard | None = None,
    **options: Unpack[StackOptions],
) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """Return the layers of :func:`session`, with the same arguments, for a session of your own.

    Without *buffer*, JSON up to 64 MiB is read inside the attempt, because the API never streams it. A document is read
    inside the attempt if it states its length and has 8 MiB at most; otherwise it is streamed. With *buffer*, JSON is
    treated like any other body. *auth* is added to the API's keys.

    The keys are sent only to the origin of *base_url*. A total timeout of your session acts as a deadline for each
    call, and aiohttp's default of 300 s is shorter than the guide's waits.
    """
    account_key, url = account_key or os.environ.get("MAESN_ACCOUNT_KEY") or None, _url(base_url)
    keys = auth(_setting("api_key", api_key, "MAESN_API_KEY"), account_key, url)
    if options.get("throttle", True) is True:
        options.setdefault("account", account_of(account_key))
    if options.get("spans", True):
        options.setdefault("url_template", _template(url))
    buffer = () if "buffer" in options else (Buffer(whole=_WHOLE),)
    outer = [layer for layer in (breaker, guard) if layer is not None]
    return stack(rules, *outer, *buffer, keys, **options)


def _template(base_url: URL) -> UrlTemplate:
    """Return a function that returns the template of a URL, such as ``/accounting/invoices/{invoiceId}``, or None."""
    prefix = base_url.path

    def template(request: aiohttp.ClientRequest) -> str | None:
        path = request.url.path
        if not path.startswith(prefix):
            return None
        found = template_of(path.removeprefix(prefix))
        if found is None and (unknown := _UNKNOWN.fullmatch(path.removeprefix(prefix))):
            found = f"{unknown[1]}/{{id}}" if unknown[2] else unknown[1]
        return None if found is None else prefix + found

    return template


def _setting(name: str, value: str | None, variable: str) -> str:
    found = value or os.environ.get(variable)
    if not found:
        raise ValueError(f"no API key: give {name}= or set {variable}")
    return found


def _url(value: str | None) -> URL:
    given = value or os.environ.get("MAESN_BASE_URL") or BASE_URL
    parsed_origin(given, "base_url")
    url = URL(given)
    # Relative URLs replace everything after the last slash.
    return url if url.path.endswith("/") else url.with_path(f"{url.path}/")


_OPTIONS: Final = [
    *("api_key", "account_key", "base_url", "rules", "breaker", "guard"),
    *StackOptions.__annotations__,
    *(name for name in inspect.signature(aiohttp.ClientSession).parameters if name != "middlewares"),
]
