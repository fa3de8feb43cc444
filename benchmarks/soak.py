"""Sync for ten minutes under random faults and check for memory growth and leaks.

    python benchmarks/soak.py               ten minutes; writes benchmarks/results
    python benchmarks/soak.py --minutes 2   shorter: written only where --out says

It needs the extra `bench`, and Linux, whose /proc tells what a process holds. It ends with 1 if something is not flat.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive
from benchmarks.soaking.client import Sample
from benchmarks.soaking.client import soak as client
from benchmarks.soaking.report import Document, faults, line, page
from benchmarks.soaking.server import CHANCES, serve

RESULTS = Path(__file__).resolve().parent / "results"
MINUTES = 10.0
EVERY = 10.0
PACKAGES = ("lamella", "aiohttp", "stamina", "opentelemetry-sdk")

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def soak(
    *,
    minutes: Annotated[float, typer.Option(min=0.5, help="For how long.")] = MINUTES,
    seed: Annotated[int, typer.Option(help="Another seed, other faults.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where to write to.", file_okay=False)] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Measure nothing: page and plot from soak.json.")] = False,
) -> None:
    """Measure, report whether it was flat, and write soak.json, soak.md and soak.png."""
    if not Path("/proc/self/fd").is_dir():
        typer.echo("not measured: it needs Linux, whose /proc tells what a process holds", err=True)
        raise typer.Exit(2)
    if redraw:
        _write(cast(Document, json.loads(((out or RESULTS) / "soak.json").read_text("utf-8"))), out or RESULTS)
        return
    try:
        samples = measure(60 * minutes, min(EVERY, 6 * minutes), seed)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing is written", err=True)
        raise typer.Exit(130) from None
    document: Document = {
        "made": {
            **where(),
            "took": f"{samples[-1]['at'] / 60:.1f} minutes",
            **{package: version(package) for package in PACKAGES},
        },
        "chances": {getattr(fault, "value", f"status {fault}"): chance for fault, chance in CHANCES.items()},
        "samples": samples,
    }
    if out is not None or minutes >= MINUTES:
        _write(document, out or RESULTS)
    else:
        typer.echo("nothing is written: this was not the whole of it (--out DIR writes it all the same)")
    wrong = faults(samples)
    typer.echo(f"not flat: {'; '.join(wrong)}" if wrong else "flat")
    raise typer.Exit(1 if wrong else 0)


def measure(seconds: float, every: float, seed: int) -> list[Sample]:
    """Soak for so many seconds, and return the samples. Raises RuntimeError if a process hangs or crashes."""
    samples: list[Sample] = []
    with child(serve, seed) as (server, at_server):
        url = receive(server, at_server, GRACE)
        with child(client, url, seconds, every, seed) as (process, pipe):
            while (sample := receive(process, pipe, every + 60 + GRACE)) is not None:
                samples.append(sample)
                typer.echo(line(sample))
        at_server.send("stop")
    return samples


def _write(document: Document, folder: Path) -> None:
    from benchmarks.soaking.plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / "soak.md").write_text(page(document), "utf-8")
    draw(document, folder / "soak.png")
    typer.echo(f"written to {folder}")


if __name__ == "__main__":
    app()
