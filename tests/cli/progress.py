"""Made-up syncs, as the displays see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

from aiohttp import RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from lamella import ApiError, LamellaError, StopReason, maesn
from lamella.classify.judge import api_error_class
from lamella.cli.progress import Watch
from lamella.sync import Part, Progress

MORNING = datetime(2026, 11, 22, 9, 30, 0, tzinfo=UTC)


def api_error(status: int, *said: str, stopped: StopReason = StopReason.NOT_RETRYABLE) -> ApiError:
    """What a call at Maesn's ends in."""
    url = URL("https://api.maesn.dev/accounting/invoices?limit=100&page=1")
    info = RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    body = json.dumps({"errors": said}).encode()
    error = api_error_class(status)(info, status=status, rule=maesn.RULES.rule_for(status), body=body)
    error.stopped = stopped
    return error


@dataclass
class Story:
    """A sync that is made up, and its clocks."""

    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    outage: LamellaError | None = None
    run: int = 1
    resumed: bool = False
    closed: dict[str, float] = field(default_factory=dict)
    """For how many seconds the queues of which accounts are closed."""
    now: float = 100.0

    def take(self, *parts: Part) -> None:
        self.parts |= {(part.account, part.resource): part for part in parts}

    def watch(self) -> Watch:
        watch = Watch(lambda name: self.closed.get(name, 0.0), clock=lambda: self.now)
        watch.begun(cast(Progress, self))
        return watch

    @property
    def clock(self) -> Callable[[], datetime]:
        """The time of day."""
        return lambda: MORNING + timedelta(seconds=self.now - 100.0)


def story(parts: Iterable[Part]) -> Story:
    """A sync with these parts."""
    made = Story()
    made.take(*parts)
    return made
