"""What the sandbox does where nothing is published: all its choices, in one place.

- A missing or wrong X-API-KEY is a 403. A missing, unknown or expired account key is a 401, an inactive end user a 403.
- The body of an error: `error_of`. A good answer has `errors` and `rawData` as null. Without pages `meta` is null.
- A page has 20 records if no `limit` is given. Lists are sorted by the creation of their records.
- A filter that names a field of the record keeps the records with that value. What is no parameter is ignored.
- A field of a record that is made up is null with a chance of one in ten; an id or a date of change is not.
  `Sandbox(odd=...)` makes ids null, or gives an id to two records.
- A record that is written keeps what its kind does not have. What was not written is null.
- HEAD is answered like GET. A method that a path does not have is a 405 with `Allow`.
- A DELETE answers with the id as its data.
- An asynchronous operation is done after `TASK_POLLS` questions. Its `responseData` is what the answer would have been.
- All limits are sliding windows. A refused request does not count; one counts as under way until it is answered.
- A path that had more errors than the target system allows is blocked for an hour: 403.
- An Idempotency-Key is ignored, unless `Sandbox(idempotency_keys=True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

NO_API_KEY: Final = HTTPStatus.FORBIDDEN
NO_ACCOUNT_KEY: Final = HTTPStatus.UNAUTHORIZED
EXPIRED: Final = HTTPStatus.UNAUTHORIZED
INACTIVE: Final = HTTPStatus.FORBIDDEN
BLOCKED: Final = HTTPStatus.FORBIDDEN
BLOCKED_FOR: Final = 3600.0  # seconds
PAGE_SIZE: Final = 20
TASK_POLLS: Final = 2
LONGEST_WITHOUT_PAGES: Final = 10
"""Records of a list that has no pages."""

MESSAGES: Final[dict[int, str]] = {
    HTTPStatus.BAD_REQUEST: "The request has parameters that cannot be accepted.",
    HTTPStatus.UNAUTHORIZED: "The account key is missing, unknown or expired.",
    HTTPStatus.FORBIDDEN: "The API key is missing or unknown, or this user may not do that.",
    HTTPStatus.NOT_FOUND: "There is nothing at this address.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests for this account.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Internal error.",
    HTTPStatus.BAD_GATEWAY: "The target system gave no usable answer.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service is not available at the moment.",
    HTTPStatus.GATEWAY_TIMEOUT: "The target system took too long to answer.",
}

_KNOWN: Final = frozenset(map(int, HTTPStatus))


def error_of(
    status: int, message: str | None, invalid: Sequence[tuple[str, str]], downstream: Sequence[str]
) -> dict[str, Any]:
    """Return `errors` of an answer. `message` None: the usual sentence for the status."""
    known = HTTPStatus(status) if status in _KNOWN else None
    code = known.name if known else f"STATUS_{status}"
    usual = MESSAGES.get(status) or (known.phrase if known else f"Status {status}")
    errors: dict[str, Any] = {"code": code, "message": message or usual}
    if invalid:
        errors["validationErrors"] = [{"field": field, "message": text} for field, text in invalid]
    if downstream:
        errors["downstreamErrors"] = [{"code": code, "message": text} for text in downstream]
    return errors
