"""When to leave a service alone that fails, and when to try it again: a circuit, as values and pure functions.

A circuit is closed (all sends pass), open (none does) or half-open (a few do, to find out). The functions change its
state in place. They are told the time in seconds by a clock that only has to be the same for one state, so whatever
they tell of time is a length and not a moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from lamella.checks import check_seconds, check_whole

__all__ = [
    "CircuitPhase",
    "CircuitSettings",
    "CircuitState",
    "Leave",
    "Refusal",
    "Turn",
    "admit",
    "failed",
    "give_back",
    "open_for",
    "succeeded",
]

# The window rolls on by a slice at a time, so that it takes the same few numbers whatever the traffic.
_SLICES: Final = 10
# So many failures in a row are no chance, however many sends ended well before: in a busy window the share stays low.
_IN_A_ROW: Final = 20
# Who has waited for as long as was said is not to be too early by a rounding error: of a time since 1970, too.
_ROUNDING: Final = 1e-6


class CircuitPhase(StrEnum):
    """What a circuit is."""

    CLOSED = "closed"
    """All sends pass, and are counted."""
    OPEN = "open"
    """None passes."""
    HALF_OPEN = "half_open"
    """A few probes pass at a time: what becomes of them decides."""


@dataclass(frozen=True, slots=True)
class CircuitSettings:
    """When a circuit opens, and how it closes.

    Args:
        failures: The share of sends, greater than 0 and at most 1, that have to fail for it to open. Twenty in a row
            open it, too: in a window that was busy the share would be low for a long time.
        window: Of how many seconds the sends count. Each does for at least nine tenths of that.
        minimum: How many sends there have to be in the window for it to open.
        open_for: For how many seconds it is open before it is half-open; and after how many of them the place of a
            probe is free again that nothing was heard of.
        probes: How many sends pass at a time while it is half-open, and how many have to end well for it to close.

    Raises:
        ValueError: A number is out of its range.
    """

    failures: float = 0.5
    window: float = 30.0
    minimum: int = 20
    open_for: float = 30.0
    probes: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.failures <= 1:
            raise ValueError(f"failures must be a share greater than 0 and at most 1, got {self.failures!r}")
        for name, seconds in (("window", self.window), ("open_for", self.open_for)):
            check_seconds(name, seconds)
        for name, number in (("minimum", self.minimum), ("probes", self.probes)):
            check_whole(name, number)


@dataclass(slots=True)
class CircuitState:
    """What is known of a service: JSON values, so that another process can read it."""

    epoch: str = ""
    """The send with which it last opened or closed: what was sent before that says nothing of the time after it."""
    since: float | None = None
    """When it opened, and has not been closed since. None: it is closed."""
    opened: float = 0.0
    """When it opened last: a probe that fails opens it again."""
    tried: int = 0
    """How many probes have passed since then."""
    well: int = 0
    """How many of them have ended well."""
    places: dict[str, float] = field(default_factory=dict)
    """The probes that are under way, and since when."""
    began: float = 0.0
    """When the newest slice of the window began."""
    sends: list[int] = field(default_factory=list)
    """The sends in each slice of the window, the newest first."""
    failures: list[int] = field(default_factory=list)
    """How many of them have failed."""
    in_a_row: int = 0
    """How many sends have failed since the last one that ended well."""


@dataclass(frozen=True, slots=True)
class Leave:
    """One send may pass."""

    epoch: str
    """To be handed back with what has become of it."""
    probe: int = 0
    """Which probe it is since the circuit opened, from 1: with the first it is half-open. 0: it is closed."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A send may not pass."""

    since: float
    """How many seconds ago the circuit opened; it has not been closed since."""
    until: float
    """In how many seconds it is half-open. If it is, and has no place free: in how many one is at the latest."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A circuit has become what it was not before, or has opened again."""

    phase: CircuitPhase
    since: float = 0.0
    """How many seconds ago it opened; 0.0 if that is now."""
    sends: int = 0
    """How many sends there were in the window that made it open; 0 if it was a probe that failed, or did not open."""
    failures: int = 0
    """How many of these had failed."""


