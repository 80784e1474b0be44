"""Writes the Python code of the .proto files beside this one into service/spikeserve/grpc; needs the `test` extra.

python proto/generate.py             write it
python proto/generate.py --check     write nothing; exit 1 where it is not what the .proto files say
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
TARGET = PROTO.parent / "service" / "spikeserve" / "grpc"

# Each .proto file keeps the name by which other programs register it with protobuf, since one process cannot hold the
# same messages under two file names; so protoc imports the messages from a package of that name. Ours are elsewhere:
# file, the import that protoc writes, the one that is right here, and the folder under TARGET.
FILES = [
    (
        "spikeserve/v1/spikeserve.proto",
        "from spikeserve.v1 import",
        "from spikeserve.grpc.v1 import",
        "v1",
    ),
]


class GenerationError(RuntimeError):
    """protoc did not accept a .proto file; it has written why to stderr."""


def generate(target: Path) -> list[Path]:
    """Write the code of all FILES under `target` (as it is under TARGET) and return what was written."""
    written = []
    for file, imported, ours, folder in FILES:
        with tempfile.TemporaryDirectory() as scratch:
            _compile(file, scratch)
            stem = Path(file).with_suffix("")
            for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
                text = (Path(scratch) / f"{stem}{suffix}").read_text()
                path = target / folder / f"{stem.name}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text.replace(imported, ours))
                written.append(path)
    return written


def _compile(file: str, scratch: str) -> None:
    bundled = str(resources.files("grpc_tools") / "_proto")
    programs = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
            f"-I{PROTO}",
            f"-I{bundled}",
            f"--python_out={scratch}",
            f"--mypy_out=quiet:{scratch}",
            f"--grpc_python_out={scratch}",
            f"--mypy_grpc_out=quiet:{scratch}",
            file,
        ]
    )
    if status != 0:
        raise GenerationError(f"protoc ended with status {status} for {file}")


def stale() -> list[str]:
    """Names of the generated files that are missing or not what the .proto files say."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = {path.relative_to(scratch): path.read_bytes() for path in generate(Path(scratch))}
    return [
        str(name)
        for name, content in fresh.items()
        if not (TARGET / name).is_file() or (TARGET / name).read_bytes() != content
    ]


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        old = stale()
        if old:
            sys.stderr.write(f"not up to date: {', '.join(old)}; run python proto/generate.py\n")
        return 1 if old else 0
    generate(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
