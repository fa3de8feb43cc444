"""What the machine or its user has set reaches no test, and no process that a test starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.environment import cleaned, color_of, memory_folder

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "http://127.0.0.1:9"
HOSTILE = {
    "AIOHTTP_NO_EXTENSIONS": "1",
    "ALL_PROXY": NOWHERE,
    "CLICOLOR": "1",
    "COLUMNS": "20",
    "FORCE_COLOR": "1",
    "GITHUB_ACTIONS": "true",
    "HOME": "/somebody's",
    "HTTPS_PROXY": NOWHERE,
    "HTTP_PROXY": NOWHERE,
    "LINES": "3",
    "MAESN_API_KEY": "somebody's",
    "MAESN_BASE_URL": NOWHERE,
    "NO_COLOR": "1",
    "NO_PROXY": "",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "3",
    "OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE,
    "OTEL_PROPAGATORS": "none",
    "OTEL_RESOURCE_ATTRIBUTES": "service.name=another",
    "OTEL_SDK_DISABLED": "true",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup",
    "OTEL_SERVICE_NAME": "another",
    "OTEL_SPAN_EVENT_COUNT_LIMIT": "1",
    "OTEL_TRACES_SAMPLER": "always_off",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONHASHSEED": "7",
    "PYTHONWARNINGS": "ignore",
    "SSLKEYLOGFILE": "/no/such/folder/keys",
    "SSL_CERT_DIR": "/no/such/folder",
    "SSL_CERT_FILE": "/no/such/file",
    "TERM": "dumb",
    "TZ": "Asia/Kathmandu",
    "XDG_CONFIG_HOME": "/somebody's",
    "all_proxy": NOWHERE,
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "",
}
PROGRAM = """
import tests.conftest

import asyncio, json, os, time
import aiohttp
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider

async def main():
    span = TracerProvider().get_tracer("a").start_span("b", attributes={"text": "whole"})
    print(json.dumps({
        "debug": asyncio.get_running_loop().get_debug(),
        "environment": dict(os.environ),
        "extensions": aiohttp.http_parser.NO_EXTENSIONS,
        "fields": sorted(propagate.get_global_textmap().fields),
        "home": os.path.expanduser("~"),
        "text": span.attributes["text"],
        "umask": os.umask(0),
        "zone": time.tzname[0],
    }))

asyncio.run(main())
"""


@pytest.mark.slow
def test_tests_run_in_a_clean_environment() -> None:
    """The conftest cleans before aiohttp and the SDK are imported, which read it then."""
    ran = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | HOSTILE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    environment = found.pop("environment")
    assert {name for name in HOSTILE if environment.get(name) == HOSTILE[name]} == set()
    assert environment["PATH"] == os.environ["PATH"]
    assert found == {
        "debug": False,
        "extensions": False,
        "fields": ["baggage", "traceparent", "tracestate"],
        "home": cleaned({})["HOME"],
        "text": "whole",
        "umask": 0o022,
        "zone": "UTC",
    }


def test_the_current_version_matches() -> None:
    assert dict(os.environ) == cleaned(os.environ)
    assert time.tzname[0] == "UTC"
    umask = os.umask(0o022)
    assert umask == 0o022
    assert not Path("~").expanduser().exists()


@pytest.mark.parametrize(
    "name", ["LANG", "LC_ALL", "MAESN_", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTHON", "SOMETHING_NEW", "path"]
)
def test_unneeded_environment_variables_are_removed(name: str) -> None:
    assert name not in cleaned({name: "x"})


@pytest.mark.parametrize(
    "name", ["CI", "LAMELLA_CHROMIUM", "LD_LIBRARY_PATH", "PATH", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"]
)
def test_needed_environment_variables_are_kept(name: str) -> None:
    assert cleaned({name: "x"})[name] == "x"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such sockets")
@pytest.mark.parametrize("name", ["TEMP", "TMP", "TMPDIR"])
def test_a_temporary_folder_is_kept_unless_the_path_of_a_socket_in_it_would_be_too_long(name: str) -> None:
    kept = "/tmp/größe 1"  # noqa: S108 - only a name
    assert cleaned({name: kept})[name] == kept
    assert name not in cleaned({name: f"/tmp/{'a' * 60}"})  # noqa: S108


@pytest.mark.skipif(sys.platform != "linux", reason="no other system has a known folder in memory")
def test_temporary_files_are_in_memory_only_where_there_is_space(tmp_path: Path) -> None:
    assert memory_folder(str(tmp_path), space=1) == str(tmp_path)
    assert memory_folder(str(tmp_path), space=2**80) is None
    assert memory_folder(str(tmp_path / "missing"), space=1) is None


@pytest.mark.parametrize(
    ("environ", "color"),
    [
        ({}, "auto"),
        ({"TERM": "xterm"}, "auto"),
        ({"NO_COLOR": ""}, "auto"),
        ({"NO_COLOR": "1"}, "no"),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, "no"),
        ({"TERM": "dumb"}, "no"),
        ({"FORCE_COLOR": "1"}, "yes"),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, "yes"),
        ({"PY_COLORS": "0", "FORCE_COLOR": "1"}, "no"),
        ({"PY_COLORS": "1", "NO_COLOR": "1"}, "yes"),
    ],
)
def test_pytest_colours_follow_the_users_settings(environ: dict[str, str], color: str) -> None:
    assert color_of(environ) == color
