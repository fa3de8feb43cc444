"""``lamella explain``: the rules of Maesn's book, and their waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lamella.cli.terminal import between, duration, plain
from lamella.maesn import RULES
from lamella.rules import Backoff, Failure, Outcome, Rule, StopReason, decide

__all__ = ["all_rules", "one_rule", "parse"]

_ATTEMPTS = 5  # the default of a session
# A class as a whole has the rule of a status without a rule of its own.
_CLASSES: dict[str, Outcome] = {"4xx": 499, "5xx": 599}


def parse(text: str) -> tuple[str, Outcome]:
    """Return name and outcome for a status, a class of statuses, or a failure as the rules or spans name it.

    Raises:
        ValueError: *text* is none of them.
    """
    name = text.strip().lower()
    if name in _CLASSES:
        return name, _CLASSES[name]
    for failure in Failure:
        if name.replace("-", "").replace("_", "") == failure.value.replace("_", ""):
            return failure.value, failure
    if name.isascii() and name.isdigit() and len(name) == 3 and int(name) >= 400:
        return name, int(name)
    allowed = ", ".join(["400 to 999", *_CLASSES, *Failure])
    raise ValueError(f"{plain(repr(text))} is none of these:\n{allowed}")


def all_rules() -> RenderableType:
    """Return the whole book as a table."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("status", "title", "retry", "first wait"):
        table.add_column(heading, no_wrap=True)
    for rule in (*RULES, *map(RULES.rule_for, Failure)):
        table.add_row(str(rule.status), rule.title, "yes" if rule.retry else "no", _first_wait(rule.retry))
    notes = "\nA wait is never shorter than the Retry-After of the answer.\nMore about one of them: lamella explain 429"
    return Group(table, Text(notes))


def one_rule(name: str, outcome: Outcome) -> RenderableType:
    """Return a rule: what the failure means, what to do, and when the call is retried."""
    rule = RULES.rule_for(outcome)
    title = Text(f"{name} {rule.title}", "bold")
    if name != str(rule.status):
        title.append(f" (by the rule for {rule.status})", "not bold")
    sentences = [_below(sentence) for sentence in (rule.description, rule.hint) if sentence]
    return Group(title, *sentences, Text(), Text("Is it sent again?", "bold"), *_schedule(rule, outcome))


def _below(sentence: str) -> RenderableType:
    return Padding(Text(sentence if sentence.endswith(".") else f"{sentence}."), (0, 0, 0, 2))


def _schedule(rule: Rule, outcome: Outcome) -> Iterator[RenderableType]:
    backoff = rule.retry
    if backoff is None:
        yield _below("No: it would fail the same way again")
        return
    yield _below(f"Yes, {_in_words(backoff)}")
    if outcome is Failure.CONNECTION_LOST:
        yield _below("The first time in a call it is sent again at once: the server may have closed an idle connection")
    table = Table(box=None, show_header=False, pad_edge=False)
    retries = range(1, _ATTEMPTS)
    for number in retries:
        table.add_row(f"before retry {number}", between(backoff.floor(number), backoff.ceiling(number)))
    low, high = sum(map(backoff.floor, retries)), sum(map(backoff.ceiling, retries))
    table.add_row(f"in all {_ATTEMPTS} attempts", between(low, high))
    yield Padding(table, (1, 0, 1, 2))
    yield _below(_of_writes(rule, outcome))


def _first_wait(backoff: Backoff | None) -> str:
    return f"{between(backoff.floor(1), backoff.ceiling(1))}, {_growth(backoff)}" if backoff else ""


def _growth(backoff: Backoff) -> str:
    return "doubling" if backoff.factor == 2 else f"times {backoff.factor:g} each time"


def _in_words(backoff: Backoff) -> str:
    share = backoff.ceiling(1) / backoff.high - 1 if backoff.high else 0.0
    more = f", plus up to {share:.0%} by chance" if round(share, 2) else ""
    drawn = ", drawn evenly" if backoff.high > backoff.low else ""
    first = between(backoff.low, backoff.high)
    return f"after {first}{drawn}{more}, {_growth(backoff)}; {duration(backoff.maximum)} at most"


def _of_writes(rule: Rule, outcome: Outcome) -> str:
    limits: dict[str, Any] = {"number": 1, "attempts": _ATTEMPTS, "elapsed": 0.0, "deadline": None}
    decision = decide(rule, outcome, method="POST", replayable=True, random=lambda: 0.0, **limits)
    if decision.stop is StopReason.UNSAFE_METHOD:
        return (
            "A POST or PATCH is not sent again, for it may have been carried out: only with an Idempotency-Key header, "
            "or with retry_writes=True"
        )
    return "A POST or PATCH is sent again, too: it has not been carried out"
