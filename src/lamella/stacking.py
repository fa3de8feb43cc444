"""A stack of layers in the right order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple, TypedDict, Unpack, cast

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import TracerProvider

from lamella.auth import HeaderAuth
from lamella.breaker import Breaker
from lamella.buffer import Buffer
from lamella.checks import check_kind, check_options
from lamella.classify import Classify
from lamella.origins import Origin
from lamella.pipeline import Layer, Pipeline, Slot, check_slot
from lamella.retry import Retry
from lamella.retry.budget import DEFAULT_BUDGET, RetryBudget
from lamella.retry.report import OnAttempt
from lamella.rules import HTTP_RULES, RuleBook, check_rules
from lamella.scope import TAKERS, check_values
from lamella.store.protocol import Store
from lamella.telemetry.attempt_span import AttemptSpan
from lamella.telemetry.attributes import UrlTemplate
from lamella.telemetry.call_span import RequestSpan
from lamella.throttle import Throttle
from lamella.throttle.limit import Cost, Limits, Of
from lamella.timeout import Timeout


class At(NamedTuple):
    """A plain aiohttp middleware with its place in a stack."""

    slot: Slot
    """The middleware is outside lamella's own layer in this slot."""
    middleware: aiohttp.ClientMiddlewareType


class Stack(tuple[aiohttp.ClientMiddlewareType, ...]):
    """The middlewares of :func:`stack`, which also work as one: ``middlewares=(stack(rules), other)``."""

    __slots__ = ()

    def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> Awaitable[aiohttp.ClientResponse]:
        for middleware in reversed(self):
            handler = partial(middleware, handler=handler)  # type: ignore[call-arg]  # as aiohttp does
        return handler(request)


class StackOptions(TypedDict, total=False):
    """The options of :func:`stack`, documented there."""

    auth: HeaderAuth | Iterable[HeaderAuth]
    attempts: int | None
    deadline: float | None
    attempt_timeout: float | None
    buffer: int | None
    retry_writes: bool
    retry_budget: RetryBudget | None
    on_attempt: OnAttempt | None
    throttle: bool | Throttle
    limits: Limits | None
    account: Of | None
    scope: Of | None
    cost: Cost | None
    store: Store | None
    raise_errors: bool
    spans: bool
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None
    url_template: UrlTemplate | None
    excluded_urls: Iterable[str] | None
    propagate: TextMapPropagator | bool
    max_servers: int | None


class _Made(NamedTuple):
    """A kind of layer that a stack contains by default."""

    kind: type[Layer]
    takes_rules: bool
    options: tuple[str, ...]
    """The options of the stack that the layer takes."""
    off: tuple[str, object] | None = None
    """The option and its value that leave the layer out."""


_PROVIDERS: Final = ("tracer_provider", "meter_provider")
_SPANS: Final = (*_PROVIDERS, "url_template", "excluded_urls", "max_servers")
_RETRY: Final = ("attempts", "deadline", "retry_writes", "retry_budget", "store", "on_attempt")
_THROTTLE: Final = (*_PROVIDERS, "limits", "account", "scope", "cost", "store")
_ARGUMENTS: Final = {"retry_budget": "budget", "account": "key", "attempt_timeout": "seconds", "buffer": "limit"}
"""The names of the layers' arguments where they differ from those of the options."""

_MADE: Final = (
    _Made(RequestSpan, False, _SPANS, ("spans", False)),
    _Made(Retry, True, _RETRY),
    _Made(Throttle, True, _THROTTLE, ("throttle", False)),
    _Made(AttemptSpan, False, (*_SPANS, "propagate"), ("spans", False)),
    _Made(Timeout, False, ("attempt_timeout",), ("attempt_timeout", None)),
    _Made(Buffer, False, ("buffer",), ("buffer", None)),
    _Made(Classify, True, (), ("raise_errors", False)),
)
_KINDS: Final = (*(made.kind for made in _MADE), Breaker, HeaderAuth)
_SHARED: Final = frozenset({"store", *_SPANS})
"""Options that a layer passed by the user must have as well."""
_OPTIONAL: Final = _SHARED | {"limits", "account", "scope", "cost", "on_attempt"}
"""Options for which None means not given."""
_FUNCTION: Final = (Callable, type(None)), "a function of a request, or None"
_OF_STACK: Final[dict[str, tuple[Any, str]]] = {
    "retry_budget": (RetryBudget | None, "a RetryBudget or None"),
    "throttle": (bool | Throttle, "True, False or a Throttle"),
    "account": _FUNCTION,
    "scope": _FUNCTION,
    "cost": _FUNCTION,
    "store": (Store | None, "a Store or None"),
    "spans": (bool, "True or False"),
    "url_template": _FUNCTION,
}
"""The allowed types of options that :func:`lamella.options` lacks, also in words."""
_DEFAULTS: Final[StackOptions] = {
    "attempts": 5,
    "attempt_timeout": 60.0,
    "buffer": 8 * 1024 * 1024,
    "retry_budget": DEFAULT_BUDGET,
}


