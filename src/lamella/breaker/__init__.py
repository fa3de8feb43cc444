"""``Breaker``: reject calls at once while their service is down."""

from lamella.breaker.layer import Breaker

__all__ = ["Breaker"]
