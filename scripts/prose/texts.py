"""Extract the prose of the project: Markdown, docstrings, comments, messages and test names.

Code, links, URLs and names in backticks are blanked out, and line numbers are kept.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

Kind = Literal["markdown", "docstring", "comment", "message", "test name"]

ROOT: Final = Path(__file__).resolve().parents[2]
_FENCE: Final = re.compile(r"^\s*(```|~~~)")
_HIDDEN: Final = re.compile(
    r"``[^`]*``|`[^`]*`|<[^<>\n]*>|https?://\S+|(?<=\])\([^)\s]*\)|:\w+:`[^`]*`|[\w./-]+\.(?:py|md|toml|sh|svg|json)\b"
)
_DIRECTIVE: Final = re.compile(r"#\s*(noqa|type:|pyright:|fmt:|pragma|!)")
_SQL: Final = re.compile(
    r"\s*(SELECT|INSERT|CREATE|PRAGMA|UPDATE|DELETE|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|DROP|ALTER)\b"
)
_LEAST_WORDS: Final = 3


class Prose(NamedTuple):
    """A paragraph, a comment, a message or a name, with the number of its first line."""

    path: Path
    line: int
    kind: Kind
    text: str


def markdown(path: Path) -> Iterator[Prose]:
    """Yield the paragraphs of a Markdown file, and each row of a table or item of a list by itself."""
    paragraph: list[str] = []
    first = 1
    is_code = False
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        is_fence = _FENCE.match(line) is not None
        begins = re.match(r"\s*(\||[-*+] |\d+\. |#|>|!\[|:::)", line) is not None
        if paragraph and (is_fence or is_code or begins or not line.strip()):
            yield Prose(path, first, "markdown", "\n".join(paragraph))
            paragraph = []
        if is_fence:
            is_code = not is_code
        elif not is_code and line.strip() and not re.match(r"[\s|:-]*$|    |<", line):
            if not paragraph:
                first = number
            paragraph.append(line.strip())


def python(path: Path) -> Iterator[Prose]:
    """Yield the docstrings, comments and messages of a Python file, and its names of tests."""
    source = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    documented: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.add(id(node.value))
            yield from _paragraphs(path, node.value.lineno, node.value.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Prose(path, node.lineno, "test name", node.name.removeprefix("test_").replace("_", " "))
    yield from _messages(path, nodes, documented)
    yield from _comments(path, source)


def _paragraphs(path: Path, line: int, docstring: str) -> Iterator[Prose]:
    literal_indent = -1
    paragraph: list[str] = []
    first = line
    for number, text in enumerate([*docstring.split("\n"), ""], line):
        indent = len(text) - len(text.lstrip())
        begins = re.match(r"\s*([-*] |[\w.]+(, [\w.]+)*: )", text) is not None
        is_code = text.strip() and (
            0 <= literal_indent < indent or text.strip().startswith((">>>", "...", "===", "├", "│", "└"))
        )
        if paragraph and (begins or is_code or not text.strip()):
            yield Prose(path, first, "docstring", "\n".join(paragraph))
            paragraph = []
        if not text.strip() or is_code:
            continue
        literal_indent = indent if text.rstrip().endswith("::") else -1
        if not paragraph:
            first = number
        paragraph.append(text.strip())


def _messages(path: Path, nodes: list[ast.AST], documented: set[int]) -> Iterator[Prose]:
    parts: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts.update(id(part) for part in ast.walk(node) if part is not node)
            text = "".join(str(value.value) if isinstance(value, ast.Constant) else "`x`" for value in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            text = node.value
        else:
            continue
        words = re.findall(r"\b[A-Za-z]{2,}\b", text)
        is_sentence = len(words) >= _LEAST_WORDS and re.search(r"[a-z] [a-z]", text)
        if id(node) not in parts and is_sentence and not _SQL.match(text) and "\n  GET " not in text:
            yield Prose(path, node.lineno, "message", text)


def _comments(path: Path, source: str) -> Iterator[Prose]:
    lines: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        alone = token.line.lstrip().startswith("#")
        if lines and not (alone and token.start[0] == last + 1):
            yield Prose(path, first, "comment", "\n".join(lines))
            lines = []
        if not lines:
            first = token.start[0]
        lines.append(token.string.lstrip("#: "))
        last = token.start[0] if alone else 0
    if lines:
        yield Prose(path, first, "comment", "\n".join(lines))


def without_code(text: str) -> str:
    """Return *text* with code, links and paths replaced by a neutral mark of the same number of lines."""
    return _HIDDEN.sub(lambda found: "§" + "\n" * found.group().count("\n"), text)


def all_prose(*folders: str) -> Iterator[Prose]:
    """Yield the prose of these files and folders of the project."""
    for folder in folders:
        top = ROOT / folder
        for path in sorted([top] if top.is_file() else top.rglob("*")):
            if path.suffix == ".md":
                yield from markdown(path)
            elif path.suffix == ".py":
                yield from python(path)
