"""Documents taken apart: their blocks of code, the commands in them, their links and headings.

What a reader types stands behind a `$ ` in blocks of `console`, with what it prints below it, or is a block of `sh`:

    for command in documents.commands(Path("docs/tutorials/lab.md")):
        subprocess.run(["bash", "-c", command.text])

A remark `<!-- WORD: VALUE -->` on a line of its own right above a block is a mark of that block.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

PROJECT = Path(__file__).parents[1]

_MARK = re.compile(r"<!--\s*([a-z-]+):\s*(.*?)\s*-->")
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


@dataclass(frozen=True)
class Block:
    """A block of code; `line` is its first one's number in the document."""

    path: Path
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """What a reader types, with lines that the shell reads as one command as one.

    output -- what a console shows after it
    """

    path: Path
    line: int
    text: str
    output: str = ""
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Where it stands, for people."""
        return f"{self.path.relative_to(PROJECT)}:{self.line}: {self.text}"


def all_of_them() -> list[Path]:
    """README and all below docs/."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def blocks(path: Path, *languages: str) -> Iterator[Block]:
    """A document's blocks of code, of all languages without any named."""
    marks: dict[str, str] = {}
    for token in _tokens(path):
        if token.type == "fence" and token.map:
            language = token.info.strip()
            if not languages or language in languages:
                yield Block(path, token.map[0] + 2, language, token.content, marks)
        marks = dict(_MARK.findall(token.content)) if token.type == "html_block" else {}


def commands(path: Path) -> Iterator[Command]:
    """A document's commands, in their order."""
    for block in blocks(path, "console", "sh"):
        lines = list(enumerate(block.text.splitlines(), block.line))
        yield from _typed(block, lines) if block.language == "console" else _script(block, lines)


def inline(path: Path) -> Iterator[tuple[int, str]]:
    """What stands as code within a document's text and tables, with the line of its paragraph."""
    for line, token in _inline(path):
        if token.type == "code_inline":
            yield line, token.content


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Where a document's links and pictures lead."""
    for line, token in _inline(path):
        if target := token.attrGet("href") or token.attrGet("src"):
            yield line, str(target)


def rows(path: Path) -> Iterator[tuple[str, list[Token]]]:
    """The rows of a document's tables, a token each cell, with the heading that they stand below."""
    heading = ""
    cells: list[Token] = []
    for before, token in itertools.pairwise(_tokens(path)):
        if before.type == "heading_open":
            heading = token.content
        elif before.type == "tr_open":
            cells = []
        elif before.type == "td_open":
            cells.append(token)
        elif token.type == "tr_close" and cells:
            yield heading, cells


def anchors(path: Path) -> set[str]:
    """What links into a document may name: its headings as GitHub spells them."""
    tokens = _tokens(path)
    found: set[str] = set()
    for opened, token in itertools.pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(child.content for child in token.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = next(n for n in range(len(found) + 1) if (f"{name}-{n}" if n else name) not in found)
            found.add(f"{name}-{number}" if number else name)
    return found


def _tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text())


def _inline(path: Path) -> Iterator[tuple[int, Token]]:
    for token in _tokens(path):
        for child in token.children or ():
            yield (token.map or [0])[0] + 1, child


def _typed(block: Block, lines: list[tuple[int, str]]) -> Iterator[Command]:
    """Of a console: commands begin with `$ `, those that go on end with a backslash; lines with `# ` are remarks."""
    found: list[tuple[int, str, list[str]]] = []
    more = False
    for number, line in lines:
        if more:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}", [])
        elif line.startswith("$ "):
            found.append((number, line[2:], []))
        elif found and not line.startswith("# "):
            found[-1][2].append(line)
        more = (more or line.startswith("$ ")) and line.endswith("\\")
    for number, text, output in found:
        yield Command(block.path, number, text, "\n".join(output).strip("\n"), block.marks)


def _script(block: Block, lines: list[tuple[int, str]]) -> Iterator[Command]:
    """Of a script: a line each, with what its backslash or its here-document adds to it."""
    waiting: list[tuple[int, str]] = []
    end = ""
    for number, line in lines:
        if not waiting and (not line.strip() or line.lstrip().startswith("#")):
            continue
        waiting.append((number, line))
        here = _HERE.search(line)
        if end:
            end = "" if line.strip() == end else end
        elif here:
            end = here[2]
        if not end and not line.endswith("\\"):
            yield Command(block.path, waiting[0][0], "\n".join(text for _, text in waiting), marks=block.marks)
            waiting = []
    assert not waiting, f"{block.path}:{block.line}: a command without an end"
