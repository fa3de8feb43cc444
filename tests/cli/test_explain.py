from __future__ import annotations

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


def test_the_whole_book() -> None:
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
        "  This account has sent more requests than it may in this time.\n"
        "  Send fewer at a time for this account, or wait longer.\n"
        "\n"
        "Is it sent again?\n"
        "  Yes, after 1 min, plus up to 10% by chance, doubling; 1 h at most.\n"
        "\n"
        "  before retry 1     1 min – 1 min 6 s\n"
        "  before retry 2     2 min – 2 min 12 s\n"
        "  before retry 3     4 min – 4 min 24 s\n"
        "  before retry 4     8 min – 8 min 48 s\n"
        "  in all 5 attempts  15 min – 16 min 30 s\n"
        "\n"
        "  A POST or PATCH is sent again, too: it has not been carried out.\n"
    )


def test_500() -> None:
    rows = lines(explain("500").output)
    assert "Yes, after 15 s – 30 s, drawn evenly, doubling; 1 h at most." in rows
    assert "before retry 1 15 s – 30 s" in rows
    assert "before retry 4 2 min – 4 min" in rows
    assert "in all 5 attempts 3 min 45 s – 7 min 30 s" in rows
    assert "retry_writes=True" in rows[-1]


def test_what_is_never_sent_again() -> None:
    output = explain("404").output
    assert output.endswith("Is it sent again?\n  No: it would fail the same way again.\n")


@pytest.mark.parametrize(("asked", "head"), [("418", "4xx"), ("501", "5xx"), ("600", "5xx"), ("999", "5xx")])
def test_a_status_without_a_rule_of_its_own(asked: str, head: str) -> None:
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
def test_what_it_takes(text: str, outcome: Outcome) -> None:
    assert parse(text) == (str(outcome), outcome)


@pytest.mark.parametrize("text", ["4xx", "5XX"])
def test_a_class_has_the_rule_of_the_class(text: str) -> None:
    name, outcome = parse(text)
    assert name == text.lower()
    assert maesn.RULES.rule_for(outcome).status == name


@pytest.mark.parametrize("text", ["", "abc", "399", "0", "-429", "1000", "4290", "4²9", "429.0", "3xx"])
def test_what_it_does_not_know(text: str) -> None:
    result = explain("--", text)
    assert result.exit_code == 2
    assert result.output.endswith(
        f"{text!r} is none of these:\n"
        "400 to 999, 4xx, 5xx, connect_failed, certificate_invalid, proxy_refused, connection_lost, answer_invalid, "
        "attempt_timeout, circuit_open, rate_limited\n"
    )


def test_an_argument_cannot_move_the_cursor() -> None:
    result = explain("\x1b[2Jx")
    assert result.exit_code == 2
    assert "\x1b" not in result.output


@pytest.mark.parametrize("outcome", [400, 401, 403, 404, 405, 418, 429, 500, 501, 502, 503, 504, 600, *Failure])
def test_it_tells_what_would_be_done(outcome: Outcome) -> None:
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
    assert ("A POST or PATCH is sent again" in output) is sent_again["POST"] is sent_again["PATCH"]
    assert ("A POST or PATCH is not sent again" in output) is (sent_again["GET"] and not sent_again["POST"])
