"""Several limits at once, as the target systems have them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lamella.maesn.published.systems import SYSTEMS, Quota
from lamella.pytest_maesn import MakeSandbox
from lamella.testing import VirtualClock

if TYPE_CHECKING:
    from tests.maesn.sandbox.conftest import Client, MakeClient

BILLS, ITEMS = "/accounting/bills", "/accounting/items"


async def statuses(client: Client, *asked: tuple[str, str]) -> list[int]:
    return [(await client("GET", path, account=account)).status for account, path in asked]


async def test_limits_apply_per_path_and_for_the_integrator(
    make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(accounts=3, system="lexware-office", records=1)
    a, b, c = (account.key for account in sandbox.accounts)
    client = make_client(sandbox)
    assert await statuses(client, (a, BILLS), (a, BILLS), (a, BILLS), (a, ITEMS)) == [200, 200, 429, 200]
    assert await statuses(client, (b, BILLS), (b, BILLS), (c, BILLS), (c, ITEMS)) == [200, 200, 429, 429]
    await asyncio.sleep(1)
    assert await statuses(client, (c, BILLS)) == [200]


async def test_limits_apply_to_requests_in_flight_and_by_number(
    make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(quotas=[Quota(2, None), Quota(5, 60)], latency=1.0, records=1)
    client = make_client(sandbox)

    async def at_once(times: int) -> list[int]:
        answers = await asyncio.gather(*(client("GET", BILLS) for _ in range(times)))
        return sorted(answer.status for answer in answers)

    assert await at_once(4) == [200, 200, 429, 429]
    assert await at_once(2) == [200, 200]
    assert await at_once(2) == [200, 429]  # the number is used up
    refused = await client("GET", BILLS)
    assert (refused.status, int(refused.headers["Retry-After"]) > 50) == (429, True)
    await asyncio.sleep(60)
    assert await at_once(2) == [200, 200]


async def test_a_daily_limit_applies(
    make_sandbox: MakeSandbox, make_client: MakeClient, virtual_time: VirtualClock
) -> None:
    sandbox = await make_sandbox(quotas=[Quota(3, 60), Quota(5, 86_400)], records=1)
    client = make_client(sandbox)
    key = sandbox.account_key
    assert await statuses(client, *[(key, BILLS)] * 4) == [200, 200, 200, 429]
    await asyncio.sleep(60)
    assert await statuses(client, *[(key, BILLS)] * 3) == [200, 200, 429]
    await asyncio.sleep(86_400)
    assert await statuses(client, (key, BILLS)) == [200]


def test_the_sandbox_applies_the_published_limits() -> None:
    assert SYSTEMS["exact"].quotas == (Quota(60, 60), Quota(5_000, 86_400))
    assert SYSTEMS["exact"].errors_an_hour == 10
    assert {quota.per for system in SYSTEMS.values() for quota in system.quotas} == {"account", "path", "integrator"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"system": "abacus of old"}, "system must be one of abacus, "),
        ({"later": {"bills"}}, "later must be one of "),
        ({"unsupported": {"dreams"}}, "unsupported must be one of "),
    ],
)
async def test_bad_arguments(make_sandbox: MakeSandbox, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await make_sandbox(**options)
