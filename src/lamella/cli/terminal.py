"""Output of all commands: consoles, messages, and formatted values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text
    from yarl import URL


def http_url(text: str) -> URL | None:
    """Return *text* as an http or https URL with a host and without query, fragment or space; None if it is not one."""
    from yarl import URL

    try:
        url = URL(text.strip())
    except ValueError:
        return None
    is_bare = not (url.raw_query_string or url.raw_fragment or any(map(str.isspace, text.strip())))
    return url if is_bare and url.host and url.scheme in {"http", "https"} else None


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that shows external text unchanged: without markup, emoji or highlighting.

    A quiet one shows nothing.
    """
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False, stderr=stderr, quiet=quiet)
    console.width = console.width or 80  # COLUMNS=0 means unknown, and nothing fits in a width of 0
    return console


def show(console: Console, *parts: RenderableType) -> None:
    """Print *parts*; into a pipe, strip the padding that rich adds to the lines of a table."""
    if console.quiet:
        return
    for part in parts:
        if console.is_terminal:
            console.print(part)
            continue
        with console.capture() as captured:
            console.print(part)
        typer.echo("\n".join(text.rstrip() for text in captured.get().splitlines()), err=console.stderr)


def print_json(found: Mapping[str, object]) -> None:
    """Print an object as JSON, as `json_text` returns it."""
    for piece in json_text(found):
        print(piece, end="")
    print(flush=True)


def json_text(found: Mapping[str, object]) -> Iterator[str]:
    """Yield the pieces of an object as JSON.

    A field whose value is an iterator becomes a list. Only one item of it is in memory at a time.
    """
    before = "{"
    for name, value in found.items():
        yield f"{before}\n  {json.dumps(name)}: "
        before = ","
        if isinstance(value, Iterator):
            yield from _list_text(value)
        else:
            yield json.dumps(value, indent=2).replace("\n", "\n  ")
    yield "{}" if before == "{" else "\n}"


def _list_text(items: Iterator[object]) -> Iterator[str]:
    before = "["
    for item in items:
        yield f"{before}\n{indent(json.dumps(item, indent=2), '    ')}"
        before = ","
    yield "[]" if before == "[" else "\n  ]"


def line(*parts: str | Text | tuple[str, str]) -> Text:
    """Return a line that is truncated, not wrapped, at the edge of the screen. A part may have a style."""
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def warn(message: str) -> None:
    """Print a message in one line on stderr."""
    from lamella.redaction import redact_text

    typer.echo(f"lamella: {redact_text(message)}", err=True)


def fail(message: str, code: int = 2) -> NoReturn:
    """Print in one line why the command fails."""
    warn(message)
    raise typer.Exit(code)


def duration(seconds: float) -> str:
    """Return *seconds* in words: ``"41 ms"``, ``"1.5 s"``, ``"1 min 6 s"``."""
    if not seconds:
        return "0 s"
    if round(seconds, 3) < 1:
        return f"{round(seconds * 1000, 1 if seconds < 0.01 else None):g} ms"
    if round(seconds, 1) < 60:
        return f"{round(seconds, 2 if seconds < 10 else 1):g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def between(low: float, high: float) -> str:
    """Return a range of seconds in words, or one duration if both ends look the same."""
    shortest, longest = duration(low), duration(high)
    return shortest if shortest == longest else f"{shortest} – {longest}"


def count(number: int, thing: str) -> str:
    """Return ``"1 call"``, ``"2 calls"``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def some(names: Sequence[str], most: int, total: int = 0) -> str:
    """Return at most *most* of the *names*: ``"Ada, Bob and 7 more"``. *total*: how many there are, if more."""
    shown = names[:most]
    more = max(total, len(names)) - len(shown)
    return f"{', '.join(shown)} and {more} more" if more else ", ".join(shown)
