"""A dataset as objects of S3, or of another store that has its conditional writes."""

# obstore is an extra.
# pyright: reportMissingImports=false

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

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

        try:
            # If-None-Match: *. Where the answer to a first attempt was lost, the second one finds the object there.
            self._store.put(name, content, mode="create")
        except AlreadyExistsError:
            return self.read(name) == content
        return True

    def upload(self, path: Path, name: str) -> None:
        self._store.put(name, path)

    def download(self, name: str, path: Path) -> None:
        with path.open("wb") as file:
            for chunk in self._get(name).stream(min_chunk_size=_CHUNK):
                file.write(chunk)

    def read(self, name: str) -> bytes:
        return bytes(self._get(name).bytes())

    def sizes(self, folder: str) -> dict[str, int]:
        return {each["path"]: each["size"] for page in self._store.list(folder) for each in page}

    def age(self, name: str) -> float:
        from obstore.exceptions import NotFoundError

        try:
            found: float = time.time() - self._store.head(name)["last_modified"].timestamp()
        except (FileNotFoundError, NotFoundError):
            raise FileNotFoundError(name) from None
        return max(0.0, found)

    def remove(self, name: str) -> None:
        from obstore.exceptions import NotFoundError

        try:
            self._store.delete(name)
        except (FileNotFoundError, NotFoundError):
            return

    def location(self, name: str) -> str:
        return f"{self._url}/{name}"

    def _get(self, name: str) -> Any:
        from obstore.exceptions import NotFoundError

        try:
            return self._store.get(name)
        except (FileNotFoundError, NotFoundError):
            raise FileNotFoundError(name) from None
