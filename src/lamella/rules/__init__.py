"""Rules and decisions as pure data and functions: no I/O, no clock, no global randomness."""

from lamella.rules.answer import Answer, BodyNeeded
from lamella.rules.backoff import Backoff
from lamella.rules.book import RuleBook, check_rules
from lamella.rules.decision import IDEMPOTENT_METHODS, Decision, StopReason, WaitSource, decide
from lamella.rules.http import HTTP_RULES
from lamella.rules.retry_after import parse_http_date, parse_retry_after, seconds_of
from lamella.rules.rule import Failure, Outcome, Rule, is_rate_limit
from lamella.rules.waits import asked_wait, server_now

__all__ = [
    "HTTP_RULES",
    "IDEMPOTENT_METHODS",
    "Answer",
    "Backoff",
    "BodyNeeded",
    "Decision",
    "Failure",
    "Outcome",
    "Rule",
    "RuleBook",
    "StopReason",
    "WaitSource",
    "asked_wait",
    "check_rules",
    "decide",
    "is_rate_limit",
    "parse_http_date",
    "parse_retry_after",
    "seconds_of",
    "server_now",
]