def admit(state: CircuitState, now: float, settings: CircuitSettings, send: str) -> Leave | Refusal:
    """Whether *send*, a name that no other has, may pass. If so, it is to be told of, or given back."""
    if state.since is None:
        return Leave(state.epoch)
    left = open_for(state, now, settings)
    since = max(now - state.since, 0.0)
    if left:
        return Refusal(since, left)
    # Who took a place and was not heard of again is dead. (So is one of a time that is yet to come.)
    recent = settings.open_for - _ROUNDING
    state.places = {name: at for name, at in state.places.items() if 0 <= now - at < recent}
    if len(state.places) >= settings.probes:
        return Refusal(since, max(min(state.places.values()) + settings.open_for - now, 0.0))
    state.places[send] = now
    state.tried += 1
    return Leave(state.epoch, state.tried)


def succeeded(state: CircuitState, now: float, settings: CircuitSettings, send: str, epoch: str) -> Turn | None:
    """*send*, which had leave since *epoch*, has shown that the service works. None: that changes nothing."""
    state.places.pop(send, None)
    if epoch != state.epoch:
        return None
    if state.since is None:
        return _count(state, now, settings, send, 0)
    state.well += 1
    if state.well < settings.probes:
        return None
    turn = Turn(CircuitPhase.CLOSED, max(now - state.since, 0.0))
    _begin(state, send)
    state.since = None
    return turn


def failed(state: CircuitState, now: float, settings: CircuitSettings, send: str, epoch: str) -> Turn | None:
    """*send*, which had leave since *epoch*, has shown that the service does not work. None: that changes nothing."""
    if epoch != state.epoch:
        return None
    if state.since is None:
        return _count(state, now, settings, send, 1)
    _begin(state, send)
    # By a clock that has begun anew it would have opened in a time that is yet to come, and say so until then.
    state.since = min(state.since, now)
    state.opened = now
    return Turn(CircuitPhase.OPEN, now - state.since)


def give_back(state: CircuitState, now: float, send: str) -> None:
    """*send* has shown nothing: another may have its place. There is none to give back, or more than once: no harm."""
    del now  # what every change is told
    state.places.pop(send, None)


def open_for(state: CircuitState, now: float, settings: CircuitSettings) -> float:
    """For how many seconds no send can pass; 0.0 if the circuit is closed or half-open."""
    if state.since is None:
        return 0.0
    if now < state.opened:
        # A clock that has begun anew, as another event loop's may: it must not stay open until that time comes again.
        state.since = state.opened = now
    left = state.opened + settings.open_for - now
    return left if left > _ROUNDING else 0.0


def _count(state: CircuitState, now: float, settings: CircuitSettings, send: str, failure: int) -> Turn | None:
    """Count a send while the circuit is closed; it opens if that is one failure too many."""
    passed = (now - state.began) / settings.window * _SLICES
    if not state.sends or not 0 <= passed < _SLICES:
        state.began, state.sends, state.failures = now, [0], [0]
    elif passed >= 1:
        slices = int(passed)
        # Not after now, by a rounding error: it would look like a clock that has begun anew.
        state.began = min(state.began + slices * settings.window / _SLICES, now)
        state.sends = [0] * slices + state.sends[: _SLICES - slices]
        state.failures = [0] * slices + state.failures[: _SLICES - slices]
    state.sends[0] += 1
    state.failures[0] += failure
    state.in_a_row = state.in_a_row + 1 if failure else 0
    sends, failures = sum(state.sends), sum(state.failures)
    too_many = failures / sends >= settings.failures or state.in_a_row >= _IN_A_ROW
    if sends < settings.minimum or not too_many:
        return None
    _begin(state, send)
    state.since = state.opened = now
    return Turn(CircuitPhase.OPEN, sends=sends, failures=failures)


def _begin(state: CircuitState, send: str) -> None:
    """With *send* the circuit opens or closes: nothing from before counts."""
    state.epoch = send
    state.tried = state.well = 0
    state.places = {}
    state.sends, state.failures, state.in_a_row = [], [], 0
