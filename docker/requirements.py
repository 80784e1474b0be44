"""Prints what the server and the given extras of pyproject.toml need, one requirement a line.

python requirements.py events,redis. Without the project's own code, so that an image's layer of requirements lasts as
long as they do.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(extras: str) -> int:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted: list[str] = [each.strip() for each in extras.split(",") if each.strip()]
    known: dict[str, list[str]] = project["optional-dependencies"]
    if unknown := [each for each in wanted if each not in known]:
        sys.stderr.write(
            f"EXTRAS: there is no {', '.join(unknown)}; there are {', '.join(known)}\n"
        )
        return 1
    lines: list[str] = list(project["dependencies"])
    seen: set[str] = set()
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in known[extra]:
            # An extra that names others of the same project.
            if requirement.startswith(f"{project['name']}["):
                wanted += requirement.split("[", 1)[1].rstrip("]").split(",")
            else:
                lines.append(requirement)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
