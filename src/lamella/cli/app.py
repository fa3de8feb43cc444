"""The commands: arguments in, a screen and an exit code out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text
from typer.core import TyperCommand

from lamella.cli import explain as explaining
from lamella.cli import sync as syncing
from lamella.cli.dataset import app as dataset_app
from lamella.cli.options import JOURNAL, Options
from lamella.cli.terminal import count, fail, make_console, show
from lamella.maesn import RULES
from lamella.maesn.sandbox import Received, Sandbox
from lamella.redaction import redact_text
from lamella.testing import Fault, FixedWindow

# Without rich's markup typer writes help and errors plainly, which suits a pipe and 80 columns.
app: typer.Typer = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)

app.add_typer(dataset_app, name="dataset")

_MANY_KEYS: Final = 5
_SHOWN_OF_KEY: Final = 6  # characters

_EXIT_CODES: Final = """\b
Exit codes:
  0    all is done
  1    something failed, as shown at the end
  2    bad usage, or the journal cannot be opened: nothing was sent
  130  interrupted (Ctrl-C, SIGTERM): --resume goes on from there
With --sandbox the failures are injected: 0 if all checks hold, else 1."""


@contextmanager
def _usage_errors(parameter: str | None = None) -> Iterator[None]:
    """Turn a ValueError into a usage error about *parameter*."""
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


class _OneLineErrors(TyperCommand):
    """Reports usage errors in one line, which suits the log of a job."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the arguments."""
        try:
            return super().make_context(*args, **kwargs)
        except Exception as exc:
            # Not by its class: typer changes the place and name of the class of usage errors.
            if message := getattr(exc, "format_message", None):
                fail(message())
            raise


