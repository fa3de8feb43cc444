"""The results as a document: what goes to cost.json, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

from benchmarks.costs.pure import FULL
from benchmarks.costs.samples import Figure

__all__ = ["Document", "goals", "page"]

BARE, LAMELLA, AIOHTTP_RETRY = "aiohttp", "lamella", "aiohttp-retry"

INTRODUCTION = """\
# What it costs

`make bench` wrote this page; cost.json has the same figures with their spread.
[docs/explanation/performance.md](../../docs/explanation/performance.md) says what they mean.

![CPU per call](cost.png)

All are medians, in microseconds of CPU of the client's process, if nothing else is said; ± is half of the range in
which the middle half of the samples lies.
"""

PURE = f"""\
## In one process

Around a handler that returns at once: what the layers themselves cost, on a call that succeeds. Each by itself, and
`{FULL}` as a whole. aiohttp builds its chain of middlewares anew for each call, which is a part of this.
"""

LOOPBACK = """\
## Over loopback

50 calls at a time against a server in another process. "Adds": more than aiohttp by itself.
"""

FAILING = """\
## Calls that are sent again

As above, but a call is answered with a 503 so many times before its 200; no one waits. lamella alone reads and
understands the body of each 503, and keeps a record of each send.
"""

SCALE = """\
## How it grows

So many calls in flight, over as many connections, against a server that takes 20 ms for an answer; and the same with
Python's garbage collector disabled, whose search for cycles looks at all that is in flight again and again.
"""

HELD = """\
## What waiting calls hold

So many calls that wait in one process: for an answer that does not come, or at the queue of their account after a 429.
CPU is from their beginning to their end, memory (in bytes) is that of the objects of one call, by tracemalloc.
"""

IMPORTS = """\
## Importing it

In milliseconds of CPU, each beyond those above it.
"""


class Document(TypedDict):
    """All that is known after a run. `made` says when and where."""

    made: dict[str, str]
    versions: dict[str, str]
    pure: dict[str, dict[str, Figure]]
    """By where telemetry goes, and what was measured."""
    loopback: dict[str, dict[str, Figure]]
    """By the contender: "cpu" and "wall"."""
    failing: dict[str, dict[str, Figure]]
    """By the contender, and how often each call failed."""
    scale: dict[str, dict[str, Figure]]
    """By the contender, and how many calls were in flight."""
    held: dict[str, dict[str, Figure]]
    """By what was held: "bytes" and "cpu"."""
    imports: dict[str, Figure]


class Goal(TypedDict):
    """One of the project's own goals: what was measured, what is allowed, in words and as a verdict."""

    what: str
    measured: str
    allowed: str
    reached: bool


def page(document: Document) -> str:
    """The page in Markdown."""
    sections = [
        section
        for part, section in (
            ("pure", _pure),
            ("loopback", _loopback),
            ("failing", _failing),
            ("scale", _scale),
            ("held", _held),
            ("imports", _imports),
        )
        if document[part]  # type: ignore[literal-required]
    ]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    made = [*document["made"].items(), ("versions", versions)]
    return "\n".join(
        [
            INTRODUCTION,
            *_goals(document),
            *(text for section in sections for text in section(document)),
            "## Where and when",
            "",
            *(f"- {name}: {value}" for name, value in made),
            "",
        ]
    )


def goals(document: Document) -> Iterator[Goal]:
    """What lamella is to cost at most, as far as it was measured."""
    for telemetry, allowed in (("none", 8.0), ("sampled out", 25.0), ("recorded", 65.0)):
        if pure := document["pure"].get(telemetry):
            yield _at_most(f"in one process, telemetry: {telemetry}", pure[FULL]["median"], allowed, "µs")
    if document["loopback"]:
        what = "over loopback: adds no more than aiohttp-retry"
        yield _at_most(what, _adds(document, LAMELLA), _adds(document, AIOHTTP_RETRY), "µs")
        for more in ("recorded", "recorded, metrics too"):
            what = f"over loopback, {more}: adds less than half of contrib and aiohttp-retry"
            both = _adds(document, f"contrib and aiohttp-retry, {more}")
            yield _at_most(what, _adds(document, f"{LAMELLA}, {more}"), both / 2, "µs")
    if scale := document["scale"]:
        least, *_, most = scale[BARE]
        own, bare = (scale[name][most]["median"] / scale[name][least]["median"] for name in (LAMELLA, BARE))
        yield _at_most(f"growth from {least} to {most} calls in flight, by aiohttp's", own / bare, 1.2, "times")
    if held := document["held"]:
        own, bare = (
            held[name]["bytes"]["median"] for name in (f"{LAMELLA}, queued at the queue", f"{BARE}, in flight")
        )
        yield _at_most("a queued call, beyond its task and request", own - bare, 4096.0, "bytes")
    if failing := document["failing"]:
        peers = [each["2"]["median"] for name, each in failing.items() if name != LAMELLA]
        yield _at_most(
            "a call with two retries: no more than any peer", failing[LAMELLA]["2"]["median"], min(peers), "µs"
        )
    if imports := document["imports"]:
        yield _at_most("import lamella, beyond its dependencies", imports["lamella"]["median"], 15.0, "ms")


def _at_most(what: str, measured: float, allowed: float, unit: str) -> Goal:
    return {
        "what": what,
        "measured": f"{_number(measured)} {unit}",
        "allowed": f"{_number(allowed)} {unit}",
        "reached": measured <= allowed,
    }


def _adds(document: Document, name: str) -> float:
    cpu = document["loopback"]
    return cpu[name]["cpu"]["median"] - cpu[BARE]["cpu"]["median"]


def _goals(document: Document) -> Iterator[str]:
    found = list(goals(document))
    if found:
        yield from ("## lamella's own goals", "")
        yield from _table(
            ("", "measured", "at most", ""),
            [(one["what"], one["measured"], one["allowed"], "yes" if one["reached"] else "**no**") for one in found],
        )


def _pure(document: Document) -> Iterator[str]:
    yield PURE
    columns = list(document["pure"])
    names = list(document["pure"][columns[0]])
    yield from _table(
        ("", *columns),
        [(name, *(_spread(document["pure"][column][name]) for column in columns)) for name in names],
    )


def _loopback(document: Document) -> Iterator[str]:
    yield LOOPBACK
    yield from _table(
        ("", "CPU", "adds", "wall"),
        [
            (name, _spread(each["cpu"]), _number(_adds(document, name)), _number(each["wall"]["median"]))
            for name, each in document["loopback"].items()
        ],
    )


def _failing(document: Document) -> Iterator[str]:
    yield FAILING
    yield from _by_number(document["failing"], "{} retries")


def _scale(document: Document) -> Iterator[str]:
    yield SCALE
    yield from _by_number(document["scale"], "{}")


def _held(document: Document) -> Iterator[str]:
    yield HELD
    yield from _table(
        ("", "bytes", "CPU"),
        [(name, _number(each["bytes"]["median"]), _spread(each["cpu"])) for name, each in document["held"].items()],
    )


def _imports(document: Document) -> Iterator[str]:
    yield IMPORTS
    yield from _table(("", "ms"), [(name, _spread(each)) for name, each in document["imports"].items()])


def _by_number(found: dict[str, dict[str, Figure]], head: str) -> Iterator[str]:
    numbers = list(next(iter(found.values())))
    yield from _table(
        ("", *(head.format(f"{int(number):,}") for number in numbers)),
        [(name, *(_spread(each[number]) for number in numbers)) for name, each in found.items()],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'--:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _spread(one: Figure) -> str:
    return f"{_number(one['median'])} ± {_number((one['high'] - one['low']) / 2)}"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"
