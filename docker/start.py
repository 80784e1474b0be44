"""The image's entry point: a writable copy of what was compiled when it was built, then the command, as the same process.

numba takes compiled loops only from a folder that it may write to, and the image's own file system is read-only. A folder
that is there already (NUMBA_CACHE_DIR on a volume) is left as it is.
"""

from __future__ import annotations

import os
import shutil
import sys

COMPILED = "/opt/spikeserve/lib/compiled"


def main() -> None:
    folder = os.environ.get("NUMBA_CACHE_DIR", "")
    if folder and not os.path.exists(folder):
        try:
            shutil.copytree(COMPILED, folder)
        except OSError as error:
            sys.stderr.write(f"the loops are compiled anew, which takes a while: {error}\n")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
