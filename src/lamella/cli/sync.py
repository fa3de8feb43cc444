"""``lamella sync``, without its options and screens: from settings that are checked to what has come of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from lamella.batch import Journal, JournalError
from lamella.breaker import Breaker
from lamella.cli.overview import Watch
from lamella.cli.stamina_hooks import no_stamina_hooks
from lamella.maesn import RULES, Account, Part, Report, layers, plan, sync
from lamella.pipeline import Pipeline
from lamella.rules import RuleBook
from lamella.telemetry.others import without_other_instrumentation
from lamella.throttle import Throttle

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from lamella.cli.display import Display, Look

__all__ = ["Settings", "Synced", "planned", "run"]

_ENDING: Final = "Ending: what is under way has 10 s. Ctrl-C again ends at once."
_MOST_CONNECTIONS: Final = 500


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be synced, and how. All of it is checked."""

    api_key: str = field(repr=False)
    base_url: URL
    """With a slash at its end."""
    accounts: tuple[Account, ...]
    resources: tuple[str, ...]
    journal: Path
    output: Path | None = None
    since: str | None = None
    resume: bool = False
    at_once: int | None = None
    page_size: int = 100
    batch: str = ""
    """What the journal knows the API by. Empty: by its URL."""
    rules: RuleBook = RULES
    breaker: Callable[[], Breaker] = Breaker

    @property
    def identity(self) -> str:
        """What the journal is opened with."""
        return self.batch or f"maesn sync of {str(self.base_url).rstrip('/')}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is shown nowhere."""
        return (self.api_key, *(account.key for account in self.accounts))


@dataclass(frozen=True, slots=True)
class Synced:
    """What has come of it."""

    run: int
    """Its number in the journal, from 1."""
    resumed: bool
    parts: tuple[Part, ...]
    took: float
    """Seconds."""
    interrupted: bool = False
    fault: str | None = None
    """Why it could not go on, or not write the output. None: it could."""

    @property
    def exit_code(self) -> int:
        """0: all is done. 1: something failed. 130: it was interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.fault or not all(part.done for part in self.parts) else 0


async def run(
    settings: Settings,
    showing: Callable[[Look], AbstractContextManager[Display]],
    provider: TracerProvider | None = None,
) -> Synced:
    """Sync until all has ended, or somebody interrupts it (SIGINT, SIGTERM).

    Args:
        settings: What, and how.
        showing: Shows it meanwhile.
        provider: Where the spans go. None means the global one.

    Raises:
        JournalError: The journal could not be opened; nothing was sent.
        asyncio.CancelledError: It was interrupted before it began.
    """
    chosen = layers(
        settings.api_key,
        base_url=str(settings.base_url),
        rules=settings.rules,
        breaker=settings.breaker(),
        tracer_provider=provider,
    )
    watch = Watch(_closed_for(settings, chosen))
    began = time.monotonic()
    fault = None
    with no_stamina_hooks(), showing(watch.look) as display:
        async with _drawn(display):
            syncing = asyncio.create_task(_sync(settings, chosen, watch))
            with _interrupted_by_signals(syncing, display):
                try:
                    report = await syncing
                    return Synced(report.run, report.resumed, report.parts, report.took)
                except asyncio.CancelledError:
                    if watch.progress is None:
                        raise
                except JournalError as exc:
                    if watch.progress is None:
                        raise
                    fault = str(exc)
                except OSError as exc:
                    if watch.progress is None:
                        raise
                    fault = f"the output cannot be written: {exc.strerror or exc}: {settings.output}"
    found = watch.progress
    return Synced(
        found.run,
        found.resumed,
        tuple(found.parts.values()),
        time.monotonic() - began,
        interrupted=fault is None,
        fault=fault,
    )


async def planned(settings: Settings) -> tuple[Part, ...]:
    """What a sync would begin with. Nothing is sent or written.

    Raises:
        JournalError: The journal could not be opened.
    """
    arguments = (settings.accounts, settings.resources)
    if not os.path.exists(settings.journal):  # noqa: ASYNC240 - a look, before there is anything to wait for
        return await plan(*arguments, journal=None, since=settings.since, resume=settings.resume)
    async with Journal.open(settings.journal, batch=settings.identity) as journal:
        return await plan(*arguments, journal=journal, since=settings.since, resume=settings.resume)


async def _sync(settings: Settings, chosen: Sequence[aiohttp.ClientMiddlewareType], watch: Watch) -> Report:
    async with (
        Journal.open(settings.journal, batch=settings.identity) as journal,
        without_other_instrumentation(
            aiohttp.ClientSession(
                settings.base_url,
                middlewares=tuple(chosen),
                timeout=aiohttp.ClientTimeout(total=None),
                connector=aiohttp.TCPConnector(limit=_connections()),
            )
        ) as session,
    ):
        return await sync(
            session,
            settings.accounts,
            settings.resources,
            journal=journal,
            output=settings.output,
            since=settings.since,
            resume=settings.resume,
            limit=settings.page_size,
            at_once=settings.at_once,
            on_progress=watch.begun,
        )


def _connections() -> int:
    """How many connections there may be: half of the files that a process may open, at most."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else max(min(files // 2, _MOST_CONNECTIONS), 1)


def _closed_for(settings: Settings, chosen: Sequence[aiohttp.ClientMiddlewareType]) -> Callable[[str], float]:
    [throttle] = [
        layer
        for pipeline in chosen
        if isinstance(pipeline, Pipeline)
        for layer in pipeline.layers
        if isinstance(layer, Throttle)
    ]
    keys = {account.name: account.key for account in settings.accounts}
    return lambda name: throttle.blocked_for(settings.base_url, keys[name])


@asynccontextmanager
async def _drawn(display: Display) -> AsyncIterator[None]:
    """Draw it every so many seconds, and at the end once more."""

    async def draw() -> None:
        while True:
            began = time.perf_counter()
            display.draw()
            # Of many accounts that takes its time, which is the sync's: no more than a tenth of it.
            await asyncio.sleep(max(display.every, 9 * (time.perf_counter() - began)))

    drawing = asyncio.create_task(draw())
    try:
        yield
    finally:
        drawing.cancel()
        with suppress(asyncio.CancelledError):
            await drawing
        display.draw()


@contextmanager
def _interrupted_by_signals(task: asyncio.Task[Report], display: Display) -> Iterator[None]:
    """Cancel *task* at SIGINT and SIGTERM: the first time it ends in order, and at once the next time."""
    loop = asyncio.get_running_loop()
    taken = []

    def interrupt() -> None:
        task.cancel()
        display.note(_ENDING)

    for number in (signal.SIGINT, signal.SIGTERM):
        # What is ignored, as in the background of a shell, stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                loop.add_signal_handler(number, interrupt)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
