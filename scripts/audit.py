"""Look for vulnerabilities: bandit on our code, zizmor on the workflows, pip-audit on what a user of lamella installs.

    python scripts/audit.py              0: nothing was found; what could not be looked up is said
    python scripts/audit.py --strict     and 1 where the packages could not be looked up

pip-audit calls a package that its database does not know "not found", and ends well all the same. So it is asked first
for one whose hole is known: a database that does not know of that one knows nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("cli", "oauth", "parquet", "sdk")
KNOWN_HOLE = "jinja2==3.1.2"  # CVE-2024-22195, and others since
SERVICES = ("pypi", "osv")
PATIENCE = 300  # seconds


def main(arguments: list[str]) -> int:
    """Run both and return the exit code."""
    strict = "--strict" in arguments
    clean = all([bandit(), workflows()])
    service = next((service for service in SERVICES if knows(service)), None)
    if service is None:
        print(
            "\nNOT CHECKED: the packages. No database of known holes can be reached from here: asked for one that "
            f"everybody knows ({KNOWN_HOLE}), {' and '.join(SERVICES)} knew of none.\n"
            "What stands is bandit's verdict on our own code; the packages have to be looked up elsewhere.",
            file=sys.stderr,
        )
        return 0 if clean and not strict else 1
    return 0 if packages(service) and clean else 1


def bandit() -> bool:
    """Return whether bandit finds nothing of medium severity or above in our code; exceptions are in pyproject.toml."""
    print("bandit: src, scripts, benchmarks and examples", flush=True)
    command = ["-m", "bandit", "--quiet", "--recursive", "--configfile", "pyproject.toml", "--severity-level", "medium"]
    # Relative paths, because bandit skips files with ".git", "CVS" and similar names anywhere in the path.
    command += ["src", "scripts", "benchmarks", "examples"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False)  # noqa: S603
    if not done.returncode:
        print("bandit: found nothing")
    return not done.returncode


def workflows() -> bool:
    """Return whether zizmor finds nothing in the workflows of GitHub, without asking GitHub."""
    print("\nzizmor: .github", flush=True)
    zizmor = Path(sys.executable).with_name("zizmor")  # a binary, which is no module
    return not subprocess.run([zizmor, "--offline", "--no-progress", ".github"], cwd=ROOT, check=False).returncode  # noqa: S603


def knows(service: str) -> bool:
    """Return whether the database of *service* responds."""
    found, _ = ask(service, [KNOWN_HOLE])
    return any(package.get("vulns") for package in found)


def packages(service: str) -> bool:
    """Return whether all packages were looked up and have no known vulnerability."""
    wanted = [f"{name}=={version}" for name, version in sorted(closure("lamella", EXTRAS).items()) if name != "lamella"]
    print(f"\npip-audit ({service}): {len(wanted)} packages", flush=True)
    found, problem = ask(service, wanted)
    skipped = [package["name"] for package in found if "skip_reason" in package]
    holes = [(package, hole) for package in found for hole in package.get("vulns", ())]
    for package, hole in holes:
        fixed = ", ".join(hole.get("fix_versions", ())) or "no version yet"
        print(f"  {package['name']} {package['version']}: {hole['id']}, mended in {fixed}")
    missing = len(wanted) - (len(found) - len(skipped))
    if missing:
        print(f"pip-audit: {missing} of {len(wanted)} could not be looked up: {', '.join(skipped) or problem}")
    if not holes and not missing:
        print("pip-audit: nothing is known of them")
    return not holes and not missing


def ask(service: str, wanted: Iterable[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the findings of pip-audit per package, and its errors."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "packages.txt")
        file.write_text("\n".join(wanted), "utf-8")
        command = [
            "-m",
            "pip_audit",
            "--vulnerability-service",
            service,
            "--format",
            "json",
            "--no-deps",
            "--disable-pip",
            "--cache-dir",
            folder,  # the home folder may not be writable
            "--progress-spinner",
            "off",
            "--requirement",
            str(file),
        ]
        try:
            done = subprocess.run(  # noqa: S603
                [sys.executable, *command],
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            return [], f"no answer in {PATIENCE} s"
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except (ValueError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["no answer"])[-1]


def closure(name: str, extras: Iterable[str] = ()) -> dict[str, str]:
    """Return the installed versions of a package with extras and of all its dependencies."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    rest = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while rest:
        each = rest.pop()
        if each in seen:
            continue
        seen.add(each)
        package, extra = each
        installed = distribution(package)
        found[package] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                rest += [(canonicalize_name(needed.name), one) for one in ("", *needed.extras)]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
