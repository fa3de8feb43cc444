"""Thin async layers for an aiohttp session: auth headers, typed errors, retries and OpenTelemetry traces.

Each name is imported on first use, so code that needs only an error class does not load the layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lamella import batch as batch
    from lamella import maesn as maesn
    from lamella import oauth as oauth
    from lamella import sync as sync
    from lamella import testing as testing
    from lamella.attempt_record import AttemptRecord, attempts
    from lamella.auth import HeaderAuth, Token, Tokens
    from lamella.breaker import Breaker
    from lamella.buffer import Buffer
    from lamella.call import Call, PerCall
    from lamella.classify import Classify
    from lamella.errors import (
        AnswerInvalid,
        ApiError,
        AttemptTimeout,
        BadRequest,
        CertificateInvalid,
        CircuitOpen,
        ClientStatusError,
        Conflict,
        ConnectFailed,
        ConnectionLost,
        ConnectTimeout,
        Forbidden,
        InternalServerError,
        LamellaError,
        MethodNotAllowed,
        NotFound,
        ProxyRefused,
        RateLimited,
        RequestRejected,
        ServerStatusError,
        ServiceUnavailable,
        TokenUnavailable,
        TooManyRequests,
        TransportError,
        Unauthorized,
        UnprocessableContent,
    )
    from lamella.pipeline import Layer, Result, Slot
    from lamella.retry import Retry
    from lamella.retry.budget import RetryBudget
    from lamella.rules import (
        HTTP_RULES,
        Answer,
        Backoff,
        Decision,
        Failure,
        Outcome,
        Rule,
        RuleBook,
        StopReason,
        WaitSource,
        decide,
        parse_retry_after,
    )
    from lamella.scope import deadline, options
    from lamella.stacking import At, stack
    from lamella.store import MemoryStore, PostgresStore, RedisStore, Store
    from lamella.sync import Source, pages, records
    from lamella.telemetry.attempt_span import AttemptSpan
    from lamella.telemetry.call_span import RequestSpan
    from lamella.throttle import Belief, Limit, StatedLimit, Throttle
    from lamella.timeout import Timeout

__all__ = [
    "HTTP_RULES",
    "Answer",
    "AnswerInvalid",
    "ApiError",
    "At",
    "AttemptRecord",
    "AttemptSpan",
    "AttemptTimeout",
    "Backoff",
    "BadRequest",
    "Belief",
    "Breaker",
    "Buffer",
    "Call",
    "CertificateInvalid",
    "CircuitOpen",
    "Classify",
    "ClientStatusError",
    "Conflict",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "Decision",
    "Failure",
    "Forbidden",
    "HeaderAuth",
    "InternalServerError",
    "LamellaError",
    "Layer",
    "Limit",
    "MemoryStore",
    "MethodNotAllowed",
    "NotFound",
    "Outcome",
    "PerCall",
    "PostgresStore",
    "ProxyRefused",
    "RateLimited",
    "RedisStore",
    "RequestRejected",
    "RequestSpan",
    "Result",
    "Retry",
    "RetryBudget",
    "Rule",
    "RuleBook",
    "ServerStatusError",
    "ServiceUnavailable",
    "Slot",
    "Source",
    "StatedLimit",
    "StopReason",
    "Store",
    "Throttle",
    "Timeout",
    "Token",
    "TokenUnavailable",
    "Tokens",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "UnprocessableContent",
    "WaitSource",
    "attempts",
    "deadline",
    "decide",
    "options",
    "pages",
    "parse_retry_after",
    "records",
    "stack",
]

_MODULES: Final = {
    "Answer": "lamella.rules",
    "AnswerInvalid": "lamella.errors",
    "ApiError": "lamella.errors",
    "At": "lamella.stacking",
    "Call": "lamella.call",
    "Layer": "lamella.pipeline",
    "PerCall": "lamella.call",
    "Result": "lamella.pipeline",
    "Slot": "lamella.pipeline",
    "AttemptRecord": "lamella.attempt_record",
    "AttemptSpan": "lamella.telemetry.attempt_span",
    "AttemptTimeout": "lamella.errors",
    "Backoff": "lamella.rules",
    "BadRequest": "lamella.errors",
    "CertificateInvalid": "lamella.errors",
    "Breaker": "lamella.breaker",
    "Buffer": "lamella.buffer",
    "CircuitOpen": "lamella.errors",
    "Classify": "lamella.classify",
    "ClientStatusError": "lamella.errors",
    "Conflict": "lamella.errors",
    "ConnectFailed": "lamella.errors",
    "ConnectTimeout": "lamella.errors",
    "ConnectionLost": "lamella.errors",
    "Decision": "lamella.rules",
    "Failure": "lamella.rules",
    "Forbidden": "lamella.errors",
    "HTTP_RULES": "lamella.rules",
    "HeaderAuth": "lamella.auth",
    "InternalServerError": "lamella.errors",
    "LamellaError": "lamella.errors",
    "Belief": "lamella.throttle",
    "Limit": "lamella.throttle",
    "StatedLimit": "lamella.throttle",
    "MemoryStore": "lamella.store",
    "PostgresStore": "lamella.store",
    "RedisStore": "lamella.store",
    "MethodNotAllowed": "lamella.errors",
    "NotFound": "lamella.errors",
    "RequestRejected": "lamella.errors",
    "ProxyRefused": "lamella.errors",
    "Outcome": "lamella.rules",
    "RateLimited": "lamella.errors",
    "RequestSpan": "lamella.telemetry.call_span",
    "Retry": "lamella.retry",
    "RetryBudget": "lamella.retry.budget",
    "Rule": "lamella.rules",
    "RuleBook": "lamella.rules",
    "ServerStatusError": "lamella.errors",
    "ServiceUnavailable": "lamella.errors",
    "StopReason": "lamella.rules",
    "Store": "lamella.store",
    "Throttle": "lamella.throttle",
    "Timeout": "lamella.timeout",
    "Token": "lamella.auth",
    "TokenUnavailable": "lamella.errors",
    "Tokens": "lamella.auth",
    "TooManyRequests": "lamella.errors",
    "TransportError": "lamella.errors",
    "Unauthorized": "lamella.errors",
    "UnprocessableContent": "lamella.errors",
    "WaitSource": "lamella.rules",
    "attempts": "lamella.attempt_record",
    "deadline": "lamella.scope",
    "options": "lamella.scope",
    "Source": "lamella.sync",
    "pages": "lamella.sync",
    "records": "lamella.sync",
    "decide": "lamella.rules",
    "parse_retry_after": "lamella.rules",
    "stack": "lamella.stacking",
}


_PACKAGES: Final = ("batch", "maesn", "oauth", "sync", "testing")

if TYPE_CHECKING:
    __version__: str
else:  # type checkers must know exactly these names

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name == "__version__":
            from importlib.metadata import version  # `from lamella import a_module` also gets here and must stay fast

            value = version("lamella")
        elif name in _PACKAGES:
            value = import_module(f"lamella.{name}")
        elif name in _MODULES:
            value = getattr(import_module(_MODULES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__"])
