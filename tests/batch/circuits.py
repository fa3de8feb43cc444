"""The error of a call that an open circuit has refused."""

from __future__ import annotations

from yarl import URL

from lamella import CircuitOpen, Failure, Rule, StopReason

__all__ = ["refused"]


def refused(until: float = 10.0) -> CircuitOpen:
    """Return the error of a circuit that is open until *until*, by the loop's clock."""
    rule = Rule(Failure.CIRCUIT_OPEN, "Circuit Open")
    url = URL("http://api.test/")
    return CircuitOpen("GET", url, rule, since=0, until=until, stopped=StopReason.CIRCUIT_OPEN)
