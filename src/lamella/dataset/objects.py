"""A dataset as objects of S3, or of another store that has its conditional writes."""

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
    """A :class:`lamella.dataset.storage.Storage` on obstore.

    Credentials, region and endpoint are those of the environment: ``AWS_ACCESS_KEY_ID``, ``AWS_REGION``,
    ``AWS_ENDPOINT_URL``, … as for AWS's own tools; on AWS also those of the machine.
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
        from obstore.exceptions import AlreadyExistsError

        with _errors(name):
            try:
                # If-None-Match: *. Where the answer to a first attempt was lost, the second one finds the object there.
                self._store.put(name, content, mode="create")
            except AlreadyExistsError:
                return self.read(name) == content
            return True

    def upload(self, path: Path, name: str) -> None:
        with _errors(name):
            self._store.put(name, path)

    def download(self, name: str, path: Path) -> None:
        with _errors(name), path.open("wb") as file:
            for chunk in self._store.get(name).stream(min_chunk_size=_CHUNK):
                file.write(chunk)

    def read(self, name: str) -> bytes:
        with _errors(name):
            return bytes(self._store.get(name).bytes())

    def sizes(self, folder: str) -> dict[str, int]:
        with _errors(folder):
            return {each["path"]: each["size"] for page in self._store.list(folder) for each in page}

    def age(self, name: str) -> float:
        with _errors(name):
            written: float = self._store.head(name)["last_modified"].timestamp()
        return max(0.0, time.time() - written)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), _errors(name):
            self._store.delete(name)

    def location(self, name: str) -> str:
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
        # What follows the first line may be the whole request.
        raise OSError(errno.EIO, redact_text(str(exc).partition("\n")[0]), name) from None
