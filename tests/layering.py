"""The same layers one by one among the middlewares of a session, or together in one pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import aiohttp
import pytest

from lamella import (
    AttemptSpan,
    Backoff,
    Breaker,
    Buffer,
    Classify,
    HeaderAuth,
    Layer,
    RequestSpan,
    Retry,
    Rule,
    RuleBook,
    Throttle,
    Timeout,
)
from lamella.pipeline import Pipeline

__all__ = ["LAYERS", "RULES", "SUBSETS", "apart", "in_order", "together"]

RULES = RuleBook(Rule(429, "Too Many Requests", retry=Backoff(initial=0)))
LAYERS: tuple[Layer, ...] = (
    RequestSpan(),
    Breaker(),
    Retry(RULES),
    Throttle(RULES),
    AttemptSpan(),
    Timeout(5),
    HeaderAuth({"X-A": "value"}),
    Buffer(),
    Classify(RULES),
)
"""One layer of each kind, from the outside in."""
SUBSETS = [
    pytest.param(subset, marks=pytest.mark.slow if 2 < size < len(LAYERS) - 2 else ())
    for size in range(len(LAYERS) + 1)
    for subset in itertools.combinations(LAYERS, size)
]
"""All sets of these layers; those that have, or lack, more than two of them are slow."""


def in_order(*layers: Layer) -> tuple[Layer, ...]:
    """Return *layers* from the outside in, each a middleware by itself."""
    return tuple(sorted(layers, key=lambda layer: layer.slot))


def apart(middlewares: Iterable[aiohttp.ClientMiddlewareType]) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """Return the *middlewares* with each layer of a pipeline as one of them."""
    return tuple(
        each
        for middleware in middlewares
        for each in (middleware.layers if isinstance(middleware, Pipeline) else (middleware,))
    )


def together(middlewares: Iterable[aiohttp.ClientMiddlewareType]) -> Pipeline:
    """Return one pipeline of all layers of *middlewares*."""
    return Pipeline(layer for layer in apart(middlewares) if isinstance(layer, Layer))
