"""Run a command that finds a Chromium and its driver in LAMELLA_CHROMIUM and LAMELLA_CHROMEDRIVER.

    python tests/browser/with_chromium.py python -m pytest tests/browser

They come from Debian's packages if they are not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("chromium", "chromium-driver")
LOCKED = ("-o", "DPkg::Lock::Timeout=120")
APT = (
    ("apt-get", *LOCKED, "update", "-qq"),
    ("apt-get", *LOCKED, "install", "-y", "-qq", "--no-install-recommends", *PACKAGES),
)


def say(what: str) -> None:
    """Tell the user."""
    sys.stderr.write(f"lamella: {what}\n")


def find() -> dict[str, str] | None:
    """Where both are, as the variables say it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return {"LAMELLA_CHROMIUM": chromium, "LAMELLA_CHROMEDRIVER": driver} if chromium and driver else None


def install() -> str | None:
    """Install the packages; if that cannot be, say why."""
    if not shutil.which("apt-get"):
        return "there is no apt-get"
    if os.geteuid():
        return "only root may install packages"
    for command in APT:
        say(" ".join(command))
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=quiet, stdout=sys.stderr, check=False)  # noqa: S603
        if done.returncode:
            return f"{' '.join(command)} ended with {done.returncode}"
    return None


def main(command: list[str]) -> int:
    """The exit code of the command; 2 if there is no browser for it."""
    if not command:
        say(f"what is to be run?\n\n{__doc__}")
        return 2
    found, why = find(), None
    if not found:
        why = install()
        found = find()
    if not found:
        say(f"the tests of the page need chromium and chromedriver: {why or 'they are not on the PATH'}")
        say(f"on Debian: apt-get install {' '.join(PACKAGES)}")
        return 2
    return subprocess.run(command, env=os.environ | found, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
