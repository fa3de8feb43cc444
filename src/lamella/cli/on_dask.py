"""``lamella sync --dask``: the accounts of a file on the workers of a Dask cluster."""

# distributed is an extra.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.live import Live

from lamella import maesn
from lamella.cli.accounts import others_can_read
from lamella.cli.options import Options, options_on_workers, say_how_to_go_on, why_not_forgotten
from lamella.cli.process import cancelled_by_signals
from lamella.cli.terminal import count, duration, fail, line, make_console, print_json, warn
from lamella.dataset import DatasetError, DatasetProgress, DatasetReport
from lamella.redaction import one_line, redact_text
from lamella.sync import TooManyDeparted

if TYPE_CHECKING:
    from distributed import Client

_LOCAL: Final = re.compile(r"local:([1-9][0-9]{0,3})")
_ADDRESS: Final = re.compile(r"(?:(?:tcp|tls|ucx|ws|wss)://)?[^\s/:@]+:[0-9]{1,5}")
_LINE_EVERY: Final = 10.0
"""Seconds between two lines if the output is not a terminal."""
_ENDING: Final = "Ending: running shards have 20 s. Ctrl-C again ends at once."


def main(options: Options) -> int:
    """Sync on the workers, show the result and return the exit code."""
    try:
        _check_dask(options.dask or "")
        given = options_on_workers(options)
    except ValueError as exc:
        fail(redact_text(str(exc)))
    if others_can_read(given["accounts"]):
        warn(f"others on this machine can read the keys in {options.accounts}: chmod 600 it")
    console = make_console(stderr=options.as_json)
    try:
        report = asyncio.run(_sync(options.dask or "", given, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say_how_to_go_on("interrupted", options)
        return 130
    except TooManyDeparted as exc:
        fail(why_not_forgotten(exc))
    except (DatasetError, ValueError, OSError) as exc:
        fail(redact_text(one_line(str(exc))))
    return _tell(console, report, options)


def _check_dask(text: str) -> None:
    if not (_LOCAL.fullmatch(text) or (_ADDRESS.fullmatch(text) and not text.startswith("local:"))):
        raise ValueError("--dask must be the address of a scheduler, such as tcp://host:8786, or local:4")
    if find_spec("distributed") is None:
        raise ValueError("Dask is missing: pip install 'lamella[dask]'")


async def _sync(address: str, given: dict[str, Any], console: Console) -> DatasetReport:
    async with _client(address) as client:
        with _shown(console) as show:
            syncing = asyncio.create_task(maesn.sync(**given, on=client, on_progress=show))
            with cancelled_by_signals(syncing, partial(typer.echo, _ENDING, err=True), once=True):
                return await syncing


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[Client]:
    from distributed import Client, LocalCluster

    # It logs each worker that joins or leaves. The report shows the important events.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if (local := _LOCAL.fullmatch(address)) is None:
        try:
            async with Client(address, asynchronous=True, set_as_default=False) as client:
                yield client
        except TimeoutError as exc:
            raise OSError(f"--dask: there is no scheduler at {address}") from exc
        return
    async with (
        LocalCluster(
            n_workers=int(local[1]), threads_per_worker=1, dashboard_address=None, asynchronous=True
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _shown(console: Console) -> Iterator[Any]:
    """Yield a function that shows the progress: on a terminal in one changing line, otherwise in periodic lines."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield lambda progress: live.update(line(_words(progress)))
        return
    last = time.monotonic()

    def show(progress: DatasetProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            console.print(_words(progress), soft_wrap=True)

    yield show


def _words(progress: DatasetProgress) -> str:
    counts = progress.counts.values()
    pages = progress.result.pages + sum(each.pages for each in counts)
    records = progress.result.records + sum(each.records for each in counts)
    failed = progress.result.parts - progress.result.done + sum(each.failed for each in counts)
    told = (
        f"run {progress.run}: {progress.ended:,} of {count(progress.shards, 'shard')} ended, {len(counts)} running,"
        f" {pages:,} pages, {records:,} records"
    )
    return f"{told}, {failed:,} failed" if failed else told


def _tell(console: Console, report: DatasetReport, options: Options) -> int:
    """Show the result and return the exit code."""
    result, code = report.result, int(not report.done or report.result.misfits > 0)
    if options.as_json:
        print_json({"version": 1, **asdict(report), "exit_code": code})
    told = f"Run {report.run}: {result.done:,} of {count(result.parts, 'part')} done"
    skipped = f", {count(report.skipped, 'shard')} were done before" if report.skipped else ""
    console.print(
        f"{told} in {count(report.shards, 'shard')}{skipped}, {result.pages:,} pages, {result.records:,} records that"
        f" were new or had changed, in {duration(report.took)}.",
        soft_wrap=True,
    )
    if result.misfits:
        console.print(f"{count(result.misfits, 'value')} do not fit {options.schema}. They are null in the tables.")
    for account, resource, error in result.failures:
        console.print(redact_text(f"{resource} of {account}: {one_line(error)}"), soft_wrap=True)
    for shard, error in report.errors:
        console.print(redact_text(f"shard {shard}: {one_line(error)}"), soft_wrap=True)
    failed = result.parts - result.done
    if failed or report.errors:
        what = f"{failed:,} of {count(result.parts, 'part')} failed"
        say_how_to_go_on(
            f"{what}, {count(len(report.errors), 'shard')} have not ended" if report.errors else what, options
        )
    return code
