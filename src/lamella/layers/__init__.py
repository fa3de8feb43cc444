"""The layers, one file each. Each is an aiohttp client middleware, and works alone and in any subset."""

from lamella.layers.attempt_span import AttemptSpan
from lamella.layers.breaker import Breaker
from lamella.layers.buffer import Buffer
from lamella.layers.classify import Classify
from lamella.layers.header_auth import HeaderAuth
from lamella.layers.request_span import RequestSpan
from lamella.layers.retry import Retry
from lamella.layers.throttle import Throttle
from lamella.layers.timeout import Timeout

__all__ = ["AttemptSpan", "Breaker", "Buffer", "Classify", "HeaderAuth", "RequestSpan", "Retry", "Throttle", "Timeout"]
