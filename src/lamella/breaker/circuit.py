"""Decide when to reject calls to a failing service and when to probe it: a state and pure functions on it.

A circuit is closed (all attempts pass), open (none passes) or half-open (a few probes pass). The functions change the
state in place. *now* is in seconds by any clock, as long as one state always uses the same. Only durations are
returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Final, NamedTuple

from lamella.checks import check_seconds, check_whole

_SLICES: Final = 10  # the window moves in tenths, so its size in memory does not depend on traffic
_IN_A_ROW: Final = 20  # consecutive failures that cannot be chance, even in a busy window
_REPORTED: Final = 0.3  # seconds after which all processes have reported a success
_ROUNDING: Final = 1e-6  # seconds by which a call may return too early


class CircuitPhase(StrEnum):
    """The state of a circuit."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, repr=False, slots=True)
class CircuitSettings:
    """The arguments of `lamella.Breaker`: when a circuit opens and how it closes."""

    failures: float = 0.5
    window: float = 30.0
    minimum: int = 20
    open_for: float = 30.0
    probes: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.failures <= 1:
            raise ValueError(f"failures must be a fraction, greater than 0 and at most 1, got {self.failures!r}")
        check_seconds("window", self.window)
        check_whole("minimum", self.minimum)
        check_seconds("open_for", self.open_for)
        check_whole("probes", self.probes)


@dataclass(eq=False, repr=False, slots=True)
class CircuitState:
    """The state of a service as JSON values."""

    epoch: str = ""  # incremented when the circuit opens or closes; results of earlier attempts are ignored
    since: float | None = None  # when it opened without closing since. None: closed
    opened: float = 0.0  # when it last opened; a failed probe opens it again
    probed: int = 0  # probes admitted since then
    succeeded: int = 0  # successful probes
    probes: dict[str, float] = field(default_factory=dict)  # probes in flight, and when they were admitted
    began: float = 0.0  # start of the newest slice of the window
    attempts: list[int] = field(default_factory=list)  # per slice of the window, newest first
    failures: list[int] = field(default_factory=list)
    in_a_row: int = 0  # failures since the last success
    worked: float = 0.0  # when a process last reported a success, if processes share the circuit


class Permit(NamedTuple):
    """Permission to send an attempt. Its result must be reported with the epoch."""

    epoch: str
    probe: int = 0  # number of the probe since the circuit opened, from 1; the first makes it half-open. 0: closed


class Rejection(NamedTuple):
    """An attempt must not be sent."""

    since: float  # seconds since the circuit opened
    until: float  # seconds until half-open or, if already half-open, until another probe may be sent at the latest


class Results(NamedTuple):
    """The results of attempts that one process made while the circuit was closed."""

    attempts: int
    failures: int


class Transition(NamedTuple):
    """A change of phase, or a circuit that opened again."""

    phase: CircuitPhase
    since: float = 0.0  # seconds since it opened
    attempts: int = 0  # in the window that opened the circuit. 0: a probe failed, or it has not opened
    failures: int = 0


def admit(state: CircuitState, now: float, settings: CircuitSettings, attempt: str) -> Permit | Rejection:
    """Return whether *attempt*, a unique name, may be sent. If so, report its result, or release it."""
    if state.since is None:
        return Permit(state.epoch)
    left = open_for(state, now, settings)
    since = max(now - state.since, 0.0)
    if left:
        return Rejection(since, left)
    # A probe without a result for this long is lost, as is one in the future: the clock has restarted.
    recent = settings.open_for - _ROUNDING
    state.probes = {name: at for name, at in state.probes.items() if 0 <= now - at < recent}
    if len(state.probes) >= settings.probes:
        return Rejection(since, max(min(state.probes.values()) + settings.open_for - now, 0.0))
    state.probes[attempt] = now
    state.probed += 1
    return Permit(state.epoch, state.probed)


def succeeded(
    state: CircuitState, now: float, settings: CircuitSettings, attempt: str, epoch: str
) -> Transition | None:
    """Record that *attempt*, admitted in *epoch*, has shown that the service works."""
    state.probes.pop(attempt, None)
    if epoch != state.epoch:
        return None
    if state.since is None:
        return _count(state, now, settings, attempt, 0)
    state.succeeded += 1
    if state.succeeded < settings.probes:
        return None
    transition = Transition(CircuitPhase.CLOSED, max(now - state.since, 0.0))
    _begin_epoch(state, attempt)
    state.since = None
    return transition


