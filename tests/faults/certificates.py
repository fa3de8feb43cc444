"""Certificates that are right, and the ways in which one can be wrong; made anew for each run."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from functools import cache
from typing import Final

import trustme

__all__ = ["HOST", "client_context", "server_context", "trusted_server_context"]

HOST: Final = "origin.example"
"""Whom a right certificate is for."""

_LONG_AGO: Final = datetime(2001, 1, 1, tzinfo=UTC)


@cache
def _authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name)


@cache
def client_context(*, oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """What a client trusts: the one authority, and no protocol older than *oldest*."""
    context = ssl.create_default_context()
    context.minimum_version = oldest
    _authority("trusted").configure_trust(context)
    return context


def trusted_server_context(*, asks: bool = False) -> ssl.SSLContext:
    """A new context with the right certificate, to be changed. *asks*: whether it requires one of the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority("trusted").issue_cert(HOST, "127.0.0.1").configure_cert(context)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        _authority("trusted").configure_trust(context)
    return context


@cache
def server_context(kind: str = "right") -> ssl.SSLContext:
    """A server's certificate: right, expired, for another host, of an unknown authority; or it wants one, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = _authority("unknown" if kind == "unknown authority" else "trusted")
    hosts = ["another.example"] if kind == "another host" else [HOST, "127.0.0.1"]
    begin, end = (_LONG_AGO, _LONG_AGO.replace(year=2002)) if kind == "expired" else (None, None)
    authority.issue_cert(*hosts, not_before=begin, not_after=end).configure_cert(context)
    if kind == "old protocol":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    if kind == "wants a certificate":
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context
