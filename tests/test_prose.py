"""The scripts that read and check the prose of the project."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from scripts.prose import texts
from scripts.prose.texts import Prose, markdown, python, without_code

CODE = '''
"""First line.

Text::

    code = 1

Args:
    name: The name.
"""
VALUE = 1  # why one

# two
# lines


def test_it_works() -> None:
    """Does."""
    raise ValueError(f"value must be {VALUE} or more")  # noqa: TRY003
'''


def found(kind: str, prose: list[Prose]) -> list[tuple[int, str]]:
    return [(each.line, each.text) for each in prose if each.kind == kind]


def test_python_prose_is_split_by_kind_and_line(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    prose = list(python(path))
    assert found("docstring", prose) == [
        (2, "First line."),
        (4, "Text::"),
        (8, "Args:"),
        (9, "name: The name."),
        (18, "Does."),
    ]
    assert found("comment", prose) == [(11, "why one"), (13, "two\nlines")]
    assert found("message", prose) == [(19, "value must be `x` or more")]
    assert found("test name", prose) == [(17, "it works")]


def test_markdown_prose_has_no_code_blocks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Title\n\nOne\ntwo.\n\n```python\ncode\n```\n\n| a | b |\n|---|---|\n- item\n")
    assert found("markdown", list(markdown(path))) == [
        (1, "# Title"),
        (3, "One\ntwo."),
        (10, "| a | b |"),
        (12, "- item"),
    ]


def test_code_is_hidden_and_lines_are_kept() -> None:
    assert without_code("see `tell\nme` in docs/gate.md") == "see §\n in §"


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("The layer is told the limit.", "'told': write 'report, say, show' or rephrase."),
        ("One.\nA call\nwaits in vain.", "'in vain': write 'without success' or rephrase."),
        ("None: there is none.", None),
        ("`tell` is a name.", None),
    ],
)
def test_the_linter_finds_words_of_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str | None
) -> None:
    lint = pytest.importorskip("scripts.prose.lint", exc_type=ImportError)
    monkeypatch.setattr(lint, "ROOT", tmp_path)
    path = tmp_path / "a.py"
    prose = [Prose(path, 1, "comment", "Good."), Prose(path, 7, "docstring", dedent(text))]
    line = 7 + text.count("\n", 0, text.find("in vain")) if "in vain" in text else 7
    assert list(lint.found_in(prose)) == ([f"a.py:{line}: docstring: {says}"] if says else [])


def test_all_prose_reads_files_and_folders() -> None:
    assert {each.path.suffix for each in texts.all_prose("README.md", "src/lamella/retry")} == {".md", ".py"}
