"""Check the English of docs, docstrings, comments and messages with proselint and the rules of the project.

python scripts/prose/lint.py                    all of it; an exit code of 1: something was found
python scripts/prose/lint.py README.md docs     these files and folders
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from proselint.checks import __register__
from proselint.registry.checks import Check
from proselint.registry.checks.engine import Fancy
from proselint.registry.checks.types import ExistenceSimple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, it does not know its package

from scripts.prose.rules import RULES
from scripts.prose.texts import ROOT, Prose, all_prose, without_code

CHECKED: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "src")
# The checks of proselint that concern words. Typography, and checks that take seconds, are left out.
_GENERAL: Final = frozenset(
    {
        "archaism",
        "cliches",
        "hedging",
        "malapropisms",
        "mixed_metaphors",
        "needless_variants",
        "nonwords",
        "oxymorons",
        "redundancy",
        "spelling",
        "weasel_words",
    }
)
_OWN: Final = tuple(
    Check(
        check_type=ExistenceSimple(pattern),
        engine=Fancy(),
        path=f"lamella.{number}",
        message=f"'{{}}': write {instead!r} or rephrase.",
    )
    for number, (pattern, instead) in enumerate(RULES, 1)
)
_BETWEEN: Final = "\n¶\n"


def found_in(texts: Sequence[Prose]) -> Iterator[str]:
    """Yield a line per finding in the format of compilers. One document is much faster than many."""
    starts: list[int] = []
    position = 1
    shown = [without_code(prose.text) for prose in texts]
    for text in shown:
        starts.append(position)
        position += len(text) + len(_BETWEEN)
    document = f"\n{_BETWEEN.join(shown)}\n"
    general = (check for check in __register__ if check.path.split(".")[0] in _GENERAL)
    found = set[tuple[int, int, str]]()
    for check in (*general, *_OWN):
        for result in check.check_with_flags(document):
            start, end = result.span
            # Some checks of proselint also find their words inside longer ones.
            if document[start - 1 : start + 1].isalnum() or document[end - 1 : end + 1].isalnum():
                continue
            index = max(0, bisect_right(starts, start + 1) - 1)
            line = texts[index].line + document.count("\n", starts[index], start + 1)
            found.add((index, line, result.message))
    for index, line, message in sorted(found):
        yield f"{texts[index].path.relative_to(ROOT)}:{line}: {texts[index].kind}: {message}"


def main(arguments: Sequence[str]) -> int:
    """Print what is found. Return 1 if there is something."""
    texts = list(all_prose(*(arguments or CHECKED)))
    lines = list(found_in(texts))
    print("\n".join(lines) or f"Prose: nothing to say about {len(texts):,} texts.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
