"""Print, as pip constraints, the lowest versions that pyproject.toml allows.

Every `>=` bound of the dependencies and of the extras that a user installs becomes an `==`. The dependency groups are
left alone: their tools test the library and are no part of what it promises to work with.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
USER_EXTRAS = ("cli", "oauth", "parquet", "sdk")
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*(?P<bounds>[^;]*)")
LOWER_BOUND = re.compile(r">=\s*(?P<version>[^\s,]+)")


def requirements(pyproject: Path) -> Iterator[str]:
    """Yield the requirements whose lower bounds are promised to users."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    for extra in USER_EXTRAS:
        yield from project["optional-dependencies"][extra]


def lowest(requirement: str) -> str:
    """Turn `name>=1.2,<2` into `name==1.2`; a requirement without a lower bound is a ValueError."""
    match = REQUIREMENT.match(requirement)
    bound = match and LOWER_BOUND.search(match["bounds"])
    if not match or not bound:
        raise ValueError(f"no lower bound (>=) in {requirement!r}: nobody could tell what is supported")
    return f"{match['name']}=={bound['version']}"


def main() -> int:
    """Print one constraint per line."""
    try:
        print("\n".join(sorted(map(lowest, requirements(PYPROJECT)))))
    except ValueError as error:
        print(f"{PYPROJECT.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
