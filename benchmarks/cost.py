"""Measure CPU, time and memory per call of lamella, compared with bare aiohttp and other libraries.

    python benchmarks/cost.py                   everything, some 9 minutes; writes benchmarks/results
    python benchmarks/cost.py --quick           a minute, to try something out
    python benchmarks/cost.py --only pure       a part, shown and not written

It needs the extra `bench`. A part of it, or a quick one, is written only where --out says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.costs.contenders import CONTENDERS
from benchmarks.costs.held import HELD, held
from benchmarks.costs.imports import IMPORTS, import_times
from benchmarks.costs.loopback import Job, Spent, work
from benchmarks.costs.providers import TELEMETRY
from benchmarks.costs.pure import pure
from benchmarks.costs.report import Document, page
from benchmarks.costs.samples import figure
from benchmarks.costs.server import serve
from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("pure", "loopback", "failing", "scale", "held", "imports")
PATIENCE = 300.0  # seconds for one job

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Size(NamedTuple):
    """The extent of a measurement."""

    pure_rounds: int
    rounds: int
    calls: int
    at_once: tuple[int, ...]
    scale_rounds: int
    held: int
    held_rounds: int
    imports: int


WHOLE = Size(150, 9, 1500, (10, 100, 1000, 10_000), 3, 10_000, 3, 15)
QUICK = Size(40, 3, 500, (10, 1000), 1, 1000, 1, 3)


@app.command()
def cost(
    *,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, and fewer times.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write to.", file_okay=False)] = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Measure nothing: page and plot again from cost.json.")
    ] = False,
) -> None:
    """Measure, show the page, and write cost.json, cost.md and cost.png."""
    if redraw:
        folder = out or RESULTS
        _draw(cast(Document, json.loads((folder / "cost.json").read_text("utf-8"))), folder)
        return
    for part in only or ():
        if part not in PARTS:
            raise typer.BadParameter(f"{part!r} is none of: {', '.join(PARTS)}", param_hint="--only")
    began = time.monotonic()
    try:
        document = _measure(only or PARTS, QUICK if quick else WHOLE)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing is written", err=True)
        raise typer.Exit(130) from None
    document["made"] = {**where(), "took": f"{(time.monotonic() - began) / 60:.1f} minutes"}
    typer.echo(page(document))
    if out is None and (only or quick):
        typer.echo("nothing is written: this was not the whole of it (--out DIR writes it all the same)")
        return
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    _draw(document, folder)
    typer.echo(f"written to {folder}")


def _measure(parts: Iterable[str], size: Size) -> Document:
    document: Document = {
        "made": {},
        "versions": _versions(),
        "pure": {},
        "loopback": {},
        "failing": {},
        "scale": {},
        "held": {},
        "imports": {},
    }
    for part in PARTS:
        if part in parts:
            typer.echo(f"{part} …", err=True)
            _MEASURES[part](document, size)
    return document


def _versions() -> dict[str, str]:
    packages = sorted({package for contender in CONTENDERS.values() for package in contender.packages})
    return {package: version(package) for package in packages}


def _pure(document: Document, size: Size) -> None:
    for telemetry in TELEMETRY:
        samples = _asked(pure, telemetry, size.pure_rounds)
        document["pure"][telemetry] = {name: figure(each) for name, each in samples.items()}


def _loopback(document: Document, size: Size) -> None:
    job = Job(size.calls, 50)
    for name, spent in _interleaved(CONTENDERS, [job] * size.rounds).items():
        document["loopback"][name] = {
            "cpu": figure([each.cpu for each in spent]),
            "wall": figure([each.wall for each in spent]),
        }


def _failing(document: Document, size: Size) -> None:
    names = [name for name, one in CONTENDERS.items() if one.retries and one.telemetry == "none"]
    for failures in (0, 1, 2, 4):
        job = Job(size.calls // 3, 50, failures)
        for name, spent in _interleaved(names, [job] * size.rounds).items():
            document["failing"].setdefault(name, {})[str(failures)] = figure([each.cpu for each in spent])


def _scale(document: Document, size: Size) -> None:
    for at_once in size.at_once:
        # A slow server, so that all calls are in flight; at 10,000 the client is the slow part.
        job = Job(max(2 * at_once, 3000), at_once, wait=0.02)
        # Alternately with and without garbage collection, whose cost grows with the objects in memory.
        jobs = [job, job._replace(collect=False)] * size.scale_rounds
        # Throttle lets one more pass for every second answer: it takes so many calls until that many are in flight, and
        # their connections open.
        warm = [job._replace(calls=max(3 * at_once, 1000)), job]
        for name, spent in _interleaved(("aiohttp", "lamella"), jobs, warm).items():
            for what, found in ((name, spent[::2]), (f"{name}, gc disabled", spent[1::2])):
                document["scale"].setdefault(what, {})[str(at_once)] = figure([each.cpu for each in found])


def _held(document: Document, size: Size) -> None:
    for what in HELD:
        document["held"][what] = {
            "bytes": figure([_asked(held, what, size.held, True) for _ in range(size.held_rounds)]),
            "cpu": figure([_asked(held, what, size.held, False) for _ in range(size.held_rounds)]),
        }


def _imports(document: Document, size: Size) -> None:
    import_times()  # what is compiled by now is not compiled again
    times = [import_times() for _ in range(size.imports)]
    document["imports"] = {name: figure([each[number] for each in times]) for number, name in enumerate(IMPORTS)}


_MEASURES = {
    "pure": _pure,
    "loopback": _loopback,
    "failing": _failing,
    "scale": _scale,
    "held": _held,
    "imports": _imports,
}


def _asked(target: Any, *arguments: Any) -> Any:
    """Return what *target* sends from a separate process."""
    with child(target, *arguments) as (process, pipe):
        return receive(process, pipe, PATIENCE)


def _interleaved(names: Iterable[str], jobs: Iterable[Job], warm: Iterable[Job] = ()) -> dict[str, list[Spent]]:
    """Return the time of each job per contender. All contenders do a job, one after another, before the next job.

    Those of *warm* come before, and do not count. If there are none, it is the first of *jobs*.

    Each has a server of its own: one that kept the connections of them all would run out of files.
    """
    with ExitStack() as stack:
        workers = {}
        for name in names:
            url = receive(*stack.enter_context(child(serve)), GRACE)
            workers[name] = stack.enter_context(child(work, name, url))
        jobs = list(jobs)
        warm = list(warm) or jobs[:1]
        spent: dict[str, list[Spent]] = {name: [] for name in workers}
        for number, job in enumerate([*warm, *jobs]):
            for name, (process, pipe) in workers.items():
                pipe.send(job._replace(calls=int(job.calls * CONTENDERS[name].share)))
                took = receive(process, pipe, PATIENCE)
                if number >= len(warm):
                    spent[name].append(took)
        return spent


def _draw(document: Document, folder: Path) -> None:
    from benchmarks.costs.plot import draw  # matplotlib takes a second, which no child should need

    (folder / "cost.md").write_text(page(document), "utf-8")
    draw(document, folder / "cost.png")


if __name__ == "__main__":
    app()
