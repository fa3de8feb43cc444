"""``Breaker``: reject calls at once while their service is down."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, TypeVarTuple, cast

import aiohttp
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella.breaker import circuit
from lamella.breaker.circuit import CircuitPhase, CircuitSettings, CircuitState, Permit, Rejection, Transition
from lamella.call import Call
from lamella.classify.failures import ERROR_STATUS, rejected, retry_after_of, service_works, transport_error
from lamella.errors import CircuitOpen, LamellaError
from lamella.logger import LOGGER
from lamella.origins import origin_of
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import StopReason, is_rate_limit
from lamella.store.memory import MemoryStore
from lamella.store.protocol import Store
from lamella.store.shared import SharedState, hash_key, network_store
from lamella.telemetry.attributes import origin_attributes
from lamella.telemetry.log import ids_of, safely
from lamella.telemetry.metrics import instruments_of
from lamella.telemetry.names import (
    CIRCUIT_ATTEMPTS,
    CIRCUIT_CLOSE_EVENT,
    CIRCUIT_FAILURES,
    CIRCUIT_OPEN_EVENT,
    CIRCUIT_OPEN_FOR,
    CIRCUIT_STATE,
    CIRCUIT_WAS_OPEN,
)
from lamella.telemetry.tracing import OFF

if TYPE_CHECKING:  # most programs share no circuit with other processes
    from lamella.breaker.fleet import SharedCircuit
    from lamella.store.network import NetworkStore

_R = TypeVar("_R")
_Ts = TypeVarTuple("_Ts")

_SERVER_STATUS: Final = 500
_MOST_CIRCUITS: Final = 10_000


class Breaker(Layer):
    """Reject calls with :class:`lamella.CircuitOpen` while their service is down.

    An attempt counts as a failure if it ends with status 500 or above or without a response. Any other response,
    including 429, counts as a success. These attempts do not count: cancelled, rejected by lamella, 503 with
    ``Retry-After`` (a rate limit), :class:`lamella.CertificateInvalid`, :class:`lamella.ProxyRefused`,
    :class:`lamella.AnswerInvalid`, and timeouts while waiting for the session's connection pool.

    When too many attempts fail, the circuit opens: new calls are rejected, and calls waiting for a retry stop. After
    *open_for* seconds a few probes are sent. The circuit closes if they succeed and opens again if one fails.

    It belongs outside ``Retry``, which reports each attempt to it, and inside ``RequestSpan``. Without ``Retry`` it
    counts calls instead of attempts.

    Args:
        failures: The fraction of failed attempts, greater than 0 and at most 1, that opens the circuit. Twenty
            consecutive failures open it as well.
        window: How long an attempt counts, in seconds.
        minimum: The minimum number of attempts in the window before the circuit can open.
        open_for: How long the circuit stays open, and how long it waits for the result of a probe, in seconds.
        probes: Maximum number of concurrent probes, and how many must succeed.
        key: Returns the key of the circuit for a request. Only a hash of it is stored. None means the origin: scheme,
            host and port.
        store: Stores the circuits. None means the store of the stack, or memory private to this layer. Layers that
            share a store share circuits and need the same settings. With a :class:`lamella.NetworkStore`, calls do not
            wait for it unless their circuit opens, closes or is half-open: results are reported every 250 ms.
        meter_provider: None means the provider of the stack, or the global one.

    Raises:
        ValueError: A number is out of range.
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
        """Use *store* and *meter_provider* of the stack if none was given."""
        self._store = store if self._store is None else self._store
        self._meter_provider = meter_provider if self._meter_provider is None else self._meter_provider
        self._shared = SharedState(self._store)
        self._fleet = network_store(self._store)
        self._circuits: OrderedDict[str, SharedCircuit] = OrderedDict()  # the most recently used one is at the end
        self._instruments = instruments_of(self._meter_provider)

    def share_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._shared.work_in(loop)

    def before(self, call: Call) -> Awaitable[None] | None:
        memory = self._shared.memory
        if memory is None:
            return self._before_shared(call)
        passage = _Passage(self, call)
        _check(call, passage.enter_at_once(memory))
        call.circuit = passage
        return None

    def _before_shared(self, call: Call) -> Awaitable[None] | None:
        if self._fleet is None:
            return self._enter(call, _Passage(self, call))
        passage = _SharedPassage(self, call, self._fleet)
        if not passage.begins_at_once():
            return self._enter(call, passage)
        call.circuit = passage
        return None

    async def _enter(self, call: Call, passage: _Passage) -> None:
        try:
            _check(call, await passage.enter())
        except (Exception, asyncio.CancelledError):
            await passage.release()
            raise
        call.circuit = passage

    def after(self, call: Call, result: Result) -> Awaitable[None] | None:
        passage, call.circuit = cast(_Passage, call.circuit), None
        memory = self._shared.memory
        if memory is not None and not isinstance(result, BaseException) and result.status < _SERVER_STATUS:
            passage.succeeded_at_once(memory)
            return None
        if self._fleet is not None and cast(_SharedPassage, passage).succeeded_already(result):
            return None
        return self._ended(passage, result)

    async def _ended(self, passage: _Passage, result: Result) -> None:
        try:
            await passage.ended(result)
        except (Exception, asyncio.CancelledError):
            await passage.release()
            raise
        finally:
            del result  # break the reference cycle of exception and frame

    def _state_key(self, request: aiohttp.ClientRequest) -> str:
        # A prefix, because a Throttle may share the store.
        if self._key is None:
            return f"breaker:{hash_key(origin_of(request.url), None)}"
        return f"breaker:{hash_key(None, self._key(request))}"

    def _circuit(self, store: NetworkStore, key: str, call: Call) -> SharedCircuit:
        circuits = self._circuits
        found = circuits.get(key)
        if found is None:
            from lamella.breaker.fleet import SharedCircuit

            report = partial(self._report, _Place.of(call), trace.INVALID_SPAN)
            found = circuits[key] = SharedCircuit(store, key, self._settings, report)
            if len(circuits) > _MOST_CIRCUITS:
                circuits.popitem(last=False)
        else:
            circuits.move_to_end(key)
        return found

    def _report(self, place: _Place, span: trace.Span, transition: Transition) -> None:
        """Count *transition*, and report it on the *span* of the call that caused it and in the log."""
        url, server, is_counted = place
        phase, since = transition.phase, float(transition.since)
        state = {CIRCUIT_STATE: phase.value}
        if is_counted:
            measured = {**self._instruments.server(url.host, url.port), **state}
            safely(self._instruments.transitions.add, 1, measured)
        if phase is CircuitPhase.HALF_OPEN:
            return  # the next transition is reported
        open_for = float(self._settings.open_for)
        circuit_of = f"the circuit of {url}"  # not the key, which may be a credential
        level, name = logging.INFO, CIRCUIT_OPEN_EVENT
        event: dict[str, AttributeValue]
        if phase is CircuitPhase.CLOSED:
            name = CIRCUIT_CLOSE_EVENT
            event = {CIRCUIT_WAS_OPEN: since}
            message = f"{circuit_of} closed: it had been open for {since:.3g} s"
        elif transition.attempts:
            level = logging.WARNING  # one log line per outage is enough
            event = {CIRCUIT_ATTEMPTS: transition.attempts, CIRCUIT_FAILURES: transition.failures}
            message = (
                f"{circuit_of} opened: {transition.failures} of {transition.attempts} attempts failed in "
                f"{self._settings.window:g} s, so no attempt is sent for {open_for:g} s"
            )
        else:
            event = {CIRCUIT_WAS_OPEN: since}
            message = (
                f"{circuit_of} stays open for another {open_for:g} s: a probe failed {since:.3g} s after it had opened"
            )
        if phase is CircuitPhase.OPEN:
            event[CIRCUIT_OPEN_FOR] = open_for
        span.add_event(name, event)
        LOGGER.log(level, "%s", message, extra={**server, **state, **ids_of(span)})

    def __repr__(self) -> str:
        of = self._settings
        return (
            f"Breaker(failures={of.failures:g}, window={of.window:g}, minimum={of.minimum}, "
            f"open_for={of.open_for:g}, probes={of.probes})"
        )


