"""Build the sdist and the wheel into dist/, and check what a user gets.

    python scripts/dist.py

Both are built twice and must be the same byte for byte. The wheel is built from the sdist. Then twine and
check-wheel-contents look at them, and the wheel is installed into an empty environment: alone, and with the extra cli,
with which a sync runs against the sandbox.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
NOT_NEEDED = (".png", ".svg", ".json")
NO_EXTRAS = """
import importlib.util, lamella, lamella.maesn
lamella.stack()
found = [name for name in ("typer", "rich", "msgspec", "opentelemetry.sdk") if importlib.util.find_spec(name)]
assert not found, found
"""


def run(*command: str | Path, **variables: str) -> None:
    """Run *command* outside of the checkout, so that nothing is imported from it."""
    print("  " + " ".join(Path(word).name if isinstance(word, Path) else word for word in command), flush=True)
    subprocess.run(list(command), check=True, cwd=DIST, env=os.environ | variables)  # noqa: S603


def moment() -> str:
    """Return the time that the files in the archives have: SOURCE_DATE_EPOCH, or that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "1577836800"  # 2020-01-01, without a repository


def build(into: Path) -> dict[str, str]:
    """Build both into a folder; return the hash of each by its name."""
    run(
        *(Path(sys.executable), "-m", "build", "--no-isolation", "--outdir", into, ROOT),
        SOURCE_DATE_EPOCH=moment(),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(into.iterdir())}


def check_contents(sdist: Path) -> None:
    """Raise SystemExit if the sdist has results or pictures."""
    with tarfile.open(sdist) as archive:
        found = [name for name in archive.getnames() if name.endswith(NOT_NEEDED) and "/src/" not in name]
    if found:
        raise SystemExit(f"{sdist.name} holds files that no user needs: {', '.join(found)}")


def check_installation(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, alone and with the extra cli, and sync from there."""
    run(Path(sys.executable), "-m", "venv", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, wheel)
    run(python, "-I", "-c", NO_EXTRAS)
    run(*install, f"{wheel}[cli]")
    run(python, "-I", "-m", "lamella", "--version")
    lamella = (python, "-I", "-m", "lamella")
    output = folder / "records.jsonl"
    with subprocess.Popen([*lamella, "sandbox", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            # What it greets with: where it listens, and the keys.
            lines = iter(server.stdout or ())
            url = next(lines).split()[2]
            api_key, key = (next(lines).split()[1] for _ in range(2))
            names = {"MAESN_BASE_URL": url, "MAESN_API_KEY": api_key, "MAESN_ACCOUNT_KEY": key}
            command = (*lamella, "sync", "--resource", "items", "--journal", folder / "journal", "--output", output)
            run(*command, **names)
        finally:
            server.terminate()
    if not output.read_text("utf-8"):
        raise SystemExit(f"the sync wrote nothing to {output.name}")


def main() -> None:
    """Build and check."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        first, again = build(DIST), build(Path(folder, "again"))
        if first != again:
            raise SystemExit(f"two builds differ: {first} and {again}")
        sdist, wheel = next(DIST.glob("*.tar.gz")), next(DIST.glob("*.whl"))
        check_contents(sdist)
        run(Path(sys.executable), "-m", "twine", "check", "--strict", sdist, wheel)
        run(Path(sys.executable), "-m", "check_wheel_contents", wheel)
        check_installation(wheel, Path(folder, "empty"))
    for name, digest in first.items():
        print(f"{digest}  dist/{name}")


if __name__ == "__main__":
    main()
