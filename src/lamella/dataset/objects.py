"""A dataset stored as objects in S3, or in another store that supports its conditional writes."""

# obstore is an extra.
# pyright: reportMissingImports=false

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from lamella.redaction import redact_text

_CHUNK: Final = 8 * 2**20


class Objects:
    """Stores a dataset through obstore. It is a :class:`lamella.dataset.storage.Storage`.

    obstore reads the credentials, region and endpoint from the same environment variables as AWS's own tools:
    ``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, … On AWS it can also use the role of the machine.
    """

    def __init__(self, url: str) -> None:
        try:
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise ModuleNotFoundError("obstore is missing: pip install 'lamella[s3]'", name="obstore") from None
        self._url = url.rstrip("/")
        self._store: Any = from_url(self._url)

    def __repr__(self) -> str:
        return f"<Objects {self._url!r}>"

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a file unless the name exists. Return whether it was written."""
        from obstore.exceptions import AlreadyExistsError

        with _errors(name):
            try:
                # If-None-Match: *. If the response to the first attempt was lost, the second one finds the object.
                self._store.put(name, content, mode="create")
            except AlreadyExistsError:
                with suppress(FileNotFoundError):  # a later commit has removed it in the meantime
                    return self.read(name) == content
                return False
            return True

    def upload(self, path: Path, name: str) -> None:
        """Copy the local file *path* to *name*."""
        with _errors(name):
            self._store.put(name, path)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to the local file *path*."""
        with _errors(name), path.open("wb") as file:
            for chunk in self._store.get(name).stream(min_chunk_size=_CHUNK):
                file.write(chunk)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with _errors(name):
            return bytes(self._store.get(name).bytes())

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of each file below *folder*, by name."""
        with _errors(folder):
            return {each["path"]: each["size"] for page in self._store.list(folder) for each in page}

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        with _errors(name):
            found: int = self._store.head(name)["size"]
        return found

    def age(self, name: str) -> float:
        """Return the seconds since a file was written."""
        with _errors(name):
            written: float = self._store.head(name)["last_modified"].timestamp()
        return max(0.0, time.time() - written)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError), _errors(name):
            self._store.delete(name)

    def location(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self._url}/{name}"


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn obstore's errors into an OSError."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (FileNotFoundError, NotFoundError):
        raise FileNotFoundError(errno.ENOENT, "there is no such object", name) from None
    except BaseError as exc:
        # The lines after the first one may contain the whole request.
        raise OSError(errno.EIO, redact_text(str(exc).partition("\n")[0]), name) from None
