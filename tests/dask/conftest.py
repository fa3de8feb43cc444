"""What the tests of `make dask` need; without distributed nothing is collected here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests import environment  # noqa: F401 - to clean it, as tests/conftest.py does in other runs

if find_spec("distributed") is None:
    # No pattern: pytest would take a bracket in the checkout's path for a part of it.
    collect_ignore = [file.name for file in Path(__file__).parent.iterdir()]
else:
    from tests.dask.cluster import Cluster
    from tests.dataset.conftest import sync_to

    __all__ = ["cluster", "sync_to"]

    API_KEY = "sandbox-api-key"

    @pytest.fixture
    async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
        """A scheduler without workers; their sandbox must have the API key above."""
        async with Cluster(tmp_path / "cluster", {"MAESN_API_KEY": API_KEY}) as found:
            yield found
            if "Traceback" in (log := found.log()):
                print(log[-4000:])  # noqa: T201 - pytest shows it with a test that fails
