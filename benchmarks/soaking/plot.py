"""The plot of a soak: what must be flat, by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from benchmarks.plot import FAINT, GRID, MARKS, STYLE
from benchmarks.soaking.report import MB, MOST_GROWTH, WARM_UP, Document, growths
from matplotlib.figure import Figure

__all__ = ["draw"]

_BLUE: Final = MARKS["lamella"][0]


def draw(document: Document, path: Path) -> None:
    """Write the plot as an image of about twice the width of a README."""
    samples = document["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    rss, blocks, *_ = growths(samples)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.2), facecolor="white", layout="constrained")
        panels = figure.subplots(2, 3, sharex=True)
        for panel in panels[1]:
            panel.set_xlabel("minutes")
        for panel in panels.flat:
            panel.grid(axis="y", color=GRID)
            panel.set_axisbelow(True)
            panel.axvspan(0, WARM_UP * minutes[-1], color=GRID, alpha=0.5, linewidth=0)
            panel.set_xlim(0, minutes[-1])
        _flat(panels[0][0], "Memory (RSS), MB", minutes, [sample["rss"] / MB for sample in samples], rss.before / MB)
        _flat(
            panels[0][1],
            "Python's pieces of memory, thousands",
            minutes,
            [sample["blocks"] / 1000 for sample in samples],
            blocks.before / 1000,
        )
        panels[0][2].set_title("Sends a sample")
        panels[0][2].plot(minutes, [sample["sends"] for sample in samples], color=_BLUE, linewidth=1.3)
        panels[0][2].set_ylim(0)
        for panel, name in zip(panels[1], ("tasks", "descriptors", "connections"), strict=True):
            panel.set_title(name.capitalize())
            work, rest = ([sample[when][name] for sample in samples] for when in ("work", "rest"))  # type: ignore[literal-required]
            panel.plot(minutes, work, color=FAINT, linewidth=1, label="the most at work")
            panel.plot(minutes, rest, color=_BLUE, linewidth=1.6, label="at rest")
            panel.set_ylim(0)
        panels[1][0].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.08))
        figure.savefig(path, dpi=160)


def _flat(panel: Any, title: str, minutes: list[float], values: list[float], before: float) -> None:
    panel.set_title(title)
    panel.plot(minutes, values, color=_BLUE, linewidth=1.6)
    limit = before * (1 + MOST_GROWTH)
    panel.axhline(limit, color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    panel.text(0.99, limit, f"+{MOST_GROWTH:.0%} ", transform=panel.get_yaxis_transform(), ha="right", va="bottom")
    # From 0 nothing could be seen, and from the least value everything would look like a mountain.
    panel.set_ylim(min(*values, before * 0.95), max(*values, before * 1.05))
