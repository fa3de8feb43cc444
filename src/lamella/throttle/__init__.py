"""``Throttle``: the calls of an account keep to its rate limit, stated or learned."""

from lamella.throttle.estimator import Limit
from lamella.throttle.layer import Throttle

__all__ = ["Limit", "Throttle"]
