"""Why things failed, in words."""

from __future__ import annotations

from tests.cli.progress import api_error
from yarl import URL

from lamella import ConnectionLost, StopReason, maesn, sync
from lamella.cli.causes import Cause, Reason, causes_of, reason_of
from lamella.rules import Failure
from lamella.sync import Part


def test_a_response_is_a_cause_with_its_status() -> None:
    reason = reason_of(api_error(404, "no such\x1b record"))
    assert reason.what == "404 Not Found"
    assert (reason.stopped, reason.said) == ("not retryable", "no such record")
    assert reason.hint == maesn.RULES.rule_for(404).hint
    assert reason.short == "404: Check the path and the id"


def test_a_missing_response_is_a_cause_with_its_detail() -> None:
    rule = maesn.RULES.rule_for(Failure.CONNECTION_LOST)
    lost = ConnectionLost("GET", URL("http://a"), rule, "reset by peer")
    assert reason_of(lost) == Reason("Connection Lost", "", "reset by peer", rule.hint)
    assert reason_of(lost).short == "Connection Lost: The request may have been carried out"
    assert reason_of(lost).full == "Connection Lost (reset by peer)"
    assert reason_of(ConnectionLost("GET", URL("http://a"), rule)).full == "Connection Lost"


def test_a_rejected_account_key_has_its_own_cause() -> None:
    """Whoever keeps the keys is told what to do with them; whoever calls from code, how that is done."""
    error = api_error(401)
    assert reason_of(error).hint == maesn.RULES.rule_for(401).hint
    assert reason_of(error, of_account=True).short == "401: The end user has to authenticate again"
    assert "replace the old account key with the new one" in reason_of(error, of_account=True).hint
    assert reason_of(api_error(403), of_account=True).hint == maesn.RULES.rule_for(403).hint


def test_foreign_errors_are_causes_by_class() -> None:
    assert reason_of(ValueError("of k3y-of-ada\x07"), ["k3y-of-ada"]) == Reason("ValueError", "", "of REDACTED", "")
    assert reason_of(ValueError("x")).short == "ValueError"


def test_a_changing_list_is_a_cause() -> None:
    reason = reason_of(sync.UnsteadyList("invoices", how="page 2 counts less"))
    assert reason.short == "Unsteady list: Sync again when fewer records are being deleted"
    assert reason.said.startswith("invoices shrank or were re-sorted")


def test_causes_are_grouped_and_sorted_by_frequency() -> None:
    errors = [
        ("Eve", api_error(403, stopped=StopReason.DEADLINE)),
        *[(name, api_error(403, said)) for name, said in (("Ada", "b"), ("Max", "a"), ("Bob", "b"), ("Ada", "b"))],
    ]
    parts = [Part(name, f"list {number}", None, error=error) for number, (name, error) in enumerate(errors)]
    hint = maesn.RULES.rule_for(403).hint
    assert causes_of([*parts, Part("Zoe", "x", None, done=True, error=api_error(404))]) == (
        Cause(4, ("Ada", "Max", "Bob"), "403 Forbidden", "not retryable", "a", hint),
        Cause(1, ("Eve",), "403 Forbidden", "deadline", "", hint),
    )
    assert causes_of(()) == ()
