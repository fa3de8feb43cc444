"""The layers in the one right order, so that nobody has to remember it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.call import ORDER
from lamella.layers import AttemptSpan, Breaker, Buffer, Classify, HeaderAuth, RequestSpan, Retry, Throttle, Timeout
from lamella.policy import Limit, RetryBudget, RuleBook
from lamella.policy.budget import DEFAULT_BUDGET
from lamella.state import Store
from lamella.telemetry import UrlTemplate

__all__ = ["Layer", "in_order", "stack"]

Layer = RequestSpan | Breaker | Retry | Throttle | AttemptSpan | Timeout | HeaderAuth | Buffer | Classify
"""A layer of lamella's."""


def in_order(*layers: Layer) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """*layers* from the outside in, as ``ClientSession(middlewares=…)`` takes them.

    Raises:
        ValueError: Something is none of lamella's layers, or one stands there twice (``HeaderAuth`` may).
    """
    for layer in layers:
        if not isinstance(layer, Layer):
            raise ValueError(f"not a layer of lamella's: {layer!r}; there are {', '.join(ORDER)}")  # noqa: TRY004
    kinds = [type(layer) for layer in layers if not isinstance(layer, HeaderAuth)]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f"{kind.__name__} stands twice among {layers!r}")
    return tuple(sorted(layers, key=lambda layer: layer.rank))


def stack(
    rules: RuleBook,
    *layers: Layer,
    auth: HeaderAuth | Iterable[HeaderAuth] = (),
    attempts: int | None = 5,
    deadline: float | None = None,
    attempt_timeout: float | None = 60.0,
    buffer: int | None = 8 * 1024 * 1024,
    retry_writes: bool = False,
    retry_budget: RetryBudget | None = DEFAULT_BUDGET,
    throttle: bool = True,
    limit: Limit | None = None,
    account: Callable[[aiohttp.ClientRequest], str | None] | None = None,
    store: Store | None = None,
    raise_errors: bool = True,
    spans: bool = True,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    url_template: UrlTemplate | None = None,
) -> tuple[aiohttp.ClientMiddlewareType, ...]:
    """The whole stack for *rules*, in the right order.

    Args:
        rules: What each status means, and the waits.
        layers: Layers made by hand; each takes the place of the one that would be made. A ``Breaker`` is made by hand
            alone, since a call that is refused would surprise.
        auth: What adds the credentials.
        attempts: How often a call may be sent in all. 1 means no retries; None, as often as *deadline* allows.
        deadline: How many seconds a call may take in all, the waits included. None means no limit.
        attempt_timeout: How many seconds one attempt may take, a body that is read inside it included. None means no
            limit but the session's own.
        buffer: The number of bytes of a body that are read inside the attempt, where its length is known
            (:class:`lamella.Buffer`). Other bodies are streams, which the caller handles. None means that all are.
        retry_writes: Whether methods that are not idempotent are sent again, too.
        retry_budget: How much retries may add to the load of the session. None means as much as they like.
        throttle: Whether the calls for one account wait together when its rate limit is exceeded, and keep to it.
        limit: The rate limit of an account, if it is known. None means that it is learned.
        account: Which account a request belongs to. None means one account for each origin.
        store: Where is kept what calls learn for one another. None means in this process.
        raise_errors: Whether an error status is raised. If not, the last answer is returned as soon as its headers
            are there, for code that looks at ``response.status``; a failed connection is raised all the same.
        spans: Whether there are spans and metrics for the call and for each send.
        tracer_provider: Where the spans go. None means the global one.
        meter_provider: Where the metrics go. None means the global one.
        url_template: Says what the path of a request looks like with its variable parts named, for the spans' names.

    Raises:
        ValueError: An argument is out of its range.
    """
    chosen: list[Layer] = [*layers, *([auth] if isinstance(auth, HeaderAuth) else auth)]
    made: list[Layer] = [
        Retry(
            rules,
            attempts=attempts,
            deadline=deadline,
            retry_writes=retry_writes,
            budget=retry_budget,
            store=store,
        )
    ]
    if throttle:
        made.append(
            Throttle(
                rules,
                limit=limit,
                key=account,
                store=store,
                tracer_provider=tracer_provider,
                meter_provider=meter_provider,
            )
        )
    if spans:
        made.append(
            RequestSpan(tracer_provider=tracer_provider, meter_provider=meter_provider, url_template=url_template)
        )
        made.append(
            AttemptSpan(tracer_provider=tracer_provider, meter_provider=meter_provider, url_template=url_template)
        )
    if attempt_timeout is not None:
        made.append(Timeout(attempt_timeout))
    if buffer is not None:
        made.append(Buffer(buffer))
    if raise_errors:
        made.append(Classify(rules))
    by_hand = {type(layer) for layer in chosen}
    return in_order(*chosen, *(layer for layer in made if type(layer) not in by_hand))
