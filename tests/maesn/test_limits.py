"""Several limits at once, as the systems behind Maesn have them: stated to the throttle, enforced by the sandbox."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from lamella import Limit, RateLimited, maesn
from lamella.maesn.published.systems import SYSTEMS, Quota
from lamella.maesn.sandbox import Sandbox
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import VirtualClock

BILLS, ITEMS = "/accounting/bills", "/accounting/items"


class Storm(NamedTuple):
    answers: Counter[object]
    seconds: float


async def storm(sandbox: Sandbox, clock: VirtualClock, limits: tuple[Limit, ...], calls: int, *paths: str) -> Storm:
    """Make so many calls at once for each account and path. The throttle is told nothing but *limits*."""

    async def call(key: str, path: str) -> object:
        with maesn.account(key):
            try:
                async with session.get(path) as response:
                    return response.status
            except RateLimited:
                return RateLimited

    began = clock.now
    async with maesn.session(sandbox.api_key, base_url=sandbox.url, limits=limits, deadline=86_400) as session:
        keys = [account.key for account in sandbox.accounts]
        made = (call(key, path) for _ in range(calls) for key in keys for path in paths)
        answers = Counter(await asyncio.gather(*made))
    return Storm(answers, clock.now - began)


@pytest.mark.slow
async def test_published_limits_apply_per_path_and_integrator(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(accounts=40, system="lexware-office", records=1)
    found = await storm(sandbox, virtual_time, maesn.limits_of("lexware-office"), 5, BILLS, ITEMS)
    assert found.answers == {200: 400}
    assert len(sandbox.received) <= 1.02 * 400
    assert found.seconds <= 1.2 * 400 / 5


@pytest.mark.slow
async def test_published_limits_apply_in_flight_and_by_number(
    make_sandbox: MakeSandbox, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(system="businesscentral", records=1, latency=0.2)
    found = await storm(sandbox, virtual_time, maesn.limits_of("businesscentral"), 1500, BILLS)
    assert found.answers == {200: 1500}
    assert len(sandbox.received) <= 1.02 * 1500
    # Two minutes for 1,200, and the rest at 5 in 0.2 s.
    assert found.seconds <= 1.2 * (120 + 300 / 25)


async def test_published_limits_apply_per_minute_and_day(make_sandbox: MakeSandbox, virtual_time: VirtualClock) -> None:
    sandbox = await make_sandbox(quotas=[Quota(60, 60), Quota(200, 86_400)], records=1)
    limits = (Limit(60, per=60), Limit(200, per=86_400))
    found = await storm(sandbox, virtual_time, limits, 250, BILLS)
    # What the day does not allow fails at once, and is not sent.
    assert found.answers == {200: 200, RateLimited: 50}
    assert len(sandbox.received) == 200
    assert found.seconds <= 1.2 * 180


def test_what_is_published_can_be_stated() -> None:
    for name, system in SYSTEMS.items():
        if system.quotas:
            limits = maesn.limits_of(name)
            assert [(limit.requests or limit.concurrent, limit.per) for limit in limits] == [
                (quota.requests, quota.seconds) for quota in system.quotas
            ]
    assert maesn.limits_of("exact-nl") == maesn.limits_of("exact") == (Limit(60, per=60), Limit(5_000, per=86_400))


@pytest.mark.parametrize("name", ["qonto", "dreams", ""])
def test_a_system_without_published_limits_raises(name: str) -> None:
    with pytest.raises(ValueError, match=f"no published limit for system '{name}'; expected one of: abacus, "):
        maesn.limits_of(name)


def test_the_docs_list_the_published_limits() -> None:
    page = Path(__file__).parents[2].joinpath("docs/how-to/maesn.md").read_text("utf-8")
    section = page.partition("\n## Limits\n")[2].partition("\n## ")[0]
    rows = {row.split("`")[1]: row for row in section.splitlines() if row.startswith("| `")}
    assert rows.keys() == {name for name, system in SYSTEMS.items() if system.quotas}
    for name, row in rows.items():
        said = [int(number.replace(",", "")) for number in re.findall(r"(?<![`\w-])(\d[\d,]*) (?:an? |at |in )", row)]
        assert said == [quota.requests for quota in SYSTEMS[name].quotas], row
        assert (" for all accounts" in row) is any(quota.per == "integrator" for quota in SYSTEMS[name].quotas)
        assert (" for each path" in row) is any(quota.per == "path" for quota in SYSTEMS[name].quotas)
