"""The backends that `make backends` has started; without them nothing is collected here."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests import environment  # noqa: F401 - to clean it, as tests/conftest.py does in other runs

_PHOENIX, _PROMETHEUS, _TARGETS = "LAMELLA_PHOENIX_URL", "LAMELLA_PROMETHEUS_URL", "LAMELLA_PROMETHEUS_TARGETS"

collect_ignore = [
    name
    for name, variable in (
        ("test_dashboard.py", _PROMETHEUS),
        ("test_phoenix.py", _PHOENIX),
        ("test_prometheus.py", _PROMETHEUS),
        ("test_rules.py", _PROMETHEUS),
    )
    if not os.environ.get(variable)
]

LONGEST = 30.0  # seconds until something has to be there
_LOOK_EVERY = 0.05

T = TypeVar("T")

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(url: str, **parameters: str) -> Any:
    with _opener.open(f"{url}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)


def until(look: Callable[[], T], is_it: Callable[[T], bool], what: str) -> T:
    """Look until it is there; an AssertionError with the last look if it does not come."""
    ends = time.monotonic() + LONGEST
    while not is_it(seen := look()):
        assert time.monotonic() < ends, f"{what}: not within {LONGEST:g} s; last seen: {seen!r}"
        time.sleep(_LOOK_EVERY)
    return seen


@dataclass(frozen=True)
class Phoenix:
    """A running Phoenix."""

    url: str

    def spans(self, project: str, count: int) -> list[dict[str, Any]]:
        """The spans of a project in the order of their start, once there are so many."""

        def look() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            cursor: dict[str, str] = {}
            while True:
                try:
                    page = _get(f"{self.url}/v1/projects/{project}/spans", limit="1000", **cursor)
                except urllib.error.HTTPError as error:
                    error.close()
                    if error.code != 404:  # the first span makes the project
                        raise
                    return []
                found += page["data"]
                if not page["next_cursor"]:
                    return found
                cursor = {"cursor": page["next_cursor"]}

        found = until(look, lambda found: len(found) >= count, f"{count} spans in Phoenix")
        assert len(found) == count
        return sorted(found, key=lambda span: str(span["start_time"]))


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus. What it scrapes is in the folder `targets`, a file a job."""

    url: str
    targets: Path
    _jobs: list[Path] = field(default_factory=list)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API."""
        answer = _get(f"{self.url}/api/v1/{path}", **parameters)
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant vector: labels and value of each series."""
        data = self.get("query", query=promql)
        assert data["resultType"] == "vector"
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def value(self, promql: str) -> float:
        """The value of the one series that there is; 0 where there is none."""
        found = self.query(promql)
        assert len(found) <= 1
        return found[0][1] if found else 0.0

    def by(self, promql: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The values that are not 0, by some of their labels ("" where there is no such label)."""
        found = {tuple(series.get(label, "") for label in labels): value for series, value in self.query(promql)}
        return {names: value for names, value in found.items() if value}

    def scrape(self, job: str, port: int) -> None:
        """Scrape that port of this machine, from now on, and wait for the first time."""
        file = self.targets / f"{job}.json"
        self._jobs.append(file)
        content = json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"job": job}}])
        # In one step: Prometheus must not read half a file.
        (part := file.with_suffix(".part")).write_text(content)
        part.rename(file)
        self.wait_for_scrape(job)

    def wait_for_scrape(self, job: str) -> None:
        """Wait for a scrape that begins after now."""
        now = time.time()
        up = f'up{{job="{job}"}}'
        until(
            # Of a selector alone; of anything else timestamp() is the time of the query.
            lambda: self.query(f"timestamp({up}) and {up} == 1"),
            lambda found: any(moment > now for _, moment in found),
            f"a scrape of {job}",
        )

    def forget(self) -> None:
        """Scrape nothing any more."""
        for file in self._jobs:
            file.unlink()


@pytest.fixture
def phoenix() -> Phoenix:
    return Phoenix(os.environ[_PHOENIX])


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    running = Prometheus(os.environ[_PROMETHEUS], Path(os.environ[_TARGETS]))
    yield running
    running.forget()
