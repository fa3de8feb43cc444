"""The grants of RFC 6749 that need no user: client credentials, and a refresh token."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

import aiohttp
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lamella.auth import Token, Tokens
from lamella.checks import check_kind, check_options, check_seconds
from lamella.oauth.client import Client, Hidden, KeyClient, TokenRequest
from lamella.oauth.endpoint import Endpoint, Issued
from lamella.origins import parsed_origin
from lamella.threads import to_its_end

Who = Client | KeyClient | Callable[..., Client | KeyClient | Awaitable[Client | KeyClient]]
"""The client, or a function that returns the client for a key, plain or async."""
Key = Callable[[], Hashable] | Callable[[aiohttp.ClientRequest], Hashable]
"""Returns the key of the token that a request needs; see :class:`lamella.Tokens`."""
T = TypeVar("T")
_OWN = frozenset(
    {"grant_type", "scope", "refresh_token", "client_id", "client_secret", "client_assertion", "client_assertion_type"}
)
"""Parameters that the grant sets itself."""


class Options(TypedDict, total=False):
    """Options of :func:`client_credentials` and :func:`refresh_token`."""

    key: Key
    """Returns the key of the token that a request needs. Default: one token for all calls."""
    scope: str
    """The requested scopes, separated by spaces. Default: chosen by the server."""
    parameters: Mapping[str, str]
    """Further parameters of the request, such as ``audience`` or ``resource``. They must not be secret."""
    leeway: float
    """Seconds before expiry at which a token is renewed. Default: 60."""
    timeout: float
    """Maximum duration of a fetch in seconds; half of it is for the request. Default: 60."""
    session: Mapping[str, Any]
    """Options of the ``aiohttp.ClientSession`` that calls the endpoint, such as ``trust_env``."""
    tracer_provider: TracerProvider | None
    """Tracer provider for the requests. Default: the stack's, or the global one."""
    meter_provider: MeterProvider | None
    """Meter provider. Default: the stack's, or the global one."""


def client_credentials(token_url: str, client: Who, **options: Unpack[Options]) -> Tokens:
    """Return tokens for the client itself (RFC 6749, section 4.4), for ``HeaderAuth({"Authorization": …})``.

    Args:
        token_url: The URL of the token endpoint.
        client: Who asks, or a function that returns it for a key.
        options: See :class:`Options`.

    Raises:
        TypeError: There is no option of that name.
        ValueError: An argument is out of its range.
    """
    endpoint = _endpoint(token_url, client, options)
    scope, parameters = options.get("scope"), options.get("parameters", {})

    async def fetch(*key: Hashable) -> Token:
        request = TokenRequest(grant_type="client_credentials", scope=scope, **parameters)
        return (await endpoint.ask(await _client_of(client, key), request)).token

    return _Tokens(fetch, endpoint, options)


def refresh_token(
    token_url: str,
    client: Who,
    *,
    load: Callable[..., str | Awaitable[str]],
    store: Callable[..., Awaitable[None] | None],
    **options: Unpack[Options],
) -> Tokens:
    """Return tokens for a user who logged in before (RFC 6749, section 6), for ``HeaderAuth({"Authorization": …})``.

    A server may issue a new refresh token with each token, and make the old one invalid. So a request is carried out
    to its end, even if no call waits for it any more, and so is *store*.

    Args:
        token_url: The URL of the token endpoint.
        client: Who asks, or a function that returns it for a key.
        load: Returns the refresh token (of a key); plain or async.
        store: Keeps a new refresh token, ``store(token)`` or ``store(key, token)``, before the token that came with it
            is used; plain or async. If it raises, the fetch fails, and the next one begins with storing it.
        options: See :class:`Options`.

    Raises:
        TypeError: There is no option of that name.
        ValueError: An argument is out of its range.
    """
    for name, function in (("load", load), ("store", store)):
        check_kind(name, function, Callable, "a function")
    endpoint = _endpoint(token_url, client, options)
    scope, parameters = options.get("scope"), options.get("parameters", {})
    unsaved: dict[tuple[Hashable, ...], Issued] = {}

    async def save(key: tuple[Hashable, ...]) -> None:
        stored = store(*key, unsaved[key].refresh.value)
        if inspect.isawaitable(stored):
            await stored
        del unsaved[key]

    async def exchange(*key: Hashable) -> Token:
        if key in unsaved:
            await save(key)
        request = TokenRequest(grant_type="refresh_token", scope=scope, **parameters)
        request.parameters["refresh_token"] = _loaded(Hidden(await _settled(load, key)))
        issued = await endpoint.ask(await _client_of(client, key), request)
        if issued.refresh.value not in {None, request.parameters["refresh_token"]}:
            unsaved[key] = issued
            await save(key)
        return issued.token

    async def fetch(*key: Hashable) -> Token:
        return await to_its_end(asyncio.ensure_future(exchange(*key)))

    return _Tokens(fetch, endpoint, options)


