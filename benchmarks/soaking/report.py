"""Whether a soak was flat, and the page that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final, NamedTuple, TypedDict

from benchmarks.report import table
from benchmarks.soaking.client import Sample

__all__ = ["MOST_GROWTH", "Document", "Growth", "faults", "growths", "line", "page", "shares"]

MB: Final = 1_000_000
MOST_GROWTH: Final = 0.01
WARM_UP: Final = 0.1
"""The share of the time in which caches fill up: of ten minutes the first one."""

INTRODUCTION: Final = """\
# The soak

`maesn.sync` again and again in one process and one session, for six accounts of a server that fails in every way it
knows, with outages of up to two seconds; one sync in five is cancelled in the middle. Every ten seconds the syncs pause
until idle connections have ended; garbage is collected, the C library gives back what is free, and it is looked at what
the process holds. The server is another process. `make soak` wrote this page; all samples are in soak.json.

![Memory, objects, tasks, descriptors and connections by time](soak.png)
"""


class Document(TypedDict):
    """All that is known after a soak. `made` says when, where and with what; `chances` what went wrong how often."""

    made: dict[str, str]
    chances: dict[str, float]
    samples: list[Sample]


class Growth(NamedTuple):
    """Of one thing that is measured: before, that is in the tenth after the warm-up, and at the end."""

    name: str
    before: float
    after: float
    unit: float = 1
    suffix: str = ""

    @property
    def share(self) -> float:
        """By which share of what it was it has grown."""
        return self.after / self.before - 1 if self.before else float(self.after > 0)


_GROWING: Final[tuple[tuple[str, Callable[[Sample], float], float, str], ...]] = (
    ("memory (RSS)", lambda sample: sample["rss"], MB, " MB"),
    ("pieces of memory of Python's allocator", lambda sample: sample["blocks"], 1, ""),
    ("objects of the collector", lambda sample: sample["objects"], 1, ""),
    ("the journal's file", lambda sample: sample["journal"], MB, " MB"),
)


def shares(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Those of the tenth of the time after the warm-up, and those of the last tenth; at least one each.

    Raises:
        ValueError: There are fewer than three: nobody could tell anything from them.
    """
    if len(samples) < 3:
        raise ValueError(f"a soak needs at least 3 samples, and there are {len(samples)}: let it run for longer")
    end = samples[-1]["at"]
    before = [sample for sample in samples if WARM_UP * end < sample["at"] <= 2 * WARM_UP * end]
    after = [sample for sample in samples if sample["at"] > (1 - WARM_UP) * end]
    return before or [samples[1]], after


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """What must not grow."""
    before, after = shares(samples)
    return [
        Growth(name, median(map(of, before)), median(map(of, after)), unit, suffix)
        for name, of, unit, suffix in _GROWING
    ]


def faults(samples: Sequence[Sample]) -> list[str]:
    """Why the soak was not flat, each in a few words. None: it was."""
    found = [f"{growth.name} grew by {growth.share:.1%}" for growth in growths(samples) if growth.share >= MOST_GROWTH]
    warm = [sample for sample in samples if sample["at"] <= 2 * WARM_UP * samples[-1]["at"]] or [samples[0]]
    for name, at_rest in (
        ("tasks", lambda sample: sample["rest"]["tasks"]),
        ("connections", lambda sample: sample["rest"]["connections"]),
    ):
        if most := max(map(at_rest, samples)):
            found.append(f"{most} {name} were left at rest")
    for name, of in (
        ("descriptors", lambda sample: sample["rest"]["descriptors"]),
        ("threads", lambda sample: sample["threads"]),
    ):
        at_first, most = max(map(of, warm)), max(map(of, samples))
        if most > at_first:
            found.append(f"{most} {name} at rest, and at first {at_first}")
    if not sum(sample["pages"] for sample in samples):
        found.append("not a page was read")
    return found


def line(sample: Sample) -> str:
    """A sample in one line for the terminal."""
    rest, work = sample["rest"], sample["work"]
    return (
        f"{sample['at']:4.0f} s: {sample['rss'] / MB:.1f} MB, {sample['objects']:,} objects, "
        f"at rest {rest['tasks']} tasks, {rest['descriptors']} descriptors, {rest['connections']} connections "
        f"(at work {work['tasks']}, {work['descriptors']}, {work['connections']}); "
        f"{sample['syncs']} syncs, {sample['sends']:,} sends"
    )


def page(document: Document) -> str:
    """The page in Markdown."""
    samples = document["samples"]
    wrong = faults(samples)
    return "\n".join(
        [
            INTRODUCTION,
            "**Flat.**" if not wrong else f"**Not flat:** {'; '.join(wrong)}.",
            "",
            *_growth(samples),
            *_rest(samples),
            *_done(document),
            "## Where and when",
            "",
            *(f"- {name}: {value}" for name, value in document["made"].items()),
            "",
        ]
    )


def _growth(samples: Sequence[Sample]) -> Iterator[str]:
    yield "## What must not grow"
    yield ""
    yield f"Medians of the tenth of the time after the warm-up, and of the last tenth; below {MOST_GROWTH:.0%} is flat."
    yield ""
    yield from table(
        ("", "then", "at the end", "growth"),
        [
            (
                growth.name,
                _number(growth.before, growth),
                _number(growth.after, growth),
                f"{growth.share:+.2%}",
            )
            for growth in growths(samples)
        ],
    )


def _number(value: float, growth: Growth) -> str:
    return f"{value / growth.unit:,.{2 if growth.suffix else 0}f}{growth.suffix}"


def _rest(samples: Sequence[Sample]) -> Iterator[str]:
    yield "## What must not be left"
    yield ""
    yield from table(
        ("", "the least at rest", "the most at rest", "the most at work"),
        [
            (
                name,
                f"{min(sample['rest'][name] for sample in samples)}",
                f"{max(sample['rest'][name] for sample in samples)}",
                f"{max(sample['work'][name] for sample in samples)}",
            )
            for name in ("tasks", "descriptors", "connections")
        ],
    )


def _done(document: Document) -> Iterator[str]:
    samples = document["samples"]
    total = {
        name: sum(sample[name] for sample in samples) for name in ("syncs", "cancelled", "pages", "sends", "parts")
    }
    garbage = max(sample["garbage"] for sample in samples)
    yield "## What was done"
    yield ""
    yield (
        f"{total['syncs']:,} syncs, {total['cancelled']:,} of them cancelled; {total['sends']:,} requests for "
        f"{total['pages']:,} pages; {total['parts']:,} parts failed, most of them of the account that is locked out."
    )
    yield ""
    yield (
        "An error and its traceback hold each other, so they stay until Python collects garbage: at a pause there were "
        f"{garbage:,} such objects at most."
    )
    yield ""
    yield from table(
        ("a request ends with", "how likely"),
        [(name, f"{chance:.1%}") for name, chance in document["chances"].items()],
    )
