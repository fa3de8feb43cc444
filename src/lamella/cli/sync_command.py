"""``lamella sync``: its options, its screens and its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.console import Console
from typer.core import TyperCommand

from lamella import whole_file
from lamella.batch import JournalError
from lamella.cli import report, sandboxed, summary
from lamella.cli.accounts import others_can_read
from lamella.cli.check import Check
from lamella.cli.display import display_on
from lamella.cli.sync import Settings, Synced, planned, run
from lamella.cli.sync_json import plan_as_json, synced_as_json
from lamella.cli.sync_options import JOURNAL, Options, settings_of
from lamella.cli.terminal import console as make_console
from lamella.cli.terminal import fail, show, warn
from lamella.cli.traces import Trace, interest
from lamella.cli.words import count, duration, plain, some
from lamella.redaction import one_line

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from lamella.cli.kept import KeptTraces
    from lamella.cli.otlp import Outlet

__all__ = ["EXIT_CODES", "SyncCommand", "sync"]

EXIT_CODES: Final = """\b
Exit codes:
  0    all is done
  1    something failed, as told at the end
  2    bad usage, or the journal cannot be opened: nothing was sent
  130  interrupted (Ctrl-C, SIGTERM): --resume goes on from there
With --sandbox the failures are the play: 0 if all checks hold, else 1."""

SERVICE: Final = "lamella-sync"
"""The service's name on the spans."""

_CALLS_AT_A_TIME: Final = 5000
"""For so many calls there is room until their spans are sent."""
_OUTLET_PAUSE: Final = 15.0
"""Seconds for which an endpoint that fails is left alone."""
_INTERRUPTED: Final = 130
_SHOWN: Final = 10
"""Resources that are named on the page."""

_T = TypeVar("_T")


class SyncCommand(TyperCommand):
    """Tells errors of usage in one line, as the log of a job wants them."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the arguments."""
        with _in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _in_one_line():
            return super().invoke(ctx)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        # Not by its class: that of all errors of usage has a place and a name in typer that change.
        message = getattr(exc, "format_message", None)
        if message is None:
            raise
        fail(message())


def sync(
    ctx: typer.Context,
    *,
    accounts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The accounts, as CSV or TOML. Else: MAESN_ACCOUNT_KEY.")
    ] = None,
    resources: Annotated[
        list[str] | None, typer.Option("--resource", metavar="NAME", help="What to read: invoices, … Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All records in a file: .jsonl, .sqlite, .db, .parquet.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"What is known from run to run. Else: {JOURNAL}.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last run where it has ended.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="ISO", help="What was changed since then. Else: since the last run.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N", help="So many pages at a time. Else: four an account.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read, and send nothing.")] = False,
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="Send the spans there: http://localhost:4318.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout, the rest on stderr.")] = False,
    page: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Show the calls on a page for a browser.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the API is. Else: MAESN_BASE_URL, or Maesn's.")
    ] = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="With made-up accounts, at a server here that misbehaves.")
    ] = False,
) -> None:
    """Bring the records of many accounts up to date.

    What has changed since the last run is read into the journal, page by page; the output gets all that is in it. The
    API key is taken from MAESN_API_KEY.
    """
    if ctx.args:
        fail("there is something beside the options, and it takes nothing else: see lamella sync --help")
    options = Options(
        accounts,
        tuple(resources or ()),
        output,
        journal,
        resume,
        since,
        concurrency,
        dry_run,
        otlp,
        as_json,
        page,
        base_url,
        sandbox,
    )
    try:
        with _folder_for(options) as folder:
            code = _run(options, folder)
    except (KeyboardInterrupt, asyncio.CancelledError):
        _warn_and_show("interrupted", options)
        code = _INTERRUPTED
    raise typer.Exit(code)


def _folder_for(options: Options) -> AbstractContextManager[str]:
    """Where a sandbox's sync keeps what nobody has asked for."""
    return TemporaryDirectory(prefix="lamella-") if options.sandbox else nullcontext("")


