"""Report the rate-limit episodes, queues and estimated limits of accounts in traces, metrics and the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.logger import LOGGER
from lamella.telemetry import names
from lamella.telemetry.log import safely
from lamella.telemetry.metrics import Gauge, Instruments, instruments_of
from lamella.telemetry.tracing import OFF, Tracing
from lamella.throttle.account import Account, Episode
from lamella.throttle.belief import Belief
from lamella.throttle.queue import waiting_of

_SHOWN: Final = 8  # hexadecimal digits shown of a key's hash


class Report:
    """Reports the events of accounts in traces, metrics and the log.

    Args:
        show_key: Whether traces and logs identify accounts by a short hash of the key.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None, *, show_key: bool
    ) -> None:
        self._show_key = show_key
        self._tracing = Tracing(tracer_provider)
        self.instruments: Instruments = instruments_of(meter_provider)
        self._queued = Gauge("queued", meter_provider)

    def count_queued(self, measured: Mapping[str, AttributeValue], call: Call, change: int) -> None:
        """Count a call whose wait begins or ends."""
        if OFF not in call.state:
            self._queued.add(change, measured)

    def wait_ended(self, call: Call, account: Account, waited: float) -> None:
        """Record that *call* waited for *waited* seconds, if it had to wait."""
        if (queued := waiting_of(call)) is None:
            return
        if OFF not in call.state:
            safely(self.instruments.queue_wait.record, waited, account.measured)
        reason = "refusal" if queued[1] > queued[0] else "rate"
        noted: dict[str, AttributeValue] = {names.WAIT: waited, names.QUEUED_BY: reason}
        span = call.span or trace.get_current_span()
        span.add_event(names.QUEUED_EVENT, noted, time.time_ns() - int(waited * 1e9))

    def believed(self, call: Call, account: Account, belief: Belief) -> None:
        """Record the estimated limits of *account* if they have changed."""
        if (limits := belief.limits) == account.belief:
            return
        account.belief = limits
        keys = names.LIMIT_KIND, names.LIMIT, names.LIMIT_PERIOD, names.LIMIT_IN_FLIGHT
        noted: dict[str, AttributeValue] = dict(zip(keys, limits, strict=True))
        if account.part:
            noted[names.LIMIT_PART] = account.part
        (call.span or trace.get_current_span()).add_event(names.BELIEF_EVENT, noted)

    def begun(self, account: Account, episode: Episode) -> None:
        """Count an episode that has begun."""
        if episode.recorded:
            safely(self.instruments.episodes.add, 1, account.measured)

    def ended(self, account: Account, episode: Episode, requests: float, period: float) -> None:
        """Report the end of *episode*: a span, a metric and a line in the log. *requests* 0: no limit is known."""
        lasted = asyncio.get_running_loop().time() - episode.began
        queued = account.queue.queued - episode.queued_before
        attributes = {
            **account.server,
            names.QUEUED: queued,
            names.REFUSED: episode.refused,
            names.WAIT: episode.wait,
        }
        if requests:
            attributes |= {names.LIMIT: float(requests), names.LIMIT_PERIOD: float(period)}
        if account.part:
            attributes[names.LIMIT_PART] = account.part
        shown = ""
        if self._show_key:
            attributes[names.KEY_HASH] = account.name[:_SHOWN]
            shown = f", account {account.name[:_SHOWN]}"
        if episode.recorded:
            safely(self.instruments.episode_duration.record, lasted, account.measured)
            safely(self._trace, episode, attributes)
        if queued:  # otherwise it affected only the refused call
            LOGGER.info(
                "%s limited the rate%s for %.3g s: %d calls were queued after %d refusals",
                account.server[names.SERVER_ADDRESS],
                shown,
                lasted,
                queued,
                episode.refused,
            )

    def _trace(self, episode: Episode, attributes: Mapping[str, AttributeValue]) -> None:
        # A separate trace, because the episode belongs to all calls that waited.
        links = [Link(episode.context)] if episode.context.is_valid else []
        start = self._tracing.tracer.start_span
        start(names.EPISODE, Context(), SpanKind.INTERNAL, attributes, links, start_time=episode.started).end()
