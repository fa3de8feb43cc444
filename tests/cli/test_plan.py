from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from tests.cli.conftest import SMALL

from lamella.cli.plan import Planned, Settings, make_plan, make_sandbox
from lamella.testing import Fault


def plan(settings: Settings) -> tuple[Planned, ...]:
    return make_plan(settings, make_sandbox(settings))


def test_the_same_seed_makes_the_same_calls() -> None:
    assert plan(SMALL) == plan(SMALL)
    assert plan(SMALL) != plan(replace(SMALL, seed=4))


def test_the_scale_changes_no_call() -> None:
    assert plan(SMALL) == plan(replace(SMALL, scale=0.5))


def test_everything_happens_at_least_once() -> None:
    calls = plan(SMALL)
    met = {step for call in calls for step in call.meets if isinstance(step, int | Fault)}
    assert met == {500, 503, *Fault} - {Fault.ENDLESS_HEADERS}
    states = Counter(account.state for account in make_sandbox(SMALL).accounts)
    assert states == {"active": SMALL.accounts - 2, "expired": 1, "inactive": 1}
    assert {call.account for call in calls} == {account.key for account in make_sandbox(SMALL).accounts}
    assert [call for call in calls if call.method == "POST" and 500 in call.meets]
    assert [call for call in calls if call.params.get("limit") == "7"]


@pytest.mark.parametrize("calls", [1, 5, 23, 300])
def test_as_many_as_are_asked_for(calls: int) -> None:
    assert [call.number for call in plan(replace(SMALL, calls=calls))] == list(range(1, calls + 1))


def test_no_two_writes_are_alike() -> None:
    writes = [call for call in plan(replace(SMALL, calls=300)) if call.method == "POST"]
    assert len({str(call.body) for call in writes}) == len(writes) > 20
