"""The options of ``lamella sync`` as given, and the checked settings made from them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_args
from urllib.request import getproxies, proxy_bypass

import typer
from yarl import URL

from lamella.breaker import Breaker
from lamella.cli.accounts import accounts_of_environment, key_in
from lamella.cli.schema import tables_in
from lamella.cli.secrets import Secrets
from lamella.cli.terminal import count, http_url
from lamella.maesn import BASE_URL, RULES, Account, current_account
from lamella.maesn.accounts_file import accounts_in
from lamella.maesn.params import params_for
from lamella.maesn.sources import checked_resource
from lamella.redaction import one_line, redact_text, redact_url
from lamella.rules import RuleBook
from lamella.sync import TooManyDeparted
from lamella.sync.export import check_output
from lamella.sync.marks import OVERLAP
from lamella.sync.page import checked_moment
from lamella.sync.stored import Departed
from lamella.sync.tables import NO_TABLES, Table

JOURNAL: Final = Path("lamella-sync.journal")

_API_KEY: Final = "MAESN_API_KEY"
_BASE_URL: Final = "MAESN_BASE_URL"

_OPTIONS: Final = {
    "resources": "--resource",
    "as_json": "--json",
    "page": "--report",
    "params": "--param",
}  # fields whose option has another name

_DURATION: Final = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class Settings:
    """Checked settings: what to sync, and how."""

    api_key: str = field(repr=False)
    base_url: URL  # with a trailing slash
    accounts: tuple[Account, ...]
    resources: tuple[str, ...]
    journal: Path
    params: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by resource
    output: Path | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    since: str | None = None
    resume: bool = False
    lookback: float = OVERLAP
    full_every: float | None = None  # 0: --verify
    departed: Departed = "keep"
    proxy: URL | None = field(default=None, repr=False)  # may contain a password
    at_once: int | None = None
    page_size: int = 100
    batch: str = ""  # name of the API in the journal; empty: its URL
    rules: RuleBook = RULES
    breaker: Callable[[], Breaker] = Breaker

    @property
    def identity(self) -> str:
        """The name of the batch in the journal."""
        return self.batch or f"maesn sync of {str(self.base_url).rstrip('/')}"

    @property
    def absent(self) -> list[tuple[str, str]]:
        """The requested lists that an account's system does not have, as pairs of account and resource."""
        return [(each.name, name) for each in self.accounts for name in self.resources if name in each.without]

    def current_account(self) -> str | None:
        """Return the name of the account of the current call; all names if several share the key."""
        return self._names.get(current_account())

    @cached_property
    def _names(self) -> Mapping[str | None, str]:
        """The names of the accounts by key."""
        found: dict[str | None, str] = {}
        for each in self.accounts:
            found[each.key] = f"{found[each.key]}, {each.name}" if each.key in found else each.name
        return found

    @cached_property
    def secrets(self) -> Secrets:
        """Values that must never be shown."""
        return Secrets(self.api_key, {account.name: account.key for account in self.accounts})


@dataclass(frozen=True, slots=True)
class Options:
    """The options as given. None: not given."""

    accounts: Path | None = None
    resources: Sequence[str] = ()
    params: Sequence[str] = ()
    output: Path | None = None
    schema: Path | None = None
    journal: Path | None = None
    since: str | None = None
    lookback: str | None = None
    verify: bool = False
    full_every: str | None = None
    departed: str | None = None
    concurrency: str | None = None
    dry_run: bool = False
    otlp: str | None = None
    page: Path | None = None
    base_url: str | None = None
    sandbox: bool = False
    as_json: bool = False
    resume: bool = False
    quiet: bool = False
    verbose: bool = False
    dask: str | None = None
    shards: int | None = None
    parquet: bool = False

    def to_go_on(self) -> str:
        """Return the command line that resumes this sync, without a password."""
        otlp = None if self.otlp is None else redact_url(URL(self.otlp))
        given = asdict(replace(self, otlp=otlp, since=None, verify=False, dry_run=False, resume=True))
        words = []
        for name, value in given.items():
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            for each in value if isinstance(value, tuple) else (value,):
                if each is not None and each is not False:
                    words += [option] if each is True else [option, str(each)]
        return shlex.join(["lamella", "sync", *words])


def say_how_to_go_on(what: str, options: Options) -> None:
    """Print *what* has happened and the command that continues, in full, so that it can be copied."""
    if options.sandbox and options.journal is None:
        typer.echo(f"lamella: {what}; with --journal FILE, --resume could continue from there", err=True)
    else:
        typer.echo(f"lamella: {what}; continue with: {one_line(options.to_go_on())}", err=True)


