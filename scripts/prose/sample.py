"""Print a random sample of sentences, for a reader who judges the English of the project.

python scripts/prose/sample.py 7        ten sentences each of six kinds, drawn with the seed 7
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, it does not know its package

from scripts.prose.texts import ROOT, Kind, Prose, all_prose

EACH: Final = 10
KINDS: Final[tuple[tuple[str, tuple[str, ...], Kind], ...]] = (
    ("README", ("README.md",), "markdown"),
    ("docs", ("docs",), "markdown"),
    ("docstrings", ("src",), "docstring"),
    ("comments", ("src",), "comment"),
    ("messages", ("src",), "message"),
    ("test names", ("tests",), "test name"),
)
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\"\[(])")


def sentences(texts: list[Prose]) -> Iterator[tuple[Prose, str]]:
    """Yield each sentence with the text that it is from."""
    for prose in texts:
        for sentence in _SENTENCE.split(prose.text):
            if len(sentence.split()) > 1:
                yield prose, " ".join(sentence.split())


def main(seed: int) -> None:
    """Print the sample."""
    source = random.Random(seed)
    for title, folders, kind in KINDS:
        found = list(sentences([prose for prose in all_prose(*folders) if prose.kind == kind]))
        print(f"\n{title} ({len(found):,})")
        for prose, sentence in source.sample(found, min(EACH, len(found))):
            print(f"  {prose.path.relative_to(ROOT)}:{prose.line}: {sentence}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
