"""What the layers of one call know in common. It travels on the request, which each of them sees, and ends with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from yarl import URL

from lamella.policy import Rule, StopReason
from lamella.redaction import secrets_in

if TYPE_CHECKING:
    import asyncio

    import aiohttp
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from lamella.errors import AttemptRecord, NotSent
    from lamella.telemetry import Described, Instruments

__all__ = [
    "ORDER",
    "Alarm",
    "Attempt",
    "Call",
    "Circuit",
    "Layer",
    "Origin",
    "Send",
    "is_redirect",
    "note_redirect",
    "origin_text",
    "runs_beside",
    "secrets_of",
    "sent_before",
]

ORDER: Final = (
    "RequestSpan",
    "Breaker",
    "Retry",
    "Throttle",
    "AttemptSpan",
    "Timeout",
    "HeaderAuth",
    "Buffer",
    "Classify",
)
"""The layers from the outside in. The one place that knows the order."""

_REPEATABLE: Final = frozenset({"HeaderAuth"})
_KEY: Final = "_lamella_call"


Origin = tuple[str, str | None, int | None]
"""Scheme, host and port."""

Attempt = tuple["Span", float, "Mapping[str, AttributeValue] | None"]
"""The span of a send, when it began, by the loop's clock, and what it is counted by. None: it is not."""

Send = Callable[["aiohttp.ClientRequest", "Call"], Awaitable["aiohttp.ClientResponse"]]
"""How a layer hands a request on to the next one."""


class Circuit(Protocol):
    """What ``Retry`` asks and tells the ``Breaker`` that it stands inside of."""

    async def failed(self, error: BaseException) -> None:
        """A send has ended in *error*."""

    async def open_for(self) -> float:
        """For how many seconds no send can pass; 0.0 while the circuit is closed or half-open."""
        ...

    async def admit(self) -> bool:
        """Whether one more send may pass now."""
        ...


class Alarm(Protocol):
    """What ``Timeout`` watches sends by."""

    def forget(self, call: Call) -> bool:
        """Watch the send of *call* no more. False: it has taken too long already."""
        ...

    def take_back(self, call: Call) -> bool:
        """Take back that it was cancelled for that. Returns whether it was, and by nobody else."""
        ...


