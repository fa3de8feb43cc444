"""The commands and their options. Each command imports its code when it runs, so that --help is quick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from lamella.cli.dataset import app as dataset_app
from lamella.cli.terminal import fail, make_console, show

_NO_COLORS: Final = "NO_COLOR=1"
# Without rich's markup typer writes help and errors plainly, which suits a pipe and 80 columns.
app: typer.Typer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=f"Run 'lamella COMMAND --help' for the options of a command. {_NO_COLORS} turns colours off.",
)

app.add_typer(dataset_app, name="dataset")

_EXIT_CODES: Final = """\b
Exit codes:
  0    everything is done
  1    something failed; the end of the output says what
  2    bad usage, or the journal cannot be opened; nothing was sent
  130  interrupted by Ctrl-C or SIGTERM; --resume continues from there
With --sandbox the failures are injected: 0 if all checks pass, 1 if not."""


@contextmanager
def _usage_errors(parameter: str) -> Iterator[None]:
    """Turn a ValueError into a usage error about *parameter*."""
    try:
        yield
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=parameter) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lamella {version('lamella')}")
        raise typer.Exit


@app.callback()
def lamella(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Thin layers for an aiohttp session: auth headers, typed errors, retries, traces."""


class _OneLineErrors(TyperCommand):
    """Report usage errors in one line, which suits the log of a job."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as exc:
            # Not by class: typer versions move and rename the class of usage errors.
            if message := getattr(exc, "format_message", None):
                fail(message())
            raise

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reject a second output: otherwise the first one would be ignored without a word."""
        *_, order = self.make_parser(ctx).parse_args(list(args))
        for option, times in Counter(order).items():
            if option.name == "output" and times > 1:
                fail(f"--output may be given only once, got {times} of them")
        return super().parse_args(ctx, args)


def _value(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


_file = partial(_value, "FILE")


@app.command(cls=_OneLineErrors, context_settings={"allow_extra_args": True}, epilog=_EXIT_CODES)
def sync(
    ctx: typer.Context,
    *,
    accounts: Annotated[
        Path | None, _file("Read the accounts from a CSV or TOML file [default: MAESN_ACCOUNT_KEY]")
    ] = None,
    resources: Annotated[
        list[str] | None, _value("NAME", "Sync this list, such as invoices; may be repeated", "--resource")
    ] = None,
    params: Annotated[
        list[str] | None,
        _value("NAME=VALUE", "Set a query parameter of the lists, such as fiscalYear=2026; may be repeated", "--param"),
    ] = None,
    output: Annotated[Path | None, _file("Write all records to a .jsonl, .sqlite, .db or .parquet file")] = None,
    schema: Annotated[Path | None, _file("Read typed columns and child tables of the output from a TOML file")] = None,
    journal: Annotated[
        Path | None, _file("Keep what is known from run to run in this file [default: lamella-sync.journal]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last run where it ended")] = False,
    since: Annotated[str | None, _value("ISO", "Read what was changed since this time [default: the last run]")] = None,
    lookback: Annotated[
        str | None, _value("TIME", "Start this long before the last run, such as 12h or 7d [default: 5m]")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read whole lists and compare them with the journal")
    ] = False,
    full_every: Annotated[
        str | None, _value("TIME", "Verify each list whose last full reading is this old, such as 7d")
    ] = None,
    departed: Annotated[
        str | None,
        _value(
            "keep|mark|forget", "Choose what happens to records of accounts that have left the file [default: keep]"
        ),
    ] = None,
    concurrency: Annotated[
        str | None, _value("N", "Limit the pages in flight [default: four for each account]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be read, without sending anything")
    ] = False,
    otlp: Annotated[
        str | None, _value("URL", "Send the spans to this OTLP endpoint, such as http://localhost:4318")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout and everything else on stderr")
    ] = False,
    page: Annotated[Path | None, _value("FILE.html", "Write an HTML page with the calls", "--report")] = None,
    base_url: Annotated[
        str | None, _value("URL", "Call the API at this address [default: MAESN_BASE_URL, or Maesn's]")
    ] = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Use made-up accounts and a server on this machine")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing unless something fails")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print each failed attempt on stderr, and the wait after it")
    ] = False,
    dask: Annotated[
        str | None, _value("ADDRESS", "Sync on Dask (tcp://host:8786, or local:4) into a folder given by --output")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=99_999, help="Split a new --dask output so [default: 64]")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet files in a new --dask output")] = False,
) -> None:
    """Sync the records of many accounts.

    Reads what has changed since the last run into the journal, page by page, and writes all records of the journal to
    the output. MAESN_API_KEY holds the API key.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "ctx"}
    if ctx.args:
        # The argument may be a key, so it is not shown.
        fail("sync takes only options, got an argument: see lamella sync --help")
    from lamella.cli.options import Options

    options = Options(**{**given, "resources": tuple(resources or ()), "params": tuple(params or ())})
    if dask is not None:
        from lamella.cli import on_dask

        raise typer.Exit(on_dask.main(options))
    if shards is not None or parquet:
        fail("--shards and --parquet are for --dask: leave them out")
    from lamella.cli import sync as syncing

    raise typer.Exit(syncing.main(options))


@app.command()
def sandbox(
    *,
    host: Annotated[str, typer.Option(help="Listen on this address")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen on this port; 0 takes a free one")] = 8080,
    accounts: Annotated[int, typer.Option(min=1, help="Serve this many accounts")] = 3,
    limit: Annotated[
        str | None, typer.Option(metavar="REQUESTS/SECONDS", help="Limit each account, such as 100/60")
    ] = None,
    chance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTCOME=CHANCE", help="Fail this often, such as 500=0.05 or cut_body=0.01; may be repeated"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed the records and the failures")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no line for each request")] = False,
) -> None:
    """Serve a local API like Maesn's until Ctrl-C."""
    from lamella.cli import sandbox as serving

    with _usage_errors("--limit"):
        limits = None if limit is None else serving.parse_limit(limit)
    with _usage_errors("--chance"):
        chances = dict(map(serving.parse_chance, chance or ()))
    serving.main(host=host, port=port, accounts=accounts, limit=limits, chances=chances, seed=seed, quiet=quiet)