class _Place(NamedTuple):
    """What a report of a transition says about the service."""

    url: URL
    server: Mapping[str, AttributeValue]
    is_counted: bool

    @staticmethod
    def of(call: Call) -> _Place:
        return _Place(call.request.url.origin(), origin_attributes(call.request), OFF not in call.state)


class _Passage:
    """The attempts of one call as its circuit sees them; the value of ``call.circuit``."""

    __slots__ = ("_attempt", "_breaker", "_call", "_key", "_permit")

    def __init__(self, breaker: Breaker, call: Call) -> None:
        self._breaker = breaker
        self._call = call
        self._key = breaker._state_key(call.request)
        self._attempt: str | None = None  # the attempt that may be in flight and is not reported yet
        self._permit: Permit | None = None  # None: no reply from the store yet

    def enter_at_once(self, memory: MemoryStore) -> Rejection | None:
        """Do the work of `enter` for the first attempt without a wait if the circuits are in *memory*."""
        state, now = memory.of(self._key, CircuitState), memory.now(self._call.request.loop.time())
        return self._admitted(circuit.admit(state, now, self._breaker._settings, self._begin()))

    def succeeded_at_once(self, memory: MemoryStore) -> None:
        """Report a success without a wait if the circuits are in *memory*."""
        if self._attempt is not None and self._permit is not None:
            state, now = memory.of(self._key, CircuitState), memory.now(self._call.request.loop.time())
            self._settled(circuit.succeeded(state, now, self._breaker._settings, self._attempt, self._permit.epoch))

    async def enter(self) -> Rejection | None:
        """Ask whether an attempt may be sent. None: it may, and its result must be reported."""
        await self.release()
        return self._admitted(await self._update(circuit.admit, self._breaker._settings, self._begin()))

    async def admit(self) -> bool:
        """Return whether one more attempt may be sent now."""
        return await self.enter() is None

    async def open_for(self) -> float:
        """Return for how many seconds no attempt may be sent; 0.0 while the circuit is closed or half-open."""
        return await self._update(circuit.open_for, self._breaker._settings)

    async def failed(self, error: BaseException) -> None:
        """Report that the attempt failed with *error*."""
        await self.ended(error)

    async def ended(self, result: Result) -> None:
        """Report the result of the attempt."""
        works = _works(self._call, result)
        if works is None or self._attempt is None or self._permit is None:
            await self.release()
        else:
            self._settled(await self._record(self._attempt, self._permit, works=works))

    async def _record(self, attempt: str, permit: Permit, *, works: bool) -> Transition | None:
        change = circuit.succeeded if works else circuit.failed
        return await self._update(change, self._breaker._settings, attempt, permit.epoch)

    async def release(self) -> None:
        """Forget the attempt, if there is one: it shows nothing about the service.

        If the event loop discards a call during a store operation, its probe expires.
        """
        if self._attempt is not None and (self._permit is None or self._permit.probe):
            shared = self._breaker._shared
            await shared.note(self._call.span, self._key, CircuitState, circuit.release, self._attempt)
        self._attempt = None

    def _begin(self) -> str:
        # Set before the store operation, which may admit a probe even if the call is cancelled meanwhile.
        self._permit = None
        self._attempt = f"{random.getrandbits(64):016x}"  # unique across processes: a fork reseeds this source
        return self._attempt

    def _admitted(self, answer: Permit | Rejection) -> Rejection | None:
        if isinstance(answer, Rejection):
            self._attempt = None
            return answer
        self._permit = answer
        if answer.probe == 1:
            self._report(Transition(CircuitPhase.HALF_OPEN))
        return None

    def _settled(self, transition: Transition | None) -> None:
        self._attempt = None
        if transition is not None:
            self._report(transition)

    def _report(self, transition: Transition) -> None:
        self._breaker._report(_Place.of(self._call), self._call.span or trace.get_current_span(), transition)

    async def _update(self, change: Callable[[CircuitState, float, *_Ts], _R], *args: *_Ts) -> _R:
        return await self._breaker._shared.update(self._call.span, self._key, CircuitState, change, *args)


