"""``lamella sandbox``: serve a local API like Maesn's, and print a line for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import typer
from rich.text import Text

from lamella.cli.process import on_signals
from lamella.cli.terminal import count, fail, make_console
from lamella.maesn.sandbox import Received, Sandbox
from lamella.redaction import redact_text
from lamella.testing import Fault, FixedWindow

_MANY_KEYS: Final = 5
_SHOWN_OF_KEY: Final = 6  # characters


def main(
    *,
    host: str,
    port: int,
    accounts: int,
    limit: FixedWindow | None,
    chances: Mapping[int | Fault, float],
    seed: int,
    quiet: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises BadParameter if an option is not allowed."""
    console = make_console()
    served = 0

    def on_answer(received: Received) -> None:
        nonlocal served
        served += 1
        server.received.clear()  # it may run for days
        if not quiet:
            console.print(redact_text(line_for(received)), soft_wrap=True)

    try:
        server = Sandbox(
            host=host, port=port, accounts=accounts, limit=limit, chances=chances, seed=seed, on_answer=on_answer
        )
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    try:
        asyncio.run(_serve(server, lambda: console.print(_greeting(server), soft_wrap=True)))
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        fail(f"cannot listen on {host}:{port}: {(exc.strerror or str(exc)).partition(' (')[0]}")
    console.print(f"Stopped after {count(served, 'request')}.")


async def _serve(server: Sandbox, on_start: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or a cancellation. Raises OSError if the address is not available."""
    terminated = asyncio.Event()
    with on_signals(terminated.set, once=True):
        async with server:
            on_start()
            await terminated.wait()


def parse_limit(text: str) -> FixedWindow:
    """Return the limit for ``"100/60"``: 100 requests in 60 seconds. Raises ValueError."""
    requests, _, per = text.partition("/")
    try:
        return FixedWindow(int(requests), float(per))
    except ValueError:
        raise ValueError(f"{redact_text(repr(text))} must be requests/seconds, such as 100/60") from None


def parse_chance(text: str) -> tuple[int | Fault, float]:
    """Return the outcome and its chance for ``"500=0.05"`` or ``"cut_body=0.01"``. Raises ValueError."""
    name, _, chance = text.partition("=")
    name = name.strip()
    faults = {fault.name.lower(): fault for fault in Fault}
    try:
        outcome = int(name) if name.isdigit() else faults[name.lower().replace("-", "_")]
        return outcome, float(chance)
    except (KeyError, ValueError):
        names = "\n".join(f"  {name}" for name in faults)
        raise ValueError(f"{redact_text(repr(text))} must be like 500=0.05. Instead of 500, one of\n{names}") from None


def _greeting(server: Sandbox) -> Text:
    keys = [account.key for account in server.accounts]
    shown = keys if len(keys) <= _MANY_KEYS else [keys[0], "…", keys[-1]]
    return Text(
        f"Listening on {server.url} (stop with Ctrl-C). All keys are fictitious.\n"
        f"  X-API-KEY      {server.api_key}\n" + "".join(f"  X-ACCOUNT-KEY  {key}\n" for key in shown) + "Try it:\n"
        f"  curl -H 'X-API-KEY: {server.api_key}' \\\n"
        f"       -H 'X-ACCOUNT-KEY: {keys[0]}' \\\n"
        f"       '{server.url}/accounting/invoices?limit=5'\n"
    )


def line_for(received: Received) -> str:
    """Return a request as a line with only the end of its account key, since a client may send a real one."""
    key = received.account
    account = "-" if key is None else f"…{key[-min(_SHOWN_OF_KEY, len(key) // 2) :]}"
    outcome = received.outcome.name.lower() if isinstance(received.outcome, Fault) else received.outcome
    return f"{outcome}  {received.method} {received.path}  {account}"
