"""The metric instruments of lamella, and gauges that an SDK reads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final
from weakref import WeakKeyDictionary, WeakSet, ref

from opentelemetry import metrics
from opentelemetry.util.types import AttributeValue

from lamella.telemetry.names import METHOD, OTHER, SCHEMA, SERVER_ADDRESS, SERVER_PORT, version_of_lamella

# Buckets in seconds that the conventions recommend for HTTP requests.
_ATTEMPT_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# Calls may wait for minutes, while attempts take seconds.
_CALL_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)

_GAUGES: Final = {
    "in_flight": ("lamella.attempts.active", "{attempt}", "Attempts in flight."),
    "waiting": ("lamella.calls.waiting", "{call}", "Calls waiting for their next attempt."),
    "queued": ("lamella.calls.queued", "{call}", "Calls waiting in the queue of their account."),
}

Key = tuple[tuple[str, AttributeValue], ...]


class Gauge:
    """Count the calls or attempts of one layer in a state; *kind* is a name in :data:`_GAUGES`.

    It costs a call only a number in memory, which an SDK reads on collection. It is discarded with its layer.
    """

    __slots__ = ("__weakref__", "_kind", "_numbers", "_provider")

    def __init__(self, kind: str, provider: metrics.MeterProvider | None) -> None:
        self._kind = kind
        self._provider = provider
        self._numbers: dict[Key, int] = {}
        """Changed only by its layer, which works in one thread at a time."""
        with _LOCK:
            _LIVE.add(self)

    def add(self, change: int, attributes: Mapping[str, AttributeValue]) -> None:
        """Add *change*, which may be negative, to the number with these *attributes*."""
        key = tuple(attributes.items())
        self._numbers[key] = self._numbers.get(key, 0) + change

    def numbers(self, kind: str, provider: object) -> list[tuple[Key, int]]:
        """Return the numbers if the gauge has this *kind* and *provider*. Thread-safe."""
        mine = metrics.get_meter_provider() if self._provider is None else self._provider
        return list(self._numbers.items()) if kind == self._kind and mine is provider else []


_LOCK: Final = threading.Lock()
_LIVE: Final[WeakSet[Gauge]] = WeakSet()


def _observe(
    kind: str, used: ref[metrics.MeterProvider] | None, _: metrics.CallbackOptions
) -> Iterable[metrics.Observation]:
    """Return the sums over all layers that use the provider; *used* None means the global one."""
    provider = metrics.get_meter_provider() if used is None else used()
    with _LOCK:
        gauges = list(_LIVE)
    sums: Counter[Key] = Counter()
    for gauge in gauges:
        for key, number in gauge.numbers(kind, provider):
            sums[key] += number
    return [metrics.Observation(number, dict(key)) for key, number in sums.items()]


def instruments_of(provider: metrics.MeterProvider | None) -> Instruments:
    """Return the instruments of *provider*, or raise ValueError. None means the global one, even if it is set later."""
    if provider is not None and not hasattr(provider, "get_meter"):
        raise ValueError(f"meter_provider must be a MeterProvider or None, got {type(provider).__name__}")
    current = metrics.get_meter_provider()
    used = current if provider is None else provider
    found = _INSTRUMENTS.get(used)
    if found is None and used is current:
        # Those made before the global provider was set belong to it, and have counted its servers.
        found = next((each for each in _EARLY if not each.silent), None)
    if found is None:
        found = _INSTRUMENTS[used] = Instruments(used, is_global=provider is None)
        if found.silent and provider is None:
            _EARLY.append(found)
    return found


class Instruments:
    """All instruments of lamella for one meter provider."""

    __slots__ = (
        "_attributes",
        "_late",
        "_never",
        "_servers",
        "attempt_duration",
        "call_duration",
        "episode_duration",
        "episodes",
        "max_servers",
        "queue_wait",
        "refreshes",
        "retries",
        "stops",
        "transitions",
        "wait",
    )

    def __init__(self, provider: metrics.MeterProvider, *, is_global: bool) -> None:
        meter = metrics.get_meter("lamella", version_of_lamella(), meter_provider=provider, schema_url=SCHEMA)
        self.max_servers: int = 100
        """How many servers the metrics distinguish; all others are ``_OTHER``."""
        self._servers: set[tuple[str, int | None]] = set()
        self._attributes: dict[tuple[str, int | None, str | None], Mapping[str, AttributeValue]] = {}
        seconds = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_CALL_SECONDS)
        self.attempt_duration: metrics.Histogram = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests, per attempt.",
            explicit_bucket_boundaries_advisory=_ATTEMPT_SECONDS,
        )
        self.call_duration: metrics.Histogram = seconds(
            "lamella.call.duration", description="Duration of whole calls, including all attempts and waits."
        )
        self._never = isinstance(self.call_duration, metrics.NoOpHistogram)
        # The API has no public name for this. Without the private name everything is recorded, only slower.
        self._late = hasattr(self.call_duration, "_real_instrument")
        self.wait: metrics.Histogram = seconds(
            "lamella.call.wait", description="Total wait of a call between its attempts, if it waited."
        )
        self.queue_wait: metrics.Histogram = seconds(
            "lamella.queue.wait", description="Time that queued attempts waited."
        )
        self.episode_duration: metrics.Histogram = seconds(
            "lamella.rate_limit.duration",
            description="Length of a rate-limit episode, from the first 429 to the next success.",
        )
        self.retries: metrics.Counter = meter.create_counter(
            "lamella.call.retries", "{retry}", "Decisions to make another attempt."
        )
        self.stops: metrics.Counter = meter.create_counter(
            "lamella.call.stops", "{call}", "Calls that were given up, by reason."
        )
        self.episodes: metrics.Counter = meter.create_counter(
            "lamella.rate_limit.episodes", "{episode}", "Rate-limit episodes that began."
        )
        self.refreshes: metrics.Counter = meter.create_counter(
            "lamella.token.refreshes", "{refresh}", "Fetches of tokens, by result."
        )
        self.transitions: metrics.Counter = meter.create_counter(
            "lamella.breaker.transitions", "{transition}", "Circuits that opened, became half-open or closed."
        )
        # The provider keeps the callback, which must not keep the provider.
        used = None if is_global else ref(provider)
        for kind, (name, unit, description) in _GAUGES.items():
            meter.create_observable_up_down_counter(name, [partial(_observe, kind, used)], unit, description)

    def server(self, host: str | None, port: int | None, method: str | None = None) -> Mapping[str, AttributeValue]:
        """Return the attributes of metrics about a server, with *method* for metrics about requests."""
        host = host or ""
        found = self._attributes.get((host, port, method))
        if found is not None:
            return found
        attributes: dict[str, AttributeValue] = {} if method is None else {METHOD: method}
        if (host, port) not in self._servers and len(self._servers) >= self.max_servers:
            return attributes | {SERVER_ADDRESS: OTHER}
        self._servers.add((host, port))
        attributes[SERVER_ADDRESS] = host
        if port is not None:
            attributes[SERVER_PORT] = port
        found = self._attributes[host, port, method] = MappingProxyType(attributes)
        return found

    @property
    def silent(self) -> bool:
        """Whether there is no SDK (yet)."""
        return self._never or (self._late and getattr(self.call_duration, "_real_instrument", self) is None)


_INSTRUMENTS: Final[WeakKeyDictionary[metrics.MeterProvider, Instruments]] = WeakKeyDictionary()
_EARLY: Final[list[Instruments]] = []
"""Instruments of the global provider that were created before it was set."""
