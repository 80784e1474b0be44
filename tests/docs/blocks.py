"""Fenced code blocks of Markdown pages, and the comments above them that say how a test runs them.

<!-- not run: REASON -->        what cannot be run in a test
<!-- server -->                 runs until the next server or the page's end; what follows it is sent to it
<!-- file: NAME -->             is written to a file; a program is run by a later block
<!-- in the tests: A => B -->   A becomes B, to save time
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

RUN = ("sh", "python")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.M | re.S)
_COMMENT = re.compile(r"<!-- (not run|server|file|in the tests)(?:: ((?:(?!-->).)+))? -->\n$", re.S)


@dataclass(frozen=True)
class Block:
    """`line` is where it stands; `notes` are the comments above it, by their first words."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.language in RUN and "not run" not in self.notes

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    """Raises ValueError where a block that is not run has no reason."""
    content = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(content):
        notes: dict[str, str] = {}
        above = content[: fence.start()]
        while comment := _COMMENT.search(above[-400:]):
            notes[comment[1]] = comment[2] or ""
            above = above[: -len(comment[0])]
        line = content.count("\n", 0, fence.start()) + 1
        if notes.get("not run") == "":
            raise ValueError(f"{page}, line {line}: say why it is not run")
        indent = len(fence["indent"])
        text = "".join(each[indent:] for each in fence["text"].splitlines(keepends=True))
        found.append(Block(page, line, fence["language"], text, notes))
    return found
