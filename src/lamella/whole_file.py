"""Writing a file whole or not at all: a reader sees the old file or the new one, never a part.

Whoever is killed in the middle (``kill -9``) leaves a hidden file beside the target. The next write in that folder
removes it: who is still at work holds a lock of the operating system on its own, and such a lock ends with its
process. Without such locks (Windows, some network file systems) those files stay, since nobody could tell.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

if sys.platform != "win32":
    import fcntl

__all__ = ["PRIVATE", "PUBLIC", "check", "replacing", "write"]

PRIVATE: Final = 0o600
"""The mode of a file that its owner alone may read."""

PUBLIC: Final = 0o666
"""The mode of any new file: the umask takes from it what it takes."""

_TEMPORARY: Final = re.compile(r"\.lamella-[0-9a-f]{12}\.tmp")


def check(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if *path* cannot be written; what is there stays as it is."""
    with _naming(path):
        # Asking for permissions is not enough: the disk may be full or read-only, and root may do all.
        with _temporary(_target(path).parent, PRIVATE):
            pass


def write(path: str | os.PathLike[str], content: bytes, *, mode: int = PUBLIC) -> None:
    """Put *content* where *path* is, as :func:`replacing` does."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = PUBLIC) -> Iterator[Path]:
    """Give the path of an empty file; what the ``with`` block has written to it takes the place of *path*.

    It takes it at the end of the block, once it is on disk, and not at all when the block raises. It must be closed by
    then. A link stays a link: the file that it leads to is replaced.

    Args:
        path: The file; its folder must exist.
        mode: Of a file that is new. One that replaces another has the mode of that, and its owner and group where
            we may give it to them.

    Raises:
        OSError: It cannot be written, or *path* is a folder or a device. What was there is untouched. An OSError of
            the block that names no file, or the temporary one, is raised as one that names *path*.
    """
    with _naming(path):
        target = _target(path)
        _sweep(target.parent)
        with _temporary(target.parent, PRIVATE if target.exists() else mode) as temporary:
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                _make_alike(temporary, target.stat())
            temporary.replace(target)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let no OSError name a file beside *path*, which is gone by then, or none at all."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None or not (exc.filename is None or _TEMPORARY.fullmatch(Path(str(exc.filename)).name)):
            raise
        raise OSError(exc.errno, exc.strerror, os.fspath(path)) from exc


def _target(path: str | os.PathLike[str]) -> Path:
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


def _make_alike(temporary: Path, old: os.stat_result) -> None:
    """Let those read the new file who may read the old one, and nobody else."""
    mode = stat.S_IMODE(old.st_mode) & 0o777
    if sys.platform == "win32":
        temporary.chmod(mode)
        return
    new = temporary.stat()
    if new.st_gid != old.st_gid:
        try:
            os.chown(temporary, -1, old.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG  # those rights were another group's
    temporary.chmod(mode)
    if new.st_uid != old.st_uid:
        with suppress(OSError):
            os.chown(temporary, old.st_uid, -1)


@contextmanager
def _temporary(folder: Path, mode: int) -> Iterator[Path]:
    """A new file in *folder*: only there can one take the place of another at once. At the end it is gone."""
    while True:
        temporary = folder / f".lamella-{token_hex(6)}.tmp"
        with ExitStack() as stack:
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
            stack.callback(temporary.unlink, missing_ok=True)  # gone by then, unless something went wrong
            opened = stack.enter_context(ExitStack())
            opened.callback(os.close, file)
            if not _lock(file, shared=False) or not temporary.exists():
                continue  # it was swept away before we could lock it
            if sys.platform == "win32":
                opened.close()  # what is open cannot be renamed there
            yield temporary
            return


def _sweep(folder: Path) -> None:
    """Remove what was left by those who were killed. It is no reason not to write that something cannot be removed."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            with suppress(OSError), ExitStack() as stack:
                # It may be a link or a pipe that somebody has put there.
                file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                stack.callback(os.close, file)
                if _lock(file, shared=True):
                    os.unlink(folder / name)


def _lock(file: int, *, shared: bool) -> bool:
    """Lock a file for who writes to it, or, *shared*, for who sweeps it away. False: another has locked it."""
    if sys.platform == "win32":
        return True
    try:
        # Not exclusively to sweep: for that, network file systems want a file that is open to be written.
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks on this file system
        return not shared
    return True
