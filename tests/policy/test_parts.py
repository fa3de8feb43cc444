"""Which part of an account has a limit of its own: the evidence, without a clock and without I/O."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict

import pytest

from lamella.throttle.account import parts_of
from lamella.throttle.estimate import Permit, RateEstimate
from lamella.throttle.parts import PartEvidence

ORDERS, ITEMS, POSTED = ("GET", "/v1/orders"), ("GET", "/v1/items"), ("POST", "/v1/orders")
Attempt = tuple[tuple[str, str], bool]
"""Method and path, and whether it passed."""


def found(attempts: Iterable[Attempt], among: int = 1) -> tuple[str, int] | None:
    """Return the first proven part, and after how many attempts. None: there is none."""
    evidence, estimate = PartEvidence(), RateEstimate()
    for number, ((method, path), passes) in enumerate(attempts, 1):
        permit = Permit(0, float(number), among)
        if passes:
            evidence.has_passed(parts_of(method, path), permit)
        elif (
            one := evidence.was_refused(
                parts_of(method, path), permit.at, permit, estimate, alone=among == 1, is_first=True
            )
        ) and one[1]:
            return one[0], number
    return None


@pytest.mark.parametrize(
    ("method", "path", "parts"),
    [
        ("GET", "/", ("GET /", "* /", "GET /*")),
        ("GET", "/a", ("GET /a", "* /a", "GET /*")),
        ("PUT", "/a/b", ("PUT /a/b", "* /a/b", "PUT /a/*", "* /a/*", "PUT /*")),
        (
            "GET",
            "/a/b/c/d",
            ("GET /a/b/c/d", "* /a/b/c/d", "GET /a/b/c/*", "* /a/b/c/*", "GET /a/b/*", "* /a/b/*", "GET /*"),
        ),
    ],
)
def test_a_request_belongs_to_parts(method: str, path: str, parts: tuple[str, ...]) -> None:
    assert parts_of(method, path) == parts


@pytest.mark.parametrize(("between", "attempts"), [(1, 15), (3, 21), (10, 34), (60, 123)])
def test_a_part_is_proven_by_attempts_between_its_refusals(between: int, attempts: int) -> None:
    """The more others pass between two refusals, the fewer refusals it takes."""
    assert found([(ORDERS, False), *[(ITEMS, True)] * between] * 20) == ("GET /v1/orders", attempts)


def test_the_narrowest_part_is_found() -> None:
    assert found([(ORDERS, False), (ITEMS, True), (POSTED, True)] * 20) == ("GET /v1/orders", 16)
    assert found([(ORDERS, False), (ITEMS, True), (POSTED, False)] * 20) == ("* /v1/orders", 21)
    other = ("POST", "/v1/items")
    assert found([(POSTED, False), (ITEMS, True), (other, False), (ORDERS, True)] * 20) == ("POST /v1/*", 15)


def test_paths_below_one_are_a_part() -> None:
    lines = [(("GET", f"/v1/orders/{number}"), False) for number in range(20)]
    passes = [(("GET", f"/v1/items/{number}"), True) for number in range(20)]
    assert found(one for both in zip(lines, passes, strict=True) for one in both) == ("GET /v1/orders/*", 15)


def test_refusals_of_a_used_up_account_prove_nothing() -> None:
    """Whatever is requested is refused until the window ends, and then everything passes."""
    source = random.Random(1)
    windows = [[passes] * source.randrange(1, 40) for _ in range(200) for passes in (True, False)]
    assert found((source.choice([ORDERS, ITEMS, POSTED]), passes) for window in windows for passes in window) is None


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_random_refusals_prove_little(share: float) -> None:
    """At most one part in some thousand refusals."""
    source = random.Random(2)
    attempts = [(source.choice([ORDERS, ITEMS, POSTED]), source.random() > share) for _ in range(int(1000 / share))]
    assert found(attempts) is None


def test_attempts_with_fewer_in_flight_prove_nothing() -> None:
    """One of two attempts sent together is refused: at most one may be in flight, and its order is always the same."""
    evidence, estimate = PartEvidence(), RateEstimate()
    for number in range(100):
        evidence.has_passed(parts_of(*ITEMS), Permit(0, 2.0 * number, 1))
        assert not evidence.was_refused(
            parts_of(*ORDERS), 2.0 * number + 1, Permit(0, 2.0 * number + 1, 2), estimate, alone=False, is_first=True
        )


def test_a_split_that_explains_all_refusals_can_be_undone_in_the_estimate() -> None:
    evidence = PartEvidence()
    evidence.was_refused(parts_of(*ORDERS), 1.0, Permit(0, 1.0), RateEstimate(requests=40.0), alone=True, is_first=True)
    evidence.was_refused(parts_of(*ORDERS), 2.0, Permit(0, 2.0), RateEstimate(requests=1.0), alone=True, is_first=True)
    assert evidence.before.requests == 40
    assert evidence.split("GET /v1/orders")
    evidence = PartEvidence()
    evidence.was_refused(parts_of(*ORDERS), 1.0, Permit(0, 1.0), RateEstimate(requests=40.0), alone=True, is_first=True)
    evidence.was_refused(parts_of(*ITEMS), 2.0, Permit(0, 2.0), RateEstimate(requests=30.0), alone=True, is_first=True)
    evidence.was_refused(
        parts_of("DELETE", "/v2"), 3.0, Permit(0, 3.0), RateEstimate(requests=20.0), alone=True, is_first=True
    )
    assert evidence.before.requests == 20
    assert not evidence.split("GET /v1/items")


def joint_refusals(first: str, *, passes: bool) -> list[str]:
    """Refuse a part and the rest together, twice. *first* is refused first, empty: the rest. Return what is merged."""
    evidence, estimate, now = PartEvidence(), RateEstimate(), 0.0
    evidence.was_refused(parts_of(*ORDERS), 0.0, Permit(0, 0.0), estimate, alone=True, is_first=True)
    evidence.split("GET /v1/orders")
    merged = []
    for _ in range(2):
        if passes:
            evidence.part_has_passed("GET /v1/orders")
        for part in (first, "GET /v1/orders" if not first else ""):
            now += 1
            if not part:
                permit = Permit(0, now)
                evidence.was_refused(parts_of(*ITEMS), now, permit, estimate, alone=True, is_first=True)
            merged += evidence.to_merge(part, Permit(0, now))
        evidence.has_passed(parts_of(*ITEMS), Permit(0, now + 0.5))
    return merged


@pytest.mark.parametrize("first", ["", "GET /v1/orders"])
def test_a_part_that_is_refused_together_with_the_rest_is_merged(first: str) -> None:
    assert joint_refusals(first, passes=True) == ["GET /v1/orders"]


@pytest.mark.parametrize("first", ["", "GET /v1/orders"])
def test_a_part_that_never_passes_is_not_merged(first: str) -> None:
    """The limit of the rest lets attempts pass, so it is another one."""
    assert joint_refusals(first, passes=False) == []


def test_a_part_that_is_refused_while_the_rest_passes_is_not_merged() -> None:
    evidence, estimate = PartEvidence(), RateEstimate()
    evidence.was_refused(parts_of(*ORDERS), 0.0, Permit(0, 0.0), estimate, alone=True, is_first=True)
    evidence.split("GET /v1/orders")
    for now in range(0, 100, 10):
        evidence.part_has_passed("GET /v1/orders")
        assert evidence.to_merge("GET /v1/orders", Permit(0, now + 1.0)) == []
        evidence.has_passed(parts_of(*ITEMS), Permit(0, now + 2.0))
        evidence.was_refused(parts_of(*ITEMS), now + 3.0, Permit(0, now + 3.0), estimate, alone=True, is_first=True)
        assert evidence.to_merge("", Permit(0, now + 3.0)) == []
        evidence.has_passed(parts_of(*ITEMS), Permit(0, now + 4.0))


def test_the_state_is_bounded_and_consists_of_json_values() -> None:
    evidence, estimate = PartEvidence(), RateEstimate()
    for number in range(1000):
        parts = parts_of("GET", f"/{number % 7}/{number}")
        evidence.was_refused(parts, float(number), Permit(0, float(number)), estimate, alone=True, is_first=True)
        evidence.has_passed(parts, Permit(0, number + 0.5))
    assert len(json.dumps(asdict(evidence))) < 20_000
    for number in range(1001):
        evidence.has_passed(parts_of(*ITEMS), Permit(0, 2000.0 + number))
    assert evidence.suspects == {}


def test_attempts_in_flight_together_prove_nothing() -> None:
    """Fifty of a hundred sent at once pass. They may have reached the server in another order."""
    evidence, estimate = PartEvidence(), RateEstimate()
    for number in range(100):
        kind, permit = (ORDERS, ITEMS)[number % 2], Permit(0, 10 + number * 1e-9, number + 1)
        if kind is ITEMS:
            evidence.has_passed(parts_of(*kind), permit)
        else:
            assert evidence.was_refused(parts_of(*kind), 10.1, permit, estimate, alone=False, is_first=True) is None


def test_a_call_that_is_refused_again_and_again_proves_nothing() -> None:
    """It is sent again after the same wait, when a window of other accounts may be used up each time."""
    evidence, estimate = PartEvidence(), RateEstimate()
    for number in range(100):
        at = 60.0 * number
        permit = Permit(0, at)
        found = evidence.was_refused(parts_of(*ORDERS), at, permit, estimate, alone=True, is_first=not number)
        assert found is None
        for other in range(5):
            evidence.has_passed(parts_of(*ITEMS), Permit(0, at + 5 + other))


def test_the_rest_starts_slowly_again() -> None:
    """It may have a limit that was hidden by that of the part."""
    before, after = RateEstimate(max_in_flight=100.0), RateEstimate(untouched=False, generation=3, requests=7.0)
    PartEvidence(before).restore(after)
    assert (after.requests, after.max_in_flight, after.generation) == (0.0, 4.0, 3)


def test_a_call_gives_way_only_after_two_refusals_of_its_part() -> None:
    """One refusal is what a used-up account shows as well, and calls are served in their order."""
    evidence, parts = PartEvidence(), parts_of(*ORDERS)
    evidence.was_refused(parts, 0.0, Permit(0, 0.0), RateEstimate(), alone=True, is_first=True)
    assert evidence.suspicion(parts) == 0
    evidence.was_refused(parts, 60.0, Permit(0, 60.0), RateEstimate(), alone=True, is_first=False)
    assert evidence.suspicion(parts) > evidence.suspicion(parts_of(*POSTED)) > evidence.suspicion(parts_of("GET", "/b"))
    evidence.has_passed(parts, Permit(0, 120.0))
    assert evidence.suspicion(parts) == 0
