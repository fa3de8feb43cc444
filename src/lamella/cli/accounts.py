"""The account of the environment, and whether others can read a file of accounts."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from lamella.maesn.account import Account
from lamella.maesn.accounts_file import NOT_A_HEADER, fits_header

_VARIABLE: Final = "MAESN_ACCOUNT_KEY"


def accounts_of_environment() -> tuple[Account, ...]:
    """Return one account, ``default``, with the key of ``MAESN_ACCOUNT_KEY``. Raises as `key_in`."""
    key = key_in(_VARIABLE, f"no accounts: give --accounts FILE, or set {_VARIABLE} for a single one")
    return (Account("default", key),)


def key_in(variable: str, missing: str) -> str:
    """Return the key from an environment variable.

    Raises ValueError if it is not set (with the message *missing*) or not allowed in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(missing)
    if not fits_header(key):
        raise ValueError(f"{variable} {NOT_A_HEADER}")
    return key


def others_can_read(path: Path) -> bool:
    """Return whether anyone but the owner can read the file. False if unknown."""
    try:
        found = path.stat()
    except OSError:
        return False
    return os.name == "posix" and stat.S_ISREG(found.st_mode) and bool(found.st_mode & (stat.S_IRGRP | stat.S_IROTH))
