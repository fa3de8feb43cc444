"""Policy is data, and pure: no I/O, no clock, no global randomness."""

from lamella.policy.backoff import Backoff
from lamella.policy.budget import RetryBudget
from lamella.policy.decision import IDEMPOTENT_METHODS, Decision, StopReason, WaitSource, decide
from lamella.policy.pace import Limit
from lamella.policy.retry_after import parse_http_date, parse_retry_after
from lamella.policy.rules import Failure, Outcome, Rule, RuleBook, is_rate_limit

__all__ = [
    "IDEMPOTENT_METHODS",
    "Backoff",
    "Decision",
    "Failure",
    "Limit",
    "Outcome",
    "RetryBudget",
    "Rule",
    "RuleBook",
    "StopReason",
    "WaitSource",
    "decide",
    "is_rate_limit",
    "parse_http_date",
    "parse_retry_after",
]
