from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lamella import maesn
from lamella.cli.app import app
from lamella.cli.explain import parse
from lamella.rules import Failure, Outcome, decide


def explain(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "80"})


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_explain_shows_the_whole_book() -> None:
    result = explain()
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    rows = lines(result.output)
    assert rows[0] == "status title retry first wait"
    assert "401 Unauthorized no" in rows
    assert "429 Too Many Requests yes 1 min – 1 min 6 s, doubling" in rows
    assert "500 Internal Server Error yes 15 s – 30 s, doubling" in rows
    assert "connection_lost Connection Lost yes 500 ms – 1 s, doubling" in rows
    shown = {row.split()[0] for row in rows[2:-3]}
    assert shown == {str(rule.status) for rule in maesn.RULES} | set(Failure)


def test_429() -> None:
    result = explain("429")
    assert result.exit_code == 0
    assert result.output == (
        "429 Too Many Requests\n"
        "  This account has exceeded its rate limit.\n"
        "  Send fewer requests at a time for this account, or wait longer.\n"
        "\n"
        "Retried?\n"
        "  Yes, after 1 min, plus up to 10% jitter, doubling; 1 h at most.\n"
        "\n"
        "  before retry 1     1 min – 1 min 6 s\n"
        "  before retry 2     2 min – 2 min 12 s\n"
        "  before retry 3     4 min – 4 min 24 s\n"
        "  before retry 4     8 min – 8 min 48 s\n"
        "  in all 5 attempts  15 min – 16 min 30 s\n"
        "\n"
        "  A POST or PATCH is retried as well, because it was not carried out.\n"
    )


def test_500() -> None:
    rows = lines(explain("500").output)
    assert "Yes, after 15 s – 30 s, drawn evenly, doubling; 1 h at most." in rows
    assert "before retry 1 15 s – 30 s" in rows
    assert "before retry 4 2 min – 4 min" in rows
    assert "in all 5 attempts 3 min 45 s – 7 min 30 s" in rows
    assert "retry_writes=True" in rows[-1]


def test_failures_that_are_never_retried() -> None:
    output = explain("404").output
    assert output.endswith("Retried?\n  No: it would fail again in the same way.\n")


@pytest.mark.parametrize(("asked", "head"), [("418", "4xx"), ("501", "5xx"), ("600", "5xx"), ("999", "5xx")])
def test_explain_shows_the_class_rule_of_a_status(asked: str, head: str) -> None:
    title = maesn.RULES.rule_for(int(asked)).title
    assert explain(asked).output.startswith(f"{asked} {title} (by the rule for {head})\n")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("429", 429),
        (" 503 ", 503),
        *(
            (["connect_failed", "connect-failed", "ConnectFailed", "CONNECT_FAILED"][i], "connect_failed")
            for i in range(4)
        ),
        ("AttemptTimeout", "attempt_timeout"),
        ("ConnectionLost", "connection_lost"),
    ],
)
def test_explain_accepts_statuses_classes_and_failures(text: str, outcome: Outcome) -> None:
    assert parse(maesn.RULES, text) == (str(outcome), outcome)


@pytest.mark.parametrize("text", ["4xx", "5XX"])
def test_explain_shows_the_rule_of_a_class(text: str) -> None:
    name, outcome = parse(maesn.RULES, text)
    assert name == text.lower()
    assert maesn.RULES.rule_for(outcome).status == name


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", ["", "abc", "399", "0", "-429", "1000", "4290", "4²9", "429.0", "3xx"])
def test_explain_rejects_unknown_failures(text: str) -> None:
    result = explain("--", text)
    assert result.exit_code == 2
    assert result.output.endswith(
        f"{text!r}; expected one of:\n"
        "400 to 999, 4xx, 5xx, connect_failed, certificate_invalid, proxy_refused, connection_lost, answer_invalid, "
        "attempt_timeout, circuit_open, rate_limited, token_unavailable, too_many_errors\n"
    )


def test_an_argument_cannot_move_the_cursor() -> None:
    result = explain("\x1b[2Jx")
    assert result.exit_code == 2
    assert "\x1b" not in result.output


@pytest.mark.sampled(4)
@pytest.mark.parametrize("outcome", [400, 401, 403, 404, 405, 418, 429, 500, 501, 502, 503, 504, 600, *Failure])
def test_explain_agrees_with_the_decision(outcome: Outcome) -> None:
    sent_again = {
        method: decide(
            maesn.RULES.rule_for(outcome),
            outcome,
            number=1,
            attempts=5,
            method=method,
            replayable=True,
            elapsed=0,
            deadline=None,
            random=lambda: 0.5,
        ).stop
        is None
        for method in ("GET", "POST", "PATCH")
    }
    output = explain(str(outcome)).output
    assert ("  Yes, after" in output) is sent_again["GET"]
    assert ("A POST or PATCH is retried" in output) is sent_again["POST"] is sent_again["PATCH"]
    assert ("A POST or PATCH is not retried" in output) is (sent_again["GET"] and not sent_again["POST"])


