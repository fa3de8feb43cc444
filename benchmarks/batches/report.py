"""The results as a document: batch.json and the page made from it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import TypedDict

from benchmarks.batches.measure import Sample
from benchmarks.report import ContenderNote, table

__all__ = ["MOST_GROWTH", "Document", "growth", "line", "page"]

MB = 1_000_000
MOST_GROWTH = 50 * MB

INTRODUCTION = """\
# A million items

One function that does nothing is called for each of many items, 100 at a time, in five ways. What is measured is all
that stands around it. `make bench-batch` wrote this page; all samples are in batch.json.

- **items a second**: from the first item to the end, by the clock on the wall.
- **CPU**: microseconds an item, of all threads.
- **peak**: the most memory that the process had. **growth**: what the many items need beyond the few.

Each figure is the median of so many runs, each in a fresh process; the contenders take turns. The journal is a file in
the folder for temporary files; its size is not memory.
"""

GOAL = f"""\
## lamella's own goal

The peak grows by less than {MOST_GROWTH // MB} MB, with and without a journal.
"""


class Document(TypedDict):
    """The result of a run. `made` says when, where and with what; `few` and `many` are numbers of items."""

    made: dict[str, str]
    few: int
    many: int
    contenders: list[ContenderNote]
    samples: list[Sample]


def line(sample: Sample) -> str:
    """Return a sample as one line for the terminal."""
    rate, cpu = sample["items"] / sample["seconds"], sample["cpu"] / sample["items"]
    return f"{rate:,.0f} items a second, {cpu * 1e6:.1f} µs of CPU an item, peak {sample['peak'] / MB:,.0f} MB"


def growth(document: Document, contender: str) -> float:
    """Return by how many bytes the peak grows from few to many items."""
    peaks = [
        median(sample["peak"] for sample in _of(document, contender, items))
        for items in (document["few"], document["many"])
    ]
    return peaks[1] - peaks[0]


def page(document: Document) -> str:
    """Return the page in Markdown."""
    few, many = f"{document['few']:,}", f"{document['many']:,}"
    return "\n".join(
        [
            INTRODUCTION,
            *table(
                ("", "items a second", "CPU", f"peak, {few}", f"peak, {many}", "growth", "runs"),
                [_row(document, contender["name"]) for contender in document["contenders"]],
            ),
            *_goal(document),
            "## The contenders",
            "",
            *(text for contender in document["contenders"] for text in _configuration(contender)),
            "## Where and when",
            "",
            *(f"- {name}: {value}" for name, value in document["made"].items()),
            "",
        ]
    )


def _of(document: Document, contender: str, items: int) -> list[Sample]:
    return [one for one in document["samples"] if (one["contender"], one["items"]) == (contender, items)]


def _row(document: Document, contender: str) -> tuple[str, ...]:
    few, many = (_of(document, contender, document[items]) for items in ("few", "many"))
    return (
        contender,
        f"{median(one['items'] / one['seconds'] for one in many):,.0f}",
        f"{median(one['cpu'] / one['items'] for one in many) * 1e6:.1f}",
        *(f"{median(one['peak'] for one in each) / MB:,.0f} MB" for each in (few, many)),
        _megabytes(growth(document, contender)),
        f"{len(many)}",
    )


def _goal(document: Document) -> Iterator[str]:
    own = [contender["name"] for contender in document["contenders"] if contender["name"].startswith("lamella")]
    if not own:
        return
    yield GOAL
    yield from table(
        ("", "growth", "reached?"),
        [
            (name, _megabytes(growth(document, name)), "yes" if growth(document, name) < MOST_GROWTH else "**no**")
            for name in own
        ],
    )


def _megabytes(size: float) -> str:
    return f"{size / MB:,.1f} MB"


def _configuration(contender: ContenderNote) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in contender["versions"].items())
    yield from (f"### {contender['name']}", "", f"{versions or 'the standard library'}:", "")
    yield from ("```python", contender["configuration"].rstrip(), "```", "")
