"""Run the layers of a call: hooks before and after each attempt, and the runner that calls them.

A layer is a pair of hooks. `Layer.before` may wait or reject the call. `Layer.after` gets the result, a response or an
exception, and may replace it. Failures are passed as values instead of being raised through frames. `after` may also
make more attempts. A whole stack and a single layer among the middlewares of a session use the same runner.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import cached_property, partial
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary

import aiohttp

from lamella._aiohttp import forget_answer, middlewares_of
from lamella.call import BLOCK_END, CALL_KEY, OPTIONS, SENT_BEFORE, Call, PerCall
from lamella.scope import NOTHING, SCOPE, TAKERS, CallOptions, inherited, inherited_deadline

Result: TypeAlias = aiohttp.ClientResponse | BaseException
"""The result of an attempt or a call. A ``CancelledError`` or ``GeneratorExit`` is not a failure: let it pass."""

Again: TypeAlias = Callable[[], Awaitable[Result]]
"""Makes one more attempt through all inner layers."""

Waits: TypeAlias = Awaitable[Result | None]

Changed: TypeAlias = Result | Waits | Callable[[Again], Waits] | None
"""The return type of `Layer.after`."""


class Slot(IntEnum):
    """The place of a layer, from the outside in. Within a slot, custom layers are outside lamella's own."""

    REQUEST_SPAN = 0
    """Outermost; hooks run once per call."""
    BREAKER = 1
    RETRY = 2
    """The retry loop; from the next slot on, hooks run once per attempt."""
    THROTTLE = 3
    ATTEMPT_SPAN = 4
    TIMEOUT = 5
    AUTH = 6
    BUFFER = 7
    CLASSIFY = 8
    INNERMOST = 9
    """Next to the connection; sees responses with an error status and aiohttp's own exceptions."""


class Layer:
    """Base class of layers: an aiohttp client middleware that works alone and in a stack.

    Set `slot` and write `before`, `after` or both. They run in the task of the call, one after another for one call,
    but concurrently for several calls. Keep the state of one call in a `PerCall`.
    """

    slot: ClassVar[Slot]
    shared: Mapping[str, object] = MappingProxyType({})
    """The options of the layer that all layers of a stack share."""
    single: ClassVar[bool] = False
    """Whether a slot may contain only one layer of this kind."""
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop of the calls. None before the first call."""
    moves: ClassVar[int] = 0
    """How often any layer has moved to another loop."""

    def before(self, call: Call) -> Awaitable[object] | None:
        """Run before the call or the attempt; to wait, return a coroutine.

        An exception is the result for outer layers. `after` of this layer is then not called.
        """

    def after(self, call: Call, result: Result) -> Changed:
        """Handle the result of the inner layers; return a replacement, or None to keep it.

        To wait, return a coroutine. To make more attempts, return a function that takes `Again` and returns a
        coroutine.

        Also called with a ``CancelledError`` when the call is cancelled, and with a ``GeneratorExit`` when the event
        loop discards the call; then nothing can be awaited.
        """

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make calls in *loop* from now on.

        Raises:
            RuntimeError: The layer, or state that it shares with others, is in use in another thread's running loop.
        """
        if runs_beside(self.loop, loop):
            raise RuntimeError(
                f"{type(self).__name__} is in use in another thread and cannot be shared between threads: "
                "create separate layers for each event loop"
            )
        self.share_in(loop)
        self.loop = loop
        Layer.moves += 1

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare the state that the layer shares with other layers for use in *loop*."""

    def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> Coroutine[None, None, aiohttp.ClientResponse]:
        """Run the layer alone, as a middleware of a session."""
        return self._alone(request, handler)

    @cached_property
    def _alone(self) -> Pipeline:
        return Pipeline((self,))


def runs_beside(used: asyncio.AbstractEventLoop | None, loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether *used* is a running loop other than *loop*, the current one, that is, in another thread."""
    process = os.getpid()
    _PROCESSES[loop] = process
    # After a fork, the loop of the other process still says that it runs.
    return used is not None and used is not loop and used.is_running() and _PROCESSES.get(used) == process


_PROCESSES: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, int]] = WeakKeyDictionary()
"""The processes in which the event loops run."""


Before: TypeAlias = Callable[[Call], Awaitable[object] | None]
After: TypeAlias = Callable[[Call, Result], Changed]


class _Hooks(NamedTuple):
    """The hooks of a layer and all inner ones."""

    before: tuple[Before, ...]
    """From the outside in."""
    after: tuple[After, ...]
    """From the inside out."""
    numbers: tuple[int, ...]
    """The numbers of the layers of *after*."""
    begun: tuple[tuple[After, ...], ...]
    """For each of *before*: those of *after* called if it raises."""


