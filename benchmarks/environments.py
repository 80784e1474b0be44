"""Virtual environments for the peers, whose requirements are at odds with each other and with ours.

    python environments.py            makes what is missing of them, in .environments/

Each file of requirements/ is one environment, with all versions pinned. It is made again when its file has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

from systems import ENVIRONMENTS, HERE

_STAMP = ".installed"
# As in the Makefile: PyPI's torch is the CUDA build, here is the CPU build of the same version.
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_TORCH = "torch=="


def ensure(name: str) -> str | None:
    """Make the environment unless it is there; why it could not be made, or None."""
    requirements = HERE / "requirements" / f"{name}.txt"
    folder = ENVIRONMENTS / name
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if (folder / _STAMP).exists() and (folder / _STAMP).read_text() == digest:
        return None
    sys.stdout.write(f"installing {name} into {folder}\n")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    try:
        _run([sys.executable, "-m", "venv", str(folder)])
        torch = [line for line in requirements.read_text().split("\n") if line.startswith(_TORCH)]
        if torch and not os.environ.get("PIP_FIND_LINKS"):
            index = ["--extra-index-url", os.environ.get("TORCH_INDEX", _TORCH_INDEX)]
            _run([*pip, "-q", "--no-deps", *index, *torch])
        _run([*pip, "-q", "--no-deps", "-r", str(requirements)])
    except (subprocess.CalledProcessError, OSError) as error:
        output = getattr(error, "output", None) or str(error)
        return f"{name} could not be installed: {output.strip().splitlines()[-1]}"
    (folder / _STAMP).write_text(digest)
    return None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    failures = [ensure(path.stem) for path in sorted((HERE / "requirements").glob("*.txt"))]
    sys.exit("\n".join(filter(None, failures)) or None)
