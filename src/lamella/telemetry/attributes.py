"""Attributes of requests and responses for spans and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

import aiohttp
from multidict import CIMultiDict
from opentelemetry.util.types import AttributeValue
from yarl import URL

from lamella._aiohttp import peer_of
from lamella.call import Call, PerCall
from lamella.classify.failures import ERROR_STATUS
from lamella.credentials import hidden_headers, secrets_of
from lamella.logger import LOGGER
from lamella.redaction import hide, redact_answer_headers, redact_text, url_parts
from lamella.telemetry.names import (
    METHOD,
    METHOD_ORIGINAL,
    OTHER,
    PEER_ADDRESS,
    PEER_PORT,
    PROTOCOL_VERSION,
    REQUEST_SIZE,
    RESPONSE_SIZE,
    SERVER_ADDRESS,
    SERVER_PORT,
    STATUS,
    URL_TEMPLATE,
)

UrlTemplate = Callable[[aiohttp.ClientRequest], str | None]
"""Returns the path template of a request, such as ``/orders/{id}``, or None if unknown."""


def known_methods() -> frozenset[str]:
    """Return the methods that are not ``_OTHER``: those of the conventions, or of the environment variable that
    overrides them."""
    given = os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "")
    named = frozenset(method.strip() for method in given.split(",") if method.strip())
    return named or frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Described(NamedTuple):
    """The description of a request at its start."""

    name: str
    """The span name, of low cardinality: the method and, if known, the path template."""
    asked: Mapping[str, AttributeValue]
    """Attributes that the conventions require at the start of a client span, without ``url.full``."""


_DESCRIBED: Final = PerCall[tuple[object, Described]](lambda: (None, Described("", {})))


def described(call: Call, template: UrlTemplate | None, known: frozenset[str]) -> Described:
    """Return the description of the request of *call*. Methods outside *known* are ``_OTHER``."""
    request = call.request
    url, method = request.url, request.method
    made_of = url, method, template
    # Both spans share a description, unless a middleware between them has changed the request.
    before = _DESCRIBED.get(call)
    if before is not None and before[0] == made_of:
        return before[1]
    shown = method if method in known else OTHER
    path = _template_of(call, template)
    now = _described(shown, method, url.host or "", url.port, path)
    _DESCRIBED.set(call, (made_of, now))
    return now


# Cached: a service calls few servers often, with few templates.
@lru_cache(maxsize=1024)
def _described(shown: str, method: str, host: str, port: int | None, path: str | None) -> Described:
    asked: dict[str, AttributeValue] = {METHOD: shown, **_origin_attributes(host, port)}
    if shown == OTHER:
        asked[METHOD_ORIGINAL] = method
    if path:
        asked[URL_TEMPLATE] = path
    name = "HTTP" if shown == OTHER else method
    return Described(f"{name} {path}" if path else name, MappingProxyType(asked))


def origin_attributes(request: aiohttp.ClientRequest) -> Mapping[str, AttributeValue]:
    """Return the attributes of the server of *request*."""
    return _origin_attributes(request.url.host or "", request.url.port)


@lru_cache(maxsize=1024)
def _origin_attributes(host: str, port: int | None) -> Mapping[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {SERVER_ADDRESS: host}
    if port is not None:
        attributes[SERVER_PORT] = port
    return MappingProxyType(attributes)


class _Shown(NamedTuple):
    """The last redacted URL."""

    url: URL
    origin: str
    rest: str
    known: tuple[str, ...]
    """The secrets of auth layers at the time."""
    text: str


_SHOWN: Final = PerCall[_Shown](lambda: _Shown(URL(), "", "", (), ""))


def shown_url(call: Call, secrets: tuple[str, ...]) -> str:
    """Return ``url.full`` without *secrets*, the current ones of the call, since an auth layer may have added some."""
    url, last = call.request.url, _SHOWN.get(call)
    origin, rest = (last.origin, last.rest) if last is not None and last.url is url else url_parts(url)[:2]
    text = origin + hide(rest, secrets)
    _SHOWN.set(call, _Shown(url, origin, rest, call.secrets, text))
    return text


def last_shown_url(call: Call) -> str:
    """Return the last result of :func:`shown_url`, if URL and secrets of auth layers are unchanged."""
    last = _SHOWN.get(call)
    if last is not None and last.url is call.request.url and last.known == call.secrets:
        return last.text
    return shown_url(call, secrets_of(call))


def _template_of(call: Call, template: UrlTemplate | None) -> str | None:
    """Return the result of *template* for *call*. An exception or another type is logged, and the result is None."""
    if template is None:
        return None
    try:
        path = template(call.request)
        if path is not None and not isinstance(path, str):
            raise TypeError(f"url_template must return a str or None, got {type(path).__name__}")
        return path
    except Exception as exc:  # noqa: BLE001 - of the user's own; its message may contain the URL
        LOGGER.error("url_template failed: %s", redact_text(f"{type(exc).__name__}: {exc}", secrets_of(call)))
        return None


def response_attributes(response: aiohttp.ClientResponse) -> dict[str, AttributeValue]:
    """Return status and protocol version of a response."""
    if response.version is None:
        return {STATUS: response.status}
    return {STATUS: response.status, PROTOCOL_VERSION: _protocol_version(*response.version)}


@lru_cache(maxsize=16)
def _protocol_version(major: int, minor: int) -> str:
    return f"{major}.{minor}" if major < 2 else f"{major}"


def peer_attributes(response: aiohttp.ClientResponse) -> dict[str, AttributeValue]:
    """Return the peer address of the connection; empty if the connection is gone."""
    peer = peer_of(response)
    if isinstance(peer, tuple) and len(peer) >= 2:
        return {PEER_ADDRESS: peer[0], PEER_PORT: peer[1]}
    return {PEER_ADDRESS: peer} if isinstance(peer, str) and peer else {}


def size_attributes(
    request: aiohttp.ClientRequest, response: aiohttp.ClientResponse | None
) -> dict[str, AttributeValue]:
    """Return the transferred size in bytes of both bodies, if their headers state it."""
    sizes: dict[str, AttributeValue] = {}
    if (stated := request.headers.get("Content-Length", "")).isdecimal():
        sizes[REQUEST_SIZE] = int(stated)
    # A response without a body may state the size of another one.
    has_body = response is not None and request.method != "HEAD" and response.status not in {204, 304}
    stated = response.headers.get("Content-Length", "") if response is not None and has_body else ""
    if stated.isdecimal():
        sizes[RESPONSE_SIZE] = int(stated)
    return sizes


def header_attributes(
    prefix: str, headers: Mapping[str, str], names: Iterable[str], call: Call, secrets: Iterable[str]
) -> dict[str, AttributeValue]:
    """Return the values of the headers *names* as lists, without credentials and headers set by auth layers."""
    shown = frozenset(names) - hidden_headers(call)
    chosen = CIMultiDict([(name, value) for name, value in headers.items() if name.lower() in shown])
    found: dict[str, list[str]] = {}
    for name, value in redact_answer_headers(chosen, secrets).items():
        found.setdefault(f"{prefix}{name.lower()}", []).append(redact_text(value, secrets))
    return dict(found)


def error_type(exc: BaseException) -> str:
    """Return ``error.type`` of an exception: its status if that is an error, otherwise its class name."""
    status = getattr(exc, "status", None)
    return str(status) if isinstance(status, int) and status >= ERROR_STATUS else type(exc).__qualname__
