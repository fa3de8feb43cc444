"""A pytest plugin that puts lamella's stack around each request of each aiohttp session: see aiohttp_tests.py.

The middlewares of the test stay where they are, inside the stack, also those that are given with a request.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import aiohttp
import aiohttp.client as aiohttp_client
from aiohttp.client_middlewares import build_client_middlewares as _build
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import lamella

# Retry quickly, so that a test with a failing request ends within its time limit.
_SOON = lamella.Backoff(initial=0.01, maximum=0.05)
RULES = lamella.RuleBook(
    *(lamella.Rule(status, "Retried", retry=_SOON) for status in (429, 500, 502, 503, 504)),
    lamella.Rule(lamella.Failure.CONNECT_FAILED, "Connection Failed", retry=_SOON),
    lamella.Rule(lamella.Failure.CONNECTION_LOST, "Connection Lost", retry=_SOON),
    lamella.Rule(lamella.Failure.ATTEMPT_TIMEOUT, "Timeout", retry=_SOON),
)
# Created here, because blockbuster reports file reads inside a test.
_TRACER_PROVIDER = TracerProvider()
_METER_PROVIDER = MeterProvider([InMemoryMetricReader()])

_stacks: weakref.WeakKeyDictionary[aiohttp.ClientSession, tuple[aiohttp.ClientMiddlewareType, ...]]
_stacks = weakref.WeakKeyDictionary()


def _stack() -> tuple[aiohttp.ClientMiddlewareType, ...]:
    return lamella.stack(
        RULES,
        raise_errors=False,
        tracer_provider=_TRACER_PROVIDER,
        meter_provider=_METER_PROVIDER,
    )


_stack()  # as above: it looks up the version of lamella once


async def _outermost(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Run the stack of the request's session."""
    layers = _stacks.get(request.session)
    if layers is None:
        layers = _stacks[request.session] = _stack()
    return await _build(handler, layers)(request)


def _with_stack(
    handler: aiohttp.ClientHandlerType, middlewares: Sequence[aiohttp.ClientMiddlewareType]
) -> aiohttp.ClientHandlerType:
    return _build(handler, (_outermost, *middlewares))


class _Always(tuple[aiohttp.ClientMiddlewareType, ...]):
    """Middlewares of a session without any, so that aiohttp still uses them."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_init = aiohttp.ClientSession.__init__


def _init_with_stack(self: aiohttp.ClientSession, *args: object, **options: object) -> None:
    _init(self, *args, **options)  # type: ignore[arg-type]
    self._middlewares = _Always(self._middlewares)


aiohttp.ClientSession.__init__ = _init_with_stack  # type: ignore[method-assign]
aiohttp_client.build_client_middlewares = _with_stack  # type: ignore[attr-defined]