class Pipeline:
    """Several layers, ordered from the outside in, as one aiohttp middleware.

    Args:
        layers: The layers.
        beside: All layers of the stack that contains the pipeline. Empty if no stack contains it.
    """

    __slots__ = ("_beside", "_hooks", "_innermost", "_loop", "_moves", "_outermost", "layers")

    def __init__(self, layers: Iterable[Layer], beside: Iterable[Layer] = ()) -> None:
        self.layers: tuple[Layer, ...] = tuple(layers)
        self._beside = tuple(beside)
        for layer in self.layers:
            check_slot(layer)
        for outer, inner in pairwise(self.layers):
            check_order(outer, inner)
        self._outermost, self._innermost = self.layers[0], self.layers[-1]
        self._loop: object = None  # the loop of all layers at the last check
        self._moves = 0
        """The number of moves at the last check."""
        self._hooks = tuple(self._hooks_from(first) for first in range(len(self.layers) + 1))

    def _hooks_from(self, first: int) -> _Hooks:
        numbered = list(enumerate(self.layers))[first:]
        before = [(layer.before, number) for number, layer in numbered if _has(layer, "before")]
        after = [(layer.after, number) for number, layer in reversed(numbered) if _has(layer, "after")]
        begun = tuple(tuple(hook for hook, number in after if number < raising) for _, raising in before)
        return _Hooks(
            tuple(hook for hook, _ in before),
            tuple(hook for hook, _ in after),
            tuple(number for _, number in after),
            begun,
        )

    def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> Coroutine[None, None, aiohttp.ClientResponse]:
        loop = request.loop
        if self._loop is not loop or self._moves != Layer.moves:
            self._check_outside(request)
            # Another pipeline may have moved one of the layers.
            for layer in self.layers:
                if layer.loop is not loop:
                    layer.work_in(loop)
            self._loop, self._moves = loop, Layer.moves
        call: Call | None = getattr(request, CALL_KEY, None)  # vars() would create the dict first, which costs more
        outside: Layer | None = None
        if call is None:
            call = Call(request)
            setattr(request, CALL_KEY, call)
            if SCOPE.get() is not NOTHING:
                return self._run_in_a_block(call, handler)  # type: ignore[return-value]  # as below
        else:
            # Without a request it has ended, and is begun once more.
            if hasattr(call, "request") and (outside := _INSIDE.of(call)) is not None:
                check_order(outside, self._outermost)
            call.request = request
            _begin_anew(call)
        call.state[_INSIDE] = self._innermost
        return self._run(call, handler, 0, outside)  # type: ignore[return-value]  # a whole run raises its exception

    def _check_outside(self, request: aiohttp.ClientRequest) -> None:
        """Raise ValueError if aiohttp's digest authentication is outside and would see no 401, raised as an error."""
        raises = any(layer.slot is Slot.CLASSIFY and layer.single for layer in self.layers)
        call: Call | None = getattr(request, CALL_KEY, None)
        given = SCOPE.get().options if call is None else OPTIONS.get(call)
        if not raises or not (given or {}).get("raise_errors", True):
            return
        digest: aiohttp.DigestAuthMiddleware | None = None
        for middleware in _flat(middlewares_of(request.session)):
            if isinstance(middleware, aiohttp.DigestAuthMiddleware):
                digest = middleware
            elif digest is not None and (middleware is self or middleware is self._outermost):
                raise ValueError(
                    f"{type(digest).__name__} reads responses with status 401, which the layers inside it raise as "
                    "errors: put it after them, as in middlewares=(*stack(), digest), or use raise_errors=False"
                )

    async def _run_in_a_block(self, call: Call, handler: aiohttp.ClientHandlerType) -> Result:
        """Run a call made inside a block, so that tasks started by layers do not inherit from the block."""
        if (given := SCOPE.get().options) is not None:
            self._check_options(given, call.request.session)
            call.state[OPTIONS] = given
        if (end := inherited()) is not None:
            call.state[BLOCK_END] = end
        call.state[_INSIDE] = self._innermost
        with inherited_deadline(None):
            return await self._run(call, handler, 0, None)

    def _check_options(self, given: CallOptions, session: aiohttp.ClientSession) -> None:
        """Raise ValueError if an option *given* by a block has no layer, and the *session* does not behave that way."""
        of_session = set(layers_in(middlewares_of(session)))
        if not self._beside and self.layers[0] not in of_session:
            return  # passed with the request, possibly among others
        kinds = {kind.__name__ for layer in (*self._beside, *of_session) for kind in type(layer).__mro__}
        for name, value in given.items():
            without, takers = TAKERS[name]
            if value != without and kinds.isdisjoint(takers):
                raise ValueError(f"options({name}=...) has no effect: this session has no {' or '.join(takers)}")

    async def _run(self, call: Call, handler: aiohttp.ClientHandlerType, first: int, outside: Layer | None) -> Result:
        """Make one attempt through the layers from number *first* on, with their hooks.

        Return the result; if *first* is the first layer, raise an exception instead. *outside* is the layer around the
        pipeline, or None.
        """
        hooks = self._hooks[first]
        result: Result
        if first:
            _begin_anew(call)
        time = call.request.loop.time
        call.now = time()
        before: Before | None = None
        try:
            for before in hooks.before:
                waiting = before(call)
                if waiting is not None:
                    await waiting
                    call.now = time()
            before = None  # all have begun
            result = call.answer = await handler(call.request)
        except BaseException as exc:  # noqa: BLE001 - a value from here on
            result = exc
        call.now = time()
        changed: Changed = None
        waited: Result | None = None
        try:
            for after in hooks.after if before is None else hooks.begun[_place_of(before, hooks.before)]:
                try:
                    changed = after(call, result)
                    if changed is None:
                        continue
                    if isinstance(changed, _RESULTS):
                        result = changed
                        continue
                    if callable(changed):
                        number = hooks.numbers[_place_of(after, hooks.after)]
                        changed = changed(partial(self._run, call, handler, number + 1, outside))
                    if not hasattr(changed, "__await__"):  # such as a mock; isinstance() takes five times as long
                        result = cast(Result, changed)
                    elif isinstance(result, GeneratorExit):
                        _run_at_once(changed)
                    else:
                        waited = await changed
                        result = result if waited is None else waited
                    call.now = time()
                except BaseException as exc:  # noqa: BLE001 - as above
                    call.now = time()
                    if not isinstance(result, BaseException):
                        result.release()  # the caller will not see the response
                    result = exc
            if first:
                return result
            if outside is not None:
                call.state[_INSIDE] = outside
            else:
                # Break the reference cycle of request and call.
                del call.request
                call.stop = None
            if isinstance(result, BaseException):
                raise result
            return result
        finally:
            # Break the reference cycle of the traceback and this frame.
            del result, changed, waited

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(repr, self.layers))})"


