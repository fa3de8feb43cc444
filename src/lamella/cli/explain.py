"""``lamella explain``: show the rules of a book and their waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lamella.cli.terminal import between, duration
from lamella.redaction import redact_text
from lamella.rules import Backoff, Failure, Outcome, Rule, RuleBook, StopReason, decide

_ATTEMPTS = 5  # the default of stack()
# The rule of a class is the rule of a status that has none of its own.
_CLASSES: dict[str, Outcome] = {"4xx": 499, "5xx": 599}


def parse(book: RuleBook, text: str) -> tuple[str, Outcome]:
    """Return the name and outcome of a status, a class of statuses, or a failure as named in rules and spans.

    Raises ValueError if *text* is unknown. A status below 400 must have a rule in *book*.
    """
    name = text.strip().lower()
    if name in _CLASSES:
        return name, _CLASSES[name]
    for failure in Failure:
        if name.replace("-", "").replace("_", "") == failure.value.replace("_", ""):
            return failure.value, failure
    if name.isascii() and name.isdigit() and len(name) == 3 and (int(name) >= 400 or int(name) in book.below_400):
        return name, int(name)
    allowed = ", ".join([*map(str, sorted(book.below_400)), "400 to 999", *_CLASSES, *Failure])
    raise ValueError(f"unknown failure {redact_text(repr(text))}; expected one of:\n{allowed}")


def book_of(name: str) -> RuleBook:
    """Import and return the rule book *name*, such as ``package.module:BOOK``. Raises ValueError if that fails."""
    module_name, colon, attribute = name.partition(":")
    if not (colon and attribute and all(part.isidentifier() for part in module_name.split("."))):
        raise ValueError(f"{redact_text(repr(name))} must be like package.module:BOOK")
    # As with `python -m`; for a script sys.path starts with the folder of the script instead.
    sys.path.insert(0, "")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - of the user's own
        raise ValueError(f"cannot import {module_name}: {redact_text(f'{type(exc).__name__}: {exc}')}") from None
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        books = ", ".join(key for key, value in vars(module).items() if isinstance(value, RuleBook))
        raise ValueError(f"{module_name} has no {redact_text(repr(attribute))}; its rule books: {books or 'none'}")
    book = getattr(module, attribute)
    if not isinstance(book, RuleBook):
        raise ValueError(f"{name} must be a RuleBook, got {type(book).__name__}")  # noqa: TRY004 - as above
    return book


def all_rules(book: RuleBook) -> RenderableType:
    """Return the whole book as a table."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("status", "title"):
        table.add_column(heading, overflow="fold")
    for heading in ("retry", "first wait"):
        table.add_column(heading, no_wrap=True)
    named = {status for rule in book if rule.when is None for status in rule.statuses}
    others = [] if None in named else [_CLASSES[each] for each in _CLASSES if each not in named]
    built_in = map(book.rule_for, [*others, *(failure for failure in Failure if failure not in named)])
    for rule in (*book, *built_in):
        backoff = None if rule.attempts == 1 else rule.retry
        table.add_row(_status(rule), rule.title, "yes" if backoff else "no", _first_wait(backoff))
    notes = (
        "\nA wait is never shorter than the Retry-After of the response.\nFor one rule in detail: lamella explain 429"
    )
    if any(rule.when for rule in book):
        notes = f"\n(when): applies if the rule's condition holds. These rules are checked first.{notes}"
    return Group(table, Text(notes))


def _status(rule: Rule) -> str:
    anything = "any other" if rule.when is None else "any error"
    statuses = ", ".join(anything if status is None else str(status) for status in rule.statuses)
    return statuses if rule.when is None else f"{statuses} (when)"


def one_rule(book: RuleBook, name: str, outcome: Outcome) -> RenderableType:
    """Return a description of a rule: what the failure means, what to do, and when the call is retried."""
    rules = [rule for rule in book if rule.when and isinstance(outcome, int) and rule.covers(outcome)]
    if outcome not in book.below_400:
        rules.append(book.rule_for(outcome))
    return Group(*[part for rule in rules for part in (Text(), _one(rule, name, outcome, book.idempotency_key))][1:])


def _one(rule: Rule, name: str, outcome: Outcome, idempotency_key: str | None) -> RenderableType:
    title = Text(f"{name} {rule.title}", "bold")
    if name != _status(rule):
        title.append(f" (by the rule for {_status(rule)})", "not bold")
    sentences = [_below(sentence) for sentence in (rule.description, rule.hint) if sentence]
    return Group(title, *sentences, Text(), Text("Retried?", "bold"), *_schedule(rule, outcome, idempotency_key))


def _below(sentence: str) -> RenderableType:
    return Padding(Text(sentence if sentence.endswith(".") else f"{sentence}."), (0, 0, 0, 2))


def _schedule(rule: Rule, outcome: Outcome, idempotency_key: str | None) -> Iterator[RenderableType]:
    backoff = rule.retry
    if backoff is None:
        yield _below("No: it would fail again in the same way")
        return
    if rule.attempts == 1:
        yield _below("No: the rule allows one attempt")
        return
    yield _below(f"Yes, {_in_words(backoff)}")
    if outcome is Failure.CONNECTION_LOST:
        yield _below("The first retry of a call is immediate, because the server may have closed an idle connection")
    table = Table(box=None, show_header=False, pad_edge=False)
    attempts = min(_ATTEMPTS, rule.attempts or _ATTEMPTS)
    retries = range(1, attempts)
    for number in retries:
        table.add_row(f"before retry {number}", between(backoff.floor(number), backoff.ceiling(number)))
    low, high = sum(map(backoff.floor, retries)), sum(map(backoff.ceiling, retries))
    table.add_row(f"in all {attempts} attempts", between(low, high))
    yield Padding(table, (1, 0, 1, 2))
    yield _below(_of_writes(rule, outcome, idempotency_key))


def _first_wait(backoff: Backoff | None) -> str:
    return f"{between(backoff.floor(1), backoff.ceiling(1))}, {_growth(backoff)}" if backoff else ""


def _growth(backoff: Backoff) -> str:
    return "doubling" if backoff.factor == 2 else f"times {backoff.factor:g} each time"


def _in_words(backoff: Backoff) -> str:
    share = backoff.ceiling(1) / backoff.high - 1 if backoff.high else 0.0
    more = f", plus up to {share:.0%} jitter" if round(share, 2) else ""
    drawn = ", drawn evenly" if backoff.high > backoff.low else ""
    first = between(backoff.low, backoff.high)
    return f"after {first}{drawn}{more}, {_growth(backoff)}; {duration(backoff.maximum)} at most"


def _of_writes(rule: Rule, outcome: Outcome, idempotency_key: str | None) -> str:
    limits: dict[str, Any] = {"number": 1, "attempts": _ATTEMPTS, "elapsed": 0.0, "deadline": None}
    decision = decide(rule, outcome, method="POST", replayable=True, random=lambda: 0.0, **limits)
    if decision.stop is StopReason.UNSAFE_METHOD:
        ways = "with retry_writes=True"
        if idempotency_key is not None:
            ways = f"with an {idempotency_key} header, or {ways}"
        return f"A POST or PATCH is not retried, because it may have been carried out; only {ways}"
    return "A POST or PATCH is retried as well, because it was not carried out"
