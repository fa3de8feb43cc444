"""What the faults are measured with."""

from __future__ import annotations

from tests.telemetry.conftest import metering

__all__ = ["metering"]