def stack(rules: RuleBook | Layer | At = HTTP_RULES, *layers: Layer | At, **options: Unpack[StackOptions]) -> Stack:
    """Return all layers for *rules* in the right order.

    Args:
        rules: The meaning of each status, and the waits. May be omitted, also before *layers*. Default:
            :data:`lamella.HTTP_RULES`.
        layers: Your own layers. Each replaces the default layer of its kind; give the options of that kind to your
            layer instead of the stack. There is no default ``Breaker``; one that you add uses store and meter provider
            of the stack unless it has its own.
        auth: The layer that adds credentials. Default: none.
        attempts: Maximum number of attempts of a call. 1 means no retries; None means as many as *deadline* allows.
            Default: 5.
        deadline: Maximum duration of a call in seconds, waits included. None, the default, means no limit.
        attempt_timeout: Maximum duration of one attempt in seconds, including a body read inside it. None means only
            the session's limit. Default: 60.
        buffer: Maximum size in bytes of a body of known length that is read inside the attempt
            (:class:`lamella.Buffer`). All other bodies are streams that the caller handles. None means that all bodies
            are streams. Default: 8 MiB.
        retry_writes: Whether methods that are not idempotent are retried as well. Default: False.
        retry_budget: Limits how much load retries may add. None means no limit. Default: a fifth of the calls.
        on_attempt: A function called after each attempt with request, result and record (:class:`lamella.Retry`). None,
            the default, means no hook.
        throttle: Whether calls are queued per account to keep to its rate limit; or your own ``Throttle``. Default:
            True.
        limits: Known limits: one or several :class:`lamella.Limit`, or a function that returns the limits stated in
            response headers. None, the default, means that the limit is learned and common headers are read.
        account: Returns the account of a request. None, the default, means one account per origin.
        scope: Returns the limit of the account that a request counts against, for example per path. None, the default,
            means one limit for all requests.
        cost: Returns how many points of the limit a request uses. None, the default, means 1.
        store: Shared state store. None, the default, means memory of this process.
        raise_errors: Whether an error status raises. If not, the last response is returned as soon as its headers
            arrive, for code that checks ``response.status``; transport failures still raise. Default: True.
        spans: Whether to record spans and metrics of calls and attempts. Default: True.
        tracer_provider: Provider of spans. None, the default, means the global one.
        meter_provider: Provider of metrics. None, the default, means the global one.
        url_template: Returns the path template of a request, such as ``/orders/{id}``, for span names. None, the
            default, means that names contain only the method.
        excluded_urls: Regular expressions; calls to matching URLs have neither spans nor metrics. None, the default,
            means those in ``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS`` or ``OTEL_PYTHON_EXCLUDED_URLS``.
        propagate: The propagator that writes trace context and baggage into request headers. It applies to the origins
            of the ``HeaderAuth`` layers or, if none states an origin, to all requests except redirects to another
            origin. True, the default, means OpenTelemetry's global propagator; False means none.
        max_servers: How many servers the metrics of one meter provider distinguish; all others are ``_OTHER``. None,
            the default, means 100.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is out of range, an option would have no effect (its layer is left out or replaced by
            your own), your own layer has other rules, a layer is there twice, or ``DigestAuthMiddleware`` is outside a
            layer that raises errors.
    """
    check_options("stack", options, StackOptions.__annotations__)
    if isinstance(rules, Layer | At):
        return stack(HTTP_RULES, rules, *layers, **options)
    check_rules(rules, "stack(")
    for name, value in options.items():
        if name in _OF_STACK:
            check_kind(name, value, *_OF_STACK[name])
        elif name in TAKERS and (name, value) != ("attempts", None):
            check_values({name: value})
    if isinstance(throttle := options.get("throttle"), Throttle):
        layers = (*layers, throttle)
        del options["throttle"]
    chosen = [_checked(layer) for layer in layers] + _auth_layers(options.get("auth", ()))
    by_hand = {
        kind: layer for layer in chosen if isinstance(layer, Layer) for kind in _KINDS if isinstance(layer, kind)
    }
    for kind, made_by_hand in by_hand.items():
        if made_by_hand.shared.get("rules", rules) != rules:
            raise ValueError(f"the {kind.__name__} made by hand has other rules than the stack: give both the same")
    if isinstance(patterns := options.get("excluded_urls"), Iterator):
        options["excluded_urls"] = tuple(patterns)  # both span layers read them
    wanted: dict[str, Any] = {**_DEFAULTS, **options}
    makes = [made for made in _MADE if made.off is None or wanted.get(made.off[0], ...) is not made.off[1]]
    if any(made.kind is Classify for made in makes) or Classify in by_hand:
        for layer in chosen:
            _require_answers(layer)
    for name, value in options.items():
        _require_effect(name, value, by_hand, makes)
    for layer in chosen:
        if isinstance(layer, Breaker):
            layer.inherit(store=options.get("store"), meter_provider=options.get("meter_provider"))
        elif isinstance(layer, HeaderAuth):
            layer.inherit(tracer_provider=options.get("tracer_provider"), meter_provider=options.get("meter_provider"))
    for made in makes:
        if made.kind not in by_hand:
            make = cast(Callable[..., Layer], made.kind)
            chosen.append(make(*([rules] if made.takes_rules else []), **_arguments(made, wanted)))
    origins = [layer.shared["origin"] for layer in chosen if isinstance(layer, HeaderAuth)]
    for layer in chosen:
        if isinstance(layer, AttemptSpan):
            layer.inherit(cast(Origin, origin) for origin in origins if origin is not None)
    return _in_order(chosen)


