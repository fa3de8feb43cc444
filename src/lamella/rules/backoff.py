"""The wait before a retry: a value and pure arithmetic on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lamella.checks import check_number, check_seconds

Random = Callable[[], float]
"""A source of randomness that returns uniform floats in [0, 1), like ``random.random``."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """An exponential backoff. All times are in seconds.

    The wait before retry *n* (1, 2, 3, …) is ``initial * factor**(n - 1)``, increased by a random fraction of up to
    ``jitter`` and limited to ``maximum``.

    Args:
        initial: The first wait: a number, or a range ``(low, high)`` from which each wait is drawn uniformly before it
            is multiplied. 0 means no wait, unless the server asks for one.
        factor: The growth of the wait per retry, 1 or more.
        maximum: The longest wait. If a server asks for more with ``Retry-After``, the call stops.
        jitter: The largest random fraction of the wait that is added. Jitter never shortens a wait. None means 0.1 for
            a single ``initial`` and 0 for a range, which is already random.

    Raises:
        ValueError: A number is negative or not finite, or the numbers contradict each other.
    """

    initial: float | tuple[float, float]
    factor: float = 2.0
    maximum: float = 3600.0
    jitter: float | None = None

    def __post_init__(self) -> None:
        initial = self.initial
        if isinstance(initial, tuple) and len(initial) != 2:
            raise ValueError(f"initial must be a number or (low, high), got {initial!r}")
        for value in initial if isinstance(initial, tuple) else (initial,):
            check_seconds("initial", value, zero=True)
        if self.low > self.high:
            raise ValueError(f"initial must be (low, high) with low <= high, got {initial!r}")
        check_seconds("maximum", self.maximum, zero=True)
        if self.maximum < self.low:
            raise ValueError(f"maximum must be at least initial ({self.low!r} s), got {self.maximum!r}")
        check_number("factor", self.factor, 1)
        if self.jitter is not None:
            check_number("jitter", self.jitter, 0)

    @property
    def low(self) -> float:
        """The shortest first wait, in seconds."""
        return self.initial[0] if isinstance(self.initial, tuple) else self.initial

    @property
    def high(self) -> float:
        """The longest first wait before jitter, in seconds."""
        return self.initial[1] if isinstance(self.initial, tuple) else self.initial

    def floor(self, number: int) -> float:
        """Return the shortest possible wait before retry *number* (from 1), in seconds."""
        return self._grown(self.low, number)

    def ceiling(self, number: int) -> float:
        """Return the longest possible wait before retry *number* (from 1), in seconds."""
        return self._jittered(self._grown(self.high, number), 1.0)

    def wait(self, number: int, random: Random) -> float:
        """Return the wait before retry *number* (from 1), in seconds, using *random* for the range and the jitter."""
        low, high = self.low, self.high
        first = low + (high - low) * random() if high > low else low
        seconds = self._grown(first, number)
        return self._jittered(seconds, random()) if self._jitter else seconds

    def scaled(self, factor: float) -> Backoff:
        """Return the same schedule with every delay multiplied by *factor* (0 or more)."""
        check_number("factor", factor, 0)
        initial = (self.low * factor, self.high * factor) if isinstance(self.initial, tuple) else self.low * factor
        return replace(self, initial=initial, maximum=self.maximum * factor)

    @property
    def _jitter(self) -> float:
        if self.jitter is not None:
            return self.jitter
        return 0.0 if isinstance(self.initial, tuple) else 0.1

    def _grown(self, first: float, number: int) -> float:
        if number < 1:
            raise ValueError(f"number must be 1 or more, got {number!r}")
        if not first:
            return 0.0
        try:
            return float(min(first * self.factor ** (number - 1), self.maximum))
        except OverflowError:
            return self.maximum

    def _jittered(self, seconds: float, random: float) -> float:
        return min(seconds + seconds * (self._jitter * random), self.maximum)
