"""Pieces of HTML that all sections are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def figures(figures: Sequence[tuple[str, str]]) -> str:
    return (
        '<div class="row">'
        + "".join(
            f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"
            for title, chart in figures
        )
        + "</div>"
    )


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are text, not HTML; nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table{f' class={kind}' if kind else ''}>{f'<tr>{head}</tr>' if heads else ''}{body}</table>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
