"""The rules of HTTP itself: the default of ``stack()``."""

from __future__ import annotations

from typing import Final

from lamella.rules.backoff import Backoff
from lamella.rules.book import RuleBook
from lamella.rules.rule import Rule

_SOON = Backoff(initial=(0.5, 1.0), maximum=60)
# Up to five minutes, if the server asks for that long.
_WHEN_ASKED = Backoff(initial=1.0, maximum=300)

HTTP_RULES: Final = RuleBook(
    Rule(
        400,
        description="The server cannot make sense of the request.",
        hint="Check the parameters and the body; the answer may say which of them is wrong.",
    ),
    Rule(
        401,
        description="The credentials are missing, wrong or expired.",
        hint="Check the credentials, and log in again if they have expired.",
    ),
    Rule(
        403,
        description="The server knows who asks, and refuses.",
        hint="Check what these credentials are allowed to do.",
    ),
    Rule(404, description="There is nothing at this address.", hint="Check the path and the ids in it."),
    Rule(
        408,
        description="The server did not get the whole request in time.",
        hint="Check the network; if the body is large or slow, send it faster.",
        retry=_SOON,
    ),
    Rule(
        409,
        description="The request conflicts with the state of the resource.",
        hint="Get the resource, and decide again.",
    ),
    Rule(
        422,
        description="The server understands the request, but its values are not acceptable.",
        hint="Check the values; the answer may say which of them is wrong.",
    ),
    Rule(
        425,
        description="The server does not want to handle a request that may be a replay, yet.",
        hint="Send it without TLS early data.",
        retry=_SOON,
        carried_out=False,
    ),
    Rule(
        429,
        description="Too many requests were sent in this time.",
        hint="Send fewer at a time, or allow the call more time.",
        retry=_WHEN_ASKED,
    ),
    Rule(
        500,
        description="Something went wrong in the server.",
        hint="Look at the server's status, or ask its operator.",
        retry=_SOON,
    ),
    Rule(
        501,
        description="The server does not know how to do this.",
        hint="Check the method and the path: it fails the same way again.",
    ),
    Rule(
        502,
        description="A proxy got no valid answer from the server behind it.",
        hint="Look at the server's status, or ask its operator.",
        retry=_SOON,
    ),
    Rule(
        503,
        description="The server is overloaded or under maintenance.",
        hint="Wait, or look at the server's status.",
        retry=_WHEN_ASKED,
    ),
    Rule(
        504,
        description="A proxy got no answer in time from the server behind it.",
        hint="Look at the server's status; for a request that takes long, ask for less at a time.",
        retry=_SOON,
    ),
    Rule(
        505,
        description="The server does not speak this version of HTTP.",
        hint="Check the address, and the proxies on the way.",
    ),
)
"""What each status means where the API says nothing else.

408, 425, 429, 500, 502, 503, 504 and failures of the connection are tried again; every other status is final.
"""
