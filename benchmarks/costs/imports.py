"""What `import lamella` takes beyond the packages that it stands on."""

from __future__ import annotations

import json
import subprocess
import sys

__all__ = ["IMPORTS", "import_times"]

IMPORTS = ("aiohttp", "stamina and the OpenTelemetry API", "lamella", "lamella.maesn", "all of lamella's names")
"""In this order, each beyond those before it."""

_PROGRAM = """
import json, time
moments = [time.process_time()]
import aiohttp
moments.append(time.process_time())
import stamina, opentelemetry.context, opentelemetry.metrics, opentelemetry.propagate, opentelemetry.trace
moments.append(time.process_time())
import lamella
moments.append(time.process_time())
import lamella.maesn
moments.append(time.process_time())
for name in lamella.__all__:
    getattr(lamella, name)
for name in lamella.maesn.__all__:
    getattr(lamella.maesn, name)
moments.append(time.process_time())
print(json.dumps([1000 * (after - before) for before, after in zip(moments, moments[1:])]))
"""


def import_times() -> list[float]:
    """Milliseconds of CPU for each of `IMPORTS`, in a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)  # noqa: S603
    return [float(each) for each in json.loads(ran.stdout)]
