"""Storage of a dataset: a folder, or an object store such as S3. All names are relative and use ``/``."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final, Protocol

_TEMPORARY: Final = ".lamella-"
_PRIVATE_FOLDER: Final = 0o700


class Storage(Protocol):
    """Stores files that are written once and never renamed."""

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a whole file unless the name exists. Return whether it was written."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file *path* to *name*, which no other process may use."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy a file to the local file *path*. Raises FileNotFoundError."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file. Raises FileNotFoundError."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file below *folder*, by name."""
        ...

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises FileNotFoundError."""
        ...

    def age(self, name: str) -> float:
        """Return the seconds since a file was written. Raises FileNotFoundError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...

    def location(self, name: str) -> str:
        """Return the path or URL by which other programs open the file."""
        ...


def storage_at(place: str | os.PathLike[str]) -> Storage:
    """Return the storage at a path, or at a URL such as ``s3://bucket/prefix``.

    Raises:
        ValueError: The scheme of the URL is unknown.
        ModuleNotFoundError: *place* is a URL and obstore is missing: ``pip install 'lamella[s3]'``.
    """
    scheme, found, _ = os.fspath(place).partition("://")
    if not found:
        return Folder(Path(place))
    if scheme != "s3":
        raise ValueError(f"a dataset must be a folder or an s3:// URL, got one with {scheme!r}")
    from lamella.dataset.objects import Objects

    return Objects(os.fspath(place))


class Folder:
    """Stores a dataset in a folder on a local disk or a shared file system. The file system must support hard links."""

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.abspath(path))

    def __repr__(self) -> str:
        return f"<Folder {str(self._path)!r}>"

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a file unless the name exists. Return whether it was written."""
        target = self._target(name)
        temporary = target.with_name(f"{_TEMPORARY}{token_hex(8)}")
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)  # unlike a rename, it fails if the target exists
            except FileExistsError:
                # NFS reports an existing file if the response to the first attempt was lost.
                return temporary.stat().st_nlink > 1
            except OSError as exc:
                if exc.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                    raise OSError(exc.errno, "the file system of a dataset needs hard links", str(target)) from exc
                raise
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file *path* to *name*."""
        target = self._target(name)
        temporary = target.with_name(f"{_TEMPORARY}{token_hex(8)}")
        try:
            with path.open("rb") as source, open(temporary, "xb", opener=_private) as file:
                shutil.copyfileobj(source, file, 2**20)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to the local file *path*."""
        with (self._path / name).open("rb") as source, open(path, "wb", opener=_private) as file:
            shutil.copyfileobj(source, file, 2**20)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self._path / name).read_bytes()

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file below *folder*, by name."""
        found = {}
        for where, _, names in os.walk(self._path / folder):
            for name in names:
                path = Path(where, name)
                with suppress(FileNotFoundError):  # removed in the meantime
                    found[path.relative_to(self._path).as_posix()] = path.stat().st_size
        return found

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self._path / name).stat().st_size

    def age(self, name: str) -> float:
        """Return the seconds since a file was written."""
        # Use the clock of the file system: the clock of a file server may differ from ours.
        return max(0.0, _now_at(self._path) - (self._path / name).stat().st_mtime)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self._path / name).unlink(missing_ok=True)

    def location(self, name: str) -> str:
        """Return the path of a file."""
        return str(self._path / name)

    def _target(self, name: str) -> Path:
        target = self._path / name
        target.parent.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        return target


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a temporary file, which a killed process may have left."""
    return name.rpartition("/")[2].startswith(_TEMPORARY)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _now_at(folder: Path) -> float:
    probe = folder / f"{_TEMPORARY}{token_hex(8)}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
