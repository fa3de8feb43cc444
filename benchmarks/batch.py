"""Measure the overhead of `lamella.batch` for a million items, compared with other ways to call a function.

    python benchmarks/batch.py              everything, some 8 minutes; writes benchmarks/results
    python benchmarks/batch.py --quick      a tenth of the items, once, to try something out

It needs the extra `bench`. A quick one is written only where --out says.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, cast

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.batches.contenders import CONTENDERS, Contender
from benchmarks.batches.measure import Sample, measure
from benchmarks.batches.report import Document, line, page
from benchmarks.machine import where
from benchmarks.report import ContenderNote

RESULTS = Path(__file__).resolve().parent / "results"
FEW, MANY = 10_000, 1_000_000

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def batch(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the items, and each contender once.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write to.", file_okay=False)] = None,
    note: Annotated[str | None, typer.Option(help="What one has to know of this run, for the page.")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Measure nothing: the page again from batch.json.")] = False,
) -> None:
    """Measure, show the page, and write batch.json and batch.md."""
    if redraw:
        folder = out or RESULTS
        document = cast(Document, json.loads((folder / "batch.json").read_text("utf-8")))
        (folder / "batch.md").write_text(page(document), "utf-8")
        return
    many = MANY // 10 if quick else MANY
    began = time.monotonic()
    try:
        samples = _measure_all(many, once=quick)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; nothing is written", err=True)
        raise typer.Exit(130) from None
    document = {
        "made": {
            **where(),
            "took": f"{(time.monotonic() - began) / 60:.0f} minutes",
            **({"note": note} if note else {}),
        },
        "few": FEW,
        "many": many,
        "contenders": [_contender_note(contender) for contender in CONTENDERS.values()],
        "samples": samples,
    }
    if out is None and quick:
        typer.echo("nothing is written: this was not the whole of it (--out DIR writes it all the same)")
        return
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batch.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / "batch.md").write_text(page(document), "utf-8")
    typer.echo(f"written to {folder}")


def _measure_all(many: int, *, once: bool) -> list[Sample]:
    """Measure alternately, so that a temporarily busy machine affects all contenders."""
    samples = []
    for number in range(1 if once else max(contender.rounds for contender in CONTENDERS.values())):
        for contender in CONTENDERS.values():
            if number < contender.rounds:
                for items in (FEW, many):
                    typer.echo(f"[{number + 1}] {contender.name}, {items:,} items: ", nl=False)
                    sys.stdout.flush()
                    sample = measure(contender.name, items)
                    typer.echo(line(sample))
                    samples.append(sample)
    return samples


def _contender_note(contender: Contender) -> ContenderNote:
    return {
        "name": contender.name,
        "versions": {package: version(package) for package in contender.packages},
        "configuration": inspect.getsource(contender.run),
    }


if __name__ == "__main__":
    app()
