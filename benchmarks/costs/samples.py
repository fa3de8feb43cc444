"""Summarize figures that were measured several times: typical value and spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import TypedDict

__all__ = ["Figure", "figure"]


class Figure(TypedDict):
    """Something that was measured several times. Half of the samples are from `low` to `high`."""

    median: float
    low: float
    high: float
    samples: int


def figure(samples: Sequence[float]) -> Figure:
    """Return the summary of *samples*."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else (samples[0],) * 3
    return {"median": median(samples), "low": low, "high": high, "samples": len(samples)}
