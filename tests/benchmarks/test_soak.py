"""Some seconds of a soak for real, and what is made of samples: also of those of a process that leaks."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from copy import deepcopy

import pytest
from benchmarks.soak import measure
from benchmarks.soaking.client import Sample
from benchmarks.soaking.report import Document, faults, growths, line, page


def a_sample(at: float) -> Sample:
    return {
        "at": at,
        "rss": 60_000_000,
        "blocks": 200_000,
        "objects": 50_000,
        "garbage": 3_000,
        "threads": 1,
        "journal": 1_600_000,
        "rest": {"tasks": 0, "descriptors": 11, "connections": 0},
        "work": {"tasks": 40, "descriptors": 33, "connections": 20},
        "syncs": 14,
        "cancelled": 3,
        "pages": 1_500,
        "sends": 2_000,
        "parts": 40,
    }


FLAT = [a_sample(10.0 * number) for number in range(1, 61)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its /proc tells what a process holds")
def test_a_short_soak_test_runs() -> None:
    samples = measure(2.0, 0.5, seed=1)
    assert samples
    for sample in samples:
        assert sample["rest"] == {"tasks": 0, "descriptors": samples[0]["rest"]["descriptors"], "connections": 0}
        assert sample["rss"] > 10_000_000
        assert sample["objects"] > 10_000
    assert sum(sample["sends"] for sample in samples) > sum(sample["pages"] for sample in samples) > 0
    assert max(sample["work"]["connections"] for sample in samples) > 1


def test_a_constant_value_is_flat() -> None:
    assert not faults(FLAT)
    assert "0 tasks, 11 descriptors, 0 connections (at work 40, 33, 20)" in line(FLAT[0])


def _grow(name: str, share: float) -> Callable[[Sample, int], None]:
    def grow(sample: Sample, number: int) -> None:
        sample[name] = int(sample[name] * (1 + share * number / 59))  # type: ignore[literal-required]

    return grow


def _leave(name: str, many: int) -> Callable[[Sample, int], None]:
    def leave(sample: Sample, number: int) -> None:
        sample["rest"][name] += many * (number > 30)  # type: ignore[literal-required]

    return leave


def _start_threads(sample: Sample, number: int) -> None:
    sample["threads"] += number // 20


def _read_nothing(sample: Sample, number: int) -> None:
    sample["pages"] = 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_grow("rss", 0.02), r"^memory \(RSS\) grew by 1\.6%$"),
        (_grow("blocks", 0.02), "Python's allocator grew by 1.6%"),
        (_grow("objects", 0.05), "objects of the collector grew by 4.0%"),
        (_grow("journal", 0.05), "journal's file grew by 4.0%"),
        (_leave("tasks", 1), "^1 tasks were left at rest$"),
        (_leave("connections", 2), "^2 connections were left at rest$"),
        (_leave("descriptors", 1), "^12 descriptors at rest, and at first 11$"),
        (_start_threads, "^3 threads at rest, and at first 1$"),
        (_read_nothing, "^not a page was read$"),
    ],
)
def test_growth_and_leftovers_are_reported(change: Callable[[Sample, int], None], fault: str) -> None:
    samples = deepcopy(FLAT)
    for number, sample in enumerate(samples):
        change(sample, number)
    [told] = faults(samples)
    assert re.search(fault, told)


def test_warming_up_does_not_count_as_growth() -> None:
    samples = deepcopy(FLAT)
    for sample in samples[:5]:
        sample["rss"] //= 2
    assert not faults(samples)
    assert growths(samples)[0].share == 0


def test_two_samples_are_not_enough_for_a_verdict() -> None:
    with pytest.raises(ValueError, match="at least 3 samples, and there are 2"):
        faults(FLAT[:2])


def test_the_page_reports_whether_it_was_flat() -> None:
    document: Document = {"made": {"date": "2026-01-01"}, "chances": {"status 500": 0.03}, "samples": deepcopy(FLAT)}
    text = page(document)
    assert "**Flat.**" in text
    assert "| memory (RSS) | 60.00 MB | 60.00 MB | +0.00% |" in text
    assert "| descriptors | 11 | 11 | 33 |" in text
    assert "| status 500 | 3.0% |" in text
    for sample in document["samples"][30:]:
        sample["rest"]["tasks"] = 3
    assert "**Not flat:** 3 tasks were left at rest." in page(document)
