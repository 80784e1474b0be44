"""Compiles, while the CUDA image is built, the one C module that Triton would compile where it runs.

python triton_driver.py FOLDER. Into FOLDER go that module, its source, and `cc`, which the image names as its C compiler
(CC): asked for this very module, it hands the finished one out, and otherwise it says that there is no compiler. Triton's
kernels themselves need none; they are compiled by its own LLVM and the ptxas that comes with it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from triton.backends import nvidia

INSTEAD_OF_A_COMPILER = """#!/bin/sh
here=$(dirname "$0")
source=$1
output=
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then output=$2; fi
  shift
done
if ! cmp -s "$source" "$here/driver.c"; then
  echo "this image has no C compiler, and $source was not compiled when it was built" >&2
  exit 1
fi
cp "$here/driver.so" "$output"
"""


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    backend = Path(nvidia.__path__[0])
    source = folder / "driver.c"
    source.write_text((backend / "driver.c").read_text())
    with tempfile.TemporaryDirectory() as empty:
        # The driver's library comes with the GPU, when a container starts. One without content is enough to name it.
        library = Path(empty) / "libcuda.so.1"
        _compile("-shared", "-Wl,-soname,libcuda.so.1", "-o", library, "-x", "c", "/dev/null")
        include = [f"-I{backend / 'include'}", f"-I{sysconfig.get_path('include')}"]
        _compile(source, "-O3", "-shared", "-fPIC", *include, "-Wl,--no-as-needed", f"-L{empty}",
                 "-l:libcuda.so.1", "-o", folder / "driver.so")  # fmt: skip
    (folder / "cc").write_text(INSTEAD_OF_A_COMPILER)
    (folder / "cc").chmod(0o755)


def _compile(*arguments: str | Path) -> None:
    subprocess.run(["gcc", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
