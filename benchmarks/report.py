"""The results as a document: what goes to storm.json, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

from benchmarks.figures import Figures
from benchmarks.run import Run

__all__ = ["MOST_TIME", "ContenderNote", "Document", "ScenarioNote", "line", "missed", "page", "quotient", "table"]

MOST_TIME = 1.15
MOST_SENDS = 1.10
MOST_SENDS_IN_OUTAGE = 1.25
MOST_SECONDS_TO_RECOVER = 1.0
BUSY = 0.5  # the share of the time that a client may compute, and still be judged by its retries

INTRODUCTION = """\
# The storm

The same calls to the same server, made by several clients. `make bench-storm` wrote this page; the figures, with more,
are in storm.json.

![Time, sends and lost calls of each contender in each scenario](storm.png)

## How to read it

- **time ÷ ideal**: from the beginning of the first call to the last answer, by the time that the limit itself would
  need if each send came at its best moment (errors by chance sent again). Who gives calls up is sooner done: look at
  *lost* first.
- **sends ÷ calls**: how many requests arrived for each call.
- **lost**: calls that ended in an error, or not at all.
- **429s**: how many requests were turned away.
- **peak**: the most requests that arrived within any second.

*Lost* and the beginning of the first call are what the client says; all else is by the server's log and clock. The
server is `lamella.maesn.sandbox.Sandbox`, on real sockets, and takes 20 ms for an answer. For each run there is a
fresh one in a process of its own, and the contender is in another; nothing else runs. "500 at a time" are so many
workers, each of which makes the next call when its last one is over. Only where it is said a 429 has
a `Retry-After`.
"""

GOALS = f"""\
## lamella's own goals

Under a rate limit: nothing lost, at most {MOST_TIME:.2f} times the ideal time and {MOST_SENDS:.2f} sends a call, of
many accounts each by itself. In an outage: at most {MOST_SENDS_IN_OUTAGE:.2f} sends a call while it lasts, the first
success within {MOST_SECONDS_TO_RECOVER:g} s of its end, and from then on nothing lost before its deadline.
"""

CONFIGURATIONS = """\
## How each is set up

All send a call five times at most, wait a second or more before the second time, and then twice as long each time, with
the jitter that each has. lamella alone waits otherwise after a 500, since its rules tell the two apart. From
`benchmarks/peers.py`:
"""


class ScenarioNote(TypedDict):
    """What the page has to know of a scenario. `ideal`: the best client's answers, as in a `Timeline`."""

    name: str
    title: str
    about: str
    limited: bool
    ideal: list[int]


class ContenderNote(TypedDict):
    """What the page says of a contender: the versions of its packages, and the code that sets it up."""

    name: str
    versions: dict[str, str]
    configuration: str


class Document(TypedDict):
    """All that is known after a run of everything. `made` says when, where and with what."""

    made: dict[str, str]
    scenarios: list[ScenarioNote]
    contenders: list[ContenderNote]
    runs: list[Run]


def line(run: Run) -> str:
    """A run in one line for the terminal, and its notes below."""
    time, sends, lost, limited, peak = _cells(run["whole"])
    text = f"{time} x ideal time, {sends} sends a call, {lost} lost, {limited} 429s, peak {peak}"
    if outage := run["outage"]:
        text += f"; while down {_ratio(outage['sends'], outage['calls'])} sends a call"
    return "\n    ".join([text, *_notes(run)])


def page(document: Document) -> str:
    """The page in Markdown."""
    made = [f"- {name}: {value}" for name, value in document["made"].items()]
    return "\n".join(
        [
            INTRODUCTION,
            *(text for scenario in document["scenarios"] for text in _section(document, scenario)),
            *_goals(document),
            *_configurations(document["contenders"]),
            "## Where and when",
            "",
            *made,
            "",
        ]
    )


