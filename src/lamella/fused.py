"""Several layers as one middleware, which costs less than they do one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import cast

import aiohttp

from lamella.call import Call, Layer, Send
from lamella.stacking import Layer as AnyLayer
from lamella.stacking import in_order

__all__ = ["as_one"]


def as_one(layers: Iterable[aiohttp.ClientMiddlewareType]) -> aiohttp.ClientMiddlewareType:
    """*layers*, which have to be in the right order, as one middleware that does the same and costs less.

    aiohttp links the middlewares of a session anew for each call, and each of them awaits the next one. Here they are
    linked once, and a call that ends well at once is one coroutine. Nobody else's middlewares can stand between the
    layers then; outside and inside of them they can.

    Raises:
        ValueError: Something is none of lamella's layers, they are in a wrong order, or there are none.
    """
    return _AsOne(tuple(layers))


class _AsOne:
    __slots__ = ("_all", "_begin", "_end", "_innermost", "_loop", "_moves", "_outermost", "_send", "layers")

    def __init__(self, layers: tuple[aiohttp.ClientMiddlewareType, ...]) -> None:
        ours = [layer for layer in layers if isinstance(layer, AnyLayer)]
        if not ours or in_order(*ours) != layers:
            raise ValueError(f"there must be layers of lamella's, in their right order: not {layers!r}")
        self.layers = ours
        self._outermost, self._innermost = ours[0].rank, ours[-1].rank
        self._all = len(ours)
        self._loop: object = None
        """The loop that all of them worked in when it was last looked at."""
        self._moves = 0
        """How many moves there had been by then."""
        # With how many layers have begun before each, and with how many are still to be completed if it cannot end.
        self._begin = tuple((layer.begin, at) for at, layer in enumerate(ours) if _has(layer, "begin"))
        self._end = tuple((layer.end, at + 1) for at, layer in reversed([*enumerate(ours)]) if _has(layer, "end"))
        self._send = _linked(ours, _beyond)

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        loop = request.loop
        if self._loop is not loop or self._moves != Layer.moves:
            # Another group may have taken one of them over.
            for layer in self.layers:
                if layer.loop is not loop:
                    layer.work_in(loop)
            self._loop, self._moves = loop, Layer.moves
        call = Call.of(request)
        outside = call.enter(self._outermost)
        call.inside = self._innermost
        call.silent = None
        try:
            if call.beyond is not None and call.beyond is not handler:
                # One such group stands inside of another.
                return await _linked(self.layers, lambda request, _: handler(request))(request, call)
            call.beyond = handler
            begun = 0
            try:
                now = loop.time()
                for begin, begun in self._begin:  # noqa: B007 - used below
                    if not begin(request, call, now):
                        break
                else:
                    begun = self._all
                    response = await handler(request)
                    now = loop.time()
                    for end, begun in self._end:  # noqa: B007 - used below
                        if not end(request, call, response, now):
                            call.made = response
                            break
                    else:
                        return response
            except BaseException as exc:  # noqa: BLE001 - raised again inside of those that have begun
                call.made = exc
            # The long way: one layer inside of the other, those that have begun around what there is of a send.
            call.begun = begun
            return await self._send(request, call)
        finally:
            call.inside, call.made = outside, None

    def __repr__(self) -> str:
        return f"as_one({self.layers!r})"


def _has(layer: Layer, part: str) -> bool:
    """Whether *layer* does anything of its own in that *part*."""
    return getattr(type(layer), part) is not getattr(Layer, part)


def _linked(layers: Iterable[Layer], innermost: Send) -> Send:
    ours = [*layers]
    send = _or_made(innermost)
    for at, layer in reversed([*enumerate(ours)]):
        send = _link(layer, at, send)
    return send


def _link(layer: Layer, at: int, inner: Send) -> Send:
    around, complete = _or_made(lambda request, call: layer.around(request, call, inner)), layer.complete
    return lambda request, call: complete(request, call, inner) if call.begun > at else around(request, call)


def _or_made(send: Send) -> Send:
    """*send*, unless what it would come to is there already."""

    def or_made(request: aiohttp.ClientRequest, call: Call) -> Awaitable[aiohttp.ClientResponse]:
        call.begun = 0
        return send(request, call) if call.made is None else _made(call)

    return or_made


async def _made(call: Call) -> aiohttp.ClientResponse:
    made, call.made = call.made, None
    try:
        if isinstance(made, BaseException):
            raise made
        return cast(aiohttp.ClientResponse, made)
    finally:
        del made  # an exception holds on to this frame: they must not keep each other alive


def _beyond(request: aiohttp.ClientRequest, call: Call) -> Awaitable[aiohttp.ClientResponse]:
    return cast(aiohttp.ClientHandlerType, call.beyond)(request)
