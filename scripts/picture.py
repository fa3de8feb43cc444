"""Draw docs/sync.svg: the live display of `lamella sync --sandbox`, in the middle of an outage.

    python scripts/picture.py docs/sync.svg

It is what a terminal of 100 columns shows at the first moment when there is something of each kind to see.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from yarl import URL

from lamella import whole_file
from lamella.cli import sandboxed
from lamella.cli.display import Display, Look, Screen
from lamella.cli.options import Options, settings_of
from lamella.cli.progress import Overview, State
from lamella.cli.sync import run

WIDTH, HEIGHT = 100, 26
FEWEST = {State.FAILED: 2, State.QUEUED: 4, State.RUNNING: 4, State.DONE: 2}
FONTS = '"Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace'


class Camera:
    """A display that is drawn once, at the most informative time."""

    every = 0.05

    def __init__(self, look: Look) -> None:
        self._look = look
        self.picture: str | None = None

    def draw(self) -> None:
        """Check whether this is the time to draw."""
        overview = self._look()
        if self.picture is None and overview is not None and has_all(overview):
            paper = Console(width=WIDTH, height=HEIGHT, record=True, force_terminal=True, file=io.StringIO())
            paper.print(Screen(lambda: overview))
            self.picture = paper.export_svg(title="lamella sync --sandbox", unique_id="lamella")

    def note(self, text: str) -> None:
        """Ignore the message, which is not in the picture."""


def has_all(overview: Overview) -> bool:
    """Return whether every kind of state is visible."""
    found = Counter(account.state for account in overview.accounts)
    return overview.outage is not None and all(found[state] >= fewest for state, fewest in FEWEST.items())


async def take() -> str:
    """Return the picture as self-contained SVG."""
    cameras: list[Camera] = []

    @contextmanager
    def showing(look: Look) -> Iterator[Display]:
        cameras.append(Camera(look))
        yield cameras[0]

    with TemporaryDirectory() as folder:
        settings = settings_of(Options(sandbox=True), Path(folder))
        async with sandboxed.make_server(settings.resources) as sandbox:
            await run(replace(settings, base_url=URL(f"{sandbox.url}/")), showing)
    picture = cameras[0].picture
    if picture is None:
        sys.exit("picture: there was no such moment this time; try again")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return picture.replace("Fira Code, monospace", FONTS)


if __name__ == "__main__":
    whole_file.write(Path(sys.argv[1]), asyncio.run(take()).encode())