def _value(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


_file = partial(_value, "FILE")


@app.command(cls=_OneLineErrors, context_settings={"allow_extra_args": True}, epilog=_EXIT_CODES)
def sync(
    ctx: typer.Context,
    *,
    accounts: Annotated[Path | None, _file("The accounts: CSV or TOML. Else: MAESN_ACCOUNT_KEY.")] = None,
    resources: Annotated[
        list[str] | None, _value("NAME", "What to read: invoices, … Repeatable.", "--resource")
    ] = None,
    params: Annotated[
        list[str] | None, _value("NAME=VALUE", "What a list needs: fiscalYear=2026. Repeatable.", "--param")
    ] = None,
    output: Annotated[Path | None, _file("All records in a file: .jsonl, .sqlite, .db, .parquet.")] = None,
    schema: Annotated[Path | None, _file("Typed columns and child tables of the output: TOML.")] = None,
    journal: Annotated[Path | None, _file(f"What is kept from run to run. Else: {JOURNAL}.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run where it ended.")] = False,
    since: Annotated[str | None, _value("ISO", "What was changed since then. Else: since the last run.")] = None,
    lookback: Annotated[
        str | None, _value("TIME", "Read again so long before the last run: 12h, 7d. Else: 5m.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read whole lists; compare them with the journal.")] = False,
    full_every: Annotated[str | None, _value("TIME", "The same for lists not read in full for so long: 7d.")] = None,
    departed: Annotated[
        str | None, _value("keep|mark|forget", "Records of accounts that are not in the file. Else: keep.")
    ] = None,
    concurrency: Annotated[str | None, _value("N", "So many pages at a time. Else: four an account.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, and send nothing.")] = False,
    otlp: Annotated[str | None, _value("URL", "Send the spans there: http://localhost:4318.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout, the rest on stderr.")] = False,
    page: Annotated[Path | None, _value("FILE.html", "Show the calls on a page for a browser.", "--report")] = None,
    base_url: Annotated[str | None, _value("URL", "Where the API is. Else: MAESN_BASE_URL, or Maesn's.")] = None,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="With made-up accounts, at a server here.")] = False,
    dask: Annotated[str | None, _value("ADDRESS", "On Dask: tcp://host:8786, local:4. --output is a folder.")] = None,
    shards: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=99_999, help="Of a new --dask output. Else: 64.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="A new --dask output is of Parquet files.")] = False,
) -> None:
    """Bring the records of many accounts up to date.

    What has changed since the last run is read into the journal, page by page; the output gets all that is in it. The
    API key is taken from MAESN_API_KEY.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "ctx"}
    if ctx.args:
        # The argument may be a key: it is not shown.
        fail("sync takes options only, and there is another argument: see lamella sync --help")
    options = Options(**{**given, "resources": tuple(resources or ()), "params": tuple(params or ())})
    if dask is not None:
        from lamella.cli import on_dask

        raise typer.Exit(on_dask.main(options))
    if shards is not None or parquet:
        fail("--shards and --parquet are for --dask: leave them out")
    raise typer.Exit(syncing.main(options))


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
    console = make_console()
    served = 0

    def on_answer(received: Received) -> None:
        nonlocal served
        served += 1
        server.received.clear()  # it may run for days
        if not quiet:
            console.print(redact_text(line_for(received)), soft_wrap=True)

    with _usage_errors():
        server = Sandbox(
            host=host, port=port, accounts=accounts, limit=limits, chances=chances, seed=seed, on_answer=on_answer
        )
    try:
        asyncio.run(_serve(server, lambda: console.print(_greeting(server), soft_wrap=True)))
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        fail(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).partition(' (')[0]}")
    console.print(f"Stopped after {count(served, 'request')}.")


async def _serve(server: Sandbox, on_start: Callable[[], None]) -> None:
    """Serve until SIGTERM or a cancellation. Raises OSError if the address is not available."""
    terminated = asyncio.Event()
    with suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    async with server:
        on_start()
        await terminated.wait()


def parse_limit(text: str) -> FixedWindow:
    """Return the limit for ``"100/60"``: 100 requests in 60 seconds. Raises ValueError."""
    requests, _, per = text.partition("/")
    try:
        return FixedWindow(int(requests), float(per))
    except ValueError:
        raise ValueError(f"{redact_text(repr(text))} is not like 100/60, requests/seconds") from None


def parse_chance(text: str) -> tuple[int | Fault, float]:
    """Return outcome and chance for ``"500=0.05"`` or ``"cut_body=0.01"``. Raises ValueError."""
    name, _, chance = text.partition("=")
    name = name.strip()
    faults = {fault.name.lower(): fault for fault in Fault}
    try:
        outcome = int(name) if name.isdigit() else faults[name.lower().replace("-", "_")]
        return outcome, float(chance)
    except (KeyError, ValueError):
        names = "\n".join(f"  {name}" for name in faults)
        raise ValueError(
            f"{redact_text(repr(text))} is not like 500=0.05. In place of the 500, one of\n{names}"
        ) from None


def _greeting(server: Sandbox) -> Text:
    keys = [account.key for account in server.accounts]
    shown = keys if len(keys) <= _MANY_KEYS else [keys[0], "…", keys[-1]]
    return Text(
        f"Listening on {server.url} (Ctrl-C stops it). All keys are made up.\n"
        f"  X-API-KEY      {server.api_key}\n" + "".join(f"  X-ACCOUNT-KEY  {key}\n" for key in shown) + "Try it:\n"
        f"  curl -H 'X-API-KEY: {server.api_key}' \\\n"
        f"       -H 'X-ACCOUNT-KEY: {keys[0]}' \\\n"
        f"       '{server.url}/accounting/invoices?limit=5'\n"
    )


def line_for(received: Received) -> str:
    """Return a request in a line, with the end of its account key only: someone may have sent a real one."""
    key = received.account
    account = "-" if key is None else f"…{key[-min(_SHOWN_OF_KEY, len(key) // 2) :]}"
    outcome = received.outcome.name.lower() if isinstance(received.outcome, Fault) else received.outcome
    return f"{outcome}  {received.method} {received.path}  {account}"


@app.command()
def explain(
    status: Annotated[str | None, typer.Argument(help="429, 500, 4xx, connection_lost, …; none: all.")] = None,
    rules: Annotated[str | None, _value("MODULE:BOOK", "Another RuleBook than Maesn's: package.module:BOOK.")] = None,
) -> None:
    """Explain what a failure means, by the rules for Maesn.

    And what to do about it, whether it is retried, and after which waits.
    """
    with _usage_errors("--rules"):
        book = RULES if rules is None else explaining.book_of(rules)
    if status is None:
        show(make_console(), explaining.all_rules(book))
        return
    with _usage_errors("STATUS"):
        name, outcome = explaining.parse(book, status)
    show(make_console(), explaining.one_rule(book, name, outcome))
