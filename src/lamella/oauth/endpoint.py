"""Send requests to a token endpoint (RFC 6749), through a separate stack with its own rules."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.auth import Token
from lamella.auth.values import fault_of
from lamella.call import Call
from lamella.errors import ApiError, LamellaError
from lamella.oauth.client import Client, Hidden, KeyClient, TokenRequest
from lamella.pipeline import Layer, Result, Slot
from lamella.rules import Answer, Backoff, Rule, RuleBook
from lamella.stacking import stack

_LONGEST: Final = 366 * 86400.0
_SOON: Final = Backoff(initial=(0.5, 1.0), maximum=10)
_SHOWN: Final = ("error", "error_description", "error_uri")
"""The fields of a response that an error keeps: RFC 6749, section 5.2."""


def token_of(payload: object) -> str | None:
    """Return the header value for the bearer token in *payload*; None if there is no usable token."""
    if not isinstance(payload, dict) or str(payload.get("token_type") or "bearer").lower() != "bearer":
        return None
    token = payload.get("access_token")
    return f"Bearer {token}" if isinstance(token, str) and fault_of(token) is None else None


def lifetime(expires_in: object) -> float | None:
    """Return *expires_in* of a response in seconds; None if it is not usable."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float | str):
        return None
    try:
        seconds = float(expires_in)
    except (ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if isfinite(seconds) and seconds <= _LONGEST else None


def _is_no_token(answer: Answer) -> bool:
    return answer.status >= 300 or token_of(answer.json) is None


RULES: Final = RuleBook(
    Rule(
        range(200, 400),
        "No Token",
        "The response of the token endpoint has no bearer token.",
        "Check the URL of the token endpoint and its response.",
        when=_is_no_token,
    ),
    Rule(
        400,
        "Token Refused",
        "The authorization server refuses to issue a token (RFC 6749, section 5.2).",
        "The error code says why. invalid_grant: the refresh token has expired, so the user has to log in again.",
    ),
    Rule(
        401,
        "Client Refused",
        "The authorization server does not accept the client (RFC 6749, section 5.2).",
        "Check the client's id and its secret or key.",
    ),
    Rule([408, 429], retry=_SOON),
    Rule("5xx", "Token Endpoint Failed", "The token endpoint failed.", "Check its status.", retry=_SOON),
)
"""Errors by RFC 6749, section 5.2, are final. 408, 429, 5xx and transport failures are retried."""


class Issued(NamedTuple):
    """The result of a token request."""

    token: Token
    refresh: Hidden
    """The new refresh token, or None."""


class _Sign(Layer):
    """Write the form and the authentication for each attempt, because an assertion is used only once."""

    slot = Slot.AUTH

    def __init__(self, url: str, client: Client | KeyClient, request: TokenRequest) -> None:
        self._url, self._client, self._request = url, client, request

    def before(self, call: Call) -> Awaitable[None]:
        self._client.sign(self._request, self._url)
        call.secrets += self._request.secrets
        if self._request.authorization is not None:
            call.request.headers["Authorization"] = self._request.authorization
        return call.request.update_body(self._request.body)

    def after(self, call: Call, result: Result) -> None:
        call.request.headers.popall("Authorization", None)


class Endpoint:
    """The token endpoint."""

    def __init__(
        self,
        url: str,
        *,
        seconds: float,
        session: Mapping[str, Any],
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        self._url, self._seconds, self._session = url, seconds, session
        self._given = {"tracer_provider": tracer_provider, "meter_provider": meter_provider}
        self._providers = self._given

    def inherit(self, **providers: TracerProvider | MeterProvider | None) -> None:
        """Use the *providers* of a stack if none was given."""
        chosen = {**self._providers, **{name: each for name, each in providers.items() if each is not None}}
        self._providers = {**chosen, **{name: each for name, each in self._given.items() if each is not None}}

    async def ask(self, client: Client | KeyClient, request: TokenRequest) -> Issued:
        """Request a token for *client*.

        Raises LamellaError, without data of the request and without its frames, if that fails.
        """
        try:
            return await self._ask(client, request)
        except LamellaError as exc:
            error: Exception = _without_secrets(exc)
        except Exception as exc:  # noqa: BLE001 - its text may hold what was sent, and so may its frames
            error = RuntimeError(f"the token request failed: {type(exc).__name__}")
        raise error

    async def _ask(self, client: Client | KeyClient, request: TokenRequest) -> Issued:
        layers = stack(
            RULES,
            _Sign(self._url, client, request),
            attempts=4,
            attempt_timeout=min(10.0, self._seconds),
            deadline=self._seconds,
            retry_writes=True,
            throttle=False,
            **self._providers,  # type: ignore[arg-type]  # both may be None
        )
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        async with aiohttp.ClientSession(middlewares=layers, **self._session) as session:
            # The credentials must not follow a redirect.
            async with session.post(self._url, headers=headers, allow_redirects=False) as response:
                # parsed in the same way as by the rules
                payload: Any = Answer(response.status, response.headers, body=await response.read()).json
        token = Token(token_of(payload) or "", lifetime(payload.get("expires_in")))
        refresh = payload.get("refresh_token")
        return Issued(token, Hidden(refresh if isinstance(refresh, str) and refresh else None))


def _without_secrets(error: LamellaError) -> LamellaError:
    """Return *error* without data from the server and without its traceback."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    if isinstance(error, ApiError):
        payload = error.payload if isinstance(error.payload, dict) else {}
        shown = {name: payload[name] for name in _SHOWN if isinstance(payload.get(name), str)}
        error.body = json.dumps(shown).encode()
        vars(error).pop("_said", None)
    return error
