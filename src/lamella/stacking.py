"""A stack of layers in the right order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
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
from lamella.store import Store
from lamella.telemetry.attempt_span import AttemptSpan
from lamella.telemetry.attributes import UrlTemplate
from lamella.telemetry.call_span import RequestSpan
from lamella.throttle import Limit, StatedLimit, Throttle
from lamella.timeout import Timeout


class At(NamedTuple):
    """A plain aiohttp middleware with its place in a stack."""

    slot: Slot
    """It is outside of lamella's own layer there."""
    middleware: aiohttp.ClientMiddlewareType


class Stack(tuple[aiohttp.ClientMiddlewareType, ...]):
    """The middlewares that :func:`stack` returns, which also work as one: ``middlewares=(stack(rules), other)``."""

    __slots__ = ()

    def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> Awaitable[aiohttp.ClientResponse]:
        for middleware in reversed(self):
            handler = partial(middleware, handler=handler)  # type: ignore[call-arg]  # as aiohttp does
        return handler(request)


class StackOptions(TypedDict, total=False):
    """The options of :func:`stack`, which explains them."""

    auth: HeaderAuth | Iterable[HeaderAuth]
    attempts: int | None
    deadline: float | None
    attempt_timeout: float | None
    buffer: int | None
    retry_writes: bool
    retry_budget: RetryBudget | None
    on_attempt: OnAttempt | None
    throttle: bool | Throttle
    limit: Limit | None
    account: Callable[[aiohttp.ClientRequest], str | None] | None
    scope: Callable[[aiohttp.ClientRequest], str | None] | None
    limits: Callable[[Mapping[str, str]], Sequence[StatedLimit]] | None
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
    """A kind of layer that a stack has unless it is left out or made by hand."""

    kind: type[Layer]
    takes_rules: bool
    keywords: Mapping[str, str]
    """The options of the stack that it takes, each with the name of its own argument."""
    off: tuple[str, object] | None = None
    """The option that leaves it out, and the value which does so."""


_PROVIDERS: Final = {"tracer_provider": "tracer_provider", "meter_provider": "meter_provider"}
_SPANS: Final = {
    name: name for name in ("tracer_provider", "meter_provider", "url_template", "excluded_urls", "max_servers")
}
_RETRY: Final = {
    "attempts": "attempts",
    "deadline": "deadline",
    "retry_writes": "retry_writes",
    "retry_budget": "budget",
    "store": "store",
    "on_attempt": "on_attempt",
}
_THROTTLE: Final = {
    **_PROVIDERS,
    "limit": "limit",
    "account": "key",
    "scope": "scope",
    "limits": "limits",
    "store": "store",
}

_MADE: Final = (
    _Made(RequestSpan, False, _SPANS, ("spans", False)),
    _Made(Retry, True, _RETRY),
    _Made(Throttle, True, _THROTTLE, ("throttle", False)),
    _Made(AttemptSpan, False, {**_SPANS, "propagate": "propagate"}, ("spans", False)),
    _Made(Timeout, False, {"attempt_timeout": "seconds"}, ("attempt_timeout", None)),
    _Made(Buffer, False, {"buffer": "limit"}, ("buffer", None)),
    _Made(Classify, True, {}, ("raise_errors", False)),
)
_KINDS: Final = (*(made.kind for made in _MADE), Breaker, HeaderAuth)
_SHARED: Final = frozenset({"store", *_SPANS})
"""Options that a layer made by hand has to have as well."""
_OPTIONAL: Final = _SHARED | {"limit", "account", "scope", "limits", "on_attempt"}
"""Options of which None means that they are not given."""
_FUNCTION: Final = (Callable, type(None)), "a function of a request, or None"
_OF_STACK: Final[dict[str, tuple[Any, str]]] = {
    "retry_budget": (RetryBudget | None, "a RetryBudget or None"),
    "throttle": (bool | Throttle, "True, False or a Throttle"),
    "limit": (Limit | None, "a Limit or None"),
    "account": _FUNCTION,
    "scope": _FUNCTION,
    "limits": ((Callable, type(None)), "a function of the headers of an answer, or None"),
    "store": (Store | None, "a Store or None"),
    "spans": (bool, "True or False"),
    "url_template": _FUNCTION,
}
"""What an option that :func:`lamella.options` lacks may be, and the same in words."""
_DEFAULTS: Final[StackOptions] = {
    "attempts": 5,
    "attempt_timeout": 60.0,
    "buffer": 8 * 1024 * 1024,
    "retry_budget": DEFAULT_BUDGET,
}


