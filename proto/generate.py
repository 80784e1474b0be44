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
# file, the folder under TARGET, and the imports that protoc writes with those that are right here.
FILES: list[tuple[str, str, dict[str, str]]] = [
    (
        "spikeserve/v1/spikeserve.proto",
        "v1",
        {"from spikeserve.v1 import": "from spikeserve.grpc.v1 import"},
    ),
    ("model_config.proto", "v2", {}),
    (
        "grpc_service.proto",
        "v2",
        {
            f"import {module}_pb2": f"from spikeserve.grpc.v2 import {module}_pb2"
            for module in ("model_config", "grpc_service")
        },
    ),
]


class GenerationError(RuntimeError):
    """protoc did not accept a .proto file; it has written why to stderr."""


def generate(target: Path) -> list[Path]:
    """Write the code of all FILES under `target` (as it is under TARGET) and return what was written."""
    written = []
    for file, folder, imports in FILES:
        with tempfile.TemporaryDirectory() as scratch:
            _compile(file, scratch)
            stem = Path(file).with_suffix("")
            calls = ("_pb2_grpc.py", "_pb2_grpc.pyi") if _has_calls(file) else ()
            for suffix in ("_pb2.py", "_pb2.pyi", *calls):
                text = (Path(scratch) / f"{stem}{suffix}").read_text()
                for imported, ours in imports.items():
                    text = text.replace(imported, ours)
                path = target / folder / f"{stem.name}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                written.append(path)
    return written


def _has_calls(file: str) -> bool:
    return "\nservice " in (PROTO / file).read_text()


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