def layers_in(middlewares: Iterable[object]) -> Iterator[Layer]:
    """Yield the layers among *middlewares*, including those inside stacks."""
    for middleware in _flat(middlewares):
        if isinstance(middleware, Layer):
            yield middleware
        elif isinstance(middleware, Pipeline):
            yield from middleware.layers


def _flat(middlewares: Iterable[object]) -> Iterator[object]:
    """Yield *middlewares*, including those of stacks that work as one middleware."""
    for middleware in middlewares:
        if isinstance(middleware, tuple):
            yield from _flat(middleware)
        else:
            yield middleware


def _begin_anew(call: Call) -> None:
    """Forget the response to the last attempt; aiohttp makes a new one when it writes the request again."""
    call.answer = None
    call.state[SENT_BEFORE] = True
    forget_answer(call.request)


def _run_at_once(waiting: Awaitable[object]) -> None:
    """Run *waiting* as far as possible without waiting, because the event loop is gone."""
    steps = waiting.__await__()
    with suppress(BaseException):
        next(steps)
    if isinstance(waiting, Coroutine):
        waiting.close()


def _place_of(hook: object, hooks: Iterable[object]) -> int:
    """Return the place of *hook* among *hooks*, where another one of the same layer may be as well."""
    return next(place for place, each in enumerate(hooks) if each is hook)


def _has(layer: Layer, hook: str) -> bool:
    """Return whether *layer* defines *hook* itself."""
    return getattr(type(layer), hook) is not getattr(Layer, hook)


_RESULTS: Final = (aiohttp.ClientResponse, BaseException)
_SLOTS: Final = ", ".join(slot.name for slot in Slot)
_INSIDE: Final = PerCall[Layer | None](lambda: None)
"""The innermost running layer."""


def check_slot(layer: object) -> None:
    """Raise ValueError if *layer* has no slot."""
    slot = getattr(layer, "slot", None)
    if not isinstance(slot, Slot):
        raise ValueError(  # noqa: TRY004 - like every other bad value
            f"{type(layer).__name__}.slot must be one of {_SLOTS}, got {slot!r}"
        )


def check_order(outer: Layer, inner: Layer) -> None:
    """Raise ValueError if *inner* belongs outside *outer*, or must not be in a stack twice."""
    if inner.slot < outer.slot:
        raise ValueError(
            f"wrong order of middlewares: {_name(inner)} must be outside {_name(outer)}. From the outside in, the "
            f"first in the list being the outermost: {_SLOTS}. "
            "lamella.stack() puts layers in this order"
        )
    if inner.slot == outer.slot and inner.single and outer.single:
        raise ValueError(f"{_name(outer)} and {_name(inner)} cannot both be in one stack: remove one of them")


def _name(layer: Layer) -> str:
    return type(layer).__name__
