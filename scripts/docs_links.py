"""Hook of MkDocs: let a page link to a file of the repository that is not part of the site.

The link in the Markdown is relative, so it works in a checkout. On the site it leads to the repository that
pyproject.toml names. A link to a file that does not exist stops the build, as MkDocs does for pages.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PICTURES = "results"
LINK = re.compile(r"(?<=\]\()(?P<path>\.\.?/[^)#\s]*)(?P<anchor>#[^)\s]*)?(?=\))")


def repository() -> str:
    """Return the address of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["urls"]["Source"])


def to_repository(markdown: str, page: Path) -> str:
    """Return *markdown* with each link from *page* that leaves the docs made absolute.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def absolute(link: re.Match[str]) -> str:
        target = (page.parent / link["path"]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"{page.relative_to(ROOT)} links to {link['path']}, which does not exist")
        if target.suffix == ".png":
            up = "../" * (len(page.relative_to(DOCS).parts) - 1)
            return f"{up}{PICTURES}/{target.name}"
        kind = "tree" if target.is_dir() else "blob"
        return f"{repository()}/{kind}/main/{target.relative_to(ROOT).as_posix()}{link['anchor'] or ''}"

    return LINK.sub(absolute, markdown)


def on_config(config: Any) -> Any:
    """Link to the repository below each page. (For MkDocs' repo_url the theme would ask GitHub for the stars.)"""
    config.extra["social"] = [{"icon": "fontawesome/brands/git-alt", "link": repository(), "name": "Source"}]
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the plots of the benchmarks, so that no page loads a picture from another host."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"{PICTURES}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Rewrite the links of a page before it is rendered."""
    return to_repository(markdown, Path(page.file.abs_src_path))