class Call:
    """One call, or one hop of a call that is redirected: aiohttp makes a new request for each."""

    # Defaults of the class: most calls need none of these, and to set 22 slots for each takes ten times as long.

    inside = -1
    """The rank of the layer that is running now."""
    begun = 0
    """Of layers that were made one: how many, from the outside in, have begun and are to be completed."""
    made: aiohttp.ClientResponse | BaseException | None = None
    """What has come already of the send that they are to be completed around."""
    beyond: aiohttp.ClientHandlerType | None = None
    """What follows after layers that were made one: for the innermost of them to hand the request on to."""
    first_send: tuple[float, object, float] | None = None
    """Of its first send, for ``Retry``: when it began, what tells whether it was made, and how long it had parked."""
    deadline: float | None = None
    """When the call must have ended, by the loop's clock."""
    circuit: Circuit | None = None
    """What the ``Breaker`` knows of the service."""
    parked: tuple[float, float] | None = None
    """Since when it waited at its gate, and until when that was closed, by the loop's clock. None: it did not."""
    account: Any = None
    """At whose gate the send that is being made has passed. None: at none."""
    passed: Any = None
    """How it did, to be told what comes of it."""
    pace: Any = None
    """What is known of the account, where it can be told at once."""
    gate_wait = 0.0
    """Seconds that it waited at its gate, all in all."""
    refusal: NotSent | None = None
    """Why it was not sent."""
    turn: int | None = None
    """Its place in the order in which calls came to their gate: a re-send keeps it."""
    taken_over: tuple[tuple[Any, Any], ...] = ()
    """What another instrumentation had begun for this call, and the span it had begun."""
    sent_before = 0
    """How many of the sends were of earlier hops of a redirect."""
    sends = 0
    """How often it was sent, as far as ``AttemptSpan`` saw."""
    records: tuple[AttemptRecord, ...] = ()
    stopped: StopReason | None = None
    rule: Rule | None = None
    """The rule that applied when it stopped."""
    span: Span | None = None
    """The span of the whole call."""
    silent: object = None
    """The providers of ``RequestSpan``, if it has just found that nobody listens, and that no trace is to go on."""
    began: float | None = None
    """When it began, by the loop's clock. None: nobody measures it."""
    attempt: Attempt | None = None
    """What ``AttemptSpan`` knows of the send that is being made. None: nobody listens."""
    before: object = None
    """What tells, for ``Classify``, whether the send was made."""
    answer: aiohttp.ClientResponse | None = None
    """The answer to the send that is being made, which a layer below may have turned into an error."""
    server: Mapping[str, AttributeValue] = MappingProxyType({})
    """What its metrics say of the request: method and server."""
    described: tuple[object, Described] | None = None
    """What spans and metrics say of its request, and what that was made of. None: nobody has asked yet."""
    instruments: Instruments | None = None
    """Where ``RequestSpan`` counts, for what only ``Retry`` knows of. None: nobody measures."""
    interrupted = False
    """Whether a send ended before all of its body was written."""
    alarm: Alarm | None = None
    """What will end the send that is being made when it takes too long."""
    attempt_end = inf
    """When the alarm ends it, by the loop's clock."""
    at_deadline: asyncio.Timeout | None = None
    """What will end the send that is being made at the deadline of the call."""
    ends_itself = False
    """Whether what is being done ends in time by itself, so that neither of them may cancel it."""
    before_timeout: object = None
    """The request's ``response`` before the attempt, for ``Timeout``: unchanged if nothing was sent."""
    asked: tuple[str, Awaitable[str | None]] | None = None
    """A header, and what it has to be waited for until its value is known."""
    auth_headers: tuple[frozenset[str], ...] = ()
    """The names of the headers that each auth layer has set."""
    secrets: tuple[str, ...] = ()
    """The values that an auth layer has set, and those of cookies: they are shown nowhere."""
    cookies: Mapping[str, str] = MappingProxyType({})
    """The cookies that the session's jar held for the request when aiohttp made it, or when it was last sent."""
    shown: tuple[URL, tuple[str, ...], str] | None = None
    """Its URL, the secrets that were known then, and the URL as it may be shown."""
    _seen: URL | None = None
    _origin: Origin = "", None, None

    def origin(self, url: URL) -> Origin:
        """Scheme, host and port of *url*, which several layers ask for."""
        # The very same object: a middleware may have put another URL in its place.
        if self._seen is not url:
            self._seen, self._origin = url, (url.scheme, url.raw_host, url.port)
        return self._origin

    @contextmanager
    def not_cancelled(self, loop: asyncio.AbstractEventLoop) -> Iterator[float]:
        """Keep the limits of the call from cancelling the block; yield when it must have ended, by the loop's clock.

        The block has a limit of its own. Were both to cancel it in one turn of the loop, as they do when the loop was
        busy, the outer one would count, and what the block has found out would be lost.
        """
        deadline, limit = self.deadline, self.at_deadline
        if limit is not None and limit.expired():
            limit = None
        if limit is not None:
            limit.reschedule(None)
        self.ends_itself = True
        try:
            yield min(self.attempt_end, inf if deadline is None else deadline)
        finally:
            self.ends_itself = False
            # Where the time is used up, the result of the block counts.
            if limit is not None and deadline is not None and loop.time() < deadline:
                limit.reschedule(deadline)

    @staticmethod
    def of(request: aiohttp.ClientRequest) -> Call:
        """The call that *request* belongs to."""
        state = vars(request)
        call: Call | None = state.get(_KEY)
        if call is None:
            call = state[_KEY] = Call()
        return call

    def enter(self, rank: int) -> int:
        """Note that the layer of *rank* begins; returns the rank to set ``inside`` back to when it ends.

        Raises:
            ValueError: The layer stands inside one that belongs further in, or twice.
        """
        outside = self.inside
        if rank <= outside and not (rank == outside and ORDER[rank] in _REPEATABLE):
            inner, outer = ORDER[rank], ORDER[outside]
            fault = f"{inner} stands twice" if rank == outside else f"{inner} stands inside of {outer}"
            raise ValueError(
                f"the middlewares are in a wrong order: {fault}. "
                f"From the outside in, the first in the list being the outermost, it is {', '.join(ORDER)}. "
                "lamella.stack() and lamella.in_order() put them right."
            )
        self.inside = rank
        return outside


@lru_cache(maxsize=1024)
def origin_text(origin: Origin) -> str:
    """*origin* as one text."""
    scheme, host, port = origin
    return str(URL.build(scheme=scheme, host=host or "", port=port).origin())


