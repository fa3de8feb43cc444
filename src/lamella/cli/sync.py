"""``lamella sync``: run a sync with the given options, show and write the result, and return the exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
from rich.console import Console
from rich.text import Text
from yarl import URL

from lamella import maesn, whole_file
from lamella.batch import Journal, JournalError
from lamella.cli import report
from lamella.cli.accounts import others_can_read
from lamella.cli.causes import causes_of
from lamella.cli.display import Lines, Look, Screen, display_on, say_failed
from lamella.cli.options import Options, Settings, say_how_to_go_on, settings_of, why_not_forgotten
from lamella.cli.plan import show_plan
from lamella.cli.process import cancelled_by_signals, connections, without_stamina_hooks
from lamella.cli.progress import Watch
from lamella.cli.remarks import remarks, remarks_of_run
from lamella.cli.report import Check, Synced
from lamella.cli.terminal import count, duration, fail, make_console, print_json, show, some, warn
from lamella.redaction import redact_text
from lamella.retry.report import OnAttempt
from lamella.sync import Report, SchemaMismatch, TooManyDeparted
from lamella.throttle import Throttle

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from lamella.cli.otlp import Outlet
    from lamella.cli.traces import Collector

_ENDING: Final = "Stopping: requests in flight have 10 s to end. Press Ctrl-C again to stop at once."
_MOST_NAMES: Final = 10  # maximum of resources named on the page


class _Tracing(NamedTuple):
    """The destinations of the spans."""

    provider: TracerProvider
    collected: Collector
    outlet: Outlet | None


class _Ended(NamedTuple):
    """The settings, the result, and the checks (only with the sandbox)."""

    options: Options
    settings: Settings
    synced: Synced
    checks: tuple[Check, ...] = ()


def main(options: Options) -> int:
    """Sync, show the result, and return the exit code."""
    try:
        # With the sandbox, files that were not requested are in a temporary folder.
        with TemporaryDirectory(prefix="lamella-") if options.sandbox else nullcontext("") as folder:
            return _main(options, Path(folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say_how_to_go_on("interrupted", options)
        return 130
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        with suppress(OSError):
            say_how_to_go_on(f"{exc.filename or 'stdout'} cannot be written: {exc.strerror}", options)
        return 1


def _main(options: Options, folder: Path) -> int:
    try:
        settings = settings_of(options, folder)
        tracing = _tracing(options, settings)
    except (ValueError, ModuleNotFoundError) as exc:
        fail(str(exc))
    if options.accounts is not None and others_can_read(options.accounts):
        warn(f"other users can read the keys in {options.accounts}: run chmod 600 on it")
    console = make_console(stderr=options.as_json, quiet=options.quiet)
    try:
        if options.dry_run:
            show_plan(settings, console, as_json=options.as_json)
            return 0
        if options.sandbox:
            from lamella.cli import sandboxed

            console.print(
                f"{count(len(settings.accounts), 'generated account')} on a local server that fails on "
                f"purpose.\nWaits are shortened: a minute takes {duration(60 * sandboxed.SCALE)}.\n"
            )
        ended = asyncio.run(_sync(options, settings, console, tracing))
    except JournalError as exc:
        fail(f"--journal: {exc}")
    except TooManyDeparted as exc:
        fail(why_not_forgotten(exc))
    return _tell(console, ended, tracing)


async def _sync(options: Options, settings: Settings, console: Console, tracing: _Tracing | None) -> _Ended:
    say = say_failed if options.verbose else None
    provider = None if tracing is None else tracing.provider
    if not options.sandbox:
        return _Ended(options, settings, await run(settings, display_on(console), provider, say))
    from lamella.cli import sandboxed

    async with sandboxed.make_server(settings.resources) as sandbox:
        settings = replace(settings, base_url=URL(f"{sandbox.url}/"))
        synced = await run(settings, display_on(console), provider, say)
        if synced.interrupted or synced.fault:
            return _Ended(options, settings, synced)
        checks = sandboxed.checks(sandbox, settings.resources, settings.output, synced.parts)
        return _Ended(options, settings, synced, checks)


async def run(
    settings: Settings,
    showing: Callable[[Look], AbstractContextManager[Screen | Lines]],
    provider: TracerProvider | None = None,
    on_attempt: OnAttempt | None = None,
) -> Synced:
    """Run and show a sync until it ends or is interrupted (SIGINT, SIGTERM).

    Raises:
        JournalError: The journal cannot be opened; nothing was sent.
        asyncio.CancelledError: Interrupted before the sync began.
    """
    keys = settings.secrets.keys
    throttle = Throttle(settings.rules, key=lambda _: maesn.current_account(), tracer_provider=provider)
    watch = Watch(lambda name: throttle.blocked_for(settings.base_url, keys[name]))
    began = time.monotonic()
    fault = None
    with without_stamina_hooks(), showing(watch.look) as display:
        async with _drawn(display):
            syncing = asyncio.create_task(_sync_all(settings, throttle, watch, provider, on_attempt))
            with cancelled_by_signals(syncing, partial(display.note, _ENDING)):
                try:
                    done = await syncing
                    return Synced(
                        *(done.run, done.resumed, done.parts, done.took),
                        departed=done.departed,
                        misfits=done.misfits,
                        not_read=done.not_read,
                    )
                except (asyncio.CancelledError, JournalError, OSError) as exc:
                    if watch.progress is None:
                        raise
                    if isinstance(exc, JournalError):
                        fault = str(exc)
                    elif isinstance(exc, OSError):
                        fault = f"the output cannot be written: {exc.strerror or exc}: {settings.output}"
    found = watch.progress
    took = time.monotonic() - began
    return Synced(
        *(found.run, found.resumed, tuple(found.parts.values()), took, fault is None, fault),
        departed=found.departed,
        not_read=found.not_read,
    )


async def _sync_all(
    settings: Settings,
    throttle: Throttle,
    watch: Watch,
    provider: TracerProvider | None,
    on_attempt: OnAttempt | None,
) -> Report:
    async with (
        Journal.open(settings.journal, batch=settings.identity) as journal,
        maesn.session(
            settings.api_key,
            base_url=str(settings.base_url),
            rules=settings.rules,
            breaker=settings.breaker(),
            guard=maesn.ErrorGuard(),
            throttle=throttle,
            tracer_provider=provider,
            on_attempt=on_attempt,
            connector=aiohttp.TCPConnector(limit=connections()),
            proxy=settings.proxy,
        ) as session,
    ):
        return await maesn.sync(
            session,
            settings.accounts,
            settings.resources,
            journal=journal,
            output=settings.output,
            tables=settings.tables,
            since=settings.since,
            resume=settings.resume,
            lookback=settings.lookback,
            full_every=settings.full_every,
            departed=settings.departed,
            limit=settings.page_size,
            params=settings.params,
            at_once=settings.at_once,
            on_progress=watch.begun,
        )


@asynccontextmanager
async def _drawn(display: Screen | Lines) -> AsyncIterator[None]:
    """Update the display periodically and once at the end."""

    async def draw() -> None:
        while True:
            began = time.perf_counter()
            display.draw()
            # With many accounts an update is slow; spend at most a tenth of the time on it.
            await asyncio.sleep(max(display.every, 9 * (time.perf_counter() - began)))

    drawing = asyncio.create_task(draw())
    try:
        yield
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
        display.draw()


def _tracing(options: Options, settings: Settings) -> _Tracing | None:
    """Return the tracing for --otlp, --report and --sandbox; None if none of them is given.

    Raises ValueError if the SDK is missing or disabled, or an argument is invalid.
    """
    given = (("--otlp", options.otlp), ("--report", options.page), ("--sandbox", options.sandbox or None))
    name = next((name for name, value in given if value is not None), None)
    if name is None:
        return None
    with _needs_sdk(name):
        from lamella.cli import otlp, traces
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise ValueError(f"{name} needs OpenTelemetry's SDK, but OTEL_SDK_DISABLED disables it")
    if options.page is not None:
        if find_spec("jinja2") is None:
            raise ValueError("jinja2 is missing: pip install 'lamella[cli]'")
        try:
            whole_file.check(options.page)
        except OSError as exc:
            raise ValueError(f"--report: cannot be written: {exc.strerror or exc}: {options.page}") from None
    try:
        url = None if options.otlp is None else otlp.endpoint(options.otlp)
    except ValueError as exc:
        raise ValueError(f"--otlp: {exc}") from None
    with _needs_sdk(name):
        outlet = None if url is None else otlp.Outlet(url)
    provider, collected = otlp.make_provider(outlet), traces.Collector(account=settings.current_account)
    provider.add_span_processor(collected)
    return _Tracing(provider, collected, outlet)


@contextmanager
def _needs_sdk(option: str) -> Iterator[None]:
    """Turn a missing module of OpenTelemetry into a ValueError that names *option*."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        raise ValueError(f"{option} needs OpenTelemetry's SDK: pip install 'lamella[cli,sdk]'") from None