def _run(options: Options, folder: str) -> int:
    try:
        settings = settings_of(options, Path(folder))
        tracing = _tracing(options)
    except (ValueError, ModuleNotFoundError) as exc:
        fail(str(exc))
    if options.accounts is not None and others_can_read(options.accounts):
        warn(f"others on this machine can read the keys in {options.accounts}: chmod 600 it")
    console = make_console(stderr=options.as_json)
    if options.dry_run:
        parts = _opened(lambda: asyncio.run(planned(settings)))
        if options.as_json:
            typer.echo(json.dumps(plan_as_json(parts), indent=2))
        else:
            show(console, summary.dry_run(parts))
        return 0
    if options.sandbox:
        console.print(
            f"{count(len(settings.accounts), 'account')}, all made up, at a server on this machine that misbehaves.\n"
            f"The waits are shortened: a minute of the rules takes {duration(60 * sandboxed.SCALE)}.\n"
        )
    ended = _opened(lambda: asyncio.run(_sync(options, settings, console, tracing)))
    return _tell(console, options, ended, tracing)


def _opened(work: Callable[[], _T]) -> _T:
    """What *work* returns, unless the journal cannot be opened."""
    try:
        return work()
    except JournalError as exc:
        fail(f"--journal: {exc}")


@dataclass(frozen=True, slots=True)
class _Ended:
    """What was to be done, what has come of it, and what was checked of that: in a play, else nothing."""

    settings: Settings
    synced: Synced
    checks: tuple[Check, ...]


async def _sync(options: Options, settings: Settings, console: Console, tracing: _Tracing | None) -> _Ended:
    async with _stage(options, settings) as stage:
        settings = settings if stage is None else stage.settings
        synced = await run(settings, display_on(console), None if tracing is None else tracing.provider)
        if stage is None or synced.interrupted or synced.fault:
            return _Ended(settings, synced, ())
        return _Ended(settings, synced, sandboxed.checks(stage, synced))


@asynccontextmanager
async def _stage(options: Options, settings: Settings) -> AsyncIterator[sandboxed.Stage | None]:
    if not options.sandbox:
        yield None
        return
    async with sandboxed.play(settings) as stage:
        yield stage


@dataclass(frozen=True, slots=True)
class _Tracing:
    """Where the spans go."""

    provider: TracerProvider
    kept: KeptTraces
    outlet: Outlet | None


def _tracing(options: Options) -> _Tracing | None:
    """What --otlp, --report and --sandbox need. None: none of them is asked for.

    Raises:
        ValueError: Something that they need is missing or switched off, or an argument is not as it must be.
    """
    asked = {"--otlp": options.otlp is not None, "--report": options.page is not None, "--sandbox": options.sandbox}
    names = [name for name, is_asked in asked.items() if is_asked]
    if not names:
        return None
    try:
        from lamella.cli import kept, otlp
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        raise ValueError(f"{names[0]} needs OpenTelemetry's SDK: pip install 'lamella[cli,sdk]'") from None
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise ValueError(f"{names[0]} needs OpenTelemetry's SDK, and OTEL_SDK_DISABLED switches it off")
    if options.page is not None:
        if find_spec("jinja2") is None:
            raise ValueError("jinja2 is missing: pip install 'lamella[cli]'")
        try:
            whole_file.check(options.page)
        except OSError as exc:
            raise ValueError(f"--report: cannot be written: {exc.strerror or exc}: {options.page}") from None
    outlet = None
    if options.otlp is not None:
        try:
            outlet = otlp.Outlet(otlp.endpoint(options.otlp), _OUTLET_PAUSE)
        except ValueError as exc:
            raise ValueError(f"--otlp: {exc}") from None
    provider = otlp.make_provider(SERVICE, outlet, _CALLS_AT_A_TIME)
    traces = kept.KeptTraces()
    provider.add_span_processor(traces)
    return _Tracing(provider, traces, outlet)


