"""Measure `import lamella` beyond the packages that it depends on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
times = [1000 * (after - before) for before, after in zip(moments, moments[1:])]
print(json.dumps([lamella.__file__, *times]))
"""


def import_times(source: Path | None = None) -> list[float]:
    """Return the milliseconds of CPU for each of `IMPORTS`, in a fresh interpreter.

    *source* is the folder with the lamella to import. None means the installed one.
    """
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is not compiled at each start
    command = [sys.executable, "-c", _PROGRAM]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
    file, *times = json.loads(ran.stdout)
    if source is not None and not Path(file).is_relative_to(source):
        raise RuntimeError(f"lamella must come from {source}, got {file}")
    return [float(each) for each in times]
