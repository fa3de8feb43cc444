"""``Breaker``: a service that is down is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Final, TypeVar, TypeVarTuple, cast

import aiohttp
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.util.types import AttributeValue

from lamella.breaker import circuit
from lamella.breaker.circuit import CircuitPhase, CircuitSettings, CircuitState, Leave, Refusal, Turn
from lamella.classify.failures import ERROR_STATUS, retry_after_of, service_works, transport_error
from lamella.credentials import secrets_of
from lamella.errors import CircuitOpen, LamellaError
from lamella.pipeline import Call, Layer, Result, Slot, Stop
from lamella.rules import Failure, RuleBook, StopReason, is_rate_limit
from lamella.store import MemoryStore, Store
from lamella.store.shared import SharedState
from lamella.telemetry.attributes import origin_attributes
from lamella.telemetry.log import LOGGER, ids_of
from lamella.telemetry.metrics import meter_of
from lamella.telemetry.names import (
    CIRCUIT_ATTEMPTS,
    CIRCUIT_CLOSE_EVENT,
    CIRCUIT_FAILURES,
    CIRCUIT_OPEN_EVENT,
    CIRCUIT_OPEN_FOR,
    CIRCUIT_STATE,
    CIRCUIT_WAS_OPEN,
)

__all__ = ["Breaker"]

_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_RULE: Final = RuleBook().rule_for(Failure.CIRCUIT_OPEN)
_SERVER_STATUS: Final = 500


class Breaker(Layer):
    """Refuses calls at once with :class:`lamella.CircuitOpen` while their service is down.

    It counts sends: one that ends in a status of 500 or more, or without an answer, has failed; any other answer is
    a success, 429 included. A send is neither if it was cancelled, if lamella itself did not make it, if it was refused
    by 503 with ``Retry-After`` (a rate limit), if it got no connection of the session's pool in time, or if it ended in
    :class:`lamella.CertificateInvalid` or :class:`lamella.ProxyRefused`. When too many have failed, the circuit opens:
    calls are refused, and calls that wait for their next attempt stop. After *open_for* seconds a few probes pass: it
    closes if they end well, and opens again if one does not.

    It stands outside of ``Retry``, which tells it of every send, so that a refused call does not wait; and inside of
    ``RequestSpan``, which tells of the refusal. Without a ``Retry`` it sees the last outcome alone.

    Args:
        failures: The share of sends, greater than 0 and at most 1, that have to fail for the circuit to open. Twenty in
            a row open it, too.
        window: Of how many seconds the sends count.
        minimum: How many sends there have to be in the window for it to open.
        open_for: For how many seconds it is open before it lets probes through, and for how many it waits for news
            of one.
        probes: How many of them pass at a time, and how many have to end well for it to close.
        key: What shares a circuit, by a request: not shown anywhere, and kept as a digest. None means the origin:
            scheme, host and port.
        store: Where the circuits are kept. None means that of the stack, or else in memory, for this layer alone.
            Layers that share a store share their circuits, and need the same settings.
        meter_provider: None means that of the stack, or else the global one.

    Raises:
        ValueError: A number is out of its range.
    """

    slot = Slot.BREAKER
    single = True

    def __init__(
        self,
        *,
        failures: float = 0.5,
        window: float = 30.0,
        minimum: int = 20,
        open_for: float = 30.0,
        probes: int = 3,
        key: Callable[[aiohttp.ClientRequest], str] | None = None,
        store: Store | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._settings = CircuitSettings(failures, window, minimum, open_for, probes)
        self._key = key
        self._store = store
        self._meter_provider = meter_provider
        self.inherit()

    def inherit(self, *, store: Store | None = None, meter_provider: MeterProvider | None = None) -> None:
        """Use *store* and *meter_provider* where it was made without: those of the stack that it is in."""
        # An empty store is false.
        self._store = store if self._store is None else self._store
        self._meter_provider = meter_provider if self._meter_provider is None else self._meter_provider
        self._shared = SharedState(self._store)
        self._transitions = meter_of(self._meter_provider).create_counter(
            "lamella.breaker.transitions", "{transition}", "Circuits that opened, became half-open, or closed."
        )

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._shared.work_in(loop)

    def before(self, call: Call) -> Awaitable[None] | None:
        passage = _Passage(self, call)
        memory = self._shared.memory
        if memory is None:
            return self._enter(call, passage)
        if (refusal := passage.enter_at_once(memory, call.request.loop.time())) is not None:
            raise _refused(call, refusal)
        call.circuit = passage
        return None

    async def _enter(self, call: Call, passage: _Passage) -> None:
        try:
            refusal = await passage.enter()
        except GeneratorExit:
            passage.abandon()
            raise
        except BaseException:
            await passage.give_back()
            raise
        if refusal is not None:
            raise _refused(call, refusal)
        call.circuit = passage

    def after(self, call: Call, result: Result) -> Awaitable[None] | None:
        passage, call.circuit = cast(_Passage, call.circuit), None
        memory = self._shared.memory
        if memory is not None and not isinstance(result, BaseException) and result.status < _SERVER_STATUS:
            passage.answered_at_once(memory, call.request.loop.time())
            return None
        if isinstance(result, GeneratorExit):
            passage.abandon()
            return None
        return self._ended(passage, result)

    async def _ended(self, passage: _Passage, result: Result) -> None:
        try:
            if not isinstance(result, BaseException):
                await passage.answered(result)
            elif isinstance(result, Exception):
                await passage.failed(result)
        except GeneratorExit:
            passage.abandon()
            raise
        finally:
            del result  # an exception, which may hold on to this frame
            await passage.give_back()

    def _state_key(self, request: aiohttp.ClientRequest) -> str:
        if self._key is None:
            url = request.url
            return f"breaker:{url.scheme}://{url.raw_host}:{url.port}"
        # It may be a credential, and a store may be open to many.
        return f"breaker:sha256:{sha256(self._key(request).encode('utf-8', 'surrogatepass')).hexdigest()}"

    def __repr__(self) -> str:
        of = self._settings
        return (
            f"Breaker(failures={of.failures:g}, window={of.window:g}, minimum={of.minimum}, "
            f"open_for={of.open_for:g}, probes={of.probes})"
        )


def _name() -> str:
    """A name that no other send has, in any process that shares a store: a fork seeds this source anew."""
    return f"{random.getrandbits(64):016x}"


class _Passage:
    """The sends of one call, as the circuit sees them, one after the other: what ``call.circuit`` is."""

    __slots__ = ("_breaker", "_call", "_key", "_leave", "_send")

    def __init__(self, breaker: Breaker, call: Call) -> None:
        self._breaker = breaker
        self._call = call
        self._key = breaker._state_key(call.request)
        self._send: str | None = None
        """The send that may be under way, and that the circuit has heard nothing of yet. None: there is none."""
        self._leave: Leave | None = None
        """The leave that it has. None: the answer has not come (yet)."""

    def enter_at_once(self, memory: MemoryStore, now: float) -> Refusal | None:
        """As `enter`, for the first send, where the circuits are in *memory*."""
        send = self._send = _name()
        state = memory.of(self._key, CircuitState)
        return self._entered(circuit.admit(state, memory.now(now), self._breaker._settings, send))

    def answered_at_once(self, memory: MemoryStore, now: float) -> None:
        """As `answered`, for an answer that is a success."""
        if self._send is None or self._leave is None:
            return
        state = memory.of(self._key, CircuitState)
        turn = circuit.succeeded(state, memory.now(now), self._breaker._settings, self._send, self._leave.epoch)
        self._send = None
        if turn is not None:
            self._tell(turn)

    async def enter(self) -> Refusal | None:
        """Ask for leave for one send. None: it may pass, and has to be settled."""
        await self.give_back()
        # Noted first: if we are cancelled while we wait for the answer, the store may have taken a place for it.
        send = self._send = _name()
        self._leave = None
        return self._entered(await self._update(circuit.admit, self._breaker._settings, send))

    def _entered(self, answer: Leave | Refusal) -> Refusal | None:
        if isinstance(answer, Refusal):
            self._send = None
            return answer
        self._leave = answer
        if answer.probe == 1:
            self._tell(Turn(CircuitPhase.HALF_OPEN))
        return None

    async def admit(self) -> bool:
        """Whether one more send may pass now."""
        return await self.enter() is None

    async def open_for(self) -> float:
        """For how many seconds no send can pass; 0.0 while the circuit is closed or half-open."""
        return await self._update(circuit.open_for, self._breaker._settings)

    async def failed(self, error: BaseException) -> None:
        """The send has ended in *error*, whatever that says of the service."""
        await self._judged(_works(self._call, error))

    async def answered(self, response: aiohttp.ClientResponse) -> None:
        """The send has ended in an answer."""
        await self._judged(_works_by(response.status, response))

    async def _judged(self, works: bool | None) -> None:
        match works:
            case None:
                await self.give_back()
            case True:
                await self._settle(circuit.succeeded)
            case False:
                await self._settle(circuit.failed)

    async def _settle(self, change: Callable[[CircuitState, float, CircuitSettings, str, str], Turn | None]) -> None:
        if self._send is None or self._leave is None:
            return
        turn = await self._update(change, self._breaker._settings, self._send, self._leave.epoch)
        # Not before: if we are cancelled while we wait, the place of a probe is still to be given back.
        self._send = None
        if turn is not None:
            self._tell(turn)

    async def give_back(self) -> None:
        """The send, if there is one, says nothing of the service."""
        if self._send is None:
            return
        if self._leave is None or self._leave.probe:
            # Who is cancelled by anyio can wait for nothing else. A slow store gets no more than its usual patience.
            from anyio import CancelScope  # it takes longer to import than all of this module

            with CancelScope(shield=True):
                await self._update(circuit.give_back, self._send)
        self._send = None

    def abandon(self) -> None:
        """As :meth:`give_back` where nothing can be awaited any more. If it has to wait, time will free the place."""
        last = self.give_back()
        # Without a running loop nothing works.
        with suppress(Exception):
            last.send(None)
        last.close()
        self._send = None

    async def _update(self, change: Callable[[CircuitState, float, *_Ts], _R], *args: *_Ts) -> _R:
        shared = self._breaker._shared
        if (memory := shared.memory) is not None:
            return change(memory.of(self._key, CircuitState), memory.now(self._call.request.loop.time()), *args)
        return await shared.update(self._call.span, self._key, CircuitState, change, *args)

    def _tell(self, turn: Turn) -> None:
        """Count what the circuit has become; tell of it on the span of the call that made it so, and in the log."""
        server = origin_attributes(self._call.request)
        state = {CIRCUIT_STATE: turn.phase.value}
        self._breaker._transitions.add(1, {**server, **state})
        if turn.phase is CircuitPhase.HALF_OPEN:
            # What comes of it is told.
            return
        settings = self._breaker._settings
        open_for = float(settings.open_for)
        # Never the key, which may be a credential.
        origin = str(self._call.request.url.origin())
        level, name = logging.INFO, CIRCUIT_OPEN_EVENT
        event: dict[str, AttributeValue] = {CIRCUIT_WAS_OPEN: float(turn.since)}
        if turn.phase is CircuitPhase.CLOSED:
            name = CIRCUIT_CLOSE_EVENT
            message = f"the circuit of {origin} closed: it had been open for {turn.since:.3g} s"
        elif turn.sends:
            level = logging.WARNING
            event = {
                CIRCUIT_ATTEMPTS: turn.sends,
                CIRCUIT_FAILURES: turn.failures,
                CIRCUIT_OPEN_FOR: open_for,
            }
            message = (
                f"the circuit of {origin} opened: {turn.failures} of {turn.sends} sends failed within "
                f"{settings.window:g} s, so none passes for {open_for:g} s"
            )
        else:
            # INFO: one warning an outage is enough.
            event[CIRCUIT_OPEN_FOR] = open_for
            message = (
                f"the circuit of {origin} stays open for another {open_for:g} s: "
                f"a probe failed {turn.since:.3g} s after it had opened"
            )
        span = self._call.span or trace.get_current_span()
        span.add_event(name, event)
        LOGGER.log(level, "%s", message, extra={**server, **state, **ids_of(span)})


def _refused(call: Call, refusal: Refusal) -> CircuitOpen:
    """Stop *call*, which the circuit does not let pass."""
    request = call.request
    error = CircuitOpen(
        request.method,
        request.url,
        _RULE,
        since=refusal.since,
        until=refusal.until,
        stopped=StopReason.CIRCUIT_OPEN,
        secrets=secrets_of(call),
    )
    call.stop = Stop(StopReason.CIRCUIT_OPEN, _RULE, error)
    return error


def _works_by(status: int, answer: aiohttp.ClientResponse | aiohttp.ClientResponseError) -> bool | None:
    """Return whether the service works, going by the *status* of an *answer*. None: it says nothing of that."""
    if status < _SERVER_STATUS:
        return True
    return None if is_rate_limit(status, retry_after_of(answer)) else False


def _works(call: Call, error: BaseException) -> bool | None:
    """Whether the service works, going by the *error* of a send. None: it says nothing of that."""
    if isinstance(error, LamellaError):
        # One that says why it stopped is the end of another call, which a layer below made, or of no send at all.
        return service_works(error) if error.stopped is None else None
    if isinstance(error, Exception) and (failure := transport_error(call, error)) is not None:
        return service_works(failure)
    # What others make of a status.
    if isinstance(error, aiohttp.ClientResponseError) and error.status >= ERROR_STATUS:
        return _works_by(error.status, error)
    return None
