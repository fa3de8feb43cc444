"""Every record once, and few pages again, although workers, drivers and schedulers are killed at random moments."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.dask.cluster import Cluster, until
from tests.dataset.conftest import RESOURCES, expected_of, records_in, write_accounts

from lamella import dataset
from lamella.maesn.sandbox import Account, Sandbox
from lamella.pytest_maesn import MakeSandbox

WORKERS = 3
AT_ONCE = 2
"""Pages that a worker reads at a time: what it is reading when it is killed is read again."""
SIZE = 5
ACCOUNTS = 24
_LONGEST = 600.0
VICTIMS = ["worker"] * 12 + ["driver"] * 5 + ["scheduler"] * 3


async def test_some_kills_lose_nothing(make_sandbox: MakeSandbox, cluster: Cluster, tmp_path: Path) -> None:
    victims = ["worker", "driver", "worker by SIGTERM", "scheduler", "worker"]
    await _survive(await make_sandbox(accounts=_some(16), latency=0.01), cluster, tmp_path, victims, random.Random(5))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_twenty_kills_at_random_read_two_percent_again(
    make_sandbox: MakeSandbox, cluster: Cluster, tmp_path: Path, seed: int
) -> None:
    randomness = random.Random(seed)
    victims = randomness.sample(VICTIMS, len(VICTIMS))
    sandbox = await make_sandbox(accounts=_some(80), latency=0.01)
    again = await _survive(sandbox, cluster, tmp_path, victims, randomness)
    pages = _pages_of(sandbox)
    print(f"{len(victims)} kills, {pages:,} pages, {again} of them read again: {again / pages:.2%}")  # noqa: T201
    assert again <= 0.02 * pages


async def _survive(
    sandbox: Sandbox, cluster: Cluster, folder: Path, victims: Sequence[str], randomness: random.Random
) -> int:
    """Kill one victim after the other during a sync, check the records, and return how many pages were read again."""
    fleet = cluster.add(WORKERS)
    driver = _driver(cluster, sandbox, folder)
    every = _pages_of(sandbox) // (len(victims) + 1)
    for number, victim in enumerate(victims):
        moment = every * number + randomness.randrange(every // 4, every)
        await until(_reached(sandbox, moment, driver), _LONGEST)
        assert driver.poll() is None, "the sync has ended before all kills"
        if victim == "driver":
            driver.kill()
            driver.wait()
            assert dataset.last_run(folder / "out") == (1, False)
        elif victim == "scheduler":
            cluster.scheduler.kill()
            assert await cluster.ended(driver) == 1
            await cluster.start_scheduler()
            fleet = cluster.add(WORKERS)
        else:
            dead = fleet.pop(randomness.randrange(len(fleet)))
            dead.kill() if victim == "worker" else dead.terminate()
            fleet += cluster.add()
        if victim in {"driver", "scheduler"}:
            driver = _driver(cluster, sandbox, folder)
    assert await cluster.ended(driver, _LONGEST) == 0
    assert dataset.last_run(folder / "out") == (1, True)
    assert dataset.verify(folder / "out") == []
    assert records_in(folder / "out") == expected_of(sandbox)
    again = len(sandbox.received) - _pages_of(sandbox)
    # All local journals are on this machine: only what was in flight is read again.
    in_flight = {"driver": WORKERS * AT_ONCE, "scheduler": WORKERS * AT_ONCE}
    assert again <= sum(in_flight.get(victim, AT_ONCE) for victim in victims)
    return again


def _reached(sandbox: Sandbox, moment: int, driver: subprocess.Popen[bytes]) -> Callable[[], bool]:
    return lambda: len(sandbox.received) >= moment or driver.poll() is not None


def _driver(cluster: Cluster, sandbox: Sandbox, folder: Path) -> subprocess.Popen[bytes]:
    accounts = write_accounts(folder / "accounts.csv", sandbox)
    options = {"resume": True, "at_once": AT_ONCE, "limit": SIZE}
    return cluster.run("tests.dask.driver", str(accounts), str(folder / "out"), sandbox.url, json.dumps(options))


def _some(pages: int) -> list[Account]:
    return [Account(f"key-{number}", records=pages * SIZE) for number in range(ACCOUNTS)]


def _pages_of(sandbox: Sandbox) -> int:
    return sum(-(-(account.records or 0) // SIZE) for account in sandbox.accounts) * len(RESOURCES)
