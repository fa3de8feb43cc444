"""Rules for the statuses of HTTP; the default of ``stack()``."""

from __future__ import annotations

from typing import Final

from lamella.rules.backoff import Backoff
from lamella.rules.book import RuleBook
from lamella.rules.rule import Rule

_SOON = Backoff(initial=(0.5, 1.0), maximum=60)
# Up to five minutes if the server asks for it.
_WHEN_ASKED = Backoff(initial=1.0, maximum=300)

HTTP_RULES: Final = RuleBook(
    Rule(
        400,
        description="The server does not understand the request.",
        hint="Check the parameters and the body; the response may say which is wrong.",
    ),
    Rule(
        401,
        description="The credentials are missing, wrong or expired.",
        hint="Check the credentials, and log in again if they have expired.",
    ),
    Rule(
        403,
        description="The server knows the caller and denies access.",
        hint="Check what these credentials are allowed to do.",
    ),
    Rule(404, description="This address does not exist.", hint="Check the path and the ids in it."),
    Rule(
        408,
        description="The server did not get the whole request in time.",
        hint="Check the network; send a large or slow body faster.",
        retry=_SOON,
    ),
    Rule(
        409,
        description="The request conflicts with the state of the resource.",
        hint="Read the resource again and adapt the request.",
    ),
    Rule(
        422,
        description="The server understands the request but does not accept its values.",
        hint="Check the values; the response may say which is wrong.",
    ),
    Rule(
        425,
        description="The server does not process a request yet that may be a replay.",
        hint="Send the request without TLS early data.",
        retry=_SOON,
        carried_out=False,
    ),
    Rule(
        429,
        description="Too many requests were sent in a period.",
        hint="Send fewer requests at a time, or allow more time per call.",
        retry=_WHEN_ASKED,
    ),
    Rule(
        500,
        description="The server had an internal error.",
        hint="Look at the server's status, or ask its operator.",
        retry=_SOON,
    ),
    Rule(
        501,
        description="The server does not support this.",
        hint="Check the method and the path; the same request fails again.",
    ),
    Rule(
        502,
        description="A proxy got an invalid response from the server behind it.",
        hint="Look at the server's status, or ask its operator.",
        retry=_SOON,
    ),
    Rule(
        503,
        description="The server is overloaded or under maintenance.",
        hint="Wait, or check the server's status.",
        retry=_WHEN_ASKED,
    ),
    Rule(
        504,
        description="A proxy got no response in time from the server behind it.",
        hint="Check the server's status; split a slow request into smaller ones.",
        retry=_SOON,
    ),
    Rule(
        505,
        description="The server does not support this version of HTTP.",
        hint="Check the address and any proxies.",
    ),
)
"""The default meaning of each status.

408, 425, 429, 500, 502, 503, 504 and transport failures are retried. Every other status is final.
"""