def failed(state: CircuitState, now: float, settings: CircuitSettings, attempt: str, epoch: str) -> Transition | None:
    """Record that *attempt*, admitted in *epoch*, has shown that the service does not work."""
    if epoch != state.epoch:
        return None
    if state.since is None:
        return _count(state, now, settings, attempt, 1)
    _begin_epoch(state, attempt)
    state.since = min(state.since, now)  # the clock may have restarted
    state.opened = now
    return Transition(CircuitPhase.OPEN, now - state.since)


def release(state: CircuitState, _now: float, attempt: str) -> None:
    """Forget *attempt* if it is a probe without a result, so that another one may be sent."""
    state.probes.pop(attempt, None)


def open_for(state: CircuitState, now: float, settings: CircuitSettings) -> float:
    """Return for how many seconds no attempt may be sent; 0.0 if the circuit is closed or half-open."""
    if state.since is None:
        return 0.0
    if now < state.opened:
        # The clock has restarted, for example with another event loop.
        state.since = state.opened = now
    left = state.opened + settings.open_for - now
    return left if left > _ROUNDING else 0.0


def restore(state: CircuitState, seen: CircuitState) -> None:
    """Replace *state* with *seen*, an earlier state of the same store, if the store has lost an opening or closing."""
    if (state.opened, state.since is None) < (seen.opened, seen.since is None):
        copy = copied(seen)
        for each in fields(copy):
            setattr(state, each.name, getattr(copy, each.name))


def copied(state: CircuitState) -> CircuitState:
    """Return a copy of *state* that shares nothing with it."""
    probes, attempts, failures = dict(state.probes), list(state.attempts), list(state.failures)
    return replace(state, probes=probes, attempts=attempts, failures=failures)


def count(
    state: CircuitState, now: float, settings: CircuitSettings, attempt: str, results: Results
) -> Transition | None:
    """Count *results* in a closed circuit, and open it, with the epoch *attempt*, if there are too many failures.

    Failures are consecutive only if no other process can have had a success that it has not reported yet.
    """
    ended, failures = results
    if failures < ended:
        state.worked = now
    in_a_row = failures if now - state.worked >= _REPORTED else -state.in_a_row
    return _count(state, now, settings, attempt, failures, ended, in_a_row)


def _count(  # noqa: PLR0917 - keywords would cost each attempt more
    state: CircuitState,
    now: float,
    settings: CircuitSettings,
    attempt: str,
    failure: int,
    ended: int = 1,
    in_a_row: int = 1,
) -> Transition | None:
    """Count attempts of a closed circuit, and open the circuit if there are too many failures."""
    passed = (now - state.began) / settings.window * _SLICES
    if not state.attempts or not 0 <= passed < _SLICES:
        state.began, state.attempts, state.failures = now, [0], [0]
    elif passed >= 1:
        slices = int(passed)
        # A rounding error could put it after now, as if the clock had restarted.
        state.began = min(state.began + slices * settings.window / _SLICES, now)
        state.attempts = [0] * slices + state.attempts[: _SLICES - slices]
        state.failures = [0] * slices + state.failures[: _SLICES - slices]
    state.attempts[0] += ended
    state.failures[0] += failure
    state.in_a_row = state.in_a_row + in_a_row if failure else 0
    attempts, failures = sum(state.attempts), sum(state.failures)
    too_many = failures / attempts >= settings.failures or state.in_a_row >= _IN_A_ROW
    if attempts < settings.minimum or not too_many:
        return None
    _begin_epoch(state, attempt)
    state.since = state.opened = now
    return Transition(CircuitPhase.OPEN, attempts=attempts, failures=failures)


def _begin_epoch(state: CircuitState, attempt: str) -> None:
    state.epoch = attempt
    state.probed = state.succeeded = 0
    state.probes = {}
    state.attempts, state.failures, state.in_a_row = [], [], 0
