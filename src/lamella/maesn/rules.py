"""What Maesn's guide says of each status, as rules. The words are ours; the waits are the guide's."""

from __future__ import annotations

from lamella.rules import Backoff, Rule, RuleBook

__all__ = ["RULES"]

# "After an initial one-minute delay", doubling: sooner is never right, so jitter only adds.
_RATE_LIMITED = Backoff(initial=60)
# "After an initial 15-30 second delay", doubling.
_SERVER_FAILED = Backoff(initial=(15, 30))

_SERVER_HINT = "If it does not go away, ask Maesn's support"

RULES = RuleBook(
    Rule(
        400,
        "Bad Request",
        "Maesn, or the target system behind it, cannot make sense of the request.",
        "Check that this target system supports the endpoint and holds the data you ask for, and that its own "
        "credentials are set up at Maesn; validation errors say which parameter is wrong",
    ),
    Rule(
        401,
        "Unauthorized",
        "The account key is missing, unknown, expired or withdrawn.",
        "Check the account key (MAESN_ACCOUNT_KEY, account_key= or maesn.account()); in production the end user has "
        "to authenticate again, at the URL that GET /auth/{targetSystem} returns",
    ),
    Rule(
        403,
        "Forbidden",
        "Maesn knows who asks, and refuses.",
        "Check the API key (MAESN_API_KEY or api_key=), that the account key belongs to it, and that the end user is "
        "active",
    ),
    Rule(
        404,
        "Not Found",
        "There is no such record or endpoint, or the target system does not have it.",
        "Check the path and the id, and whether the target system supports the endpoint: its own errors tell more. "
        "If all is right, ask Maesn's support",
    ),
    Rule(
        405,
        "Method Not Allowed",
        "The target system is unknown, or cannot do this to this resource.",
        "Check the name of the target system, and in Maesn's docs whether it supports this operation or ever will",
    ),
    Rule(
        429,
        "Too Many Requests",
        "This account has sent more requests than it may in this time.",
        "Send fewer at a time for this account, or wait longer",
        _RATE_LIMITED,
    ),
    Rule(
        500,
        "Internal Server Error",
        "Something unexpected went wrong at Maesn.",
        _SERVER_HINT,
        _SERVER_FAILED,
    ),
    Rule(
        "4xx",
        "Client Error",
        "Maesn refused the request.",
        "Check the request: sent again, it would fail again",
    ),
    Rule(502, "Bad Gateway", "Maesn got no good answer from a system behind it.", _SERVER_HINT, _SERVER_FAILED),
    Rule(503, "Service Unavailable", "Maesn is overloaded or being maintained.", _SERVER_HINT, _SERVER_FAILED),
    Rule(504, "Gateway Timeout", "A system behind Maesn did not answer in time.", _SERVER_HINT, _SERVER_FAILED),
    Rule("5xx", "Server Error", "Maesn failed in a way that its guide does not name.", _SERVER_HINT),
)
"""The book of the guide, and of what it leaves open: 502, 503 and 504 as 500, other statuses never again."""
