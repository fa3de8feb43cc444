"""All choices of the sandbox where Maesn publishes nothing.

- A missing or wrong X-API-KEY is a 403. A missing, unknown or expired account key is a 401, an inactive end user a 403.
- The body of an error is made by `error_of`. In a success, `errors` and `rawData` are null; without pages `meta` is
  null.
- A page has 20 records if no `limit` is given. Lists are sorted by the creation of their records.
- A filter that names a field of the record keeps the records with that value. Unknown parameters are ignored.
- A field of a generated record is null with a chance of one in ten, except ids and dates of change.
  `Sandbox(odd=...)` makes ids null, or gives an id to two records.
- A written record keeps fields that its kind does not have. Fields that were not written are null.
- HEAD works like GET. A method that a path does not support is a 405 with `Allow`.
- A DELETE returns the id as its data.
- An asynchronous operation is done after `TASK_POLLS` polls. `responseData` holds what a synchronous response would
  have.
- All limits are sliding windows. A refused request does not count. A request is in flight until it is answered.
- A path with more errors than the target system allows is blocked for an hour (403).
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
"""The number of records of a list without pages."""

MESSAGES: Final[dict[int, str]] = {
    HTTPStatus.BAD_REQUEST: "The request has parameters that cannot be accepted.",
    HTTPStatus.UNAUTHORIZED: "The account key is missing, unknown or expired.",
    HTTPStatus.FORBIDDEN: "The API key is missing or unknown, or this user may not do that.",
    HTTPStatus.NOT_FOUND: "This address does not exist.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not support that method.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests for this account.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Internal error.",
    HTTPStatus.BAD_GATEWAY: "The target system returned no usable response.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service is temporarily unavailable.",
    HTTPStatus.GATEWAY_TIMEOUT: "The target system took too long to respond.",
}

_KNOWN: Final = frozenset(map(int, HTTPStatus))


def error_of(
    status: int, message: str | None, invalid: Sequence[tuple[str, str]], downstream: Sequence[str]
) -> dict[str, Any]:
    """Return `errors` of a response. `message` None: the usual sentence for the status."""
    known = HTTPStatus(status) if status in _KNOWN else None
    code = known.name if known else f"STATUS_{status}"
    usual = MESSAGES.get(status) or (known.phrase if known else f"Status {status}")
    errors: dict[str, Any] = {"code": code, "message": message or usual}
    if invalid:
        errors["validationErrors"] = [{"field": field, "message": text} for field, text in invalid]
    if downstream:
        errors["downstreamErrors"] = [{"code": code, "message": text} for text in downstream]
    return errors
