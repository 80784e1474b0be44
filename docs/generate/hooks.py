"""What MkDocs asks while it builds the site: the generated pages, the order of all, links out of docs/."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
# The folder is no package that is installed.
sys.path.insert(0, str(HERE.parent))

from generate import reference, rpc  # noqa: E402

PROTO = TOP / "proto" / "spikeserve" / "v1" / "spikeserve.proto"
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)]*)?\)")

TUTORIALS = [
    "tutorials/first-answer.md",
    "tutorials/camera.md",
    "tutorials/spikingjelly.md",
    "tutorials/train.md",
]
EXPLANATION = [
    "explanation/one-idea.md",
    "explanation/early-exit.md",
    "conversion.md",
    "explanation/energy.md",
    "explanation/drift.md",
]
REFERENCE = [
    *(
        f"reference/{name}.md"
        for name in ("rest", "grpc", "settings", "metrics", "checkpoint", "cli")
    ),
    "event-formats.md",
    "protocol.md",
]
FIGURES = ["performance.md", "scale.md", "results.md"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The navigation. Pages that are named nowhere are how-to guides, in the order of their names."""
    folder = Path(config.docs_dir)
    named = {"index.md", *TUTORIALS, *EXPLANATION, *REFERENCE, *FIGURES}
    guides = [path.name for path in sorted(folder.glob("*.md")) if path.name not in named]

    def there(names: list[str]) -> list[str]:
        return [
            name for name in names if name.startswith("reference/") or (folder / name).is_file()
        ]

    config.nav = [
        {"Start": "index.md"},
        {"Tutorials": there(TUTORIALS)},
        {"How to": guides},
        {"Reference": there(REFERENCE)},
        {"Explanation": there(EXPLANATION)},
        {"Measured": there(FIGURES)},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {name: make() for name, make in reference.PAGES.items()} | {"grpc": rpc.page(PROTO)}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Links to files of the checkout that are no pages become their paths; the files must be there."""
    where = Path(config.docs_dir) / page.file.src_uri

    def path(link: re.Match[str]) -> str:
        target = (where.parent / link[2]).resolve()
        if target.is_relative_to(Path(config.docs_dir).resolve()):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: the link to {link[2]} leads nowhere")
        inside = target.relative_to(TOP).as_posix()
        text = link[1].strip("`")
        return f"`{inside}`" if text in (inside, target.name) else f"{link[1]} (`{inside}`)"

    return _LINK.sub(path, markdown)
