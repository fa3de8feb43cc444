"""A plain aiohttp session for the Maesn API, or its layers for a session of one's own."""

from __future__ import annotations

import os
import re
from typing import Any, Final

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from yarl import URL

from lamella.breaker import Breaker
from lamella.buffer import Buffer
from lamella.maesn.account import auth, current_account
from lamella.maesn.rules import RULES
from lamella.retry.budget import DEFAULT_BUDGET, RetryBudget
from lamella.rules import RuleBook
from lamella.stacking import stack
from lamella.store import Store
from lamella.telemetry.attributes import UrlTemplate
from lamella.telemetry.others import without_other_instrumentation
from lamella.throttle import Limit, Throttle

__all__ = ["ATTEMPT_TIMEOUT", "BASE_URL", "layers", "session"]

BASE_URL = "https://api.maesn.dev"
"""Where the API lives, unless ``base_url`` or ``MAESN_BASE_URL`` says otherwise."""

ATTEMPT_TIMEOUT = 60.0
"""Seconds that one attempt may take; behind Maesn there is one more system that takes its time."""

_WHOLE: Final = {"application/json": 64 * 2**20}
"""What the API never streams, and how many bytes of it are read inside the attempt: as many as of a page."""


def session(
    api_key: str | None = None,
    account_key: str | None = None,
    base_url: str | None = None,
    *,
    rules: RuleBook = RULES,
    attempts: int | None = 5,
    deadline: float | None = None,
    attempt_timeout: float | None = ATTEMPT_TIMEOUT,
    retry_writes: bool = False,
    retry_budget: RetryBudget | None = DEFAULT_BUDGET,
    limit: Limit | None = None,
    throttle: Throttle | None = None,
    breaker: Breaker | None = None,
    store: Store | None = None,
    raise_errors: bool = True,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    **session_options: Any,
) -> aiohttp.ClientSession:
    """An ``aiohttp.ClientSession`` with all of :func:`layers`, whose URLs are relative to the API's.

    It has no total timeout, which would include the waits between the tries: *attempt_timeout* and *deadline*
    are the limits.

    Args:
        api_key: The integrator's key. None means ``MAESN_API_KEY`` of the environment.
        account_key: The key of the end user's account. None means ``MAESN_ACCOUNT_KEY``; where that is not set
            either, each call needs :func:`lamella.maesn.account`.
        base_url: None means ``MAESN_BASE_URL``, else :data:`BASE_URL`.
        rules: What each status means, and the waits.
        attempts: How often a call may be sent in all. None means as often as *deadline* allows.
        deadline: How many seconds a call may take in all, the waits included. None means no limit.
        attempt_timeout: How many seconds one attempt may take. None means no limit.
        retry_writes: Whether POST and PATCH are sent again where they may have been carried out.
        retry_budget: How much retries may add to the load of the session. None means as much as they like.
        limit: The rate limit of an account, if it is known. None means that it is learned, for each account by itself.
        throttle: A layer made by hand, whose *key* should be :func:`lamella.maesn.current_account`. None means one for
            *limit*.
        breaker: Refuses calls while the API is down. None means that nothing does.
        store: Where is kept what calls learn for one another. None means in this process.
        raise_errors: Whether an error status is raised; if not, the last answer is returned.
        tracer_provider: Where the spans go. None means the global one.
        meter_provider: Where the metrics go. None means the global one.
        session_options: What else ``aiohttp.ClientSession`` takes.

    Raises:
        ValueError: A key is missing or cannot stand in a header, or an argument is out of its range.
    """
    if "middlewares" in session_options:
        raise ValueError(
            "middlewares cannot be given here: which of them stand outside of lamella's is yours to say. "
            "Make a session of your own with middlewares=(*outer, *maesn.layers(), *inner)"
        )
    chosen = layers(
        api_key,
        account_key,
        base_url,
        rules=rules,
        attempts=attempts,
        deadline=deadline,
        attempt_timeout=attempt_timeout,
        retry_writes=retry_writes,
        retry_budget=retry_budget,
        limit=limit,
        throttle=throttle,
        breaker=breaker,
        store=store,
        raise_errors=raise_errors,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
    )
    session_options.setdefault("timeout", aiohttp.ClientTimeout(total=None))
    return without_other_instrumentation(aiohttp.ClientSession(_url(base_url), middlewares=chosen, **session_options))


def layers(
    api_key: str | None = None,
    account_key: str | None = None,
    base_url: str | None = None,
    *,
    rules: RuleBook = RULES,
    attempts: int | None = 5,
    deadline: float | None = None,
    attempt_timeout: float | None = ATTEMPT_TIMEOUT,
    retry_writes: bool = False,
    retry_budget: RetryBudget | None = DEFAULT_BUDGET,
    limit: Limit | None = None,
    throttle: Throttle | None = None,
    breaker: Breaker | None = None,
    store: Store | None = None,
    raise_errors: bool = True,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """The layers of :func:`session`, with the same arguments, for a session of one's own.

    JSON, which the API never streams, is read inside the attempt up to 64 MiB. A document is if it says its length and
    has 8 MiB at most; otherwise it is a stream.

    The keys go to the origin of *base_url* and nowhere else. A total timeout of that session is taken as a
    deadline: aiohttp's default of 300 s is shorter than the guide's waits.
    """
    account_key = account_key or os.environ.get("MAESN_ACCOUNT_KEY") or None
    return stack(
        rules,
        *(layer for layer in (breaker, throttle) if layer is not None),
        Buffer(whole=_WHOLE),
        auth=auth(_setting("api_key", api_key, "MAESN_API_KEY"), account_key, _url(base_url)),
        attempts=attempts,
        deadline=deadline,
        attempt_timeout=attempt_timeout,
        retry_writes=retry_writes,
        retry_budget=retry_budget,
        limit=limit,
        account=None if throttle is not None else lambda _: current_account(account_key),
        store=store,
        raise_errors=raise_errors,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        url_template=_template(_url(base_url)),
    )


def _template(base_url: URL) -> UrlTemplate:
    """The API's own: ``/accounting/invoices/{id}``. A path of another shape has none."""
    prefix = base_url.path
    shape = re.compile(rf"{re.escape(prefix)}(accounting/[A-Za-z]+)(/[^/]+)?/?|{re.escape(prefix)}(auth)/[^/]+/?")

    def template(request: aiohttp.ClientRequest) -> str | None:
        found = shape.fullmatch(request.url.path)
        if found is None:
            return None
        if found[3]:
            return f"{prefix}auth/{{targetSystem}}"
        return f"{prefix}{found[1]}" + ("/{id}" if found[2] else "")

    return template


def _setting(name: str, value: str | None, variable: str) -> str:
    found = value or os.environ.get(variable)
    if not found:
        raise ValueError(f"no API key: give {name}= or set {variable}")
    return found


def _url(value: str | None) -> URL:
    url = URL(value or os.environ.get("MAESN_BASE_URL") or BASE_URL)
    # Relative URLs are joined to what stands before the last slash.
    return url if url.path.endswith("/") else url.with_path(f"{url.path}/")
