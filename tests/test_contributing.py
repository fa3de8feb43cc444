"""CONTRIBUTING.md names the files that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HOUSE = ROOT / "src" / "lamella"


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def test_contributing_lists_each_module_and_folder() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", section("The house"), re.MULTILINE)
    listed = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]*)`", row)}
    there = {
        path.name for path in HOUSE.iterdir() if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py")))
    }
    assert listed == there - {"__init__.py", "__main__.py"}


def test_the_path_of_a_call_names_at_most_eight_existing_files() -> None:
    files = set(re.findall(r"`([a-z_/]+\.py)`", section("The path of a call that fails once")))
    assert 4 <= len(files) <= 8
    assert [name for name in files if not (HOUSE / name).is_file()] == []


def test_the_path_of_a_call_names_each_function_with_its_file() -> None:
    for name, function in re.findall(
        r"`([a-z_/]+\.py)`: `(?:\w+\.)?(\w+)", section("The path of a call that fails once")
    ):
        assert f"def {function}(" in (HOUSE / name).read_text(encoding="utf-8"), (name, function)


def test_each_link_and_target_of_the_page_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)", PAGE)):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"tests/[\w/]+\.py", PAGE):
        assert (ROOT / path).is_file(), path
