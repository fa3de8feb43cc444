"""Rules for each status in Maesn's guide. The wording is ours; the waits are the guide's."""

from __future__ import annotations

from lamella.rules import Backoff, Rule, RuleBook

# "After an initial one-minute delay", doubling. Retrying sooner never helps, so jitter only adds.
_RATE_LIMITED = Backoff(initial=60)
# "After an initial 15-30 second delay", doubling.
_SERVER_FAILED = Backoff(initial=(15, 30))

_SERVER_HINT = "If it does not go away, ask Maesn's support"

RULES = RuleBook(
    Rule(
        400,
        description="Maesn, or the target system behind it, does not understand the request.",
        hint="Check that this target system supports the endpoint and has the requested data, and that its own "
        "credentials are configured at Maesn; validation errors name the wrong parameter",
    ),
    Rule(
        401,
        description="The account key is missing, unknown, expired or revoked.",
        hint="Check the account key (MAESN_ACCOUNT_KEY, account_key= or maesn.account()); in production the end user "
        "has to authenticate again, at the URL that GET /auth/{targetSystem} returns",
    ),
    Rule(
        403,
        description="Maesn knows the caller and denies access.",
        hint="Check the API key (MAESN_API_KEY or api_key=), that the account key belongs to it, and that the end "
        "user is active",
    ),
    Rule(
        404,
        description="The record or endpoint does not exist, or the target system does not have it.",
        hint="Check the path and the id, and whether the target system supports the endpoint; its own errors say "
        "more. If everything is correct, ask Maesn's support",
    ),
    Rule(
        405,
        description="The target system is unknown, or does not support this operation on this resource.",
        hint="Check the name of the target system, and whether Maesn's docs list this operation for it",
    ),
    Rule(
        429,
        description="This account has exceeded its rate limit.",
        hint="Send fewer requests at a time for this account, or wait longer",
        retry=_RATE_LIMITED,
    ),
    Rule("4xx", description="Maesn refused the request.", hint="Check the request: the same request fails again"),
    *(
        Rule(status, description=description, hint=_SERVER_HINT, retry=_SERVER_FAILED)
        for status, description in {
            500: "An unexpected error occurred at Maesn.",
            502: "Maesn got an invalid response from a system behind it.",
            503: "Maesn is overloaded or under maintenance.",
            504: "A system behind Maesn did not respond in time.",
        }.items()
    ),
    Rule("5xx", description="Maesn failed with a status that its guide does not list.", hint=_SERVER_HINT),
    idempotency_key=None,
)
"""The rules of the guide. Statuses it leaves open: 502, 503 and 504 are treated as 500, all others are final.

No header makes a POST repeatable, because Maesn does not document an ``Idempotency-Key``.
"""
