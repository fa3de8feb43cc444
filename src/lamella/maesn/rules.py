"""What Maesn's guide says of each status, as rules. The words are ours; the waits are the guide's."""

from __future__ import annotations

from lamella.rules import Backoff, Rule, RuleBook

# "After an initial one-minute delay", doubling: sooner is never right, so jitter only adds.
_RATE_LIMITED = Backoff(initial=60)
# "After an initial 15-30 second delay", doubling.
_SERVER_FAILED = Backoff(initial=(15, 30))

_SERVER_HINT = "If it does not go away, ask Maesn's support"

RULES = RuleBook(
    Rule(
        400,
        description="Maesn, or the target system behind it, cannot make sense of the request.",
        hint="Check that this target system supports the endpoint and holds the data you ask for, and that its own "
        "credentials are set up at Maesn; validation errors say which parameter is wrong",
    ),
    Rule(
        401,
        description="The account key is missing, unknown, expired or withdrawn.",
        hint="Check the account key (MAESN_ACCOUNT_KEY, account_key= or maesn.account()); in production the end user "
        "has to authenticate again, at the URL that GET /auth/{targetSystem} returns",
    ),
    Rule(
        403,
        description="Maesn knows who asks, and refuses.",
        hint="Check the API key (MAESN_API_KEY or api_key=), that the account key belongs to it, and that the end "
        "user is active",
    ),
    Rule(
        404,
        description="There is no such record or endpoint, or the target system does not have it.",
        hint="Check the path and the id, and whether the target system supports the endpoint: its own errors tell "
        "more. If all is right, ask Maesn's support",
    ),
    Rule(
        405,
        description="The target system is unknown, or cannot do this to this resource.",
        hint="Check the name of the target system, and in Maesn's docs whether it supports this operation or ever will",
    ),
    Rule(
        429,
        description="This account has sent more requests than it may in this time.",
        hint="Send fewer at a time for this account, or wait longer",
        retry=_RATE_LIMITED,
    ),
    Rule("4xx", description="Maesn refused the request.", hint="Check the request: sent again, it would fail again"),
    *(
        Rule(status, description=description, hint=_SERVER_HINT, retry=_SERVER_FAILED)
        for status, description in {
            500: "Something unexpected went wrong at Maesn.",
            502: "Maesn got no good answer from a system behind it.",
            503: "Maesn is overloaded or being maintained.",
            504: "A system behind Maesn did not answer in time.",
        }.items()
    ),
    Rule("5xx", description="Maesn failed in a way that its guide does not name.", hint=_SERVER_HINT),
    idempotency_key=None,
)
"""The book of the guide, and of what it leaves open: 502, 503 and 504 as 500, other statuses are final.

No header makes a POST repeatable: nothing published says that Maesn knows an ``Idempotency-Key``.
"""
