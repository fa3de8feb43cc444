"""The page of a report and the site in a browser: `make browser`. Without a browser nothing is collected here."""

from __future__ import annotations

import os

from tests import environment  # noqa: F401 - to clean it, as tests/conftest.py does in other runs

collect_ignore = [] if os.environ.get("LAMELLA_CHROMIUM") else ["test_page.py", "test_site.py"]
