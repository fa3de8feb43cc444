"""A circuit: when it opens, what passes while it is open and half-open, what closes it, what changes nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples

from lamella.breaker.circuit import (
    CircuitPhase,
    CircuitSettings,
    CircuitState,
    Permit,
    Rejection,
    Results,
    Transition,
    admit,
    copied,
    count,
    failed,
    open_for,
    release,
    restore,
    succeeded,
)

R = TypeVar("R")
SETTINGS = CircuitSettings(failures=0.5, window=10, minimum=4, open_for=30, probes=2)


def through_json(state: CircuitState) -> CircuitState:
    return CircuitState(**json.loads(json.dumps(asdict(state), allow_nan=False)))


@dataclass
class Circuit:
    """A circuit, and a copy of its state that goes through JSON before each change: both must do the same."""

    settings: CircuitSettings = SETTINGS
    now: float = 1000.0
    state: CircuitState = field(default_factory=CircuitState)
    names: itertools.count[int] = field(default_factory=itertools.count)

    def apply(self, change: Callable[..., R], *args: Any) -> R:
        other = through_json(self.state)
        answer, same = change(self.state, self.now, *args), change(other, self.now, *args)
        assert answer == same
        assert asdict(self.state) == asdict(other)
        return answer

    def admit(self) -> tuple[str, Permit] | Rejection:
        name = f"send {next(self.names)}"
        answer = self.apply(admit, self.settings, name)
        return answer if isinstance(answer, Rejection) else (name, answer)

    def send(self) -> tuple[str, Permit]:
        answer = self.admit()
        assert not isinstance(answer, Rejection)
        return answer

    def end(self, send: tuple[str, Permit], well: bool) -> Transition | None:
        return self.apply(succeeded if well else failed, self.settings, send[0], send[1].epoch)

    def run(self, outcomes: str) -> list[Transition | None]:
        """Make an attempt for each letter: ``f`` for a failure, ``s`` for a success."""
        return [self.end(self.send(), letter == "s") for letter in outcomes]

    def release(self, send: tuple[str, Permit]) -> None:
        self.apply(release, send[0])

    def open_for(self) -> float:
        return self.apply(open_for, self.settings)

    @property
    def phase(self) -> CircuitPhase:
        if self.state.since is None:
            return CircuitPhase.CLOSED
        return CircuitPhase.OPEN if self.open_for() else CircuitPhase.HALF_OPEN

    def opened(self) -> Circuit:
        *before, transition = self.run("ffff")
        assert before == [None] * 3
        assert transition == Transition(CircuitPhase.OPEN, since=0.0, attempts=4, failures=4)
        return self

    def half_open(self) -> Circuit:
        self.opened().now += self.settings.open_for
        return self


@pytest.mark.parametrize(
    ("outcomes", "settings", "opens"),
    [
        ("fff", {}, False),  # too few of them
        ("ffff", {}, True),
        ("fssf", {}, True),  # just the share
        ("sffs", {}, True),  # whichever was the last
        ("fsss", {}, False),
        ("sssfff", {}, True),
        ("sssff", {}, False),
        ("f", {"minimum": 1}, True),
        ("s", {"minimum": 1, "failures": 1e-9}, False),
        ("sf", {"minimum": 1, "failures": 1.0}, False),
        ("fff" + "s" * 27, {"minimum": 30, "failures": 0.1}, True),
        ("ff" + "s" * 28, {"minimum": 30, "failures": 0.1}, False),
        ("f" * 7 + "s" * 93, {"minimum": 100, "failures": 0.07}, True),  # 0.07 * 100 is more than 7
    ],
)
def test_it_opens_when_failures_reach_the_fraction_and_the_minimum(
    outcomes: str, settings: dict[str, Any], opens: bool
) -> None:
    circuit = Circuit(CircuitSettings(**({"failures": 0.5, "minimum": 4} | settings)))
    *before, last = circuit.run(outcomes)
    assert not any(before)
    expected = Transition(CircuitPhase.OPEN, attempts=len(outcomes), failures=outcomes.count("f"))
    assert last == (expected if opens else None)
    assert (circuit.phase is CircuitPhase.OPEN) is opens


@pytest.mark.parametrize(
    ("outcomes", "opens"),
    [
        ("s" * 100 + "f" * 19, False),
        ("s" * 100 + "f" * 20, True),
        ("s" * 100 + "f" * 19 + "s" + "f" * 19, False),
    ],
)
def test_twenty_consecutive_failures_open_it_for_any_fraction(outcomes: str, opens: bool) -> None:
    circuit = Circuit()
    *before, last = circuit.run(outcomes)
    assert set(before) == {None}
    failures = outcomes.count("f")
    assert last == (Transition(CircuitPhase.OPEN, attempts=len(outcomes), failures=failures) if opens else None)


def test_consecutive_failures_below_the_minimum_do_not_open_it() -> None:
    circuit = Circuit(CircuitSettings(failures=0.5, window=10, minimum=30, open_for=30, probes=2))
    assert set(circuit.run("f" * 29)) == {None}
    assert circuit.run("f") != [None]
    # They are not forgotten until there are enough.
    circuit = Circuit(CircuitSettings(failures=0.5, window=10, minimum=130, open_for=30, probes=2))
    assert set(circuit.run("s" * 100 + "f" * 29)) == {None}
    assert circuit.run("f") == [Transition(CircuitPhase.OPEN, attempts=130, failures=30)]


def test_closing_resets_the_consecutive_failures() -> None:
    circuit = Circuit()
    circuit.run("s" * 100 + "f" * 20)
    circuit.now += 30
    assert circuit.run("ss")[-1] is not None
    assert set(circuit.run("s" * 30 + "f" * 19)) == {None}


def test_an_open_circuit_rejects_with_start_and_end_time() -> None:
    circuit = Circuit().opened()
    for after in (0.0, 0.5, 29.5):
        circuit.now = 1000 + after
        assert circuit.admit() == Rejection(since=after, until=30 - after)
        assert circuit.open_for() == 30 - after
    circuit.now = 1030.0
    assert circuit.open_for() == 0.0
    assert circuit.send()[1].probe == 1


@pytest.mark.parametrize(
    ("times", "counted"),
    [
        ([0.0, 9.99], 2),
        ([0.0, 10.0], 1),
        # The window rolls on by a slice of a second at a time.
        ([0.0, 0.99, 9.99], 3),
        ([0.0, 0.99, 10.0], 1),
        ([0.0, 1.0, 10.99], 2),
        ([0.0, 1.0, 11.0], 1),
        ([0.0, 1.1, 5.5, 10.05], 3),
        ([0.0, 10_000.0], 1),
        # Where the newest slice would begin after now, to a float's last digit.
        ([3.3, 10.299999999999999, 10.299999999999999], 3),
    ],
)
def test_only_attempts_in_the_window_count(times: list[float], counted: int) -> None:
    circuit = Circuit(CircuitSettings(window=10, minimum=1000))
    for circuit.now in times:
        circuit.run("f")
    assert (sum(circuit.state.attempts), sum(circuit.state.failures)) == (counted, counted)
    assert len(circuit.state.attempts) == len(circuit.state.failures) <= 10


def test_a_call_that_comes_back_a_rounding_error_too_early_is_not_rejected_again() -> None:
    circuit = Circuit(now=1.7e9 + 0.1).opened()
    circuit.now += 12.3
    circuit.now += circuit.open_for() - 4e-7
    assert circuit.send()


def test_half_open_admits_a_few_probes_and_closes_if_they_succeed() -> None:
    circuit = Circuit().half_open()
    first, second = circuit.send(), circuit.send()
    assert [first[1].probe, second[1].probe] == [1, 2]
    circuit.now += 10
    # Both places are taken at 30 s, and are free at 60 s at the latest.
    assert circuit.admit() == Rejection(since=40, until=20)
    assert circuit.open_for() == 0.0
    assert circuit.end(first, True) is None
    third = circuit.send()
    assert third[1].probe == 3
    assert isinstance(circuit.admit(), Rejection)
    assert circuit.end(third, True) == Transition(CircuitPhase.CLOSED, since=40, attempts=0, failures=0)
    assert circuit.phase is CircuitPhase.CLOSED
    assert circuit.open_for() == 0.0
    assert circuit.send()[1].probe == 0


def test_a_closed_circuit_begins_with_an_empty_window() -> None:
    circuit = Circuit(CircuitSettings(failures=0.5, window=1000, minimum=4, open_for=30, probes=1)).half_open()
    assert circuit.run("s") == [Transition(CircuitPhase.CLOSED, since=30)]
    assert circuit.run("fffs")[:3] == [None] * 3
    assert circuit.phase is CircuitPhase.OPEN


def test_a_failed_probe_opens_the_circuit_again_and_resets_successes() -> None:
    circuit = Circuit().half_open()
    first, second = circuit.send(), circuit.send()
    assert circuit.end(first, True) is None
    circuit.now += 1
    assert circuit.end(second, False) == Transition(CircuitPhase.OPEN, since=31)
    # It says since when it has not been closed: it opened again just now.
    assert circuit.admit() == Rejection(since=31, until=30)
    circuit.now += 30
    # The first of this time, and two are needed anew.
    third = circuit.send()
    assert third[1].probe == 1
    assert circuit.end(third, True) is None
    assert circuit.end(circuit.send(), True) == Transition(CircuitPhase.CLOSED, since=61)


def test_a_probe_that_was_released_shows_nothing_and_another_may_be_sent() -> None:
    circuit = Circuit().half_open()
    first, second = circuit.send(), circuit.send()
    assert isinstance(circuit.admit(), Rejection)
    for _ in range(2):
        circuit.release(first)
    third = circuit.send()
    assert isinstance(circuit.admit(), Rejection)
    assert circuit.phase is CircuitPhase.HALF_OPEN
    assert circuit.end(second, True) is None
    assert circuit.end(third, True) == Transition(CircuitPhase.CLOSED, since=30)


def test_an_attempt_of_a_closed_circuit_that_was_released_does_not_count() -> None:
    circuit = Circuit()
    circuit.run("fff")
    circuit.release(circuit.send())
    assert circuit.phase is CircuitPhase.CLOSED
    assert circuit.run("f") == [Transition(CircuitPhase.OPEN, attempts=4, failures=4)]


def test_a_probe_without_a_result_does_not_block_for_ever() -> None:
    circuit = Circuit().half_open()
    circuit.send()
    circuit.now += 10
    circuit.send()
    circuit.now += 19.5
    assert circuit.admit() == Rejection(since=59.5, until=0.5)
    circuit.now += 0.5
    assert circuit.send()
    assert circuit.admit() == Rejection(since=60, until=10)


@pytest.mark.parametrize(("well", "phase"), [(True, CircuitPhase.CLOSED), (False, CircuitPhase.OPEN)])
def test_a_probe_considered_lost_still_counts_when_it_ends(well: bool, phase: CircuitPhase) -> None:
    circuit = Circuit(CircuitSettings(failures=0.5, window=10, minimum=4, open_for=30, probes=1)).half_open()
    slow = circuit.send()
    circuit.now += 35
    next_one = circuit.send()
    transition = circuit.end(slow, well)
    assert transition == Transition(phase, since=65)
    # The other was sent before that, and changes nothing any more.
    assert circuit.end(next_one, not well) is None
    assert circuit.phase is phase


@pytest.mark.parametrize("well", [True, False])
def test_late_results_of_earlier_attempts_change_nothing(well: bool) -> None:
    circuit = Circuit()
    early = [circuit.send() for _ in range(7)]
    circuit.opened()
    assert circuit.end(early.pop(), well) is None
    assert circuit.open_for() == 30
    circuit.now += 29
    assert circuit.end(early.pop(), well) is None
    assert circuit.open_for() == 1
    circuit.now += 1
    probe = circuit.send()
    assert [circuit.end(early.pop(), well) for _ in range(2)] == [None] * 2
    assert circuit.phase is CircuitPhase.HALF_OPEN
    assert circuit.end(probe, True) is None
    left = circuit.send()
    assert circuit.end(circuit.send(), True) == Transition(CircuitPhase.CLOSED, since=30)
    for send in (*early, left):
        assert circuit.end(send, well) is None
    assert circuit.state.attempts == []


def test_a_probe_of_an_earlier_epoch_is_ignored() -> None:
    circuit = Circuit().half_open()
    late, failing = circuit.send(), circuit.send()
    circuit.end(failing, False)
    circuit.now += 30
    probe = circuit.send()
    assert circuit.end(late, True) is None
    assert circuit.end(probe, True) is None
    assert circuit.phase is CircuitPhase.HALF_OPEN
    assert circuit.end(late, False) is None
    assert circuit.phase is CircuitPhase.HALF_OPEN


def test_a_restarted_clock_does_not_keep_a_circuit_open() -> None:
    circuit = Circuit(now=1e6).opened()
    circuit.now = 5.0
    assert circuit.admit() == Rejection(since=0.0, until=30.0)
    circuit.now = 35.0
    probe = circuit.send()
    circuit.send()
    circuit.now = 1.0
    assert circuit.open_for() == 30
    circuit.now = 31.0
    # The places of a time that is yet to come are free.
    assert circuit.send()
    assert circuit.send()
    assert circuit.end(probe, False) is not None

    for well in (True, False):
        circuit = Circuit(CircuitSettings(failures=0.5, window=10, minimum=4, open_for=30, probes=1), 1e6).half_open()
        probe = circuit.send()
        circuit.now = 5.0
        # No length of time is less than none.
        assert circuit.end(probe, well) == Transition(CircuitPhase.CLOSED if well else CircuitPhase.OPEN, since=0.0)
        circuit.now = 6.0
        assert circuit.open_for() == (0.0 if well else 29.0)
        assert well or circuit.admit() == Rejection(since=1.0, until=29.0)

    # Nor does it say that it opened just now for as long as that time is yet to come.
    late = Circuit(now=1e6).half_open()
    probe = late.send()
    late.now = 5.0
    assert late.end(probe, False) == Transition(CircuitPhase.OPEN)
    late.now = 15.0
    assert late.admit() == Rejection(since=10.0, until=20.0)

    closed = Circuit(now=1e6)
    closed.run("fff")
    closed.now = 5.0
    # Nobody can tell how old the others are.
    assert closed.run("fff") == [None] * 3
    assert closed.run("f") == [Transition(CircuitPhase.OPEN, attempts=4, failures=4)]


SETTINGS_OF_ALL_KINDS = st.builds(
    CircuitSettings,
    failures=st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]),
    window=st.just(10.0),
    minimum=st.integers(1, 8),
    open_for=st.sampled_from([0.5, 5.0, 30.0]),
    probes=st.integers(1, 3),
)


@given(SETTINGS_OF_ALL_KINDS, st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=40))
def test_it_opens_only_if_fraction_and_minimum_are_met(
    settings: CircuitSettings, sends: list[tuple[int, bool]]
) -> None:
    """In whole seconds, a slice is one of them: what is counted is known exactly."""
    circuit = Circuit(settings)
    counted: list[tuple[float, bool]] = []
    in_a_row = 0
    for wait, well in sends:
        circuit.now += wait
        counted = [*((at, good) for at, good in counted if circuit.now - at < 10), (circuit.now, well)]
        bad = sum(not good for _, good in counted)
        in_a_row = 0 if well else in_a_row + 1
        transition = circuit.end(circuit.send(), well)
        if len(counted) >= settings.minimum and (bad / len(counted) >= settings.failures or in_a_row >= 20):
            assert transition == Transition(CircuitPhase.OPEN, attempts=len(counted), failures=bad)
            return
        assert transition is None
        assert circuit.phase is CircuitPhase.CLOSED


@examples(40)
@given(st.lists(st.floats(0, 4, allow_subnormal=False), min_size=1, max_size=80), st.floats(0, 1e10))
def test_an_attempt_counts_for_nine_tenths_of_the_window_and_never_for_more_than_all_of_it(
    waits: list[float], start: float
) -> None:
    circuit = Circuit(CircuitSettings(window=10.0, minimum=1000), start)
    times: list[float] = []
    for wait in waits:
        circuit.now += wait
        times.append(circuit.now)
        circuit.run("f")
        surely = sum(circuit.now - at < 9 - 1e-3 for at in times)
        at_most = sum(circuit.now - at <= 10 + 1e-3 for at in times)
        assert surely <= sum(circuit.state.attempts) <= at_most
        assert len(circuit.state.attempts) == len(circuit.state.failures) <= 10


STEPS = st.one_of(
    # In parts of the time for which it is open; all sums are exact.
    st.tuples(st.just("wait"), st.sampled_from([0.125, 0.5, 0.875, 1.0])),
    st.tuples(st.just("admit"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["well", "well", "badly", "back"]), st.integers(0, 9)),
)


@examples(80)
@given(SETTINGS_OF_ALL_KINDS, st.lists(STEPS, min_size=10, max_size=40))
def test_the_circuit_keeps_its_invariants(settings: CircuitSettings, steps: list[tuple[str, float]]) -> None:
    """Attempts that come, end and vanish in any order."""
    circuit = Circuit(settings)
    # It has just become half-open, and two earlier attempts are in flight: so much happens in a few steps.
    under_way = [circuit.send(), circuit.send()]
    opened_at = circuit.now
    assert circuit.run("f" * settings.minimum)[-1] is not None
    circuit.now += settings.open_for
    probes: dict[str, float] = {}
    # How often it has opened or closed: an attempt from before the last time is no news.
    transitions, well = 1, 0
    sent = {send[0]: 0 for send in under_way}
    for step, value in steps:
        phase = circuit.phase
        transition = None
        if step == "wait":
            circuit.now += value * settings.open_for
        elif step == "admit":
            for _ in range(int(value)):
                recent = sum(circuit.now - at < settings.open_for for at in probes.values())
                answer = circuit.admit()
                passes = phase is CircuitPhase.CLOSED or (phase is CircuitPhase.HALF_OPEN and recent < settings.probes)
                assert isinstance(answer, Rejection) is not passes
                if isinstance(answer, Rejection):
                    assert answer.since == circuit.now - opened_at
                    assert 0 < answer.until <= settings.open_for
                    assert phase is CircuitPhase.HALF_OPEN or answer.until == circuit.open_for()
                    continue
                under_way.append(answer)
                sent[answer[0]] = transitions
                if phase is CircuitPhase.HALF_OPEN:
                    probes[answer[0]] = circuit.now
        elif under_way:
            send = under_way.pop(int(value) % len(under_way))
            is_news = sent[send[0]] == transitions
            probes.pop(send[0], None)
            if step == "back":
                circuit.release(send)
            else:
                transition = circuit.end(send, step == "well")
                well += is_news and step == "well" and phase is CircuitPhase.HALF_OPEN
            if not is_news:
                assert transition is None
            if is_news and step == "badly" and phase is CircuitPhase.HALF_OPEN:
                assert transition is not None
        if transition is None:
            # Only a result opens or closes it, and time makes it half-open.
            after = CircuitPhase.HALF_OPEN if step == "wait" and phase is CircuitPhase.OPEN else phase
            assert circuit.phase in {phase, after}
        else:
            assert phase is not CircuitPhase.OPEN
            assert circuit.phase is transition.phase
            assert transition.since == (circuit.now - opened_at if phase is CircuitPhase.HALF_OPEN else 0.0)
            assert (transition.phase is CircuitPhase.CLOSED) is (well == settings.probes)
            assert circuit.state.probes == {}
            if phase is CircuitPhase.CLOSED:
                opened_at = circuit.now
            probes, transitions, well = {}, transitions + 1, 0
        # It is never stuck: an attempt may be sent once it is no longer open, even if no result is reported.
        later = deepcopy(circuit.state)
        assert isinstance(admit(later, circuit.now + settings.open_for, settings, "later"), Permit)
        assert len(circuit.state.probes) <= settings.probes


def test_the_phases_have_the_documented_phase_names() -> None:
    assert [phase.value for phase in CircuitPhase] == ["closed", "open", "half_open"]


def test_the_default_settings_are_the_documented_ones() -> None:
    assert CircuitSettings() == CircuitSettings(failures=0.5, window=30.0, minimum=20, open_for=30.0, probes=3)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"failures": 0}, "a fraction, greater than 0 and at most 1"),
        ({"failures": -0.1}, "a fraction, greater than 0 and at most 1"),
        ({"failures": 1.1}, "a fraction, greater than 0 and at most 1"),
        ({"failures": float("nan")}, "a fraction, greater than 0 and at most 1"),
        ({"window": 0}, "a finite number of seconds greater than 0"),
        ({"window": float("inf")}, "a finite number of seconds greater than 0"),
        ({"open_for": -1.0}, "a finite number of seconds greater than 0"),
        ({"open_for": float("nan")}, "a finite number of seconds greater than 0"),
        ({"minimum": 0}, "a whole number, 1 or more"),
        ({"probes": 0}, "a whole number, 1 or more"),
    ],
)
def test_bad_circuit_settings_are_rejected(settings: dict[str, Any], allowed: str) -> None:
    [(name, value)] = settings.items()
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got {value!r}$"):
        CircuitSettings(**settings)


@given(
    groups=st.lists(st.text("fs", min_size=1, max_size=25), min_size=1, max_size=6),
    pauses=st.lists(st.sampled_from([0.0, 0.5, 4.0]), min_size=6, max_size=6),
)
@examples(50)
def test_results_that_are_reported_together_count_as_one_by_one(groups: list[str], pauses: list[float]) -> None:
    settings = CircuitSettings(failures=1.0, window=10, minimum=1000, open_for=30, probes=2)
    single, together = Circuit(settings), Circuit(settings)
    for group, pause in zip(groups, pauses, strict=False):
        single.run(group)
        results = Results(len(group), group.count("f"))
        assert together.apply(count, settings, "name", results) is None
        for each in ("began", "attempts", "failures"):
            assert getattr(together.state, each) == getattr(single.state, each)
        single.now = together.now = single.now + pause


@pytest.mark.parametrize(
    ("results", "opens"),
    [
        (Results(4, 2), True),
        (Results(4, 1), False),
        (Results(3, 3), False),
        (Results(100, 49), False),
    ],
)
def test_results_that_are_reported_together_can_open_the_circuit(results: Results, opens: bool) -> None:
    circuit = Circuit(SETTINGS)
    expected = Transition(CircuitPhase.OPEN, attempts=results.attempts, failures=results.failures)
    assert circuit.apply(count, SETTINGS, "name", results) == (expected if opens else None)
    assert circuit.state.epoch == ("name" if opens else "")


def test_failures_of_several_processes_are_consecutive_after_a_time_without_a_success() -> None:
    circuit = Circuit()

    def report(attempts: int, failures: int) -> Transition | None:
        return circuit.apply(count, SETTINGS, "name", Results(attempts, failures))

    assert report(1000, 0) is None
    circuit.now += 0.25
    assert report(100, 100) is None  # another process may have had a success since
    assert report(1, 0) is None
    circuit.now += 0.25
    assert report(30, 30) is None
    circuit.now += 0.06
    assert report(19, 19) is None
    assert report(20, 19) is None
    circuit.now += 0.31
    assert report(19, 19) is None
    assert report(1, 1) is not None


def test_a_state_from_before_an_opening_or_closing_is_replaced() -> None:
    circuit = Circuit()
    states = [copied(circuit.state)]
    for outcomes in ("ffff", "f", "ss", "ffff"):  # opens, stays open, closes, opens
        circuit.run(outcomes)
        states.append(copied(circuit.state))
        circuit.now += SETTINGS.open_for
    for seen in range(len(states)):
        for stored in range(len(states)):
            state = copied(states[stored])
            restore(state, states[seen])
            assert asdict(state) == asdict(states[max(seen, stored)])
    restored = copied(states[0])
    restore(restored, states[1])
    restored.probes["name"] = 1.0
    assert not states[1].probes
