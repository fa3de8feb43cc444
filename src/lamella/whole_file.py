"""Replace a file atomically: a reader sees the old or the new file, never a part.

A killed process (``kill -9``) leaves a hidden file beside the target, which the next write in that folder removes. A
process that is still writing holds a lock on its file. Without locks (Windows, some network file systems) these files
stay.
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

PRIVATE: Final = 0o600
"""Mode of a file that only its owner can read."""

PUBLIC: Final = 0o666
"""Mode of any new file, before the umask."""

_TEMPORARY: Final = re.compile(r"\.lamella-[0-9a-f]{12}\.tmp")


def check(path: str | os.PathLike[str]) -> None:
    """Raise an OSError if *path* cannot be written; an existing file is unchanged."""
    with _naming(path):
        # Checking permissions is not enough: the disk may be full or read-only, and root has all permissions.
        with _temporary(_target(path).parent, PRIVATE):
            pass


def write(path: str | os.PathLike[str], content: bytes, *, mode: int = PUBLIC) -> None:
    """Write *content* to *path* with :func:`replacing`."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = PUBLIC) -> Iterator[Path]:
    """Yield the path of an empty file that replaces *path* at the end of the ``with`` block.

    The replacement happens once the file is on disk, and not if the block raises. The block must close the file. A link
    stays a link; its target is replaced.

    Args:
        path: The file; its folder must exist.
        mode: The mode of a new file. An existing file keeps its mode, and its owner and group if the process may set
            them.

    Raises:
        OSError: The file cannot be written, or *path* is a folder or a device. An existing file is unchanged. An
            OSError of the block that names no file or the temporary one is changed to name *path*.
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
    """Make an OSError name *path* if it names the temporary file or none."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None or not (exc.filename is None or _TEMPORARY.fullmatch(Path(str(exc.filename)).name)):
            raise
        raise OSError(exc.errno, exc.strerror, os.fspath(path)) from exc


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the target of a link; raise if it is a folder or a device."""
    # Unlike Path.resolve, this leaves the error for a link cycle to stat().
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return target


def _make_alike(temporary: Path, old: os.stat_result) -> None:
    """Give the new file at most the permissions of the old one."""
    mode = stat.S_IMODE(old.st_mode) & 0o777
    if sys.platform == "win32":
        temporary.chmod(mode)
        return
    new = temporary.stat()
    if new.st_gid != old.st_gid:
        try:
            os.chown(temporary, -1, old.st_gid)
        except OSError:
            mode &= ~stat.S_IRWXG  # these permissions belonged to another group
    temporary.chmod(mode)
    if new.st_uid != old.st_uid:
        with suppress(OSError):
            os.chown(temporary, old.st_uid, -1)


@contextmanager
def _temporary(folder: Path, mode: int) -> Iterator[Path]:
    """Create a file in *folder*, where it can replace another atomically, and remove it at the end."""
    while True:
        temporary = folder / f".lamella-{token_hex(6)}.tmp"
        with ExitStack() as stack:
            file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
            stack.callback(temporary.unlink, missing_ok=True)  # exists only after an error
            opened = stack.enter_context(ExitStack())
            opened.callback(os.close, file)
            if not _lock(file, shared=False) or not temporary.exists():
                continue  # another process removed it before it was locked
            if sys.platform == "win32":
                opened.close()  # Windows cannot rename an open file
            yield temporary
            return


def _sweep(folder: Path) -> None:
    """Remove files of killed processes; ignore those that cannot be removed."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(folder)):
            with suppress(OSError), ExitStack() as stack:
                # It may be a link or a pipe created by another user.
                file = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                stack.callback(os.close, file)
                if _lock(file, shared=True):
                    os.unlink(folder / name)


def _lock(file: int, *, shared: bool) -> bool:
    """Lock a file for writing, or with *shared* for removal. Return False if another process has locked it."""
    if sys.platform == "win32":
        return True
    try:
        # Network file systems allow exclusive locks only on files open for writing.
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        return not shared
    return True