# A single letter is a drive of Windows.
_SCHEME: Final = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]+):/+")


def options_on_workers(options: Options) -> dict[str, Any]:
    """Return the arguments of ``maesn.sync`` for *options*, except ``on``, or raise ValueError."""
    for name in ("journal", "dry_run", "otlp", "page", "sandbox"):
        if getattr(options, name):
            raise ValueError(f"--dask has no {_OPTIONS.get(name, '--' + name.replace('_', '-'))}: leave it out")
    if options.accounts is None or options.output is None:
        missing = "--accounts FILE" if options.accounts is None else "--output DIR"
        raise ValueError(f"--dask needs {missing}, which each worker can open under that name")
    if options.schema is not None and not options.parquet:
        raise ValueError("--schema needs --parquet, whose columns it states")
    _reject_conflicts_of_reading(options)
    _checked("--accounts", accounts_in, options.accounts)
    # Path has removed one of the two slashes of a URL.
    output = _SCHEME.sub(r"\1://", str(options.output))
    if "://" in output and not output.startswith("s3://"):
        raise ValueError(f"--output must be a folder or an s3:// URL, got one with {output.partition(':')[0]!r}")
    return {
        **_reading(options),
        "accounts": options.accounts,
        "output": output,
        "base_url": str(_base_url(options.base_url)),
        "shards": options.shards,
        "suffix": ".parquet" if options.parquet else None,
    }


def settings_of(options: Options, folder: Path) -> Settings:
    """Return the settings for *options*. *folder* holds the temporary files of a sync with the sandbox.

    Raises:
        ValueError: An option is invalid; the message names it and the allowed values.
        ModuleNotFoundError: The output is Parquet and pyarrow is missing.
    """
    _reject_conflicts(options)
    journal = options.journal or (folder / JOURNAL if options.sandbox else JOURNAL)
    output = options.output or (folder / "records.jsonl" if options.sandbox else None)
    if options.sandbox:
        from lamella.cli import sandboxed  # a server, which no other sync needs

        reading, own = _reading(options, sandboxed.RESOURCES), sandboxed.settings()
    else:
        reading, own = _reading(options), _at_the_api(options)
    return Settings(
        **own,
        **reading,
        journal=_checked("--journal", _journal, journal),
        output=_given("--output", partial(_output, tables=reading["tables"]), output),
    )


