"""A sync of 300,000 records of a kilobyte, and one behind a rate limit: lamella beside other ways to do it.

    python benchmarks/sync.py               everything, some ten minutes; writes benchmarks/results/sync.md
    python benchmarks/sync.py --quick       a tenth of it, shown and not written

It needs the extra `bench`. The server is another process, and each contender runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it does not know its package

from benchmarks.machine import where
from benchmarks.processes import GRACE, child, receive
from benchmarks.syncing import limited
from benchmarks.syncing.contenders import CONTENDERS
from benchmarks.syncing.server import LISTS, PAGES, SIZE, serve

RESULTS = Path(__file__).resolve().parent / "results" / "sync.md"
LONGEST = 1800.0  # seconds for one contender

INTRODUCTION = """\
# A sync

The same lists from the same server, read by several clients. `make bench-sync` wrote this page.

## {records:,} records of 1 KB

{accounts} accounts, 2 lists each, 5 pages of 100 records. CPU seconds and peak memory (`ru_maxrss`) are those of the
client's process, with its imports.

- *by hand* is aiohttp and aiohttp-retry: it decodes each page and writes lines. It has no journal, and proves nothing.
- *lamella* keeps a journal, and writes the same lines. *journal* is its size by the bytes of the records in it.
- *dlt* loads to JSON lines on the disk, without child tables.
- *Singer* is a tap alone, whose messages go to a file.
"""
LIMITED = """\
## Behind a limit of {rate} requests a second and account

{accounts} accounts, 2 lists each, {pages} pages of {size} records. The server answers 2 % of the requests with 500,
resets 0.25 % and cuts the body of 0.25 %; a 429 has `Retry-After: 1`.

- *time* is by the time that the limit needs for the pages and for the attempts that failed by chance.
- *attempts* is by page.
- *lamella* learns the limit; *lamella, limit stated* has `limits=Limit({rate}, per=1.0)`.
"""


def measure(name: str, url: str, accounts: int, folder: Path, pipe: Connection) -> None:
    """Run one contender, and send its CPU seconds, its seconds and its peak memory in MB."""
    began = time.perf_counter()
    CONTENDERS[name][1](url, accounts, folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024))


def measure_limited(name: str, url: str, accounts: int, folder: Path, pipe: Connection) -> None:
    """Run one contender behind the limit, and send how many different records it has."""
    asyncio.run(limited.CONTENDERS[name](url, accounts, folder))
    with (folder / "records.jsonl").open("rb") as lines:
        pipe.send(len(set(lines)))


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def sync(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the accounts; nothing is written.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="A contender, by name; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write to.", dir_okay=False)] = None,
) -> None:
    """Measure all contenders, and show the page."""
    names = dict.fromkeys((*CONTENDERS, *limited.CONTENDERS))
    if unknown := set(only or ()) - names.keys():
        raise typer.BadParameter(f"{unknown.pop()!r} is not one of: {', '.join(names)}", param_hint="--only")
    accounts, few = (30, 3) if quick else (300, 30)
    began, lines = time.monotonic(), []
    for line in _page(accounts, few, only):
        typer.echo(line)
        lines.append(line)
    took = f"{(time.monotonic() - began) / 60:.0f} minutes"
    packages = sorted({package for name, (of, _) in CONTENDERS.items() if not only or name in only for package in of})
    made = {**where(), "took": took, **{package: version(package) for package in packages}}
    lines += ["", "## Where and when", "", *(f"- {name}: {value}" for name, value in made.items()), ""]
    path = out or (None if quick or only else RESULTS)
    if path is not None:
        path.write_text("\n".join(lines), "utf-8")
        typer.echo(f"written to {path}")


def _page(accounts: int, few: int, only: list[str] | None) -> Iterator[str]:
    records = accounts * len(LISTS) * PAGES * SIZE
    yield INTRODUCTION.format(records=records, accounts=accounts)
    yield "| | CPU s | time s | peak MB | journal |\n|---|--:|--:|--:|--:|"
    with child(serve) as (server, said), tempfile.TemporaryDirectory() as name:
        url = receive(server, said, GRACE)
        for contender in CONTENDERS:
            if only and contender not in only:
                continue
            folder = Path(name, contender)
            folder.mkdir()
            for night in range(2 if contender == "lamella" else 1):
                with child(measure, contender, url, accounts, folder) as (process, pipe):
                    cpu, took, peak = receive(process, pipe, LONGEST)
                ratio, journal = "", folder / "journal"
                if journal.exists():
                    ratio = f"{journal.stat().st_size / kept_bytes(folder / 'records.jsonl'):.2f}"
                what = f"{contender}, nothing has changed" if night else contender
                yield f"| {what} | {cpu:.1f} | {took:.1f} | {peak:.0f} | {ratio} |"
    yield ""
    yield LIMITED.format(rate=limited.RATE, accounts=few, pages=limited.PAGES, size=limited.SIZE)
    yield "| | time | attempts | 429s | lost records |\n|---|--:|--:|--:|--:|"
    for contender in limited.CONTENDERS:
        if not only or contender in only:
            yield _limited(contender, few)


def _limited(contender: str, accounts: int) -> str:
    pages = accounts * len(limited.LISTS) * limited.PAGES
    with child(limited.serve, 1) as (server, said), tempfile.TemporaryDirectory() as name:
        url = receive(server, said, GRACE)
        with child(measure_limited, contender, url, accounts, Path(name)) as (process, pipe):
            stored = receive(process, pipe, LONGEST)
        said.send("done")
        took, attempts, refused, faults = receive(server, said, GRACE)
    least = limited.least((pages + faults) / accounts)
    lost = pages * limited.SIZE - stored
    return f"| {contender} | {took / least:.2f} | {attempts / pages:.3f} | {refused:,} | {lost:,} |"


def kept_bytes(path: Path) -> int:
    """Return how many bytes the records of an output have."""
    with path.open("rb") as lines:
        return sum(len(line.partition(b'"record":')[2]) - len("}\n") for line in lines)


if __name__ == "__main__":
    app()
