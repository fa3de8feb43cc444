"""Count the instructions of a call, compared with other libraries and with another commit of the repository.

    python benchmarks/instructions.py                        some minutes; it needs valgrind
    python benchmarks/instructions.py --base main            beside another commit
    python benchmarks/instructions.py --only "two retries"   only the calls with this in their name

valgrind's callgrind counts what the client's process executes, the kernel excluded. Other work on the machine does not
change such counts, so they show small differences. They do not show caches: a slow access counts like a fast one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.costs.counted import CASES, LAMELLA, LOOPBACK, MARK, SDK, STAMINA, Case
from benchmarks.costs.counted import __file__ as counted
from benchmarks.costs.server import serve
from benchmarks.processes import child, receive
from benchmarks.versions.checkouts import checkouts, commit
from benchmarks.versions.ratios import BASE, THIS

__all__ = ["comparison", "counts_in", "parts"]

ROOT = Path(__file__).resolve().parents[1]
_AIOHTTP = "aiohttp"
_PATIENCE = 300.0  # seconds for the server to start on a busy machine

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def instructions(
    *,
    base: Annotated[str | None, typer.Option(help="A commit or branch to compare with.")] = None,
    only: Annotated[str | None, typer.Option(help="Part of the name of the calls to count.")] = None,
    calls: Annotated[int, typer.Option(min=1, help="How many calls to count.")] = 60,
) -> None:
    """Print the instructions of a call in thousands, their ratios, and their parts."""
    if not (shutil.which("valgrind") and shutil.which("vgdb")):
        typer.echo("valgrind is not installed: apt-get install valgrind", err=True)
        raise typer.Exit(2)
    numbers = [number for number, case in enumerate(CASES) if only is None or only in case.kind]
    if not numbers:
        raise typer.BadParameter(f"no call is named {only!r}", param_hint="--only")
    ours = [number for number in numbers if CASES[number].contender.startswith(LAMELLA)]
    counts: dict[str, dict[Case, float]] = {BASE: {}}
    try:
        with checkouts(ROOT, commit(ROOT, base or "HEAD")) as both:
            for side in (THIS,) if base is None else (THIS, BASE):
                typer.echo(f"{side}: {both[side].about}", err=True)
                counts[side] = _count(both[side].source, numbers if side == THIS else ours, calls)
    except (ValueError, RuntimeError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    typer.echo("\n".join([*comparison(counts[THIS], counts[BASE]), "", *parts(counts[THIS])]))


def _count(source: Path, numbers: Sequence[int], calls: int) -> dict[Case, float]:
    """Return the thousands of instructions of a call for each of the cases *numbers*.

    Raises:
        RuntimeError: A case failed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="lamella-instructions-")))
        url = receive(*stack.enter_context(child(serve)), _PATIENCE)
        command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", f"--dump-before={MARK}"]
        command += [f"--callgrind-out-file={folder / 'count'}", sys.executable, counted]
        command += [str(source), url, str(calls), *map(str, numbers)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}  # it decides which keys of a dict collide
        ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)  # noqa: S603
        found = counts_in(folder)
        if ended.returncode or len(found) != 2 * len(numbers):
            raise RuntimeError(f"counting failed: {ended.stderr or ended.stdout or 'no counts'}")
        # The first of two counts is for the calls that warm up.
        return {CASES[number]: found[2 * place + 1] / calls / 1000 for place, number in enumerate(numbers)}


def counts_in(folder: Path) -> list[int]:
    """Return each count between a pair of marks. The first mark begins a count, and the second one ends it."""
    totals: dict[int, int] = {}
    for file in folder.glob("count.*"):
        found = re.search(r"^totals: (\d+)", file.read_text("utf-8"), re.MULTILINE)
        totals[int(file.suffix[1:])] = int(found[1]) if found else 0
    return [count for number, count in sorted(totals.items()) if number % 2 == 0]


def comparison(counts: Mapping[Case, float], base: Mapping[Case, float]) -> Iterator[str]:
    """Yield the lines of a Markdown table. A call over loopback "adds" what it takes beyond aiohttp's requests."""
    alone = next((count for case, count in counts.items() if case.contender == _AIOHTTP), None)
    yield "| a call | thousands | beside it | thousands | ratio | ratio of what it adds |"
    yield "|---|--:|---|--:|--:|--:|"
    for case, count in counts.items():
        if not case.contender.startswith(LAMELLA):
            continue
        beside = [
            (other.contender, theirs)
            for other, theirs in counts.items()
            if other[:3] == case[:3] and other.contender not in {case.contender, _AIOHTTP}
        ]
        if case in base:
            beside.append((BASE, base[case]))
        less = None if alone is None or case.where != LOOPBACK else alone * (1 + case.failures)
        if not beside:
            yield f"| {case.where}: {case.kind} | {count:,.0f} |  |  |  |  |"
        for name, theirs in beside:
            added = "" if less is None else f"{(count - less) / (theirs - less):.2f}"
            ratio = f"{count / theirs:.3f} | {added}"
            yield f"| {case.where}: {case.kind} | {count:,.0f} | {name} | {theirs:,.0f} | {ratio} |"


def parts(counts: Mapping[Case, float]) -> Iterator[str]:
    """Yield the lines of a Markdown table: the parts of a call over loopback. What the others do not take is ours."""
    alone = next((count for case, count in counts.items() if case.contender == _AIOHTTP), None)
    if alone is None:
        return
    yield f"| a call over loopback | all | {_AIOHTTP} | {STAMINA} | {SDK} | {LAMELLA} |"
    yield "|---|--:|--:|--:|--:|--:|"
    for case, count in counts.items():
        if case.where != LOOPBACK or not case.contender.startswith(LAMELLA):
            continue
        others = {other.contender: taken for other, taken in counts.items() if other[1:4] == case[1:4]}
        if (case.telemetry != "none") != (SDK in others):
            continue  # the part of the SDK is not counted for this call
        shares = [alone * (1 + case.failures), others.get(STAMINA, 0.0), others.get(SDK, 0.0)]
        cells = [f"{share:,.0f}" if share else "" for share in (count, *shares, count - sum(shares))]
        yield f"| {case.kind} | {' | '.join(cells)} |"


if __name__ == "__main__":
    app()
