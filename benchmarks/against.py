"""Compare the cost of a call in this checkout with another commit of the repository, as a ratio.

    python benchmarks/against.py main                       all scenarios, about ten minutes
    python benchmarks/against.py main --quick --only pure   some seconds, for a first impression
    python benchmarks/against.py main --at-most pure=1.05   exit code 1 if the ratio is greater

Both sides run on the same machine, with the same interpreter and packages, each in processes of its own. Only their
`src` differs: the scenarios come from this checkout. A round starts both processes anew, lets them take turns
(A B, B A, …), and takes the median of the ratios of neighbouring turns. The result is the median of the rounds.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.processes import child, receive
from benchmarks.versions.checkouts import checkouts, commit
from benchmarks.versions.ratios import BASE, HEAD, THIS, Ratio, Round, compare, exceeded, limits, line, order, summary
from benchmarks.versions.scenarios import SCENARIOS, serve, work

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0  # seconds for a process to start, or for one run

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def against(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The commit or branch to compare with.")],
    *,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SCENARIOS)}; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the rounds.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds each scenario has.")] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(help="A limit such as pure=1.05: exit with 1 above it. May be repeated.")
    ] = None,
) -> None:
    """Measure both sides and print the ratio of this checkout to BASE for each scenario."""
    names = list(dict.fromkeys(only or SCENARIOS))
    for name in names:
        if name not in SCENARIOS:
            raise typer.BadParameter(f"{name!r} is none of: {', '.join(SCENARIOS)}", param_hint="--only")
    units = {row: unit for name in names for row, unit in SCENARIOS[name].rows.items()}
    try:
        allowed = limits(at_most or (), units)
        base = commit(ROOT, base)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

    signal.signal(signal.SIGTERM, _interrupt)  # so that the temporary folder is removed
    found: dict[str, Ratio] = {}
    try:
        with checkouts(ROOT, base) as both:
            typer.echo("\n".join(f"{side}: {each.about}" for side, each in both.items()) + f"\n\n{HEAD}")
            sources = {side: each.source for side, each in both.items()}
            for name in names:
                for row, ratio in _measure(name, sources, rounds or _rounds(name, quick)).items():
                    found[row] = ratio
                    typer.echo(line(row, units[row], ratio))
    except RuntimeError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(130) from None
    messages = exceeded(found, allowed)
    for message in messages:
        typer.echo(message, err=True)
    raise typer.Exit(1 if messages else 0)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _rounds(name: str, quick: bool) -> int:
    rounds = SCENARIOS[name].rounds
    return max(rounds // 5, 1) if quick else rounds


def _measure(name: str, sources: dict[str, Path], rounds: int) -> dict[str, Ratio]:
    """Measure a scenario and return the ratio of each of its rows."""
    found = [_round(name, sources, number) for number in range(rounds)]
    return {row: summary([each[row] for each in found]) for row in SCENARIOS[name].rows}


def _round(name: str, sources: dict[str, Path], number: int) -> dict[str, Round]:
    """Run fresh processes of both sides alternately and compare them row by row."""
    os.environ["PYTHONHASHSEED"] = str(number)  # the same for both sides: it decides which keys of a dict collide
    turns: dict[str, list[dict[str, float]]] = {THIS: [], BASE: []}
    with ExitStack() as stack:
        url = _receive(name, "the server", stack.enter_context(child(serve, number)))
        workers = {}
        for side in order(number):
            workers[side] = stack.enter_context(child(work, name, sources[side], url, number))
            _receive(name, side, workers[side])
        for turn in range(SCENARIOS[name].turns):
            for side in order(turn):
                with suppress(BrokenPipeError):  # the next line reports it
                    workers[side][1].send("go")
                turns[side].append(_receive(name, side, workers[side]))
    return {
        row: compare([turn[row] for turn in turns[THIS]], [turn[row] for turn in turns[BASE]])
        for row in SCENARIOS[name].rows
    }


def _receive(name: str, whose: str, process: tuple[SpawnProcess, Connection]) -> Any:
    try:
        return receive(*process, PATIENCE)
    except RuntimeError as error:
        raise RuntimeError(f"{name}: the process of {whose} {error}") from None


if __name__ == "__main__":
    app()
