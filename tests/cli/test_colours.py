"""A colour means the same on the page of the report, in the plots, and on the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import throttle_plot

ROOT = Path(__file__).parents[2]


def variables(path: str) -> dict[str, str]:
    """The first value of each colour variable of a style sheet."""
    found = re.findall(r"--([\w-]+): (#[0-9a-f]{6})", (ROOT / path).read_text("utf-8"))
    return dict(reversed(found))


def test_plots_and_site_have_the_colours_of_the_report() -> None:
    page = variables("src/lamella/cli/templates/report.css")
    site = variables("docs/stylesheets/lamella.css")
    assert throttle_plot.PASSED == page["k2xx"] == site["md-accent-fg-color"]
    assert page["k429"] == throttle_plot.REFUSED
    plots = (ROOT / "benchmarks" / "plot.py").read_text("utf-8")  # it needs matplotlib, which only benchmarks have
    assert re.findall(r'"lamella": \("(#\w+)"', plots) == [page["k3xx"].upper()]
    assert page["k3xx"] == site["md-primary-fg-color"]
    assert site["md-typeset-a-color"] == page["focus"]


@pytest.mark.slow
def test_the_picture_of_the_throttle_is_the_one_that_its_script_draws(tmp_path: Path) -> None:
    throttle_plot.main(str(tmp_path / "throttle.svg"))
    assert (tmp_path / "throttle.svg").read_bytes() == (ROOT / "docs" / "throttle.svg").read_bytes()
