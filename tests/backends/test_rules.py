"""The rules of examples/observability: what promtool and a real Prometheus say of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.backends.conftest import until

if TYPE_CHECKING:
    from tests.backends.conftest import Prometheus

EXAMPLES = Path(__file__).parents[2] / "examples" / "observability"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", "lamella-rules.yml"],
        ["test", "rules", "lamella-rules-test.yml"],
        ["check", "config", "prometheus.yml"],
    ],
    ids=" ".join,
)
def test_promtool(arguments: list[str]) -> None:
    done = subprocess.run(  # noqa: S603
        ["promtool", *arguments],  # noqa: S607
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@contextmanager
def metrics_app() -> Iterator[int]:
    """The example, running; its port."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / "metrics_app.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            assert greeting.startswith("metrics: http://127.0.0.1:"), greeting
            yield int(greeting.partition("127.0.0.1:")[2].partition("/")[0])
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=10)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()


def test_the_example_triggers_the_alerts(prometheus: Prometheus) -> None:
    with metrics_app() as port:
        prometheus.scrape("example", port)

        for recorded in (
            "lamella:attempts:rate5m",
            "lamella:calls:rate5m",
            "lamella:retries:ratio5m",
            "lamella:attempts_per_call:ratio5m",
            "lamella:given_up:ratio5m",
            "lamella:rate_limited:rate15m",
            "lamella:call_wait:p95_15m",
        ):
            until(
                lambda recorded=recorded: prometheus.value(f'{recorded}{{job="example"}}'),  # type: ignore[misc]
                lambda value: value > 0,
                recorded,
            )
        alerts = {"LamellaRetryRateClimbing", "LamellaCallsGivingUp", "LamellaAccountRateLimitedForLong"}
        # They wait for minutes before they fire; that they begin to is what can be seen here.
        until(
            lambda: prometheus.by('max_over_time(ALERTS{job="example", alertstate="pending"}[5m])', "alertname"),
            lambda pending: {name for (name,) in pending} == alerts,
            "alerts that are pending",
        )
        share = prometheus.value('lamella:retries:ratio5m{job="example"}')
        assert 0.1 < share < 0.9
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 13
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


def test_the_tested_rules_are_the_example_rules(prometheus: Prometheus) -> None:
    # Their paths are relative to Prometheus's folder.
    files = {prometheus.targets.parent / group["file"] for group in prometheus.get("rules")["groups"]}
    assert [os.path.samefile(file, EXAMPLES / "lamella-rules.yml") for file in files] == [True]
