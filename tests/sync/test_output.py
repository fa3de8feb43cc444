"""The output is written when records have changed, and left alone when it is up to date."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.servers import Serve
from tests.sync.test_paginations import SOURCE, Api, numbered, synced


def stamp(path: Path) -> tuple[int, int]:
    found = os.stat(path / "out.jsonl")
    return found.st_ino, found.st_mtime_ns


async def test_a_run_without_changes_does_not_write_the_output(serve: Serve, tmp_path: Path) -> None:
    url = await serve(Api(numbered(25), counts=("total",)))
    _, before = await synced(tmp_path, url, SOURCE)
    first = stamp(tmp_path)
    for _ in range(2):
        part, after = await synced(tmp_path, url, SOURCE)
        assert (part.done, part.records, after) == (True, 0, before)
        assert stamp(tmp_path) == first


def remove(path: Path) -> None:
    (path / "out.jsonl").unlink()


def shorten(path: Path) -> None:
    (path / "out.jsonl").write_text("")


@pytest.mark.parametrize("spoil", [remove, shorten])
async def test_a_modified_output_is_written_again(
    serve: Serve, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    url = await serve(Api(numbered(25), counts=("total",)))
    _, before = await synced(tmp_path, url, SOURCE)
    spoil(tmp_path)
    _, after = await synced(tmp_path, url, SOURCE)
    assert after == before


async def test_changed_and_dropped_records_update_the_output(serve: Serve, tmp_path: Path) -> None:
    api = Api(numbered(25), counts=("total",))
    url = await serve(api)
    await synced(tmp_path, url, SOURCE)
    api.records[3] |= {"at": "2027-01-01T00:00:00Z"}
    _, found = await synced(tmp_path, url, SOURCE)
    assert {"id": 3, "at": "2027-01-01T00:00:00Z"} in found
    api.records = []
    from dataclasses import replace

    _, found = await synced(tmp_path, url, replace(SOURCE, id=("id", "at")))
    assert found == []
