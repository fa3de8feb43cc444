"""docs/reference/compatibility.md says what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGE = (ROOT / "docs" / "reference" / "compatibility.md").read_text("utf-8")


def _row(begins: str) -> list[str]:
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| {begins}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def _lowest(requirements: list[str]) -> list[str]:
    return [found[1] for text in requirements if (found := re.search(r">=([0-9.]+)", text))]


def test_the_versions_on_the_page_are_the_bounds() -> None:
    for requirement in PROJECT["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert _row(name)[1:2] == _lowest([requirement]), name
    extras = PROJECT["optional-dependencies"]
    [_, sdk, *_] = _row("SDK and OTLP exporter")
    assert {sdk} == set(_lowest(extras["sdk"]))
    [names, versions, *_] = _row("typer, rich, jinja2")
    wanted = {re.split(r"[<>=]", text)[0]: _lowest([text])[0] for text in extras["cli"]}
    assert dict(zip(names.removesuffix(" (`cli`)").split(", "), versions.split(", "), strict=True)) == wanted
    assert _row("msgspec")[1:2] == _lowest(extras["sync"])
    assert _row("joserfc")[1:2] == _lowest(extras["oauth"])
    assert _row("pyarrow")[1:2] == _lowest(extras["parquet"])


def test_the_pythons_on_the_page_are_those_that_are_tested() -> None:
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    [_, lowest, highest, _] = _row("Python ")
    assert (lowest, highest) == (pythons[0], pythons[-1])
    assert PROJECT["requires-python"] == f">={lowest}"
    assert f"supported=({' '.join(pythons)})" in (ROOT / ".ci" / "run").read_text("utf-8")