def _auth_layers(auth: object) -> list[Layer | At]:
    # A named tuple, such as At or aiohttp's BasicAuth, is a single value.
    one = isinstance(auth, str | bytes | Mapping) or hasattr(auth, "_fields")
    layers = list(auth) if isinstance(auth, Iterable) and not one else [auth]
    if not all(isinstance(layer, Layer | At) for layer in layers):
        # Do not show the value, which may be a credential.
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        hint = ": write auth=HeaderAuth({...}, origin=...)" if isinstance(auth, Mapping) else ""
        raise ValueError(f"auth must be one HeaderAuth or several, got {kinds}{hint}")
    return [_checked(layer) for layer in layers]


def _checked(layer: object) -> Layer | At:
    if isinstance(layer, Layer | At):
        check_slot(layer)
        if isinstance(layer, At):
            _check_middleware(layer.middleware)
        return layer
    hint = ""
    if isinstance(layer, type):
        hint = f" (it is a class: write {layer.__name__}(...))"
    elif isinstance(layer, list | tuple):
        hint = " (it is a sequence: write stack(rules, *layers))"
    elif isinstance(layer, RuleBook):
        hint = " (a stack has one RuleBook: its first argument)"
    elif isinstance(layer, Pipeline):
        hint = " (it comes from another stack: give its layers to this one)"
    raise ValueError(
        f"a layer must be a lamella.Layer or a middleware with its slot, got {layer!r}; write "
        f"At(Slot.THROTTLE, middleware){hint}"
    )


def _check_middleware(middleware: object) -> None:
    fault = None
    if isinstance(middleware, Layer):
        fault = f"{middleware!r}, which has a slot: write it without At"
    elif isinstance(middleware, Pipeline | Stack):
        fault = "a stack: give its layers to this one"
    if fault is not None:
        raise ValueError(f"At is for a plain middleware, got {fault}")
    check_kind("the middleware of At", middleware, Callable, "a function of request and handler")


def _require_answers(layer: Layer | At) -> None:
    """Raise ValueError if *layer* is aiohttp's digest authentication and would never see a 401."""
    digest = aiohttp.DigestAuthMiddleware
    if isinstance(layer, At) and layer.slot < Slot.INNERMOST and isinstance(layer.middleware, digest):
        raise ValueError(
            f"{type(layer.middleware).__name__} reads responses with status 401, which this stack raises as errors at "
            f"{layer.slot.name}: use At(Slot.INNERMOST, ...), or raise_errors=False"
        )


def _in_order(layers: Iterable[Layer | At]) -> Stack:
    """Return *layers* from the outside in, with adjacent ones as one middleware."""
    middlewares: list[aiohttp.ClientMiddlewareType] = []
    in_order = sorted(layers, key=_place)
    beside = [layer for layer in in_order if isinstance(layer, Layer)]
    for plain, neighbours in groupby(in_order, lambda layer: isinstance(layer, At)):
        if plain:
            middlewares.extend(at.middleware for at in neighbours if isinstance(at, At))
        else:
            middlewares.append(Pipeline((layer for layer in neighbours if isinstance(layer, Layer)), beside))
    return Stack(middlewares)


def _place(layer: Layer | At) -> tuple[Slot, bool]:
    """Return the sort key of a layer; within a slot, custom layers come first."""
    return layer.slot, isinstance(layer, _KINDS)


def _arguments(made: _Made, wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {_ARGUMENTS.get(name, name): wanted[name] for name in made.options if name in wanted}


def _require_effect(name: str, value: object, by_hand: Mapping[type[Layer], Layer], makes: Iterable[_Made]) -> None:
    """Raise ValueError for an option without effect: no layer takes it, or the user's own layer lacks it."""
    switched = [made.kind for made in _MADE if made.off is not None and made.off[0] == name]
    if switched and value in (False, None):
        if all(kind in by_hand for kind in switched):
            raise ValueError(
                f"{name}={value} leaves out the {_names(switched)} that is made by hand: leave out one of them"
            )
        return
    takers = [made.kind for made in _MADE if name in made.options]
    if not takers or (value is None and name in _OPTIONAL):
        return
    if name in _SHARED:
        for kind, layer in by_hand.items():
            if kind in takers and layer.shared.get(name) is None:
                raise ValueError(f"{name}= has no effect on the {kind.__name__} made by hand: give one to that, too")
        if name in {"store", "meter_provider"}:
            takers.append(Breaker)
    elif any(kind in by_hand for kind in takers):
        raise ValueError(f"{name}= has no effect on a {_names(takers)} made by hand: give it to that layer")
    if not any(kind in by_hand for kind in takers) and not any(made.kind in takers for made in makes):
        raise ValueError(f"{name}= has no effect: this stack has no {_names(takers)}")


def _names(kinds: Iterable[type]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)
