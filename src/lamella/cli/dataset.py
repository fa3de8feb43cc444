"""``lamella dataset``: list, verify and clean up the records that many workers have written.

Each command imports its code when it runs, so that --help is quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from lamella.cli.terminal import count, fail, make_console, show, warn

app: typer.Typer = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, verify and clean up a dataset written with --dask."
)

Place = Annotated[str, typer.Argument(metavar="DIR", help="The folder, or an s3:// URL.")]
_DAY: Final = 86400.0


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from lamella.dataset import DatasetError

    try:
        yield
    except (DatasetError, ModuleNotFoundError, OSError, ValueError) as exc:
        fail(str(exc))


@app.command("list")
def list_shards(place: Place) -> None:
    """Show the shards and the last run of each."""
    from rich.table import Table

    from lamella import dataset

    with _one_line_errors():
        commits, (run, ended) = dataset.shards(place), dataset.last_run(place)
    table = Table("shard", "run", "accounts", "records", "MB", "failed", "state", box=None, pad_edge=False)
    for commit in commits:
        files = [each for of_table in commit.files.values() for each in of_table]
        records = sum(each.rows or 0 for each in files)
        failed = int(commit.result.get("parts", 0)) - int(commit.result.get("done", 0))
        state = "ended" if commit.working is None else f"run {commit.working} has not ended: {commit.holder}"
        size = sum(each.size for each in files) / 1e6
        cells = (commit.shard, commit.run, len(commit.marks), f"{records:,}", f"{size:,.1f}", failed, state)
        table.add_row(*map(str, cells))
    console = make_console()
    show(console, table)
    console.print(f"Run {run} {'has ended' if ended else 'has not ended'}." if run else "No run yet.")


@app.command()
def files(
    place: Place,
    table: Annotated[
        str, typer.Option(metavar="NAME", help="List the files of this typed table [default: records]")
    ] = "records",
) -> None:
    """Print the current data files, one per line."""
    from lamella import dataset

    with _one_line_errors():
        for name in dataset.files(place, table):
            typer.echo(name)


@app.command()
def verify(place: Place) -> None:
    """Read all current files and print their faults. The exit code is 1 if there are any."""
    from lamella import dataset

    with _one_line_errors():
        faults = dataset.verify(place)
    for fault in faults:
        warn(str(fault))
    if faults:
        raise typer.Exit(1)
    make_console().print("All files are unchanged, and contain the records and marks of their journals.")


@app.command()
def clean(
    place: Place,
    older_than: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Remove only files of at least this age.")
    ] = _DAY,
) -> None:
    """Remove the obsolete files."""
    from lamella import dataset

    with _one_line_errors():
        removed = dataset.clean(place, older_than=older_than)
    make_console().print(f"{count(len(removed), 'file')} removed.")
