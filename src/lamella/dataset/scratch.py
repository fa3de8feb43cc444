"""The local folder for the journals of running shards."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def scratch_folder(path: Path | None = None) -> Path:
    """Return *path*, or a temporary folder of this user. Create it, accessible to its owner only.

    Raises:
        PermissionError: The folder belongs to another user, or other users may write to it.
    """
    if path is None:
        user = str(os.getuid()) if os.name == "posix" else "user"
        path = Path(tempfile.gettempdir(), f"lamella-{user}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    # All users can write to the folder for temporary files: another user may have created this path, or a link.
    if os.name == "posix" and (
        not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(f"{path}: must be a folder of this user that no one else may write to")
    return path
