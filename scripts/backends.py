"""Start a real Phoenix and a real Prometheus, run a command against them, and stop them again.

    python scripts/backends.py --phoenix .venv-phoenix/bin/python -- python -m pytest tests/backends

The command finds their addresses in its environment: LAMELLA_PHOENIX_URL, LAMELLA_PROMETHEUS_URL, and in
LAMELLA_PROMETHEUS_TARGETS a folder whose *.json files tell Prometheus what to scrape. Prometheus comes from Debian's
packages if it is not there. Both have free ports and a temporary folder, and end with the command, however it ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

RULES = Path(__file__).resolve().parents[1] / "examples" / "observability" / "lamella-rules.yml"

LOOK_EVERY = 0.05  # seconds
PHOENIX_SECONDS = 180.0  # the first start compiles and migrates
PROMETHEUS_SECONDS = 30.0
COMMAND_SECONDS = 300.0
# In total below the ten seconds after which `timeout` in .ci/run sends SIGKILL.
COMMAND_STOP_SECONDS = 4.0
BACKEND_STOP_SECONDS = 2.0
TRIES = 3  # another process may take a free port before we use it
TAIL_LINES = 40

APT_INSTALL = ["apt-get", "-o", "DPkg::Lock::Timeout=60", "install", "-y", "--no-install-recommends"]

# Relative paths, because Prometheus treats a "[" in the path of the checkout or temporary folder as a pattern.
PROMETHEUS_CONFIG = """\
global:
  scrape_interval: 200ms
  scrape_timeout: 200ms
  evaluation_interval: 200ms
rule_files:
  - lamella-rules.yml
scrape_configs:
  - job_name: lamella
    file_sd_configs:
      - files: ["targets/*.json"]
        refresh_interval: 1s
