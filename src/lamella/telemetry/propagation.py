"""Propagate trace context in request headers."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Final, cast

from multidict import istr
from opentelemetry import propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from yarl import URL

from lamella.call import Call
from lamella.origins import Origin, origin_of, parsed_origin
from lamella.telemetry.redirects import first_origin
from lamella.telemetry.tracing import SPAN_KEY, current_context


class Propagation:
    """Write the current context into the headers of requests to certain origins.

    Args:
        propagator: The propagator. True means the global one, False means none.
        origins: The origins that get the context. If empty, all requests except redirects.

    Raises:
        ValueError: *propagator* or *origins* is invalid.
    """

    __slots__ = ("_given", "is_default", "origins")

    def __init__(self, propagator: TextMapPropagator | bool, origins: Iterable[str | URL]) -> None:
        if not isinstance(propagator, TextMapPropagator | bool):
            raise ValueError(  # noqa: TRY004 - like every other bad value
                f"propagate must be a propagator, True or False, got {type(propagator).__name__}"
            )
        self._given = propagator
        self.is_default: bool = isinstance(propagator, bool)
        """Whether nothing is written if the global propagator writes nothing."""
        if isinstance(origins, str):
            raise ValueError(  # noqa: TRY004 - as above
                f"origins must be a collection of origins, such as a list, got {origins!r}"
            )
        self.origins: frozenset[Origin] = frozenset(map(parsed_origin, origins))

    def inject(self, call: Call, *, is_off: bool) -> None:
        """Write the current context into the headers of *call*; for another origin remove it.

        *is_off*: write nothing, because the caller has switched telemetry off.
        """
        given, request = self._given, call.request
        if given is False:
            return
        propagator = propagate.get_global_textmap() if given is True else given
        if self.origins:
            foreign = origin_of(request.url) not in self.origins
        else:
            first = first_origin(call)
            foreign = first is not None and origin_of(request.url) != first
        if not foreign:
            if not is_off:
                inject(request.headers, propagator)
            return
        for name in propagator.fields:
            # aiohttp also sends the headers of the first hop to the next one.
            request.headers.popall(name, None)


def hands_on_nothing() -> bool:
    """Return whether there is no context to propagate, a check for which propagators take 3 µs."""
    if current_context():
        return False
    propagator = propagate.get_global_textmap()
    return propagator is _INITIAL or _is_w3c(propagator)


def inject(headers: MutableMapping[str, str], propagator: TextMapPropagator) -> None:
    """Write the current context into *headers* with *propagator*."""
    current = current_context()
    if len(current) < 2 and _is_w3c(propagator):
        if not current:
            return
        span = cast(trace.Span | None, current.get(SPAN_KEY))
        if span is not None and (at := span.get_span_context()).is_valid:
            # Only a span: write W3C Trace Context (section 3.2) directly in 1 µs instead of the propagators' 7 µs.
            headers[_TRACEPARENT] = f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}"
            if at.trace_state:
                headers[_TRACESTATE] = at.trace_state.to_header()
            return
    propagator.inject(headers)  # pyright: ignore[reportArgumentType]  # its default setter is for mutable mappings


_TRACEPARENT: Final = istr("traceparent")
_TRACESTATE: Final = istr("tracestate")


def _is_w3c(propagator: TextMapPropagator) -> bool:
    """Return whether *propagator* writes only traces and baggage; a custom one might write other headers."""
    return type(propagator) is CompositePropagator and _are_w3c(propagator)


@lru_cache(maxsize=8)
def _are_w3c(propagator: CompositePropagator) -> bool:
    parts = getattr(propagator, "_propagators", [None])
    return [type(part) for part in parts] == [TraceContextTextMapPropagator, W3CBaggagePropagator]


_GLOBAL: TextMapPropagator = propagate.get_global_textmap()
_INITIAL: Final = _GLOBAL if _is_w3c(_GLOBAL) else None
"""The global propagator at import, which most programs keep. None: it may write other headers."""