def _tell(console: Console, ended: _Ended, tracing: _Tracing | None) -> int:
    """Show the result and return the exit code."""
    options, settings, synced, checks = ended.options, ended.settings, ended.synced, ended.checks
    # With the sandbox failures are injected, so only the checks count.
    code = int(any(check.fault for check in checks) or synced.misfits.count > 0) if checks else synced.exit_code
    causes = causes_of(synced.parts, settings.secrets)
    if options.quiet:
        console = make_console(stderr=True, quiet=not code)
    show(console, report.outcome(report.totals(synced, tracing and tracing.collected)), report.failures(causes))
    if options.output is not None or options.journal is not None or not options.sandbox:
        has_ended = not synced.interrupted and synced.fault is None
        journal = None if options.sandbox and options.journal is None else settings.journal
        notes = _notes(settings, synced)
        show(console, report.where_it_is(options.output, journal, synced, notes, ended=has_ended))
    if checks:
        retried = [] if tracing is None else [trace for trace in tracing.collected.traces if trace.is_retried]
        if retried:
            from lamella.cli.traces import interest, tree

            show(console, report.titled("A successful call", tree(max(retried, key=interest))))
        show(console, report.verdict(checks))
    if tracing is not None:
        if options.page is not None:
            page_code = _write_page(console, options.page, ended, tracing.collected)
            code = code or page_code
        if tracing.outlet is not None:
            from lamella.cli.otlp import deliver

            delivery = deliver(tracing.provider, tracing.outlet, tracing.collected.spans)
            show(console, report.titled("Spans", delivery))
    if options.as_json:
        found = report.as_json(
            synced, causes, output=options.output, exit_code=code, secrets=settings.secrets, checks=checks
        )
        found["absent"] = [{"account": name, "resource": resource} for name, resource in settings.absent]
        print_json(found)
    _say_the_last_words(console, ended, code)
    return code


