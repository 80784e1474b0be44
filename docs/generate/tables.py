"""Markdown of what is described elsewhere: JSON schemas, settings, commands, metrics."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(cell, row)) + " |\n" for row in cells) + "\n"


def cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def schemas(found: Mapping[str, Schema], level: str = "###") -> str:
    """A section for each schema that has fields or values of its own."""
    parts = []
    for name, schema in sorted(found.items()):
        text = f"{level} {name}\n\n"
        if schema.get("description"):
            text += f"{paragraph(schema['description'])}\n\n"
        if "properties" in schema:
            text += fields(schema)
        elif "enum" in schema:
            text += "One of " + ", ".join(f"`{each}`" for each in schema["enum"]) + ".\n\n"
        parts.append(text)
    return "".join(parts)


def fields(schema: Schema) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema.get("properties", {}).items():
        note = field.get("description", "")
        if name not in required and field.get("default") not in (None, "", [], {}):
            note = f"{note} Default: `{field['default']}`."
        rows.append([f"`{name}`", kind(field), note])
    return table(["field", "type", "what it is"], rows)


def kind(field: Schema) -> str:
    """A short name of a schema's type, with a link where it has a section."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            return " or ".join(dict.fromkeys(kind(each) for each in field[several]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    if field.get("type") == "array":
        if "prefixItems" in field:
            return ", ".join(kind(each) for each in field["prefixItems"])
        return f"list of {kind(field.get('items', {}))}"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map to {kind(field['additionalProperties'])}"
    return {"null": "none", "number": "number", None: "anything"}.get(
        field.get("type"), str(field.get("type"))
    )


def paragraph(text: str) -> str:
    """Docstrings are wrapped for the editor; Markdown does not mind, but for their indentation."""
    return "\n".join(line.strip() for line in text.strip().splitlines()).replace("<", "&lt;")


def annotation(found: Any) -> str:
    """The type of a setting as a person would write it."""
    if isinstance(found, types.UnionType) or typing.get_origin(found) is typing.Union:
        names = [annotation(each) for each in typing.get_args(found) if each is not type(None)]
        return " or ".join(names)
    if typing.get_origin(found) is typing.Literal:
        return ", ".join(f"`{each}`" for each in typing.get_args(found))
    if typing.get_origin(found) is typing.Annotated:
        return annotation(typing.get_args(found)[0])
    if typing.get_origin(found) in (tuple, list):
        return f"list of {annotation(typing.get_args(found)[0])}"
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    return names.get(found, getattr(found, "__name__", str(found)).lower())