@app.command(cls=_OneLineErrors)
def fleet(
    url: Annotated[
        str | None,
        typer.Argument(help="redis://, rediss://, unix:// or postgresql://, no password [default: LAMELLA_STORE_URL]"),
    ] = None,
    *,
    account: Annotated[
        str, _value("HASH", "Show only the accounts whose hashes begin so, as in the log [default: all]")
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Show this many accounts")] = 20,
    prefix: Annotated[str | None, _value("TEXT", "The prefix of all keys in Redis [default: lamella:]")] = None,
    table: Annotated[str | None, _value("NAME", "The table in PostgreSQL [default: lamella]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Show what a store knows that many processes share.

    Prints the limit, permits and holders of each account, the circuits and the retry budget. Changes nothing, and shows
    no credentials: accounts are hashes. LAMELLA_STORE_URL may contain a password.
    """
    from lamella.cli import fleet as showing

    showing.main(url, prefix, table, showing.Chosen(account, limit), as_json=as_json)


@app.command()
def explain(
    status: Annotated[
        str | None, typer.Argument(help="A status or failure, such as 429, 4xx or connection_lost [default: all]")
    ] = None,
    rules: Annotated[
        str | None, _value("MODULE:BOOK", "Explain this RuleBook, such as package.module:BOOK [default: Maesn's]")
    ] = None,
) -> None:
    """Explain what a failure means and what follows.

    Prints its hint, whether it is retried, and the wait before each retry.
    """
    from lamella.cli import explain as explaining
    from lamella.maesn import RULES

    with _usage_errors("--rules"):
        book = RULES if rules is None else explaining.book_of(rules)
    if status is None:
        show(make_console(), explaining.all_rules(book))
        return
    with _usage_errors("STATUS"):
        name, outcome = explaining.parse(book, status)
    show(make_console(), explaining.one_rule(book, name, outcome))
