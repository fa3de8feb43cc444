"""The other sides of the matrix: what is sent, and through which layers."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from tests.layering import together

from lamella import Breaker, Buffer, Classify, HeaderAuth, Retry, RuleBook, maesn, stack

__all__ = ["ATTEMPTS", "LARGE", "LAYERS", "REQUESTS", "Layers", "Place", "Request"]

ATTEMPTS: Final = 3
"""How often a call may be sent in all."""
ATTEMPT_TIMEOUT: Final = 10.0
SMALL: Final = b'{"amount": 42}'
LARGE: Final = bytes(range(256)) * 4 * 1024
"""A body of a megabyte, which no buffer between client and server holds."""


@dataclass(frozen=True)
class Request:
    """What is sent."""

    name: str
    method: str
    body: bytes = b""
    stream: bool = False
    """Whether the body is an async generator, which can be sent once."""
    key: bool = False
    """Whether it has an Idempotency-Key."""
    large: bool = False

    def options(self) -> dict[str, Any]:
        """For ``session.request``."""
        options: dict[str, Any] = {"headers": {"Idempotency-Key": "4711"}} if self.key else {}
        if self.body:
            # As bytes it would have to be a smaller one.
            whole = io.BytesIO(self.body) if self.large else self.body
            options["data"] = _stream(self.body) if self.stream else whole
        return options


async def _stream(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]


REQUESTS: Final = (
    *(Request(method, method) for method in ("GET", "HEAD", "OPTIONS", "TRACE", "DELETE")),
    *(Request(method, method, SMALL) for method in ("PUT", "POST", "PATCH")),
    Request("PUT of a stream", "PUT", SMALL, stream=True),
    Request("POST with a key", "POST", SMALL, key=True),
    Request("PUT of much", "PUT", LARGE, large=True),
    Request("POST of much", "POST", LARGE, large=True),
    Request("PUT of a long stream", "PUT", LARGE, stream=True, large=True),
)


@dataclass(frozen=True)
class Place:
    """Where a call goes, and who looks on."""

    origin: str
    secret: str
    tracer_provider: TracerProvider
    meter_provider: MeterProvider


Make = Callable[[Place], tuple[aiohttp.ClientMiddlewareType, ...]]


@dataclass(frozen=True)
class Layers:
    """A set of layers, and what of it the expectations depend on."""

    name: str
    make: Make
    classify: bool = True
    retry: bool = True
    buffer: bool = False
    whole_json: bool = False
    """Whether Buffer also reads JSON that does not say its length."""
    timeout: bool = False
    spans: bool = False
    retry_writes: bool = False


RULES: Final = RuleBook(*maesn.RULES)
"""Maesn's, for an API that knows an ``Idempotency-Key``."""


def _retry(**options: Any) -> Retry:
    return Retry(RULES, attempts=ATTEMPTS, **options)


def _auth(place: Place) -> HeaderAuth:
    return HeaderAuth({"X-API-KEY": place.secret}, origin=place.origin)


def _full(place: Place, *layers: Breaker, **options: Any) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    return stack(
        RULES,
        *layers,
        auth=_auth(place),
        attempts=ATTEMPTS,
        attempt_timeout=ATTEMPT_TIMEOUT,
        tracer_provider=place.tracer_provider,
        meter_provider=place.meter_provider,
        **options,
    )


def _maesn(place: Place) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    return maesn.layers(
        place.secret,
        "zq-account-4711",
        place.origin,
        rules=RULES,
        attempts=ATTEMPTS,
        attempt_timeout=ATTEMPT_TIMEOUT,
        tracer_provider=place.tracer_provider,
        meter_provider=place.meter_provider,
    )


LAYERS: Final = (
    Layers("Classify", lambda place: (_auth(place), Classify(RULES)), retry=False),
    Layers("Classify and Buffer", lambda place: (_auth(place), Buffer(), Classify(RULES)), retry=False, buffer=True),
    Layers("Retry", lambda place: (_retry(), _auth(place)), classify=False),
    Layers("Retry and Classify", lambda place: (_retry(), _auth(place), Classify(RULES))),
    Layers("all", _full, buffer=True, timeout=True, spans=True),
    Layers(
        "all, nothing raised",
        lambda place: (together(_full(place, raise_errors=False)),),
        classify=False,
        buffer=True,
        timeout=True,
        spans=True,
    ),
    Layers(
        "all and a breaker, writes too",
        lambda place: (together(_full(place, Breaker(), retry_writes=True)),),
        buffer=True,
        timeout=True,
        spans=True,
        retry_writes=True,
    ),
    Layers("Maesn's", lambda place: (together(_maesn(place)),), buffer=True, whole_json=True, timeout=True, spans=True),
)
