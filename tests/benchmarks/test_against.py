"""The ratio of two checkouts: its arithmetic, where the two sides come from, and that each side measures its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from benchmarks.processes import GRACE, child, receive
from benchmarks.versions.checkouts import checkouts, commit
from benchmarks.versions.ratios import (
    BASE,
    HEAD,
    THIS,
    Ratio,
    Round,
    compare,
    exceeded,
    limits,
    line,
    order,
    summary,
)
from benchmarks.versions.scenarios import SCENARIOS, serve, work

ROOT = Path(__file__).resolve().parents[2]


def test_the_sides_alternate_in_going_first() -> None:
    assert [order(number) for number in range(3)] == [(THIS, BASE), (BASE, THIS), (THIS, BASE)]


def test_a_round_compares_runs_from_the_same_time() -> None:
    # The machine gets slower, and one turn is disturbed: neither changes the ratio.
    found = compare([11.0, 22.0, 33.0, 90.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert (found.this, found.base) == (33.0, 30.0)
    assert found.ratio == pytest.approx(1.1)
    assert compare([3.0], [2.0]) == Round(3.0, 2.0, 1.5)


def test_rounds_of_one_side_only_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([1.0, 2.0], [1.0])


def test_the_result_is_the_median_of_the_rounds_with_quartiles_and_range() -> None:
    rounds = [Round(this, 10.0, this / 10) for this in (10.0, 14.0, 11.0, 12.0, 13.0)]
    assert summary(rounds) == Ratio(12.0, 10.0, 1.2, 1.1, 1.3, 1.0, 1.4)
    assert summary(rounds[:1]) == Ratio(10.0, 10.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_a_line_has_its_figures_below_the_names_of_the_columns() -> None:
    text = line("loopback-wall", "µs of CPU", Ratio(1234.56, 1000.0, 1.23456, 1.2, 1.25, 1.1, 1.3))
    assert text == "loopback-wall     1,234.6   1,000.0  µs of CPU    1.235  1.200 to 1.250      1.100 to 1.300"
    for column, figure in (("this", "1,234.6"), ("base", "1,000.0"), ("ratio", "1.235")):
        assert HEAD.index(column) + len(column) == text.index(figure) + len(figure)
    assert HEAD.index("half") == text.index("1.200")
    assert HEAD.index("all") == text.index("1.100")


def test_limits_are_read_by_row() -> None:
    assert limits(["pure=1.05", "queued=1"], ["pure", "failing", "queued"]) == {"pure": 1.05, "queued": 1.0}
    assert limits([], ["pure"]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pur=1.05", "must begin with one of pure, queued; got 'pur=1.05'"),
        ("1.05", "must begin with one of pure, queued; got '1.05'"),
        ("pure", "must have the form pure=1.05, got 'pure'"),
        ("pure=", "must have the form pure=1.05, got 'pure='"),
        ("pure=fast", "must have the form pure=1.05, got 'pure=fast'"),
        ("pure=nan", "must have the form pure=1.05, got 'pure=nan'"),
        ("pure=0", "must have the form pure=1.05, got 'pure=0'"),
    ],
)
def test_a_limit_that_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limits([text], ["pure", "queued"])


def test_only_a_ratio_above_its_limit_exceeds_it() -> None:
    found = {name: Ratio(1.0, 1.0, ratio, 1.0, 1.0, 1.0, 1.0) for name, ratio in (("pure", 1.05), ("failing", 1.0512))}
    assert exceeded(found, {"pure": 1.05}) == []
    assert exceeded(found, {"pure": 1.05, "failing": 1.05}) == ["failing: the ratio must be at most 1.05, got 1.051"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first commit has the tag `first`; its working copy differs from both commits."""
    program = shutil.which("git")
    if program is None:
        pytest.skip("needs git")
    root = tmp_path / "repository"
    module = root / "src" / "lamella" / "__init__.py"
    module.parent.mkdir(parents=True)

    def git(*arguments: str) -> None:
        author = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        command = [program, "-C", str(root), *author, *arguments]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603

    git("init")
    for number in ("first", "second"):
        module.write_text(number)
        git("add", ".")
        git("commit", "-m", f"The {number} commit")
        git("tag", number)
    module.write_text("not committed")
    return root


def test_the_sides_are_the_working_copy_and_the_other_commit(repository: Path) -> None:
    with checkouts(repository, commit(repository, "first")) as both:
        texts = {side: (each.source / "lamella" / "__init__.py").read_text() for side, each in both.items()}
        assert texts == {THIS: "not committed", BASE: "first"}
        assert both[THIS].about.endswith(" The second commit, with uncommitted changes")
        assert both[BASE].about.endswith(" The first commit")
    assert not any(each.source.exists() for each in both.values())


def test_the_copies_are_removed_when_the_measurement_is_interrupted(repository: Path) -> None:
    folders: list[Path] = []

    def interrupted() -> None:
        with checkouts(repository, commit(repository, "first")) as both:
            folders.extend(each.source for each in both.values())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(folders) == 2
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("name", ["no-such-branch", "", "--all", "HEAD:src"])
def test_a_name_of_no_commit_is_an_error(repository: Path, name: str) -> None:
    with pytest.raises(ValueError, match="BASE must be a commit or branch of this repository, got"):
        commit(repository, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["import", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pure", "failing", "queued"))]
)
def test_a_process_measures_the_checkout_that_it_is_given(tmp_path: Path, name: str) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source)
    with child(serve, 0) as server:
        figures = measured(name, source, receive(*server, GRACE))
    assert list(figures) == list(SCENARIOS[name].rows)
    assert all(figure > 0 for figure in figures.values())


@pytest.mark.slow
def test_a_process_does_not_measure_the_installed_lamella_instead(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        measured("pure", tmp_path)
    assert f"lamella must come from {tmp_path}, got " in capfd.readouterr().err


def measured(name: str, source: Path, url: str = "") -> dict[str, float]:
    """Return the figures of one turn in a process of its own."""
    with child(work, name, source, url, 0) as (process, pipe):
        assert receive(process, pipe, GRACE) == "ready"
        pipe.send("go")
        figures: dict[str, float] = receive(process, pipe, GRACE)
        return figures
