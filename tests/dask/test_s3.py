"""A dataset in S3: a server of its API on this machine, with its conditional writes."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any
from uuid import uuid4

import certifi
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer
from tests.dataset.conftest import SyncTo
from tests.dataset.storages import OfEachStorage

from lamella import dataset
from lamella.maesn.sandbox import Account
from lamella.pytest_maesn import MakeSandbox


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    answer, lock = DomainDispatcherApplication.__call__, Lock()

    def one_at_a_time(*request: Any) -> list[bytes]:
        with lock:
            return list(answer(*request))

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        # moto's conditional write is not atomic: it looks for the key first, and stores the object later.
        patch.setattr(DomainDispatcherApplication, "__call__", one_at_a_time)
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
        running.stop()


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
        "AWS_ALLOW_HTTP": "true",
        # obstore wants certificate authorities also for http, and a small machine may have none.
        "SSL_CERT_FILE": certifi.where(),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid4().hex}"
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/nightly/records"


class TestInS3(OfEachStorage):
    """All that holds of a folder."""


async def test_two_nightly_runs_on_s3_store_all_records(make_sandbox: MakeSandbox, sync_to: SyncTo, place: str) -> None:
    sandbox = await make_sandbox(accounts=[Account(f"key-{number}", records=12) for number in range(5)])
    report = await sync_to(sandbox, output=place)
    assert report.done, report
    assert dataset.verify(place) == []
    before = dataset.files(place)
    assert all(name.startswith(f"{place}/data/records/") for name in before)
    assert sum(file.rows or 0 for commit in dataset.shards(place) for file in commit.files["records"]) == 5 * 2 * 12
    sandbox.received.clear()
    again = await sync_to(sandbox, output=place, lookback=0.0)
    assert (again.run, again.done, again.result.records) == (2, True, 0)
    assert len(sandbox.received) == again.result.parts
    assert dataset.files(place) == before
    assert dataset.last_run(place) == (2, True)
    assert dataset.clean(place, older_than=0) == []
