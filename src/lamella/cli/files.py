"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from secrets import token_hex

__all__ = ["check", "write"]


def check(path: Path) -> None:
    """Raise an OSError if *path* cannot be written; what is there stays as it is."""
    target = _target(path)
    temporary = _beside(target)
    # Asking for permissions is not enough: the disk may be full or read-only, and root may do all.
    try:
        temporary.touch(exist_ok=False)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Put *content* where *path* is: a reader sees the old file or the new one, never a part."""
    target = _target(path)
    temporary = _beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        # Gone by now, unless something went wrong.
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file itself: a link to it stays, and a folder or device is never replaced."""
    # Unlike Path.resolve, which has an error of its own for links in a circle, this leaves that to stat().
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")
    return target


def _beside(target: Path) -> Path:
    """A name in the same folder: only there can one file take the place of another at once."""
    return target.with_name(f".lamella-{token_hex(6)}.tmp")
