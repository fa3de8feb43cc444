"""The dashboard of examples/observability has the metrics of docs/reference/telemetry.md, and no others.

tests/backends/test_dashboard.py asks a real Prometheus.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.telemetry.conformance import Told

DASHBOARD = Path(__file__).parents[2] / "examples" / "observability" / "lamella-dashboard.json"
SUFFIXES = {"histogram": ("_count", "_sum", "_bucket"), "counter": ("_total",)}
UNITS = {"s": "_seconds"}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def test_dashboard_shows_each_metric_and_no_other() -> None:
    queries = " ".join(target["expr"] for panel in panels() for target in panel.get("targets", ()))
    shown = set(re.findall(r"\b((?:lamella|http)_\w+)\{", queries))
    names = {
        name: {
            name.replace(".", "_") + UNITS.get(unit, "") + suffix
            for suffix in SUFFIXES.get(instrument.removeprefix("observable "), ("",))
        }
        for name, (instrument, unit) in Told.by().metrics.items()
    }
    assert not [name for name, exported in names.items() if not exported & shown]
    assert shown <= {each for exported in names.values() for each in exported}
    labels = set(re.findall(r"\b(\w+)=~?\"", queries))
    grouped = {label for by in re.findall(r"by \(([^)]*)\)", queries) for label in by.split(", ")}
    attributes = {name.replace(".", "_") for name in Told.by().attributes}
    assert labels | grouped <= attributes | {"job", "le", "otel_scope_name"}


def test_each_dashboard_panel_has_a_place_and_an_id() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
