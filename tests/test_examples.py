"""Each example runs, as its own first lines say, and shows what it is there to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.environment import HANGS

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = {"own_layer"}
ELSEWHERE = {"sync_on_dask"}
"""Run by tests/dask, in the environment that has Dask."""
SHOWN = {
    "batch.py": [
        "9 done, 6 failed, 0 skipped; Counts(done=9, failed=6)",
        "6 done, 0 failed, 9 skipped; Counts(done=15, failed=0)",
        "requests that it took: 6",
    ],
    "fleet.py": ["60 calls made, 0 refused"],
    "oauth.py": [
        "the client itself: Counter({200: 100}), 1 token request",
        "revoked: Counter({200: 100}), 2 token requests",
        "an hour later: 200 - stored refresh tokens: ['first', 'refresh-1', 'refresh-2']",
    ],
    "on_attempt.py": [
        "attempt 2: 503, next one in 0.02 s\nattempt 3: 200, done\nthe call took [503, 503, 200]",
        "attempt 1: 404, stopped: not_retryable",
    ],
    "one_call.py": ["usual: 200", "one attempt: 503 attempts_used_up", "as an answer: 503"],
    "own_layer.py": [
        *("alone: 2 at a time", "alone: 127.0.0.1 cannot be reached"),
        *("in a stack: 2 at a time", "in a stack: 127.0.0.1 cannot be reached"),
    ],
    "fresh_token.py": [
        "Bearer anna-1\nBearer anna-1\nBearer ben-2\nBearer ben-2\n",
        "30 s before it expires: Bearer anna-1\nafter that: Bearer anna-3",
    ],
    "idempotency_keys.py": [
        *("cut: charged 100", "slow: charged 100", "busy: charged 100"),
        "broken: 500 misconfigured, not_retryable, attempts: 1",
        "plain: 409 idempotency_key_reused, not_retryable, attempts: 1",
        "'carried_out': {'plain': 1, 'cut': 1, 'slow': 1, 'busy': 1}, 'posts': {'plain': 3, 'cut': 2, 'slow': 3, ",
    ],
    "maesn_invoices.py": ["invoices: [250, 250]", "requests that it took: 9"],
    "outage.py": [
        "with a budget: 129 sends, {'attempts_used_up': 2, 'retry_budget_empty': 98}",
        "with a breaker: 20 sends",
        "with a deadline: deadline after",
    ],
    "push.py": [
        "  killed, with 1",
        " done, 0 failed, ",
        "had been there, unknown to the journal",
        "300 bills at the sandbox, 0 of them twice",
    ],
    "rate_limit.py": ["learned: 60 calls, all answered", "stated: 60 calls, all answered; 0 of 60 sends were refused"],
    "rules.py": [
        "a limit: 200",
        "a plain 403: 403 Forbidden, not_retryable",
        "a lock: 200",
        "no quota: 429 Quota Used Up, not_retryable",
        'an error in a 200: 200 {"data"',
        "by hand: True",
    ],
    "secondary_limits.py": [
        *("octo/cat: 95 issues, each once: True", "octo/fish: 95 issues, each once: True"),
        "30 pages in 3.",
        "octo/secret: 403 Forbidden, not_retryable, 1 attempt",
    ],
    "service.py": ["order 1: {'id': 1}", "404 Not Found [no such order]. check the id", "stopped: not_retryable"],
    "several_limits.py": [
        "100 calls in 19 s: 100 answered, 0 to be made in 0 h\n",
        "160 calls in 29 s: 140 answered, 20 to be made in 24 h\n",
        "the server has answered 240 and refused 0\n",
        "Limit(60, per=86400): 0 left\n",
    ],
    "sync.py": [
        "run 1: 20 pages, 1000 records",
        "invoices of west failed: Unauthorized",
        "run 2: 4 pages, 1 records",
        "'south/contacts': 251",
        "contacts of south: 0 had been missing, 0 are deleted",
        "invoices with line items: 500; values that do not fit: 0",
    ],
    "sync_any_api.py": [
        "run 1: 370 records that were new or had changed, done: True",
        "run 2: 1 records",
        "in the file: {'customers': 120, 'orders': 250}",
        "by records(): 120",
    ],
    "traces.py": [
        "GET /accounting/invoices CLIENT",
        "lamella GET /accounting/invoices INTERNAL",
        "lamella.retry",
        "'http.request.resend_count': 2",
    ],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.name, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in sorted(EXAMPLES.glob("*.py"))
        if "test_" not in path.name and path.stem not in ELSEWHERE
    ],
)
def test_each_example_prints_its_expected_output(name: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for text in SHOWN[name]:
        assert text in done.stdout


@pytest.mark.slow
def test_the_fixtures_work_in_another_project(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text((EXAMPLES / "test_with_pytest.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".", "--rootdir", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