class _SharedPassage(_Passage):
    """The same for a circuit that processes share."""

    __slots__ = ("_circuit",)

    def __init__(self, breaker: Breaker, call: Call, store: NetworkStore) -> None:
        super().__init__(breaker, call)
        self._circuit = breaker._circuit(store, self._key, call)

    def begins_at_once(self) -> bool:
        """Enter if the last state seen shows whether the first attempt may be sent, or return False."""
        answer = self._circuit.at_once()
        if answer is None:
            return False
        self._begin()
        _check(self._call, self._admitted(answer))
        return True

    def succeeded_already(self, result: Result) -> bool:
        """Report a success without a wait, or return False."""
        if isinstance(result, BaseException) or result.status >= _SERVER_STATUS or self._permit is None:
            return False
        if self._attempt is None or self._permit.probe:
            return False
        self._circuit.count(self._attempt, self._permit, works=True)
        self._attempt = None
        return True

    async def enter(self) -> Rejection | None:
        await self.release()
        return self._admitted(await self._circuit.admit(self._begin()))

    async def open_for(self) -> float:
        return self._circuit.open_for()

    async def _record(self, attempt: str, permit: Permit, *, works: bool) -> Transition | None:
        return await self._circuit.ended(attempt, permit, works=works)

    async def release(self) -> None:
        if self._attempt is not None and (self._permit is None or self._permit.probe):
            self._circuit.release(self._attempt)
        self._attempt = None


def _check(call: Call, rejection: Rejection | None) -> None:
    """Raise CircuitOpen if the circuit rejects *call*."""
    if rejection is not None:
        since, until = rejection.since, rejection.until
        raise rejected(CircuitOpen, call, since=since, until=until, stopped=StopReason.CIRCUIT_OPEN)


def _works(call: Call, result: Result) -> bool | None:
    """Return whether the *result* of an attempt shows that the service works; None if it shows nothing."""
    if isinstance(result, LamellaError):
        # With a stop reason it is the error of another call, made by an inner layer, or nothing was sent.
        return service_works(result) if result.stopped is None else None
    if isinstance(result, Exception) and (failure := transport_error(call, result)) is not None:
        return service_works(failure)
    if isinstance(result, aiohttp.ClientResponseError):
        if result.status < ERROR_STATUS:  # raised by another middleware
            return None
    elif isinstance(result, BaseException):
        return None
    if result.status < _SERVER_STATUS:
        return True
    return None if is_rate_limit(result.status, retry_after_of(result)) else False
