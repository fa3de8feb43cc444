"""Thin async layers for an aiohttp session: what happens to an HTTP call that fails.

The names are imported when they are first used: whoever needs an error class alone does not wait for the layers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lamella.deadlines import deadline
    from lamella.errors import (
        ApiError,
        AttemptRecord,
        AttemptTimeout,
        BadRequest,
        CertificateInvalid,
        CircuitOpen,
        ClientFault,
        ConnectFailed,
        ConnectionLost,
        ConnectTimeout,
        Forbidden,
        InternalServerError,
        LamellaError,
        MethodNotAllowed,
        NotFound,
        NotSent,
        ProxyRefused,
        RateLimited,
        ServerFault,
        TooManyRequests,
        TransportError,
        Unauthorized,
    )
    from lamella.fused import as_one
    from lamella.layers import AttemptSpan, Breaker, Buffer, Classify, HeaderAuth, RequestSpan, Retry, Throttle, Timeout
    from lamella.policy import (
        Backoff,
        Decision,
        Failure,
        Limit,
        Outcome,
        RetryBudget,
        Rule,
        RuleBook,
        StopReason,
        WaitSource,
        decide,
        parse_retry_after,
    )
    from lamella.stacking import in_order, stack
    from lamella.state import MemoryStore, Store

__all__ = [
    "ApiError",
    "AttemptRecord",
    "AttemptSpan",
    "AttemptTimeout",
    "Backoff",
    "BadRequest",
    "Breaker",
    "Buffer",
    "CertificateInvalid",
    "CircuitOpen",
    "Classify",
    "ClientFault",
    "ConnectFailed",
    "ConnectTimeout",
    "ConnectionLost",
    "Decision",
    "Failure",
    "Forbidden",
    "HeaderAuth",
    "InternalServerError",
    "LamellaError",
    "Limit",
    "MemoryStore",
    "MethodNotAllowed",
    "NotFound",
    "NotSent",
    "Outcome",
    "ProxyRefused",
    "RateLimited",
    "RequestSpan",
    "Retry",
    "RetryBudget",
    "Rule",
    "RuleBook",
    "ServerFault",
    "StopReason",
    "Store",
    "Throttle",
    "Timeout",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "WaitSource",
    "as_one",
    "deadline",
    "decide",
    "in_order",
    "parse_retry_after",
    "stack",
]

_MODULES: Final = {
    "ApiError": "lamella.errors",
    "AttemptRecord": "lamella.errors",
    "AttemptSpan": "lamella.layers",
    "AttemptTimeout": "lamella.errors",
    "Backoff": "lamella.policy",
    "BadRequest": "lamella.errors",
    "CertificateInvalid": "lamella.errors",
    "Breaker": "lamella.layers",
    "Buffer": "lamella.layers",
    "CircuitOpen": "lamella.errors",
    "Classify": "lamella.layers",
    "ClientFault": "lamella.errors",
    "ConnectFailed": "lamella.errors",
    "ConnectTimeout": "lamella.errors",
    "ConnectionLost": "lamella.errors",
    "Decision": "lamella.policy",
    "Failure": "lamella.policy",
    "Forbidden": "lamella.errors",
    "HeaderAuth": "lamella.layers",
    "InternalServerError": "lamella.errors",
    "LamellaError": "lamella.errors",
    "Limit": "lamella.policy",
    "MemoryStore": "lamella.state",
    "MethodNotAllowed": "lamella.errors",
    "NotFound": "lamella.errors",
    "NotSent": "lamella.errors",
    "ProxyRefused": "lamella.errors",
    "Outcome": "lamella.policy",
    "RateLimited": "lamella.errors",
    "RequestSpan": "lamella.layers",
    "Retry": "lamella.layers",
    "RetryBudget": "lamella.policy",
    "Rule": "lamella.policy",
    "RuleBook": "lamella.policy",
    "ServerFault": "lamella.errors",
    "StopReason": "lamella.policy",
    "Store": "lamella.state",
    "Throttle": "lamella.layers",
    "Timeout": "lamella.layers",
    "TooManyRequests": "lamella.errors",
    "TransportError": "lamella.errors",
    "Unauthorized": "lamella.errors",
    "WaitSource": "lamella.policy",
    "as_one": "lamella.fused",
    "deadline": "lamella.deadlines",
    "decide": "lamella.policy",
    "in_order": "lamella.stacking",
    "parse_retry_after": "lamella.policy",
    "stack": "lamella.stacking",
}


if not TYPE_CHECKING:  # a type checker is to know these names and no others

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