def stack(rules: RuleBook | Layer | At = HTTP_RULES, *layers: Layer | At, **options: Unpack[StackOptions]) -> Stack:
    """Return the whole stack for *rules*, in the right order.

    Args:
        rules: What each status means, and the waits. It may be left out, also before *layers*. Default:
            :data:`lamella.HTTP_RULES`.
        layers: Layers made by hand; each takes the place of the one that would be made, with the options that belong
            to it: those are then given to that layer. A ``Breaker`` is always made by hand, and takes store and
            meter provider of the stack where it has none of its own.
        auth: What adds the credentials. Default: nothing.
        attempts: How many attempts a call has. 1 means no retries; None, as many as *deadline* allows. Default: 5.
        deadline: How many seconds a call may take, the waits included. None, the default, means no limit.
        attempt_timeout: How many seconds one attempt may take, a body that is read inside it included. None means no
            limit but the session's own. Default: 60.
        buffer: The number of bytes of a body that are read inside the attempt, where its length is known
            (:class:`lamella.Buffer`). Other bodies are streams, which the caller handles. None means that all are.
            Default: 8 MiB.
        retry_writes: Whether methods that are not idempotent are sent again, too. Default: False.
        retry_budget: How much retries may add to the load of the session. None means no limit. Default: a fifth of it.
        on_attempt: A function that is called after each attempt with request, result and record
            (:class:`lamella.Retry`). None, the default, means that nothing is called.
        throttle: Whether the calls for one account wait together when its rate limit is exceeded, and keep to it; or a
            ``Throttle`` made by hand. Default: True.
        limit: The rate limit of an account, if it is known. None, the default, means that it is learned.
        account: Which account a request belongs to. None, the default, means one account for each origin.
        scope: Which limit of the account a request counts against, where there is one for each path, say. None, the
            default, means one for all.
        limits: Which limits the headers of an answer state. None, the default, means the usual forms.
        store: Shared state store. None, the default, means in this process.
        raise_errors: Whether an error status is raised. If not, the last answer is returned as soon as its headers
            are there, for code that looks at ``response.status``; a failed connection is raised all the same.
            Default: True.
        spans: Whether there are spans and metrics for the call and for each attempt. Default: True.
        tracer_provider: Where the spans go. None, the default, means the global one.
        meter_provider: Where the metrics go. None, the default, means the global one.
        url_template: Says what the path of a request looks like with its variable parts named, for the spans' names.
            None, the default, means that the names have the method alone.
        excluded_urls: Regular expressions; a call to a URL in which one is found has neither spans nor metrics. None,
            the default, means those of ``OTEL_PYTHON_AIOHTTP_CLIENT_EXCLUDED_URLS`` or ``OTEL_PYTHON_EXCLUDED_URLS``.
        propagate: What writes trace context and baggage into the headers of requests to the origins that ``HeaderAuth``
            layers state; where none does, of all requests but those that a redirect sends to another origin. True, the
            default, means the global propagator of OpenTelemetry, False means that nothing is written.
        max_servers: How many servers the metrics of one meter provider tell apart; any other is ``_OTHER``. None, the
            default, means 100.

    Raises:
        TypeError: There is no option of that name.
        ValueError: An argument is out of its range, an option would have no effect (its layer is left out, or made by
            hand without it), a layer made by hand has other rules, a layer is there twice, or ``DigestAuthMiddleware``
            stands where errors are raised.
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
    # A named tuple, such as At or aiohttp's BasicAuth, is one thing.
    one = isinstance(auth, str | bytes | Mapping) or hasattr(auth, "_fields")
    layers = list(auth) if isinstance(auth, Iterable) and not one else [auth]
    if not all(isinstance(layer, Layer | At) for layer in layers):
        # No value: it may be a credential.
        kinds = ", ".join(type(layer).__name__ for layer in layers)
        hint = ": write auth=HeaderAuth({...}, origin=...)" if isinstance(auth, Mapping) else ""
        raise ValueError(f"auth must be a HeaderAuth, or several of them, got {kinds}{hint}")
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
        f"{layer!r} is no layer: expected a lamella.Layer, or a middleware with its place, as in "
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
    """Check that *layer* gets the answers that it reads, in a stack that raises errors.

    Raises:
        ValueError: It is aiohttp's digest authentication, and would never see a 401.
    """
    digest = aiohttp.DigestAuthMiddleware
    if isinstance(layer, At) and layer.slot < Slot.INNERMOST and isinstance(layer.middleware, digest):
        raise ValueError(
            f"{type(layer.middleware).__name__} reads answers of status 401, which this stack raises as errors at "
            f"{layer.slot.name}: use At(Slot.INNERMOST, ...), or raise_errors=False"
        )


def _in_order(layers: Iterable[Layer | At]) -> Stack:
    """Return *layers* from the outside in, those that are neighbours as one middleware."""
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
    """Of the same slot the layers of others come first."""
    return layer.slot, isinstance(layer, _KINDS)


def _arguments(made: _Made, wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {keyword: wanted[name] for name, keyword in made.keywords.items() if name in wanted}


def _require_effect(name: str, value: object, by_hand: Mapping[type[Layer], Layer], makes: Iterable[_Made]) -> None:
    """Refuse an option that would be ignored: no layer of the stack takes it, or one that is made by hand has none.

    Raises:
        ValueError: It would be.
    """
    switched = [made.kind for made in _MADE if made.off is not None and made.off[0] == name]
    if switched and value in (False, None):
        if all(kind in by_hand for kind in switched):
            raise ValueError(
                f"{name}={value} leaves out the {_names(switched)} that is made by hand: leave out one of them"
            )
        return
    takers = [made.kind for made in _MADE if name in made.keywords]
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