BOOKS = """\
from lamella import HTTP_RULES, Backoff, Failure, Rule, RuleBook

BOOK = RuleBook(
    Rule([502, 503], "Unavailable", retry=Backoff(2, jitter=0), attempts=2),
    Rule(403, "Secondary Limit", hint="Wait", when=lambda a: "Retry-After" in a.headers, retry=Backoff(60, jitter=0)),
    Rule(200, "Throttled", when=lambda a: "THROTTLED" in a.text, retry=Backoff(1, factor=3, jitter=0)),
    Rule(Failure.ATTEMPT_TIMEOUT, "Slow"),
    Rule(None, "Other"),
)
SMALL = RuleBook(Rule("4xx", "A title [bold]" + " that needs more room than there is" * 2))
ONCE = RuleBook(Rule(500, retry=Backoff(1), attempts=1))
TABLE = {429: 1}
"""


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    name = f"books_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(BOOKS)
    monkeypatch.chdir(tmp_path)
    return name


def test_explain_shows_any_book(books: str) -> None:
    result = explain("--rules", f"{books}:BOOK")
    assert result.exit_code == 0, result.output
    rows = lines(result.output)
    assert rows[0] == "status title retry first wait"
    assert rows[2:7] == [
        "502, 503 Unavailable yes 2 s, doubling",
        "403 (when) Secondary Limit yes 1 min, doubling",
        "200 (when) Throttled yes 1 s, times 3 each time",
        "attempt_timeout Slow no",
        "any other Other no",
    ]
    assert {row.split()[0] for row in rows[7:-4]} == set(Failure) - {Failure.ATTEMPT_TIMEOUT}
    assert rows[-3] == "(when): applies if the rule's condition holds. These rules are checked first."


def test_explain_shows_the_default_book_and_long_titles(books: str) -> None:
    result = explain("--rules", "lamella:HTTP_RULES")
    assert "429 Too Many Requests yes 1 s – 1.1 s, doubling" in lines(result.output)
    result = explain("--rules", f"{books}:SMALL")
    assert max(map(len, result.output.splitlines())) <= 80
    assert "[bold]" in result.output
    assert {"5xx Server Error no", "rate_limited Rate Limited no"} <= {*lines(result.output)}


def test_explain_shows_one_rule_of_a_book(books: str) -> None:
    assert explain("--rules", f"{books}:BOOK", "403").output == (
        "403 Secondary Limit (by the rule for 403 (when))\n"
        "  Wait.\n"
        "\n"
        "Retried?\n"
        "  Yes, after 1 min, doubling; 1 h at most.\n"
        "\n"
        "  before retry 1     1 min\n"
        "  before retry 2     2 min\n"
        "  before retry 3     4 min\n"
        "  before retry 4     8 min\n"
        "  in all 5 attempts  15 min\n"
        "\n"
        "  A POST or PATCH is not retried, because it may have been carried out; only\n"
        "  with an Idempotency-Key header, or with retry_writes=True.\n"
        "\n"
        "403 Other (by the rule for any other)\n"
        "\n"
        "Retried?\n"
        "  No: it would fail again in the same way.\n"
    )
    assert explain("--rules", f"{books}:BOOK", "200").output.startswith("200 Throttled (by the rule for 200 (when))\n")
    assert "in all 2 attempts  2 s" in explain("--rules", f"{books}:BOOK", "502").output
    unknown = explain("--rules", f"{books}:BOOK", "201")
    assert (unknown.exit_code, "200, 400 to 999, 4xx" in unknown.output) == (2, True)


def test_a_rule_with_one_attempt_is_not_retried(books: str) -> None:
    result = explain("--rules", f"{books}:ONCE")
    assert lines(result.output)[2] == "500 Internal Server Error no"
    assert "No: the rule allows one attempt." in explain("--rules", f"{books}:ONCE", "500").output


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("BOOK", "'BOOK' must be like package.module:BOOK"),
        ("a:", "'a:' must be like package.module:BOOK"),
        (":BOOK", "':BOOK' must be like package.module:BOOK"),
        ("../books.py:BOOK", "'../books.py:BOOK' must be like package.module:BOOK"),
        ("no_such_module:BOOK", "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
        ("{}:OTHER", "{} has no 'OTHER'; its rule books: HTTP_RULES, BOOK, SMALL, ONCE"),
        ("{}:TABLE", "{}:TABLE must be a RuleBook, got dict"),
        ("failing:BOOK", "cannot import failing: ValueError: attempts must be a whole number, 1 or more, got 0"),
        ("leaving:BOOK", "cannot import leaving: SystemExit: 3"),
        ("wrong:BOOK", "cannot import wrong: SyntaxError: '(' was never closed (wrong.py, line 1)"),
    ],
)
def test_explain_reports_a_missing_book(books: str, name: str, said: str) -> None:
    Path("failing.py").write_text("import lamella; lamella.Rule(429, retry=lamella.Backoff(1), attempts=0)")
    Path("leaving.py").write_text("raise SystemExit(3)")
    Path("wrong.py").write_text("BOOK = (")
    result = explain("--rules", name.format(books))
    assert result.exit_code == 2
    assert result.output.endswith(f"Invalid value for --rules: {said.format(books)}\n")
    assert "Traceback" not in result.output


def test_a_terminal_without_a_known_width_shows_everything() -> None:
    """Some programs set COLUMNS=0 for what they start."""
    shown = CliRunner().invoke(app, ["explain", "429"], env={"COLUMNS": "0"})
    assert shown.stdout == explain("429").stdout
