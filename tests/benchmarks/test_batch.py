"""A few items for real, in a process of their own; and what the page says of samples."""

from __future__ import annotations

import pytest
from benchmarks.batches.contenders import CONTENDERS, Contender
from benchmarks.batches.measure import Sample, measure, spent
from benchmarks.batches.report import MB, Document, growth, line, page


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["lamella, journal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lamella", "asyncio.gather"))],
)
def test_a_contender_does_all_items(name: str) -> None:
    sample = measure(name, 300)
    assert (sample["contender"], sample["items"]) == (name, 300)
    assert sample["seconds"] > 0
    assert sample["cpu"] > 0
    assert 5 * MB < sample["peak"] < 1000 * MB
    assert "items a second" in line(sample)


@pytest.mark.slow
def test_a_crashed_process_is_reported() -> None:
    with pytest.raises(RuntimeError, match="crashed, exit code 1"):
        measure("nobody", 10)


async def test_a_sample_without_some_items_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lazy(items: int) -> int:
        return sum(range(items - 1))

    monkeypatch.setitem(CONTENDERS, "lazy", Contender("lazy", (), lazy))
    with pytest.raises(RuntimeError, match="lazy has not done each of 10 items once"):
        await spent("lazy", 10)


@pytest.mark.slow
async def test_the_contenders_of_the_standard_library_and_of_ours_give_the_same_sum() -> None:
    for name in ("lamella", "lamella, journal", "asyncio.gather"):
        assert await CONTENDERS[name].run(1000) == sum(range(1000))


def a_sample(contender: str, items: int, peak: int, seconds: float = 2.0) -> Sample:
    return {"contender": contender, "items": items, "seconds": seconds, "cpu": seconds / 2, "peak": peak * MB}


def test_the_page_reports_medians_and_whether_the_goal_is_reached() -> None:
    document: Document = {
        "made": {"date": "2026-01-01"},
        "few": 10,
        "many": 1000,
        "contenders": [
            {"name": name, "versions": versions, "configuration": "def run(): ...\n"}
            for name, versions in (("lamella", {"lamella": "0.1.0"}), ("lamella, journal", {}), ("other", {}))
        ],
        "samples": [
            *(a_sample("lamella", 10, peak) for peak in (40, 41, 60)),
            *(a_sample("lamella", 1000, peak, seconds) for peak, seconds in ((90, 4.0), (50, 2.0), (90, 1.0))),
            *(a_sample("lamella, journal", items, peak) for items, peak in ((10, 40), (1000, 90))),
            *(a_sample("other", items, peak) for items, peak in ((10, 40), (1000, 1040))),
        ],
    }
    assert growth(document, "lamella") == 49 * MB
    text = page(document)
    for part in (
        "| lamella | 500 | 1000.0 | 41 MB | 90 MB | 49.0 MB | 3 |",
        "| other | 500 | 1000.0 | 40 MB | 1,040 MB | 1,000.0 MB | 1 |",
        "| lamella | 49.0 MB | yes |\n| lamella, journal | 50.0 MB | **no** |\n\n",
        "lamella 0.1.0:\n\n```python\ndef run(): ...\n```",
        "the standard library:",
        "- date: 2026-01-01",
    ):
        assert part in text
