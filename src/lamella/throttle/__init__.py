"""``Throttle``: keep the calls of each account within its rate limit, which is stated or learned."""

from lamella.throttle.belief import Belief
from lamella.throttle.layer import Throttle
from lamella.throttle.limit import Limit
from lamella.throttle.stated import StatedLimit

__all__ = ["Belief", "Limit", "StatedLimit", "Throttle"]