def _reading(options: Options, usual: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what to read, and how: the settings of a sync on this machine or on workers. *usual*: lists by default."""
    names = [name.strip() for given in options.resources for name in given.split(",") if name.strip()]
    if not names and not usual:
        raise ValueError("--resource NAME is missing: invoices, contacts, … Repeatable")
    chosen = tuple(dict.fromkeys(_checked("--resource", checked_resource, name) for name in names)) or usual
    return {
        "resources": chosen,
        "params": _checked("--param", lambda texts: params_for(texts, chosen), options.params),
        "tables": _given("--schema", tables_in, options.schema) or NO_TABLES,
        "since": _given("--since", checked_moment, options.since),
        "resume": options.resume,
        "lookback": OVERLAP if options.lookback is None else _checked("--lookback", _seconds, options.lookback),
        "full_every": 0.0 if options.verify else _full_every(options.full_every),
        "departed": _given("--departed", _departed, options.departed) or "keep",
        "at_once": _given("--concurrency", _at_once, options.concurrency),
    }


def _at_the_api(options: Options) -> dict[str, Any]:
    missing = f"no API key: set {_API_KEY}. There is no option for it, because other users can see a process's options"
    accounts = _given("--accounts", accounts_in, options.accounts)
    base_url = _base_url(options.base_url)
    _check_authorities(base_url)
    return {
        "api_key": key_in(_API_KEY, missing),
        "base_url": base_url,
        "proxy": _proxy(base_url),
        "accounts": accounts_of_environment() if accounts is None else accounts,
    }


def _reject_conflicts(options: Options) -> None:
    if options.quiet and options.verbose:
        raise ValueError("--quiet and --verbose exclude each other: leave one of them out")
    if options.sandbox and (options.accounts is not None or options.base_url is not None):
        raise ValueError("--sandbox has its own accounts and address: remove --accounts and --base-url")
    _reject_conflicts_of_reading(options)
    if options.schema is not None and options.output is None:
        raise ValueError("--schema defines typed columns: it needs --output FILE with .sqlite, .db or .parquet")
    if options.dry_run and (options.otlp is not None or options.page is not None):
        raise ValueError("--dry-run sends nothing that --otlp or --report could show: remove them")
    files: dict[str, str] = {}
    given = (
        ("--accounts", options.accounts),
        ("--schema", options.schema),
        ("--output", options.output),
        ("--journal", options.journal or (None if options.sandbox else JOURNAL)),
        ("--report", options.page),
    )
    for name, path in given:
        if path is not None and (other := files.setdefault(os.path.realpath(path), name)) != name:
            raise ValueError(f"{name} and {other} must be different files, got {redact_text(str(path))} for both")


def _reject_conflicts_of_reading(options: Options) -> None:
    if options.resume and options.since is not None:
        raise ValueError("--since begins a new run and --resume continues the last one: give only one of them")
    if options.verify and (options.resume or options.since is not None or options.full_every is not None):
        raise ValueError("--verify reads all lists from the beginning: remove --resume, --since and --full-every")


def _checked(option: str, check: Callable[[_T], _U], value: _T) -> _U:
    try:
        return check(value)
    except ValueError as exc:
        raise ValueError(f"{option}: {exc}") from None


def _given(option: str, check: Callable[[_T], _U], value: _T | None) -> _U | None:
    return None if value is None else _checked(option, check, value)


def _base_url(given: str | None) -> URL:
    name, text = ("--base-url", given) if given is not None else (_BASE_URL, os.environ.get(_BASE_URL) or BASE_URL)
    url = http_url(text)
    if url is None or url.raw_user or url.raw_password:
        # A password precedes an @, even if the text is not a valid URL.
        shown = "" if "@" in text else f", not {redact_text(_redacted(text))!r}"
        raise ValueError(f"{name} must be a URL such as {BASE_URL}, without user, query and fragment{shown}")
    return url if url.path.endswith("/") else url.with_path(f"{url.path}/")


def _proxy(url: URL) -> URL | None:
    """Return the proxy from the environment for *url*: HTTPS_PROXY or HTTP_PROXY, unless NO_PROXY names the host.

    aiohttp's ``trust_env`` would also send a password of the user's .netrc to the API.
    """
    found = getproxies().get(url.scheme)
    if not found or proxy_bypass(f"{url.host}:{url.port}") or _is_in(url, getproxies().get("no", "")):
        return None
    proxy = http_url(found if "://" in found else f"http://{found}")
    if proxy is None:
        raise ValueError(f"{url.scheme.upper()}_PROXY must be the URL of an HTTP proxy, such as http://proxy:3128")
    return proxy


def _is_in(url: URL, names: str) -> bool:
    """Return whether the host is an address in one of the networks, such as 10.0.0.0/8. The library has only names."""
    for name in names.split(","):
        with suppress(ValueError):
            if ip_address(str(url.host)) in ip_network(name.strip(" []"), strict=False):
                return True
    return False


def _check_authorities(url: URL) -> None:
    """Raise ValueError if OpenSSL would ignore ``SSL_CERT_FILE``: it then trusts the authorities of the system."""
    path = os.environ.get("SSL_CERT_FILE")
    if path in {None, "", os.devnull} or url.scheme != "https":
        return
    import ssl  # not needed for --help or a local server

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as exc:
        why = "it contains no certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ValueError(f"SSL_CERT_FILE must name a PEM file of certificate authorities: {why}: {path}") from None


def _redacted(text: str) -> str:
    try:
        return redact_url(URL(text.strip()))
    except ValueError:
        return ""


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be a duration such as 90s, 30m, 12h or 7d, got {redact_text(text)!r}")
    return float(int(found[1]) * _UNITS[found[2]])


def _full_every(text: str | None) -> float | None:
    found = _given("--full-every", _seconds, text)
    if found == 0:
        raise ValueError("--full-every must be greater than 0: --verify reads everything in this run")
    return found


def _departed(text: str) -> Departed:
    allowed = get_args(Departed)
    if text not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, got {redact_text(text)!r}")
    return cast(Departed, text)


def why_not_forgotten(exc: TooManyDeparted) -> str:
    """Return the message of a refused ``--departed forget``."""
    return (
        f"--departed forget would remove the records of {count(exc.forgotten, 'account')}, more than the "
        f"{exc.stay:,} that stay. If the accounts file is complete, run once with --departed mark first"
    )


def _at_once(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise ValueError(f"must be a whole number, 1 or more, got {redact_text(text)!r}")
    return int(text[:9])


def _journal(path: Path) -> Path:
    if not path.parent.is_dir():
        raise ValueError(f"folder {redact_text(str(path.parent))} does not exist")
    return path


def _output(path: Path, tables: Mapping[str, Table]) -> Path:
    try:
        check_output(path, tables)
    except OSError as exc:
        raise ValueError(f"cannot be written: {exc.strerror or exc}: {path}") from None
    return path
