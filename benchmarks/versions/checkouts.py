"""The source of the two sides: copies in a temporary folder, so that nothing changes while they are measured."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.versions.ratios import BASE, THIS

__all__ = ["Checkout", "checkouts", "commit"]


class Checkout(NamedTuple):
    """One side: the folder that holds its package `lamella`, and which commit it is."""

    source: Path
    about: str


def commit(root: Path, name: str) -> str:
    """Return the hash of the commit or branch *name*.

    Raises:
        ValueError: The repository in *root* has none of that name.
    """
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False)
    if not found:
        raise ValueError(f"BASE must be a commit or branch of this repository, got {name!r}")
    return found.decode().strip()


@contextmanager
def checkouts(root: Path, base: str) -> Iterator[dict[str, Checkout]]:
    """Copy `src` of the checkout in *root* as it is now, and of the commit *base*; remove both when the block ends."""
    with TemporaryDirectory(prefix="lamella-against-") as name:
        folder = Path(name).resolve()  # a child compares it with the paths of the modules that it imports
        shutil.copytree(root / "src", folder / THIS / "src", ignore=shutil.ignore_patterns("__pycache__"))
        with zipfile.ZipFile(io.BytesIO(_git(root, "archive", "--format=zip", base, "src"))) as archive:
            archive.extractall(folder / BASE)
        changed = ", with uncommitted changes" if _git(root, "status", "--porcelain", "--", "src") else ""
        yield {
            THIS: Checkout(folder / THIS / "src", _about(root, "HEAD") + changed),
            BASE: Checkout(folder / BASE / "src", _about(root, base)),
        }


def _about(root: Path, commit: str) -> str:
    return _git(root, "log", "-1", "--format=%h %s", commit).decode().strip()


def _git(root: Path, *arguments: str, check: bool = True) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=check, stdout=subprocess.PIPE).stdout  # noqa: S603
