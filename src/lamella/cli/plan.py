"""``lamella sync --dry-run``: show what a sync would read."""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext

from rich.console import Console

from lamella import maesn
from lamella.batch import Journal
from lamella.cli import report
from lamella.cli.options import Settings
from lamella.cli.terminal import print_json, show
from lamella.sync import Part


def show_plan(settings: Settings, console: Console, *, as_json: bool) -> None:
    """Show the plan of a sync. Send and write nothing.

    Raises:
        JournalError: The journal cannot be opened.
        TooManyDeparted: The sync would be refused.
    """
    parts = asyncio.run(_plan(settings))
    if as_json:
        print_json(report.plan_as_json(parts))
    else:
        show(console, report.plan_as_table(parts))


async def _plan(settings: Settings) -> tuple[Part, ...]:
    there = os.path.exists(settings.journal)  # noqa: ASYNC240 - a look, before there is anything to wait for
    async with Journal.open(settings.journal, batch=settings.identity) if there else nullcontext() as journal:
        return await maesn.plan(
            settings.accounts,
            settings.resources,
            journal=journal,
            limit=settings.page_size,
            params=settings.params,
            since=settings.since,
            resume=settings.resume,
            lookback=settings.lookback,
            full_every=settings.full_every,
            departed=settings.departed,
        )
