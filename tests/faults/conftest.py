from tests.telemetry.conftest import metering as metering