def runs_beside(used: asyncio.AbstractEventLoop | None, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *used* is another loop than *loop*, and running: then it does so in another thread. None: it is none."""
    return used is not None and used is not loop and used.is_running()


class Layer:
    """An aiohttp client middleware that knows what the other layers know of a call.

    Most calls end well, and wait for nothing but their answer: for those, `begin` and `end` do all there is to be done,
    and ``as_one`` makes a single coroutine of many layers. Whatever else happens is for `wait` and `complete`.
    """

    rank: ClassVar[int]
    shared: Mapping[str, object] = MappingProxyType({})
    """What it was made with of the options that the layers of one stack have in common."""
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop that the calls are made in. None: there was none yet."""
    moves: ClassVar = 0
    """How often a layer, whichever, has begun to work in another loop."""

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Stand by itself among the middlewares of a session."""
        if self.loop is not request.loop:
            self.work_in(request.loop)
        call = Call.of(request)
        outside = call.enter(self.rank)
        call.silent = None
        try:
            return await self.around(request, call, lambda request, _: handler(request))
        finally:
            call.inside = outside

    def work_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the calls are made in *loop*.

        Raises:
            RuntimeError: They are made in another one that is running, in another thread, or what the layer shares with
                others is in use there.
        """
        if runs_beside(self.loop, loop):
            raise RuntimeError(
                f"{type(self).__name__} is in use in another thread, and cannot be shared with it: "
                "make the layers anew for each event loop"
            )
        self.share_in(loop)
        self.loop = loop
        Layer.moves += 1

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that what it shares with other layers can be used in *loop*."""

    def around(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> Awaitable[aiohttp.ClientResponse]:
        """Do what the layer is there for, around *send*."""
        if self.begin(request, call, request.loop.time()):
            return self.complete(request, call, send)
        return self.wait(request, call, send)

    def begin(self, request: aiohttp.ClientRequest, call: Call, now: float) -> bool:
        """Do what comes before a send; *now* is by the loop's clock. False: it is for `wait` to do, and not done."""
        return True

    def end(self, request: aiohttp.ClientRequest, call: Call, response: aiohttp.ClientResponse, now: float) -> bool:
        """Do what comes after a send that was answered. False: it is for `complete` to do, and not done."""
        return True

    def complete(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> Awaitable[aiohttp.ClientResponse]:
        """*send*, which `begin` has been done for, and do what comes after it, whether it ends well or not."""
        raise NotImplementedError

    def wait(self, request: aiohttp.ClientRequest, call: Call, send: Send) -> Awaitable[aiohttp.ClientResponse]:
        """Do what comes before *send*, with whatever has to be waited for, and then `complete` it."""
        raise NotImplementedError


# What a redirect has to hand over to the next hop, which aiohttp makes a new request for: where it leads, how often
# the call was sent, and a list that all the requests of a call share, by which one is told from another.
_redirected: ContextVar[tuple[str, int, object] | None] = ContextVar("lamella_redirected", default=None)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def sent_before(request: aiohttp.ClientRequest) -> int:
    """How often the call was sent before *request*, the next hop of a redirect, was made."""
    redirected = _redirected.get()
    if redirected is None:
        return 0
    _redirected.set(None)
    target, sends, shared = redirected
    return sends if target == str(request.url) and shared is getattr(request, "_traces", None) else 0


def is_redirect(response: aiohttp.ClientResponse) -> bool:
    """Whether aiohttp follows *response*, unless the caller has told it not to, and drops its body."""
    headers = response.headers
    return response.status in _REDIRECTS and (headers.get("Location") or headers.get("URI")) is not None


def note_redirect(request: aiohttp.ClientRequest, response: aiohttp.ClientResponse, sends: int) -> None:
    """Remember how often the call was sent, for the hop that *response* may lead to."""
    if is_redirect(response) and (target := response.headers.get("Location")):
        with suppress(ValueError):
            url = response.url.join(URL(target)).with_fragment(None)
            _redirected.set((str(url), sends, getattr(request, "_traces", None)))


def secrets_of(request: aiohttp.ClientRequest) -> tuple[str, ...]:
    """Whatever in *request* may be a secret, to be taken out of every text about it."""
    return secrets_in(request.url, request.headers, Call.of(request).secrets)