"""


class BackendError(Exception):
    """A backend is not available; the message is for the user."""


class Stopped(Exception):
    """A signal has asked us to stop."""


class Signals:
    """Record signals on arrival, so that none can interrupt between the start of a process and its record."""

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number

    def check(self) -> None:
        if self.received:
            raise Stopped


class Process:
    """A process in its own group, so that its children can be stopped with it."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path | None, folder: Path | None = None
    ) -> None:
        self.name = name
        self.log = log
        with ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("wb"))
            self._process = subprocess.Popen(  # noqa: S603
                [*_dies_with_us(), *command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def wait(self, signals: Signals, seconds: float) -> int:
        """Wait for its exit status."""
        ends = time.monotonic() + seconds
        while (status := self.status) is None:
            signals.check()
            if time.monotonic() > ends:
                raise BackendError(f"{self.name} did not end within {seconds:g} s{self.tail()}")
            time.sleep(LOOK_EVERY)
        return status

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Terminate the process, then kill it and its children."""
        if self.status is None:
            self._signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def tail(self) -> str:
        """Return the end of its log, to append to a message."""
        return "" if self.log is None else tail_of(self.log.read_text(errors="replace"))


def tail_of(text: str) -> str:
    lines = text.splitlines()[-TAIL_LINES:]
    return "".join(f"\n  {line}" for line in ("its last lines:", *lines))


def _dies_with_us() -> list[str]:
    """On Linux, end the process with us even if we are killed."""
    prefix = ["setpriv", "--pdeathsig", "KILL"]
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True, check=False)  # noqa: S603
    except OSError:
        return []
    return prefix if works.returncode == 0 else []


def free_ports(count: int) -> list[int]:
    """Return free ports; all of them are held until the last is found."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def answers(url: str) -> bool:
    """Return whether *url* responds with a success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


def start(make: Callable[[int], tuple[Process, str, str]], stack: ExitStack) -> Callable[[Signals, float], str]:
    """Start a backend; return a function that waits until it is ready and returns its URL."""

    def begin(number: int) -> tuple[Process, str, str]:
        process, url, ready = make(number)
        stack.callback(process.stop, signal.SIGTERM, BACKEND_STOP_SECONDS)
        return process, url, ready

    process, url, ready = begin(1)

    def wait(signals: Signals, seconds: float) -> str:
        nonlocal process, url, ready
        number = 1
        ends = time.monotonic() + seconds
        while not answers(ready):
            signals.check()
            if process.status is not None:
                tail = process.tail()
                if number == TRIES or "address already in use" not in tail.lower():
                    raise BackendError(f"{process.name} ended at once, status {process.status};{tail}")
                number += 1
                process, url, ready = begin(number)
            if time.monotonic() > ends:
                raise BackendError(f"{process.name} was not ready within {seconds:g} s;{process.tail()}")
            time.sleep(LOOK_EVERY)
        return url

    return wait


def start_phoenix(python: str, folder: Path, stack: ExitStack) -> Callable[[Signals, float], str]:
    """Start Phoenix with its own database and without internet access."""

    def make(number: int) -> tuple[Process, str, str]:
        port, grpc_port = free_ports(2)
        home = folder / f"phoenix-{number}"
        home.mkdir()
        # Without the user's settings, which may name a database in use.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PHOENIX_")}
        env |= {
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
            "PHOENIX_GRPC_PORT": str(grpc_port),
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_WORKING_DIR": str(home),
            "PYTHONWARNINGS": "ignore",
        }
        command = [python, "-m", "phoenix.server.main", "serve"]
        url = f"http://127.0.0.1:{port}"
        return Process("Phoenix", command, env=env, log=folder / f"phoenix-{number}.log"), url, f"{url}/readyz"

    return start(make, stack)


def start_prometheus(folder: Path, stack: ExitStack) -> Callable[[Signals, float], str]:
    """Start Prometheus with the rules of the examples; it scrapes the targets in *folder*/targets."""
    (folder / "prometheus.yml").write_text(PROMETHEUS_CONFIG)
    (folder / "lamella-rules.yml").symlink_to(RULES)

    def make(number: int) -> tuple[Process, str, str]:
        [port] = free_ports(1)
        command = [
            "prometheus",
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path=prometheus-{number}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        url = f"http://127.0.0.1:{port}"
        log = folder / f"prometheus-{number}.log"
        return Process("Prometheus", command, env=os.environ, log=log, folder=folder), url, f"{url}/-/ready"

    return start(make, stack)


def install_prometheus() -> None:
    """Install Prometheus and promtool from Debian's packages if missing."""
    install("prometheus", "Prometheus", ("prometheus", "promtool"))


def install(package: str, name: str, programs: Sequence[str]) -> None:
    """Install a Debian package if one of its *programs* is missing, and stop its service."""
    missing = " and ".join(each for each in programs if not shutil.which(each))
    if not missing:
        return
    by_hand = f"Install {name} by hand, and run this again"
    if not shutil.which("apt-get"):
        raise BackendError(f"{missing} not found, and there is no apt-get to install it with. {by_hand}")
    root: list[str] = []
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise BackendError(f"{missing} not found; to install it one must be root. {by_hand}")
        root = ["sudo", "-n"]  # -n: never ask for a password without a terminal
    say(f"installing {name} from Debian's packages")
    done = _run_to_the_end([*root, *APT_INSTALL, package])
    if done.returncode:
        # A fresh container has no package lists yet.
        _run_to_the_end([*root, "apt-get", "update"])
        done = _run_to_the_end([*root, *APT_INSTALL, package])
    if done.returncode:
        raise BackendError(f"{' '.join(done.args)} has failed. {by_hand};{tail_of(done.stdout)}")
    # The package also starts a service, which is not needed here.
    if Path("/run/systemd/system").is_dir():
        _run_to_the_end([*root, "systemctl", "disable", "--now", package])
    elif Path(f"/etc/init.d/{package}").exists():
        _run_to_the_end([*root, f"/etc/init.d/{package}", "stop"])


def _run_to_the_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that signals must not interrupt, because half an installation is worse than a wait."""
    return subprocess.run(  # noqa: S603
        command,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )


def say(message: str) -> None:
    print(f"lamella: {message}", file=sys.stderr, flush=True)


def run(phoenix: str, command: Sequence[str], signals: Signals) -> int:
    """Start the backends, run the command, stop everything, and return the command's exit status."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-backends-")))
        targets = folder / "targets"
        targets.mkdir()
        phoenix_ready = start_phoenix(phoenix, folder, stack)
        install_prometheus()
        prometheus_ready = start_prometheus(folder, stack)
        local = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost")))
        env = os.environ | {
            "LAMELLA_PROMETHEUS_URL": prometheus_ready(signals, PROMETHEUS_SECONDS),
            "LAMELLA_PROMETHEUS_TARGETS": str(targets),
            "LAMELLA_PHOENIX_URL": phoenix_ready(signals, PHOENIX_SECONDS),
            "NO_PROXY": local,
            "no_proxy": local,
        }
        say(f"Phoenix and Prometheus are ready after {time.monotonic() - began:.0f} s")
        process = Process(command[0], command, env=env, log=None)
        # SIGINT, after which pytest still tears down its fixtures.
        stack.callback(process.stop, signal.SIGINT, COMMAND_STOP_SECONDS)
        return process.wait(signals, COMMAND_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command against a real Phoenix and a real Prometheus.")
    parser.add_argument("--phoenix", required=True, metavar="PYTHON", help="a Python that has arize-phoenix")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    arguments = parser.parse_args()
    return exit_status(lambda signals: run(arguments.phoenix, arguments.command, signals))


def exit_status(command: Callable[[Signals], int]) -> int:
    """Return the exit status of *command*; report why it did not run or was stopped."""
    signals = Signals()
    try:
        return command(signals)
    except BackendError as error:
        say(str(error))
        return 1
    except Stopped:
        say("stopped")
        return 128 + signals.received


if __name__ == "__main__":
    sys.exit(main())
