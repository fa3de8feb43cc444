"""``limits_of``: the rate limits of the systems behind Maesn, as published."""

from __future__ import annotations

from typing import Final

import aiohttp

from lamella.maesn.published import SYSTEMS, Quota, System, template_of
from lamella.throttle.limit import Limit

_FOLDER: Final = "/accounting/"


def limits_of(system: str) -> tuple[Limit, ...]:
    """Return the published limits of a target system, for ``limits=``: all of them hold at the same time.

    They are for a session whose accounts are all of that system. Maesn sets no limits of its own. Source: Maesn's
    public guide to rate limits, as of 2026.

    Args:
        system: Its name in a URL, such as ``exact-nl``, or in the guide, such as ``exact``.

    Raises:
        ValueError: The system is unknown, or no limit of it is published.
    """
    known = {name: found for title, found in SYSTEMS.items() if found.quotas for name in (title, *found.names)}
    found: System | None = known.get(system)
    if found is None:
        raise ValueError(
            f"no limit is published for the system {system!r}; there is one for: {', '.join(sorted(known))}"
        )
    return tuple(map(_limit, found.quotas))


def _limit(quota: Quota) -> Limit:
    scope = path_of if quota.per == "path" else None
    key = _integrator if quota.per == "integrator" else None
    if quota.seconds is None:
        return Limit(concurrent=quota.requests, scope=scope, key=key)
    return Limit(quota.requests, per=quota.seconds, scope=scope, key=key)


def path_of(request: aiohttp.ClientRequest) -> str:
    """Return the path of *request*, with its variable parts named where it is a published one."""
    path = request.url.path
    return template_of(path[max(path.find(_FOLDER), 0) :]) or path


def _integrator(_: aiohttp.ClientRequest) -> None:
    """All calls of a session are those of one integrator."""
