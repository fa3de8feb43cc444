"""The commands: arguments in, a screen and an exit code out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from lamella.cli import explain as explaining
from lamella.cli.serve import line_for, parse_chance, parse_limit, serve
from lamella.cli.sync_command import EXIT_CODES, SyncCommand, sync
from lamella.cli.terminal import console as make_console
from lamella.cli.terminal import fail, show
from lamella.cli.words import count, plain
from lamella.maesn.sandbox import Received, Sandbox

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
