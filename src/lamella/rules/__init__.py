"""Policy is data, and pure: no I/O, no clock, no global randomness."""

from lamella.rules.backoff import Backoff
from lamella.rules.book import Failure, Outcome, Rule, RuleBook, is_rate_limit
from lamella.rules.decision import IDEMPOTENT_METHODS, Decision, StopReason, WaitSource, decide
from lamella.rules.retry_after import parse_http_date, parse_retry_after

__all__ = [
    "IDEMPOTENT_METHODS",
    "Backoff",
    "Decision",
    "Failure",
    "Outcome",
    "Rule",
    "RuleBook",
    "StopReason",
    "WaitSource",
    "decide",
    "is_rate_limit",
    "parse_http_date",
    "parse_retry_after",
]
