"""The environment of the tests: what the machine or its user has set must not change what they find.

A conftest.py imports this before anything else, since aiohttp, typer and the SDK of OpenTelemetry read variables when
they are imported. Processes that a test starts, and the workers of pytest-xdist, inherit what is left.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Final, Literal

__all__ = ["COLOR", "HANGS", "clean", "cleaned", "color_of", "memory_folder", "use_memory"]

HANGS: Final = 120.0
"""Seconds after which a thread or a process of a test hangs. No claim about the product: a loaded machine is slow."""
_TEMPORARY: Final = {"TEMP", "TMP", "TMPDIR"}
_KEPT: Final = {
    *_TEMPORARY,
    "CI",  # there pytest shortens no message
    "COMSPEC",
    "PATH",
    "PATHEXT",
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "SYSTEMROOT",
}
_KEPT_PREFIXES: Final = ("DYLD_", "LAMELLA_", "LD_", "PYTEST_XDIST_")
"""Where the libraries of an interpreter are; what `make backends` and `make browser` have started."""
_SET: Final = {
    "HOME": os.path.join(os.devnull, "home"),  # no file of the user's; nothing can be written to it, either
    "SSL_CERT_DIR": os.devnull,  # no test trusts an authority of the machine, and loading them takes time
    "SSL_CERT_FILE": os.devnull,
    "TZ": "UTC",
}
_LONGEST_TEMPORARY: Final = 60
"""Bytes. The path of a socket in it must not be longer than 104 (macOS) or 108 (Linux)."""
_MEMORY: Final = "/dev/shm"  # noqa: S108 - pytest makes a folder of its own in it
_SPACE: Final = 2**30
"""Bytes that the tests need at most."""


def cleaned(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the tests keep of *environ*, with what they set.

    No locale is kept: without one Python reads and writes UTF-8.
    """
    kept = {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    for name in _TEMPORARY & kept.keys():
        if sys.platform != "win32" and len(os.fsencode(kept[name])) > _LONGEST_TEMPORARY:
            del kept[name]
    return kept | _SET


def memory_folder(folder: str = _MEMORY, space: int = _SPACE) -> str | None:
    """Return *folder* if the temporary files of the tests can be in it, else None: they run programs from there."""
    if sys.platform != "linux":
        return None
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    is_usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK) and not found.f_flag & os.ST_NOEXEC
    return folder if is_usable and found.f_bavail * found.f_frsize >= space else None


def use_memory() -> None:
    """Keep temporary files in memory, unless the user chose a folder: a journal waits for the disk at each commit."""
    if not _TEMPORARY & os.environ.keys() and (folder := memory_folder()):
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None  # it may have been looked up before


def clean() -> None:
    """Clean the environment of this process."""
    kept = cleaned(os.environ)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
    tempfile.tempdir = None  # it may have been looked up before
    if hasattr(time, "tzset"):
        time.tzset()
    os.umask(0o022)


def color_of(environ: Mapping[str, str]) -> Literal["yes", "no", "auto"]:
    """Return whether pytest shall color its own output. It would look that up when the environment is clean already."""
    asked = environ.get("PY_COLORS")
    if asked == "0" or (asked != "1" and environ.get("NO_COLOR")):
        return "no"
    if asked == "1" or environ.get("FORCE_COLOR"):
        return "yes"
    return "no" if environ.get("TERM") == "dumb" else "auto"


COLOR: Final = color_of(os.environ)
clean()
