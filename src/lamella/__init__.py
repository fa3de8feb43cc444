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
    from lamella.attempt_record import AttemptRecord as AttemptRecord
    from lamella.attempt_record import attempts as attempts
    from lamella.auth import HeaderAuth as HeaderAuth
    from lamella.auth import Token as Token
    from lamella.auth import Tokens as Tokens
    from lamella.breaker import Breaker as Breaker
    from lamella.buffer import Buffer as Buffer
    from lamella.call import Call as Call
    from lamella.call import PerCall as PerCall
    from lamella.classify import Classify as Classify
    from lamella.errors import AnswerInvalid as AnswerInvalid
    from lamella.errors import ApiError as ApiError
    from lamella.errors import AttemptTimeout as AttemptTimeout
    from lamella.errors import BadRequest as BadRequest
    from lamella.errors import CertificateInvalid as CertificateInvalid
    from lamella.errors import CircuitOpen as CircuitOpen
    from lamella.errors import ClientStatusError as ClientStatusError
    from lamella.errors import Conflict as Conflict
    from lamella.errors import ConnectFailed as ConnectFailed
    from lamella.errors import ConnectionLost as ConnectionLost
    from lamella.errors import ConnectTimeout as ConnectTimeout
    from lamella.errors import Forbidden as Forbidden
    from lamella.errors import InternalServerError as InternalServerError
    from lamella.errors import LamellaError as LamellaError
    from lamella.errors import MethodNotAllowed as MethodNotAllowed
    from lamella.errors import NotFound as NotFound
    from lamella.errors import ProxyRefused as ProxyRefused
    from lamella.errors import RateLimited as RateLimited
    from lamella.errors import RequestRejected as RequestRejected
    from lamella.errors import ServerStatusError as ServerStatusError
    from lamella.errors import ServiceUnavailable as ServiceUnavailable
    from lamella.errors import TokenUnavailable as TokenUnavailable
    from lamella.errors import TooManyRequests as TooManyRequests
    from lamella.errors import TransportError as TransportError
    from lamella.errors import Unauthorized as Unauthorized
    from lamella.errors import UnprocessableContent as UnprocessableContent
    from lamella.pipeline import Layer as Layer
    from lamella.pipeline import Result as Result
    from lamella.pipeline import Slot as Slot
    from lamella.retry import Retry as Retry
    from lamella.retry.budget import RetryBudget as RetryBudget
    from lamella.rules import HTTP_RULES as HTTP_RULES
    from lamella.rules import Answer as Answer
    from lamella.rules import Backoff as Backoff
    from lamella.rules import Decision as Decision
    from lamella.rules import Failure as Failure
    from lamella.rules import Outcome as Outcome
    from lamella.rules import Rule as Rule
    from lamella.rules import RuleBook as RuleBook
    from lamella.rules import StopReason as StopReason
    from lamella.rules import WaitSource as WaitSource
    from lamella.rules import decide as decide
    from lamella.rules import parse_retry_after as parse_retry_after
    from lamella.scope import deadline as deadline
    from lamella.scope import options as options
    from lamella.stacking import At as At
    from lamella.stacking import stack as stack
    from lamella.store.memory import MemoryStore as MemoryStore
    from lamella.store.postgres import PostgresStore as PostgresStore
    from lamella.store.protocol import Store as Store
    from lamella.store.redis import RedisStore as RedisStore
    from lamella.sync import Source as Source
    from lamella.sync import pages as pages
    from lamella.sync import records as records
    from lamella.telemetry.attempt_span import AttemptSpan as AttemptSpan
    from lamella.telemetry.call_span import RequestSpan as RequestSpan
    from lamella.throttle import Belief as Belief
    from lamella.throttle import Limit as Limit
    from lamella.throttle import StatedLimit as StatedLimit
    from lamella.throttle import Throttle as Throttle
    from lamella.timeout import Timeout as Timeout

_NAMES: Final = {
    "attempt_record": "AttemptRecord attempts",
    "auth": "HeaderAuth Token Tokens",
    "breaker": "Breaker",
    "buffer": "Buffer",
    "call": "Call PerCall",
    "classify": "Classify",
    "errors": "AnswerInvalid ApiError AttemptTimeout BadRequest CertificateInvalid CircuitOpen ClientStatusError "
    "Conflict ConnectFailed ConnectTimeout ConnectionLost Forbidden InternalServerError LamellaError "
    "MethodNotAllowed NotFound ProxyRefused RateLimited RequestRejected ServerStatusError "
    "ServiceUnavailable TokenUnavailable TooManyRequests TransportError Unauthorized UnprocessableContent",
    "pipeline": "Layer Result Slot",
    "retry": "Retry",
    "retry.budget": "RetryBudget",
    "rules": "Answer Backoff Decision Failure HTTP_RULES Outcome Rule RuleBook StopReason WaitSource decide "
    "parse_retry_after",
    "scope": "deadline options",
    "stacking": "At stack",
    "store.memory": "MemoryStore",
    "store.postgres": "PostgresStore",
    "store.protocol": "Store",
    "store.redis": "RedisStore",
    "sync": "Source pages records",
    "telemetry.attempt_span": "AttemptSpan",
    "telemetry.call_span": "RequestSpan",
    "throttle": "Belief Limit StatedLimit Throttle",
    "timeout": "Timeout",
}
"""The public names by their modules, once more as imports above, for type checkers."""
_MODULES: Final = {name: f"lamella.{module}" for module, names in _NAMES.items() for name in names.split()}
_PACKAGES: Final = ("batch", "maesn", "oauth", "sync", "testing")

if TYPE_CHECKING:
    __all__: list[str]
    __version__: str
else:  # type checkers must know exactly these names
    __all__ = list(_MODULES)

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
    return sorted([*_MODULES, *_PACKAGES, "__version__"])
