"""The Redis that `make fleet` has started; without it nothing is collected here."""

from __future__ import annotations

import os

import pytest
from tests import environment  # noqa: F401 - to clean it, as tests/conftest.py does in other runs

_REDIS = "LAMELLA_REDIS_URL"

collect_ignore = [] if os.environ.get(_REDIS) else ["test_redis.py", "test_processes.py"]


@pytest.fixture
def redis_url() -> str:
    """The address of a Redis that nobody else uses."""
    return os.environ[_REDIS]