def _tell(console: Console, options: Options, ended: _Ended, tracing: _Tracing | None) -> int:
    """Tell what has come of it, and return the exit code."""
    settings, synced, checks = ended.settings, ended.synced, ended.checks
    code = synced.exit_code
    if checks:
        # There the failures are the play.
        code = 1 if any(check.fault for check in checks) else 0
    causes = summary.causes(synced.parts, settings.secrets)
    totals = summary.totals(synced, None if tracing is None else tracing.kept)
    show(console, report.outcome(totals), report.failures(causes))
    if options.output is not None or options.journal is not None or not options.sandbox:
        has_ended = not synced.interrupted and synced.fault is None
        journal = None if options.sandbox and options.journal is None else settings.journal
        show(console, summary.where_it_is(options.output, journal, synced.parts, ended=has_ended))
    if checks and tracing is not None:
        _show_a_tree(console, tracing.kept.traces)
    if checks:
        show(console, report.verdict(checks))
    if options.page is not None and tracing is not None:
        page_code = _write_page(console, options.page, ended, tracing.kept)
        code = code or page_code
    if tracing is not None and tracing.outlet is not None:
        from lamella.cli.otlp import deliver

        show(console, report.delivery(deliver(tracing.provider, tracing.outlet, tracing.kept.spans)))
    if options.as_json:
        found = synced_as_json(
            synced, causes, output=options.output, exit_code=code, secrets=settings.secrets, checks=checks
        )
        typer.echo(json.dumps(found, indent=2))
    _last_line(console, options, ended, code)
    return code


def _show_a_tree(console: Console, found: tuple[Trace, ...]) -> None:
    """The call with the most to see in it, of those that ended well after several sends."""
    retried = [trace for trace in found if trace.succeeded and len(trace.sends) > 1]
    if retried:
        show(console, report.titled("A call that ended well", report.tree(max(retried, key=interest))))


def _write_page(console: Console, path: Path, ended: _Ended, kept: KeptTraces) -> int:
    """Write it, and return the exit code that this has come to."""
    from lamella.cli.html import Page, html_report

    settings, synced = ended.settings, ended.synced
    about = (
        f"Run {synced.run} of {settings.journal.name}: {some(settings.resources, _SHOWN)} of "
        f"{count(len(settings.accounts), 'account')} at {settings.base_url}."
    )
    content = html_report(
        Page(
            name="lamella sync",
            title=f"run {synced.run}",
            about=" ".join((about, *summary.remarks(synced.parts))),
            totals=summary.totals(synced, kept),
            causes=summary.causes(synced.parts, settings.secrets),
            checks=ended.checks,
            traces=kept.traces,
            note=kept.note,
        )
    ).encode()
    try:
        whole_file.write(path, content, mode=whole_file.PRIVATE)  # it names the end users
    except OSError as exc:
        warn(f"cannot write the page: {exc.strerror or exc}: {path}")
        return 1
    show(console, report.page(path, len(content)))
    return 0


def _last_line(console: Console, options: Options, ended: _Ended, code: int) -> None:
    synced = ended.synced
    if ended.checks:
        faults = [check.fault for check in ended.checks if check.fault]
        if faults:
            warn("; ".join(faults))
        elif not code:
            console.print("All of it is as it must be: these failures are the play (exit code 0).")
    elif synced.interrupted:
        _warn_and_show("interrupted", options)
    elif synced.fault is not None:
        _warn_and_show(plain(synced.fault), options)
    elif code:
        failed = sum(not part.done for part in synced.parts)
        why = summary.no_answer(synced.parts)
        told = f"{failed:,} of {count(len(synced.parts), 'part')} failed" + (f": {plain(why)}" if why else "")
        _warn_and_show(told, options)


def _warn_and_show(what: str, options: Options) -> None:
    """Tell *what* has happened, and how to go on. Nothing is cut: it is to be copied."""
    if options.sandbox and options.journal is None:
        typer.echo(f"lamella: {what}; with --journal FILE --resume could go on from there", err=True)
    else:
        typer.echo(f"lamella: {what}; go on with: {one_line(options.to_go_on())}", err=True)
