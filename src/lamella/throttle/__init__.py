"""``Throttle``: the calls of an account keep to its rate limit, stated or learned."""

from lamella.throttle.belief import Belief
from lamella.throttle.layer import Throttle
from lamella.throttle.limit import Limit
from lamella.throttle.stated import StatedLimit

__all__ = ["Belief", "Limit", "StatedLimit", "Throttle"]