async def _settled(value: Any, arguments: tuple[Any, ...]) -> Any:
    """Return *value*, or what it returns for *arguments* if it is a function."""
    if not callable(value):
        return value
    answer = value(*arguments)
    return await answer if inspect.isawaitable(answer) else answer


async def _client_of(client: Who, key: tuple[Hashable, ...]) -> Client | KeyClient:
    found = await _settled(client, key)
    if isinstance(found, Client | KeyClient):
        return found
    kind = type(found).__name__
    del found  # a traceback would show it
    raise TypeError(f"the function for the client must return a Client or a KeyClient, not {kind}")


def _loaded(found: Hidden) -> str:
    token = found.value
    kind = type(token).__name__
    if isinstance(token, str) and token.strip():
        return token
    del token  # a traceback would show it
    raise TypeError(f"load must return a refresh token, got {'an empty string' if kind == 'str' else kind}")


def _endpoint(token_url: str, client: Who, options: Options) -> Endpoint:
    check_options("oauth", options, Options.__annotations__)
    parsed_origin(token_url, "token_url")
    given: object = client
    if isinstance(given, type):
        raise ValueError(f"client must be a Client or a KeyClient, got the class {given.__name__}")  # noqa: TRY004
    check_kind("client", given, (Client, KeyClient, Callable), "a Client, a KeyClient or a function that returns one")
    check_seconds("timeout", options.get("timeout", 60.0))
    check_kind("scope", options.get("scope", ""), str, "words with spaces between them")
    check_kind("parameters", options.get("parameters", {}), Mapping, "a mapping of names to values")
    check_kind("session", options.get("session", {}), Mapping, "a mapping of options")
    for name in options.get("parameters", {}):
        if name in _OWN:
            raise ValueError(f"parameters must not have {name!r}: that is set by the grant, the client or scope=")
    others = inspect.signature(aiohttp.ClientSession).parameters.keys() - {"middlewares"}
    if unknown := sorted(set(options.get("session", {})) - others):
        raise ValueError(f"session must have options of aiohttp.ClientSession but middlewares, got {unknown}")
    return Endpoint(
        token_url,
        seconds=options.get("timeout", 60.0) / 2,
        session=options.get("session", {}),
        tracer_provider=options.get("tracer_provider"),
        meter_provider=options.get("meter_provider"),
    )


class _Tokens(Tokens):
    """Tokens of an *endpoint*."""

    def __init__(self, fetch: Callable[..., Awaitable[Token]], endpoint: Endpoint, options: Options) -> None:
        names = {"key", "leeway", "timeout", "meter_provider"}
        given: Any = {name: value for name, value in options.items() if name in names}
        super().__init__(fetch, **given)
        self._endpoint = endpoint

    def inherit(self, *, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        super().inherit(tracer_provider=tracer_provider, meter_provider=meter_provider)
        self._endpoint.inherit(tracer_provider=tracer_provider, meter_provider=meter_provider)
