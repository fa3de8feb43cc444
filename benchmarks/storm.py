"""Run the storm: the same calls to the same server, by lamella and other libraries.

    python benchmarks/storm.py                                  everything, some 25 minutes; writes benchmarks/results
    python benchmarks/storm.py --quick                          a quarter as long, to try something out
    python benchmarks/storm.py --only fixed --contender lamella     a part, shown and not written

It needs the extra `bench`. A part of it, or a quick one, is written only where --out says.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar, cast

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.figures import timeline
from benchmarks.ideal import answers
from benchmarks.machine import where
from benchmarks.peers import CONTENDERS, Contender
from benchmarks.report import ContenderNote, Document, ScenarioNote, line, page
from benchmarks.run import Run, run
from benchmarks.scenarios import Scenario, scenarios
from benchmarks.server import Arrival

T = TypeVar("T")
RESULTS = Path(__file__).resolve().parent / "results"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def storm(
    *,
    only: Annotated[list[str] | None, typer.Option(help="A scenario, by name; may be repeated.")] = None,
    contender: Annotated[list[str] | None, typer.Option(help="A contender, by name; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A quarter as long.")] = False,
    seed: Annotated[int, typer.Option(help="For the server's random errors and the clients' jitter.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where to write to.", file_okay=False)] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Run nothing: page and plot again from storm.json.")] = False,
) -> None:
    """Run the storm and write storm.json, storm.md and storm.png."""
    if redraw:
        folder = out or RESULTS
        _draw(cast(Document, json.loads((folder / "storm.json").read_text("utf-8"))), folder)
        return
    chosen = _choose("--only", {scenario.name: scenario for scenario in scenarios(quick=quick)}, only)
    contenders = _choose("--contender", CONTENDERS, contender)
    began = time.monotonic()
    try:
        runs = _run_all(chosen, contenders, seed)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing is written", err=True)
        raise typer.Exit(130) from None
    document: Document = {
        "made": {**where(), "seed": str(seed), "took": f"{(time.monotonic() - began) / 60:.0f} minutes"},
        "scenarios": [_scenario_note(scenario) for scenario in chosen],
        "contenders": [_contender_note(one) for one in contenders],
        "runs": runs,
    }
    if out is None and (only or contender or quick):
        typer.echo("nothing is written: this was not the whole storm (--out DIR writes it all the same)")
        return
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "storm.json").write_text(json.dumps(document, ensure_ascii=False) + "\n", "utf-8")
    _draw(document, folder)
    typer.echo(f"written to {folder}")


def _choose(option: str, known: Mapping[str, T], wanted: Sequence[str] | None) -> list[T]:
    for name in wanted or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of: {', '.join(known)}", param_hint=option)
    return [value for name, value in known.items() if not wanted or name in wanted]


def _run_all(chosen: Sequence[Scenario], contenders: Sequence[Contender], seed: int) -> list[Run]:
    pairs = [
        (scenario, contender)
        for scenario in chosen
        for contender in contenders
        if scenario.peaceful or contender.name != "aiohttp"  # it would lose refused calls
    ]
    runs = []
    for number, (scenario, contender) in enumerate(pairs, 1):
        typer.echo(f"[{number}/{len(pairs)}] {scenario.name}, {contender.name}: ", nl=False)
        sys.stdout.flush()
        one = run(scenario, contender.name, seed)
        typer.echo(line(one))
        runs.append(one)
    return runs


def _scenario_note(scenario: Scenario) -> ScenarioNote:
    # What an ideal client would have had answered, in the form in which the runs have it.
    best = [
        Arrival(moment - scenario.latency, number, 200)
        for number, crowd in enumerate(scenario.crowds)
        for moment in answers(scenario, crowd)
    ]
    return {
        "name": scenario.name,
        "title": scenario.title,
        "about": scenario.about,
        "limited": scenario.limited,
        "ideal": timeline(sorted(best), scenario.latency)["answered"],
    }


def _contender_note(contender: Contender) -> ContenderNote:
    return {
        "name": contender.name,
        "versions": {package: version(package) for package in contender.packages},
        "configuration": inspect.getsource(contender.connect),
    }


def _draw(document: Document, folder: Path) -> None:
    from benchmarks.plot import draw  # matplotlib takes a second, which no child should need

    (folder / "storm.md").write_text(page(document), "utf-8")
    draw(document, folder / "storm.png")


if __name__ == "__main__":
    app()
