"""Plot the overhead on a call of aiohttp, and how it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from benchmarks.costs.pure import FULL
from benchmarks.costs.report import BARE, LAMELLA, Document
from benchmarks.plot import FAINT, GRID, MARKS, STYLE
from matplotlib.figure import Figure

__all__ = ["draw"]

OURS = MARKS["lamella"][0]
OTHERS = "#B8B8B8"
FAR = 3.0  # bars above this multiple of the total of lamella are cut off


def draw(document: Document, path: Path) -> None:
    """Write the plot as an image of about twice the width of a README."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.4), facecolor="white", layout="constrained")
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, 3), squeeze=False)[:, 0]
        _added(upper.subplots(), document)
        layers, growth, failing = lower.subplots(1, 3)
        _layers(layers, document)
        _lines(growth, document, "scale", "by calls in flight")
        growth.set_xscale("log")
        _lines(failing, document, "failing", "by retries")
        figure.savefig(path, dpi=160)


def _added(panel: Any, document: Document) -> None:
    loopback = document["loopback"]
    bare = loopback[BARE]["cpu"]["median"]
    names = [name for name in loopback if name != BARE]
    added = [loopback[name]["cpu"]["median"] - bare for name in names]
    edge = FAR * max(value for name, value in zip(names, added, strict=True) if name.startswith(LAMELLA))
    panel.set_title(f"CPU that is added to a call over loopback, in µs (aiohttp by itself: {bare:.0f} µs)")
    for row, (name, value) in enumerate(zip(names, added, strict=True)):
        panel.barh(row, min(value, edge), color=OURS if name.startswith(LAMELLA) else OTHERS, height=0.7)
        text = f"{value:,.0f}" + (" →" if value > edge else "")
        panel.annotate(text, (min(max(value, 0), edge), row), (4, 0), textcoords="offset points", va="center")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.set_xticks([])
    panel.spines[["left", "bottom"]].set_visible(False)


def _layers(panel: Any, document: Document) -> None:
    pure = document["pure"]["none"]
    names = [name for name in pure if name != FULL and not name.endswith("alone")]
    panel.set_title("In one process, without an SDK, in µs")
    for row, name in enumerate([*names, FULL]):
        value = pure[name]["median"]
        panel.barh(row, value, color=OTHERS if "empty" in name else OURS, height=0.7)
        panel.annotate(f"{value:.1f}", (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    panel.set_yticks(range(len(names) + 1), [*names, FULL], fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.set_xticks([])
    panel.spines[["left", "bottom"]].set_visible(False)


def _lines(panel: Any, document: Document, part: str, title: str) -> None:
    found = document[part]  # type: ignore[literal-required]
    highest = FAR * max(each["median"] for each in found[LAMELLA].values())
    panel.set_title(f"CPU of a call, in µs, {title}")
    for name, figures in found.items():
        colour, shape = MARKS.get(name.split()[0].rstrip(","), (FAINT, "o"))
        dashed = "--" if name.endswith("disabled") else "-"
        values = [each["median"] for each in figures.values()]
        if max(values) > highest:
            continue  # in the table
        width = 2.0 if name == LAMELLA else 1.2
        style = {"color": colour, "marker": shape, "linewidth": width, "linestyle": dashed, "label": name}
        panel.plot([int(number) for number in figures], values, **style)
    panel.set_ylim(0)
    panel.grid(axis="y", color=GRID)
    panel.legend(frameon=False, fontsize=8)