def _section(document: Document, scenario: ScenarioNote) -> Iterator[str]:
    runs = [run for run in document["runs"] if run["scenario"] == scenario["name"]]
    yield from (f"## {scenario['title']}", "", scenario["about"], "")
    yield from table(
        ("", "time ÷ ideal", "sends ÷ calls", "lost", "429s", "peak"),
        ((run["contender"], *_cells(run["whole"])) for run in runs),
    )
    if any(run["accounts"] for run in runs):
        yield from ("The worst account, in each column by itself:", "")
        yield from table(
            ("", "time ÷ ideal", "sends ÷ calls", "lost", "accounts that reach lamella's goals"),
            ((run["contender"], *_worst(run["accounts"])) for run in runs),
        )
    if any(run["outage"] for run in runs):
        yield from ("Around the outage; what is lost later is lost before its deadline:", "")
        yield from table(
            ("", "sends ÷ calls while down", "lost while down", "lost later", "first success after"),
            ((run["contender"], *_around(run)) for run in runs),
        )
    if notes := [f"- {run['contender']}: {note}" for run in runs for note in _notes(run)]:
        yield from (*notes, "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown: names on the left, figures on the right."""
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'--:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cells(one: Figures) -> tuple[str, str, str, str, str]:
    return (
        _ratio(one["seconds"], one["ideal"]),
        _ratio(one["sends"], one["calls"]),
        f"{one['lost']:,}",
        f"{one['limited']:,}",
        f"{one['peak']:,}",
    )


def _worst(accounts: Sequence[Figures]) -> tuple[str, str, str, str]:
    return (
        f"{max(quotient(one['seconds'], one['ideal']) for one in accounts):.2f}",
        f"{max(quotient(one['sends'], one['calls']) for one in accounts):.2f}",
        f"{max(one['lost'] for one in accounts):,}",
        f"{sum(not _missed_limit(one) for one in accounts)} of {len(accounts)}",
    )


def _around(run: Run) -> tuple[str, ...]:
    outage = run["outage"]
    if outage is None:
        return ("", "", "", "")
    first = outage["first_success"]
    return (
        _ratio(outage["sends"], outage["calls"]),
        f"{outage['lost_during']:,}",
        f"{outage['lost_after']:,}",
        "never" if first is None else f"{first:.2f} s",
    )


def _notes(run: Run) -> Iterator[str]:
    """What one has to know beside the figures."""
    whole = run["whole"]
    succeeded = whole["calls"] - whole["lost"]
    if run["fault"]:
        yield f"not a whole run: {run['fault']}"
    elif succeeded != whole["answered"]:
        yield f"the server counts {whole['answered']:,} successes, the client {succeeded:,}"
    if run["errors"]:
        yield "lost with " + ", ".join(f"{error} ({count:,})" for error, count in run["errors"].items())
    if run["cpu"] > BUSY * whole["seconds"]:
        yield f"computed for {run['cpu']:.0f} of {whole['seconds']:.0f} s: it could hardly have sent faster"


def missed(run: Run, *, limited: bool) -> list[str]:
    """Which of lamella's goals a run does not reach, each in a few words."""
    faults = [run["fault"]] if run["fault"] else []
    if limited:
        faults += _missed_limit(run["whole"])
        if short := sum(bool(_missed_limit(one)) for one in run["accounts"]):
            faults.append(f"{short} of {len(run['accounts'])} accounts by themselves")
    if outage := run["outage"]:
        sends, first = quotient(outage["sends"], outage["calls"]), outage["first_success"]
        if sends > MOST_SENDS_IN_OUTAGE:
            faults.append(f"sends while down {sends:.3f}")
        if first is None or first > MOST_SECONDS_TO_RECOVER:
            faults.append("no success after it" if first is None else f"first success after {first:.2f} s")
        if outage["lost_after"]:
            faults.append(f"{outage['lost_after']:,} lost after it")
    return faults


def _missed_limit(one: Figures) -> list[str]:
    time, sends = quotient(one["seconds"], one["ideal"]), quotient(one["sends"], one["calls"])
    faults = [
        (time > MOST_TIME, f"time {time:.3f}"),
        (sends > MOST_SENDS, f"sends {sends:.3f}"),
        (one["lost"] > 0, f"{one['lost']:,} lost"),
    ]
    return [text for missed, text in faults if missed]


def _goals(document: Document) -> Iterator[str]:
    runs = {run["scenario"]: run for run in document["runs"] if run["contender"] == "lamella"}
    if not runs:
        return
    yield GOALS
    yield from table(
        ("", "reached?"),
        (
            (scenario["title"], "; ".join(missed(run, limited=scenario["limited"])) or "yes")
            for scenario in document["scenarios"]
            if (run := runs.get(scenario["name"]))
        ),
    )


def _configurations(contenders: Iterable[ContenderNote]) -> Iterator[str]:
    yield CONFIGURATIONS
    for contender in contenders:
        versions = ", ".join(f"{package} {version}" for package, version in contender["versions"].items())
        yield from (f"### {contender['name']}", "", f"{versions}:", "")
        yield from ("```python", contender["configuration"].rstrip(), "```", "")


def quotient(one: float, other: float) -> float:
    """One by the other, and 0 by nothing: a contender that sent nothing has no ratio."""
    return one / other if other else 0.0


def _ratio(one: float, other: float) -> str:
    return f"{quotient(one, other):.2f}"
