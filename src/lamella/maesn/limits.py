"""``limits_of``: the rate limits of the systems behind Maesn, as published."""

from __future__ import annotations

from typing import Final

import aiohttp

from lamella.maesn.published.operations import template_of
from lamella.maesn.published.systems import SYSTEMS, Quota, System
from lamella.throttle.limit import Limit

_FOLDER: Final = "/accounting/"


def limits_of(system: str) -> tuple[Limit, ...]:
    """Return the published limits of a target system, for ``limits=``; all of them apply at the same time.

    Use them for a session whose accounts all belong to that system. Maesn itself sets no limits. Source: Maesn's public
    guide to rate limits, as of 2026.

    Args:
        system: Its name in a URL, such as ``exact-nl``, or in the guide, such as ``exact``.

    Raises:
        ValueError: The system is unknown, or has no published limit.
    """
    known = {name: found for title, found in SYSTEMS.items() if found.quotas for name in (title, *found.names)}
    found: System | None = known.get(system)
    if found is None:
        raise ValueError(f"no published limit for system {system!r}; expected one of: {', '.join(sorted(known))}")
    return tuple(map(_limit, found.quotas))


def _limit(quota: Quota) -> Limit:
    scope = path_of if quota.per == "path" else None
    key = _integrator if quota.per == "integrator" else None
    if quota.seconds is None:
        return Limit(concurrent=quota.requests, scope=scope, key=key)
    return Limit(quota.requests, per=quota.seconds, scope=scope, key=key)


def path_of(request: aiohttp.ClientRequest) -> str:
    """Return the path of *request*, as a template if it is a published one."""
    path = request.url.path
    return template_of(path[max(path.find(_FOLDER), 0) :]) or path


def _integrator(_: aiohttp.ClientRequest) -> None:
    """Return the same key for every call: one session belongs to one integrator."""
