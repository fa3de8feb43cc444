"""The options of ``lamella sync``, as they were given, and what they come to."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from yarl import URL

from lamella.cli import sandboxed
from lamella.cli.accounts import accounts_in, accounts_of_environment
from lamella.cli.sync import Settings
from lamella.cli.words import plain
from lamella.maesn import BASE_URL, Account
from lamella.maesn.export import check_output
from lamella.maesn.page import checked_moment, checked_resource
from lamella.redaction import redact_url

__all__ = ["JOURNAL", "Options", "settings_of"]

JOURNAL: Final = Path("lamella-sync.journal")
"""Where the journal is, unless somebody says."""

_API_KEY: Final = "MAESN_API_KEY"
_BASE_URL: Final = "MAESN_BASE_URL"

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True, slots=True)
class Options:
    """As they were given. None: not at all."""

    accounts: Path | None = None
    resources: Sequence[str] = ()
    output: Path | None = None
    journal: Path | None = None
    resume: bool = False
    since: str | None = None
    concurrency: str | None = None
    dry_run: bool = False
    otlp: str | None = None
    as_json: bool = False
    page: Path | None = None
    base_url: str | None = None
    sandbox: bool = False

    def to_go_on(self) -> str:
        """The command line that goes on with this sync. No password is in it."""
        named = (
            ("--accounts", self.accounts),
            *(("--resource", resource) for resource in self.resources),
            ("--output", self.output),
            ("--journal", self.journal),
            ("--concurrency", self.concurrency),
            ("--otlp", None if self.otlp is None else redact_url(URL(self.otlp))),
            ("--report", self.page),
            ("--base-url", self.base_url),
        )
        switches = (("--sandbox", self.sandbox), ("--json", self.as_json), ("--resume", True))
        words = [word for name, value in named if value is not None for word in (name, str(value))]
        return shlex.join(["lamella", "sync", *words, *(name for name, is_on in switches if is_on)])


def settings_of(options: Options, folder: Path) -> Settings:
    """What they come to. *folder* is for what a sandbox's sync keeps nowhere else.

    Raises:
        ValueError: One of them cannot be: which, and what can.
        ModuleNotFoundError: The output is Parquet, and pyarrow is missing.
    """
    _refuse_what_does_not_go_together(options)
    resources = [name.strip() for given in options.resources for name in given.split(",") if name.strip()]
    if not resources and not options.sandbox:
        raise ValueError("--resource NAME is missing: invoices, contacts, … It may be given more than once")
    journal = options.journal or (folder / JOURNAL if options.sandbox else JOURNAL)
    output = options.output or (folder / "records.jsonl" if options.sandbox else None)
    return Settings(
        api_key=sandboxed.API_KEY if options.sandbox else _api_key(),
        base_url=URL() if options.sandbox else _base_url(options.base_url),
        accounts=_accounts(options),
        resources=tuple(dict.fromkeys(_of("--resource", checked_resource, name) for name in resources))
        or sandboxed.RESOURCES,
        journal=_of("--journal", _journal, journal),
        output=None if output is None else _of("--output", _output, output),
        since=None if options.since is None else _of("--since", checked_moment, options.since),
        resume=options.resume,
        at_once=None if options.concurrency is None else _at_once(options.concurrency),
    )


def _refuse_what_does_not_go_together(options: Options) -> None:
    if options.sandbox and (options.accounts is not None or options.base_url is not None):
        raise ValueError("--sandbox brings its own accounts and address: leave --accounts and --base-url out")
    if options.resume and options.since is not None:
        raise ValueError("--since begins a new run, and --resume goes on with the last one: give one of them")
    if options.dry_run and (options.otlp is not None or options.page is not None):
        raise ValueError("--dry-run sends nothing that --otlp or --report could show: leave them out")
    files: dict[str, str] = {}
    given = (
        ("--accounts", options.accounts),
        ("--output", options.output),
        ("--journal", options.journal or (None if options.sandbox else JOURNAL)),
        ("--report", options.page),
    )
    for name, path in given:
        if path is not None and (other := files.setdefault(os.path.realpath(path), name)) != name:
            raise ValueError(f"{name} and {other} must be two files, and both are {plain(str(path))}")


def _of(option: str, check: Callable[[_T], _U], value: _T) -> _U:
    try:
        return check(value)
    except ValueError as exc:
        raise ValueError(f"{option}: {exc}") from None


def _api_key() -> str:
    key = os.environ.get(_API_KEY, "").strip()
    if not key:
        raise ValueError(f"no API key: set {_API_KEY}. It is no option, since anybody can see those of a process")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{_API_KEY} must be printable ASCII, as it stands in a header")
    return key


def _base_url(given: str | None) -> URL:
    name, text = ("--base-url", given) if given is not None else (_BASE_URL, os.environ.get(_BASE_URL) or BASE_URL)
    try:
        url, is_url = URL(text.strip()), not any(char.isspace() for char in text.strip())
    except ValueError:
        url, is_url = URL(), False
    bare = not (url.raw_user or url.raw_password or url.raw_query_string or url.raw_fragment)
    if not (is_url and bare and url.host and url.scheme in {"http", "https"}):
        # A password stands before an @, be it in what is a URL or not.
        shown = "" if "@" in text else f", not {plain(redact_url(url))!r}"
        raise ValueError(f"{name} must be a URL such as {BASE_URL}, without user, query and fragment{shown}")
    return url if url.path.endswith("/") else url.with_path(f"{url.path}/")


def _at_once(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise ValueError(f"--concurrency must be a whole number from 1, not {plain(text)!r}")
    return int(text[:9])


def _accounts(options: Options) -> tuple[Account, ...]:
    if options.sandbox:
        return sandboxed.accounts()
    return accounts_of_environment() if options.accounts is None else _of("--accounts", accounts_in, options.accounts)


def _journal(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {plain(str(path.parent))}")
    return path


def _output(path: Path) -> Path:
    try:
        check_output(path)
    except OSError as exc:
        raise ValueError(f"cannot be written: {exc.strerror or exc}: {path}") from None
    return path
