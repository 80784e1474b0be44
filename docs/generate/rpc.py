"""The gRPC reference, from the .proto files: their comments, their messages, their fields."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from generate.tables import paragraph, table

_OPENS = re.compile(r"(service|message|enum|oneof)\s+(\w+)\s*\{(\s*\})?")
_METHOD = re.compile(
    r"rpc\s+(\w+)\s*\(\s*(stream\s+)?([\w.]+)\s*\)\s*returns\s*\(\s*(stream\s+)?([\w.]+)\s*\)"
)
_FIELD = re.compile(r"(optional\s+|repeated\s+)?(map\s*<.+?>|[\w.]+)\s+(\w+)\s*=\s*(\d+)")
_VALUE = re.compile(r"(\w+)\s*=\s*(-?\d+)")


@dataclass
class _Part:
    what: str
    name: str
    comment: str
    rows: list[list[str]] = field(default_factory=list)


def page(file: Path) -> str:
    """Raises ValueError for a file in which nothing is described."""
    head, parts = _parts(file.read_text(encoding="utf-8"))
    if not parts:
        raise ValueError(f"{file} describes nothing")
    text = f"# gRPC\n\n*Made from `{file.name}` when this documentation was built.*\n\n{paragraph(head)}\n\n"
    for part in parts:
        text += f"## {part.name}\n\n{paragraph(part.comment)}\n\n"
        if part.what == "service":
            for name, signature, comment in part.rows:
                text += f"### {name}\n\n`{signature}`\n\n{paragraph(comment)}\n\n"
        elif part.rows:
            first = "value" if part.what == "enum" else "field"
            text += table(
                [first, "type" if first == "field" else "number", "what it is"], part.rows
            )
    return text


def _parts(text: str) -> tuple[str, list[_Part]]:
    """The comment on top, and what follows it. Of nested messages the name has the outer one's in front."""
    head = ""
    comments: list[str] = []
    stack: list[_Part] = []
    found: list[_Part] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comments.append(line[2:].strip())
            continue
        if line.startswith("syntax"):
            head, comments = "\n".join(comments), []
        elif opened := _OPENS.match(line):
            what, name, closed = opened.groups()
            if what == "oneof":
                part = _Part(what, name, "", stack[-1].rows)
            else:
                full = ".".join(
                    [*(each.name for each in stack[-1:] if each.what == "message"), name]
                )
                part = _Part(what, full, "\n".join(comments))
                found.append(part)
            comments = []
            if not closed:
                stack.append(part)
        elif line.startswith("}"):
            stack.pop()
        elif stack and line and (row := _row(stack[-1].what, line, " ".join(comments))):
            stack[-1].rows.append(row)
            comments = []
    return head, found


def _row(what: str, line: str, comment: str) -> list[str] | None:
    if what == "service" and (method := _METHOD.match(line)):
        name, sends, request, answers, reply = method.groups()
        return [name, f"{sends or ''}{request} to {answers or ''}{reply}", comment]
    if what == "enum" and (value := _VALUE.match(line)):
        return [f"`{value[1]}`", value[2], comment]
    if what in ("message", "oneof") and (one := _FIELD.match(line)):
        return [f"`{one[3]}`", f"{one[1] or ''}{one[2]}", comment]
    return None
