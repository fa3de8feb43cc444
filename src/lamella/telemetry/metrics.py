"""The instruments of lamella, and their meter."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics

from lamella.telemetry.names import SCHEMA, version_of_lamella

__all__ = ["Instruments", "instruments_of"]

# The conventions' advice for durations of HTTP requests, in seconds.
_SEND_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# A call waits for minutes where a send takes seconds.
_CALL_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
_ATTEMPT_BUCKETS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)


def instruments_of(provider: metrics.MeterProvider | None) -> Instruments:
    """Return the instruments that *provider* makes. None means the global one, even if it is set later."""
    used = metrics.get_meter_provider() if provider is None else provider
    found = _INSTRUMENTS.get(used)
    if found is None:
        found = _INSTRUMENTS[used] = Instruments(used)
    return found


class Instruments:
    """What lamella counts and measures, with the instruments of one meter provider."""

    __slots__ = (
        "attempts",
        "call_duration",
        "episode_duration",
        "episodes",
        "in_flight",
        "queue_wait",
        "queued",
        "retries",
        "send_duration",
        "stops",
        "transitions",
        "wait",
        "waiting",
    )

    def __init__(self, provider: metrics.MeterProvider) -> None:
        meter = metrics.get_meter("lamella", version_of_lamella(), meter_provider=provider, schema_url=SCHEMA)
        self.send_duration: metrics.Histogram = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests: of each send by itself.",
            explicit_bucket_boundaries_advisory=_SEND_BUCKETS,
        )
        self.in_flight: metrics.UpDownCounter = meter.create_up_down_counter(
            "lamella.sends.active", "{send}", "Sends in flight now."
        )
        self.call_duration: metrics.Histogram = meter.create_histogram(
            "lamella.call.duration",
            "s",
            "Duration of whole calls, with all their sends and waits.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.attempts: metrics.Histogram = meter.create_histogram(
            "lamella.call.attempts",
            "{send}",
            "How often a call was sent.",
            explicit_bucket_boundaries_advisory=_ATTEMPT_BUCKETS,
        )
        self.wait: metrics.Histogram = meter.create_histogram(
            "lamella.call.wait",
            "s",
            "How long a call waited between its sends, in sum.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.retries: metrics.Counter = meter.create_counter(
            "lamella.call.retries", "{retry}", "Decisions to send again."
        )
        self.stops: metrics.Counter = meter.create_counter(
            "lamella.call.stops", "{call}", "Calls that were given up, by the reason."
        )
        self.waiting: metrics.UpDownCounter = meter.create_up_down_counter(
            "lamella.calls.waiting", "{call}", "Calls that wait now."
        )
        self.queued: metrics.UpDownCounter = meter.create_up_down_counter(
            "lamella.calls.queued", "{call}", "Calls that wait in the queue of their account now."
        )
        self.queue_wait: metrics.Histogram = meter.create_histogram(
            "lamella.queue.wait",
            "s",
            "How long queued attempts waited.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )
        self.episodes: metrics.Counter = meter.create_counter(
            "lamella.rate_limit.episodes", "{episode}", "Rate-limit episodes that began."
        )
        self.episode_duration: metrics.Histogram = meter.create_histogram(
            "lamella.rate_limit.duration",
            "s",
            "Length of a rate-limit episode, from the refusal to the next success.",
            explicit_bucket_boundaries_advisory=_CALL_BUCKETS,
        )

        self.transitions: metrics.Counter = meter.create_counter(
            "lamella.breaker.transitions", "{transition}", "Circuits that opened, became half-open, or closed."
        )

    @property
    def silent(self) -> bool:
        """Whether there is no SDK (yet)."""
        # The API has no public name for that. Without this private one, everything is recorded, for nothing.
        return getattr(self.call_duration, "_real_instrument", self) is None or isinstance(
            self.call_duration, metrics.NoOpHistogram
        )


_INSTRUMENTS: Final[WeakKeyDictionary[metrics.MeterProvider, Instruments]] = WeakKeyDictionary()
