"""Code that ``RequestSpan`` and ``AttemptSpan`` share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypedDict

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from opentelemetry.util.types import AttributeValue

from lamella.call import Call
from lamella.checks import check_whole
from lamella.telemetry.attributes import Described, UrlTemplate, described, known_methods
from lamella.telemetry.metrics import Instruments, instruments_of
from lamella.telemetry.names import METHOD
from lamella.telemetry.others import take_over
from lamella.telemetry.tracing import OFF, Tracing, is_suppressed


class SpanOptions(TypedDict, total=False):
    """The options of both layers, documented in :class:`lamella.RequestSpan`."""

    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    url_template: UrlTemplate | None
    excluded_urls: Iterable[str] | None
    max_servers: int | None


class Telemetry:
    """The providers of spans and metrics, and the description of requests."""

    __slots__ = ("_excluded", "_known", "_template", "instruments", "is_global", "tracing")

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        url_template: UrlTemplate | None = None,
        excluded_urls: Iterable[str] | None = None,
        max_servers: int | None = None,
    ) -> None:
        self.tracing: Tracing = Tracing(tracer_provider)
        self.instruments: Instruments = instruments_of(meter_provider)
        self.is_global: bool = tracer_provider is None and meter_provider is None
        self._template = url_template
        self._known = known_methods()
        self._excluded = _excluded(excluded_urls)
        if max_servers is not None:
            check_whole("max_servers", max_servers)
            self.instruments.max_servers = max_servers

    def describe(self, call: Call) -> Described | None:
        """Return the description of the request of *call*; None if there are neither spans nor metrics."""
        silent = self.tracing.silent
        if (silent and self.instruments.silent) or self.is_off(call):
            return None
        if not silent:
            take_over(call)
        return described(call, self._template, self._known)

    def measured(self, call: Call, said: Described) -> Mapping[str, AttributeValue] | None:
        """Return the attributes of all metrics about the request of *call*; None if nothing is measured."""
        if self.instruments.silent:
            return None
        url, method = call.request.url, said.asked[METHOD]
        return self.instruments.server(url.host, url.port, str(method))

    def is_off(self, call: Call) -> bool:
        """Return whether telemetry is off for *call*: no spans, no metrics and no context in headers, even with an
        SDK."""
        if OFF in call.state:
            return True
        if not is_suppressed():
            if not self._excluded:
                return False
            url = str(call.request.url)
            if not any(pattern.search(url) for pattern in self._excluded):
                return False
        OFF.set(call, True)
        return True


def _excluded(given: Iterable[str] | None) -> tuple[re.Pattern[str], ...]:
    """Return the patterns of excluded URLs, from *given* or, if None, from OpenTelemetry's environment variables."""
    if given is None:
        name = next((name for name in _VARIABLES if name in os.environ), _VARIABLES[-1])
        given = os.environ.get(name, "").split(",")
    else:
        name = "excluded_urls"
        if isinstance(given, str):
            raise ValueError(f"excluded_urls must be a collection of regular expressions, got the string {given!r}")
    # Not joined to one: each may have flags, and groups of the same name or number.
    return tuple(compiled for pattern in given if (compiled := _compiled(pattern, name)).pattern)


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(str.strip(pattern))
    except (re.error, TypeError) as exc:
        raise ValueError(f"{name} must be regular expressions, got {pattern!r}: {exc}") from None


_VARIABLES: Final = ("OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS")
"""The first variable that is set applies, as for OpenTelemetry's own instrumentation of aiohttp."""
