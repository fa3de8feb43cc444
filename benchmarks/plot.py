"""Plot an overview of all scenarios, and the course of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
from benchmarks.figures import BIN
from benchmarks.report import MOST_TIME, Document, ScenarioNote, quotient
from benchmarks.run import Run
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["draw"]

# Okabe and Ito's colours, which differ for every eye; the shapes differ in print, too.
MARKS = {
    "lamella": ("#0072B2", "o"),
    "aiohttp-retry": ("#E69F00", "s"),
    "stamina": ("#009E73", "^"),
    "redress": ("#D55E00", "D"),
    "httpx-retries": ("#CC79A7", "v"),
}
INK, FAINT, GRID = "#222222", "#777777", "#DDDDDD"
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
CAPTION = (
    f"Hollow: some calls were lost, so it was done sooner.   Shaded: lamella's goal, {MOST_TIME:.2f} times the ideal."
)
STORIES = ("fixed", "outage")  # the scenarios that are shown as they went
COLUMNS = 3
LEAST, MOST = 0.6, 2.8  # of the axis of time; what is beyond stands at its edge
SENDS, LOST = 3.9, 4.6  # where on that axis the two columns of numbers end


def draw(document: Document, path: Path) -> None:
    """Write the plot as an image of about twice the width of a README."""
    scenarios = document["scenarios"]
    names = [contender["name"] for contender in document["contenders"]]
    stories = [scenario for scenario in scenarios if scenario["name"] in STORIES]
    rows = -(-len(scenarios) // COLUMNS)
    heights = [rows * (0.19 * len(names) + 0.62) + 0.3, *([2.9] if stories else [])]  # inches
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, sum(heights)), facecolor="white", layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        parts[0].suptitle(CAPTION, x=0.01, ha="left", fontsize=8.5, color=FAINT)
        panels = parts[0].subplots(rows, COLUMNS, sharex=True, squeeze=False).flat
        for number, panel in enumerate(panels):
            if number < len(scenarios):
                runs = _runs_of(document, scenarios[number])
                _glance(panel, scenarios[number], runs, names, named=number % COLUMNS == 0)
            else:
                panel.set_axis_off()
        if stories:
            for panel, scenario in zip(parts[1].subplots(1, len(stories), squeeze=False).flat, stories, strict=True):
                _story(panel, scenario, _runs_of(document, scenario))
        figure.savefig(path, dpi=160)


def _runs_of(document: Document, scenario: ScenarioNote) -> list[Run]:
    return [run for run in document["runs"] if run["scenario"] == scenario["name"]]


def _glance(panel: Any, scenario: ScenarioNote, runs: Sequence[Run], names: Sequence[str], *, named: bool) -> None:
    """One scenario: a row for each contender, with its time as a mark, its sends and its losses as numbers."""
    panel.set_title(scenario["title"], pad=14)
    panel.set_xlim(LEAST, LOST)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_yticks(range(len(names)), names if named else [""] * len(names))
    panel.set_xticks([1, 2, 3], ["1", "2", "3"], fontsize=8, color=FAINT)
    panel.tick_params(length=0)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.vlines([1, 2, 3], -0.6, len(names) - 0.4, color=[FAINT, GRID, GRID], linewidth=0.8, zorder=0)
    if scenario["limited"]:
        panel.axvspan(1, MOST_TIME, color=MARKS["lamella"][0], alpha=0.15, linewidth=0, zorder=0)
    for x, head in ((1, "time ÷ ideal"), (SENDS, "sends ÷ calls"), (LOST, "lost")):
        align = "left" if x == 1 else "right"
        panel.text(x, -0.75, head, fontsize=8, color=FAINT, ha=align, va="bottom")
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "lamella" else "normal")
    for run in runs:
        _glance_row(panel, run, names.index(run["contender"]))


def _glance_row(panel: Any, run: Run, y: int) -> None:
    whole, name = run["whole"], run["contender"]
    colour, shape = MARKS.get(name, (FAINT, "o"))
    style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "fontweight": "bold" if name == "lamella" else "normal"}
    if run["fault"]:
        panel.text(1.05, y, "did not end", color=colour, **style)
    else:
        ratio = quotient(whole["seconds"], whole["ideal"])
        x = min(max(ratio, LEAST), MOST)
        # Hollow: it gave calls up, so its time is not that of the work.
        fill = "white" if whole["lost"] else colour
        panel.plot([1, x], [y, y], color=colour, linewidth=1.2, linestyle="-" if x == ratio else ":", zorder=2)
        panel.plot(x, y, color=colour, marker=shape, markersize=6, markerfacecolor=fill, zorder=3, clip_on=False)
        panel.annotate(f"{ratio:.2f}", (max(x, 1), y), (6, 0), textcoords="offset points", **style)
    panel.text(SENDS, y, f"{quotient(whole['sends'], whole['calls']):.2f}", ha="right", **style)
    lost = {**style, "fontweight": "bold"} if whole["lost"] else {**style, "color": FAINT}
    panel.text(LOST, y, f"{whole['lost']:,}", ha="right", **lost)


def _story(panel: Any, scenario: ScenarioNote, runs: Sequence[Run]) -> None:
    """How many calls had been answered at each moment."""
    panel.set_title(f"{scenario['title']}: calls answered by then")
    panel.set_xlabel("seconds")
    panel.grid(axis="y", color=GRID)
    panel.set_axisbelow(True)
    ideal = _sums(scenario["ideal"])
    dashes: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 2))}
    panel.plot(_moments(ideal), ideal, **dashes)
    legend = []
    # lamella comes last, to lie above the others.
    for run in sorted(runs, key=lambda run: run["contender"] == "lamella"):
        answered, whole = _sums(run["timeline"]["answered"]), run["whole"]
        colour, shape = MARKS.get(run["contender"], (FAINT, "o"))
        width = 2.2 if run["contender"] == "lamella" else 1.3
        label = f"{run['contender']}: {whole['seconds']:.0f} s" + (f", {whole['lost']:,} lost" if whole["lost"] else "")
        panel.plot(_moments(answered), answered, color=colour, linewidth=width)
        end: dict[str, Any] = {"color": colour, "marker": shape, "markersize": 6}
        panel.plot(_moments(answered)[-1:], answered[-1:], **end, zorder=4)
        legend.append(Line2D([], [], **end, linewidth=width, label=label))
    panel.set_xlim(0)
    panel.set_ylim(0)
    best = Line2D([], [], **dashes, label=f"ideal: {len(ideal) * BIN:.0f} s")
    panel.legend(handles=[best, legend[-1], *legend[:-1]], frameon=False, fontsize=8.5)


def _sums(counts: Sequence[int]) -> list[int]:
    """How many there were up to the end of each bin, without the bins in which no more came."""
    last = max((number for number, count in enumerate(counts) if count), default=-1)
    return list(accumulate(counts[: last + 1]))


def _moments(values: Sequence[int]) -> list[float]:
    return [(number + 1) * BIN for number in range(len(values))]
