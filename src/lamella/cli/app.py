"""The commands: arguments in, a screen and an exit code out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lamella import whole_file
from lamella.cli import counting, report
from lamella.cli import explain as explaining
from lamella.cli.plan import FEWEST_ACCOUNTS, Settings
from lamella.cli.serve import line_for, parse_chance, parse_limit, serve
from lamella.cli.sync_command import EXIT_CODES, SyncCommand, sync
from lamella.cli.terminal import console as make_console
from lamella.cli.terminal import fail, show
from lamella.cli.words import count, plain
from lamella.testing import Received, Sandbox

__all__ = ["app"]

# Without rich's markup typer writes help and errors plainly, which suits a pipe and 80 columns.
app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_MANY_KEYS = 5


@contextmanager
def _usage_errors(parameter: str | None = None) -> Iterator[None]:
    """Turn a ValueError into an error of usage, about *parameter* if it is known."""
    try:
        yield
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=parameter) from None


@contextmanager
def _file_errors(path: Path, code: int = 2) -> Iterator[None]:
    """Tell in one line why *path* cannot be written."""
    try:
        yield
    except OSError as exc:
        fail(f"cannot write the page: {exc.strerror or exc}: {path}", code)


def _show_version(wanted: bool) -> None:
    if wanted:
        make_console().print(f"lamella {version('lamella')}")
        raise typer.Exit


@app.callback()
def lamella(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Thin layers for an aiohttp session: auth headers, typed errors, retries, traces."""


@app.command()
def demo(
    *,
    calls: Annotated[int, typer.Option(min=1, help="How many calls.")] = 300,
    accounts: Annotated[int, typer.Option(min=FEWEST_ACCOUNTS, help="For how many accounts.")] = 8,
    seed: Annotated[int, typer.Option(help="Another seed, other calls.")] = 1,
    scale: Annotated[
        float, typer.Option(min=0.0005, max=1.0, help="How long a second of the rules takes, in seconds.")
    ] = 0.005,
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="Send the spans there, too: http://localhost:4318.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Show every call on a page for a browser.")
    ] = None,
) -> None:
    """Make many calls to a server that misbehaves.

    They go through the whole stack, for several accounts at once; then it shows what became of them, and one of
    them as a trace.
    """
    try:
        from lamella.cli import demo as demonstration
        from lamella.cli import otlp as spans
        from lamella.cli.html import html_report
    except ModuleNotFoundError as exc:
        if exc.name == "jinja2":
            fail("jinja2 is missing: pip install 'lamella[cli]'")
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        fail("the demo needs OpenTelemetry's SDK: pip install 'lamella[cli,sdk]'")
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        fail("the demo needs OpenTelemetry's SDK, and OTEL_SDK_DISABLED switches it off")
    with _usage_errors("--otlp"):
        outlet = None if otlp is None else spans.Outlet(spans.endpoint(otlp))
    if page is not None:
        with _file_errors(page):
            whole_file.check(page)

    console = make_console()
    settings = Settings(calls, accounts, seed, scale)
    provider = spans.make_provider(demonstration.SERVICE, outlet, calls)
    console.print(
        f"{count(calls, 'call')} for {accounts} accounts to a server that misbehaves, by the seed {seed}.\n"
        f"The waits are shortened: a minute of the rules takes {60 * scale:.3g} s.\n"
    )
    done = 0
    try:
        with _progress(console, calls) as advance:

            def on_ended() -> None:
                nonlocal done
                done += 1
                advance()

            result = asyncio.run(demonstration.run(settings, provider, on_ended))
        checks = demonstration.checks(result)
        show(
            console,
            report.outcome(counting.totals(result)),
            report.failures(counting.causes(result)),
            report.trees(result),
            report.verdict(checks),
        )
        if page is not None:
            content = html_report(demonstration.page(result)).encode()
            with _file_errors(page, 1):
                whole_file.write(page, content)
            show(console, report.page(page, len(content)))
        show(
            console,
            report.how_to_deliver(demonstration.SERVICE, "lamella demo")
            if outlet is None
            else report.delivery(spans.deliver(provider, outlet, len(result.spans))),
        )
    except KeyboardInterrupt:
        fail(f"interrupted after {done} of {calls} calls", 130)
    faults = [check.fault for check in checks if check.fault]
    if faults:
        fail("; ".join(faults), 1)


@contextmanager
def _progress(console: Console, calls: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing in a pipe; what it gives is to be called after each call."""
    if not console.file.isatty():
        yield lambda: None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("calls", total=calls)
        yield lambda: progress.advance(task)


app.command(cls=SyncCommand, context_settings={"allow_extra_args": True}, epilog=EXIT_CODES)(sync)


@app.command()
def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8080,
    accounts: Annotated[int, typer.Option(min=1, help="How many end users there are.")] = 3,
    limit: Annotated[
        str | None, typer.Option(metavar="REQUESTS/SECONDS", help="The rate limit of each account, as in 100/60.")
    ] = None,
    chance: Annotated[
        list[str] | None,
        typer.Option(metavar="OUTCOME=CHANCE", help="How likely a failure is: 500=0.05, cut_body=0.01. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the records and the chances.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line per request.")] = False,
) -> None:
    """Serve an API like Maesn's on this machine, until Ctrl-C."""
    with _usage_errors("--limit"):
        limits = None if limit is None else parse_limit(limit)
    with _usage_errors("--chance"):
        chances = dict(map(parse_chance, chance or ()))
    with _usage_errors():
        server = Sandbox(host=host, port=port, accounts=accounts, limit=limits, chances=chances, seed=seed)

    console = make_console()
    served = 0

    def on_start() -> None:
        console.print(_greeting(server), soft_wrap=True)

    def on_request(received: Received) -> None:
        nonlocal served
        served += 1
        if not quiet:
            console.print(plain(line_for(received)), soft_wrap=True)

    try:
        asyncio.run(serve(server, on_start, on_request))
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        fail(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).partition(' (')[0]}")
    console.print(f"Stopped after {count(served, 'request')}.")


def _greeting(server: Sandbox) -> RenderableType:
    keys = [account.key for account in server.accounts]
    shown = keys if len(keys) <= _MANY_KEYS else [keys[0], "…", keys[-1]]
    return Text(
        f"Listening on {server.url} (Ctrl-C stops it). All keys are made up.\n"
        f"  X-API-KEY      {server.api_key}\n" + "".join(f"  X-ACCOUNT-KEY  {key}\n" for key in shown) + "Try it:\n"
        f"  curl -H 'X-API-KEY: {server.api_key}' \\\n"
        f"       -H 'X-ACCOUNT-KEY: {keys[0]}' \\\n"
        f"       '{server.url}/accounting/invoices?limit=5'\n"
    )


@app.command()
def explain(
    status: Annotated[str | None, typer.Argument(help="429, 500, 4xx, connection_lost, …; none: all.")] = None,
) -> None:
    """Explain what a failure means at Maesn.

    And what to do about it, whether it is sent again, and after which waits.
    """
    if status is None:
        show(make_console(), explaining.all_rules())
        return
    with _usage_errors("STATUS"):
        name, outcome = explaining.parse(status)
    show(make_console(), explaining.one_rule(name, outcome))
