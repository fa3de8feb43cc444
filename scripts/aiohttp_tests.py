"""Run aiohttp's own client tests without and with lamella's stack in each session, and compare the results.

    python scripts/aiohttp_tests.py                                 all files; an exit code of 1: a new failure
    python scripts/aiohttp_tests.py test_client_functional.py       these files only

The tests are those of the aiohttp version that is installed, from its source archive on the package index. They are
unpacked into a temporary folder, and nothing is built. `aiohttp_stack.py` puts the stack into each session.
`aiohttp_known.txt` lists the tests that may fail with the stack, each with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = (
    "test_client_functional.py",
    "test_client_middleware.py",
    "test_client_middleware_digest_auth.py",
    "test_client_request.py",
    "test_client_response.py",
    "test_client_session.py",
    "test_client_ws.py",
    "test_client_ws_functional.py",
    "test_proxy_functional.py",
    "test_tracing.py",
    "test_web_functional.py",
    "test_web_websocket_functional.py",
)
# aiohttp's own pytest.ini needs plugins that measure coverage and time.
SETTINGS = """\
[pytest]
timeout = 60
xfail_strict = true
empty_parameter_set_mark = xfail
filterwarnings =
    error
    ignore:Unclosed client session <aiohttp.client.ClientSession object at 0x:ResourceWarning
    ignore:aiohttp.pytest_plugin will be removed in v4:DeprecationWarning
markers =
    autobahn
    dev_mode
    internal
    skip_blockbuster
"""
# Plugins of packages that happen to be installed, including lamella's.
OFF = ("asyncio", "cacheprovider", "codspeed", "lamella", "lamella_maesn")
MARKED = "not (dev_mode or autobahn or internal)"


def main(names: list[str]) -> int:
    """Run the tests twice, and return the exit code."""
    known = known_differences()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = names or FILES
        fetch_tests(folder)
        bare = run(folder, "without lamella", files)
        layered = run(folder, "with lamella", files, "-p", "aiohttp_stack")
    if not bare or bare.keys() != layered.keys():
        print("\nThe two runs did not run the same tests.", file=sys.stderr)
        return 1
    new = [test for test, passed in layered.items() if not passed and bare[test]]
    unexpected = [test for test in new if test not in known]
    print(f"\n{len(bare)} tests: {sum(bare.values())} pass without lamella, {sum(layered.values())} with it")
    for test in new:
        print(f"  {test}: {known.get(test, 'NEW FAILURE')}")
    for test in known.keys() & bare.keys() - set(new):
        print(f"  {test}: passes now; remove it from aiohttp_known.txt")
    return 1 if unexpected else 0


def known_differences() -> dict[str, str]:
    """Return the tests that may fail with the stack, without their parameters, each with the reason."""
    text = (HERE / "aiohttp_known.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {test.strip(): reason.strip() for test, _, reason in (line.partition("  ") for line in lines)}


def fetch_tests(folder: Path) -> None:
    """Unpack the tests of the installed aiohttp into *folder*."""
    archive = f"aiohttp-{version('aiohttp')}.tar.gz"
    index = os.environ.get("PIP_INDEX_URL", "").rstrip("/")
    if not index:
        sys.exit("aiohttp_tests: set PIP_INDEX_URL to the package index that has aiohttp's sdist")
    request = urllib.request.Request(  # noqa: S310 - an address of the user's own
        f"{index}/aiohttp/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 # nosec B310
        [file] = [file for file in json.load(answer)["files"] if file["filename"] == archive]
    print(f"aiohttp_tests: fetching {file['url']}", flush=True)
    path = folder / archive
    with urllib.request.urlopen(file["url"], timeout=300) as answer:  # noqa: S310 # nosec B310
        path.write_bytes(answer.read())
    if hashlib.sha256(path.read_bytes()).hexdigest() != file["hashes"]["sha256"]:
        raise ValueError(f"{archive} is not the file that the index names: its SHA-256 differs")
    with tarfile.open(path) as tar:
        inside = f"{archive.removesuffix('.tar.gz')}/"
        for member in tar.getmembers():
            # Without aiohttp's own folder, which would hide the installed package.
            if member.name.startswith(f"{inside}tests/"):
                member.name = member.name.removeprefix(inside)
                tar.extract(member, folder, filter="data")
    (folder / "pytest.ini").write_text(SETTINGS, "utf-8")


def run(folder: Path, title: str, files: tuple[str, ...] | list[str], *more: str) -> dict[str, bool]:
    """Run the tests in *files*, and return whether each function passed, with all its parameters."""
    print(f"\naiohttp_tests: {title}", flush=True)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--tb", "short", f"--junit-xml={report}"]
    command += [word for plugin in OFF for word in ("-p", f"no:{plugin}")]
    command += ["-m", MARKED, *more, *(f"tests/{file}" for file in files)]
    # The tests set their own proxies in the environment.
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    subprocess.run(command, cwd=folder, env=env, check=False)  # noqa: S603
    passed: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 # nosec B314 - written by pytest
        function = re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)
        test = f"{case.get('classname', '').removeprefix('tests.')}::{function}"
        failed = case.find("failure") is not None or case.find("error") is not None
        passed[test] = passed.get(test, True) and not failed
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