def _notes(settings: Settings, synced: Synced) -> Iterator[str]:
    yield from remarks(synced.parts, settings.secrets.all)
    if synced.misfits.count:
        yield redact_text(
            f"{SchemaMismatch(synced.misfits.count, synced.misfits.first[:2])}. They are null in the tables."
        )
    if synced.misfits.empty:
        names = redact_text(some(synced.misfits.empty, 5))
        yield f"Tables and columns of the schema without a value: {names}. Check their names."
    if synced.misfits.stale:
        names = redact_text(some(synced.misfits.stale, 5))
        yield f"Not in the schema any more, so no longer written: {names}. Remove what is not needed."
    verify, how = settings.full_every == 0, settings.departed
    yield from remarks_of_run(synced.parts, synced.departed, how, settings.absent, verify=verify)
    if synced.not_read:
        names = redact_text(some(synced.not_read, _MOST_NAMES))
        yield f"Not read in this run, so their records are those of an earlier one: {names}."


def _write_page(console: Console, path: Path, ended: _Ended, collected: Collector) -> int:
    """Write the page and return its exit code."""
    from lamella.cli.html import Page, html_report

    settings, synced = ended.settings, ended.synced
    about = (
        f"Run {synced.run} of {redact_text(settings.journal.name)}: {some(settings.resources, _MOST_NAMES)} of "
        f"{count(len(settings.accounts), 'account')} at {settings.base_url}."
    )
    page = Page(
        title=f"run {synced.run}",
        about=" ".join((about, *_notes(settings, synced))),
        totals=tuple(report.totals(synced, collected)),
        causes=causes_of(synced.parts, settings.secrets),
        checks=ended.checks,
        traces=collected.traces,
        note=collected.note,
    )
    content = html_report(page).encode()
    try:
        whole_file.write(path, content, mode=whole_file.PRIVATE)  # the page names end users
    except OSError as exc:
        warn(f"cannot write the page: {exc.strerror or exc}: {path}")
        return 1
    where = Text(f"{redact_text(str(path))}, {len(content) / 1024:,.0f} kB: open it in a browser.")
    show(console, report.titled("Page", where))
    return 0


def _say_the_last_words(console: Console, ended: _Ended, code: int) -> None:
    options, synced = ended.options, ended.synced
    if ended.checks:
        if faults := [check.fault for check in ended.checks if check.fault]:
            warn("; ".join(faults))
        elif not code:
            console.print("All checks passed. The failures above were injected (exit code 0).")
    elif synced.interrupted:
        say_how_to_go_on("interrupted", options)
    elif synced.fault is not None:
        say_how_to_go_on(redact_text(synced.fault), options)
    elif code:
        failed = sum(not part.done for part in synced.parts)
        why = report.no_answer(synced.parts)
        told = f"{failed:,} of {count(len(synced.parts), 'part')} failed" + (f": {redact_text(why)}" if why else "")
        if failed:
            say_how_to_go_on(told, options)
        elif synced.misfits.count:
            warn(f"all records are stored, but {synced.misfits.count:,} values do not fit {options.schema}: see above")
