"""Reading a NIR file: nodes, their fields, and edges, with nothing taken on trust.

The `nir` package reads by class constructors that fail without naming what was wrong; here every error names the
node and the field. Nested graphs, which snnTorch writes for recurrent layers, are put in place of their node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spiketrain.convert.graph_builder import ForeignModelError

MAX_BYTES = 4 << 30
MAX_NODES = 10_000
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Node:
    """One node and its fields, of the file that messages call `source`."""

    source: str
    name: str
    type: str
    fields: Mapping[str, Any]

    def wrong(self, field: str, what: str) -> ForeignModelError:
        return ForeignModelError(
            f"{self.source}: node {self.name!r} ({self.type}): {field}: {what}"
        )

    def array(self, field: str) -> NDArray[Any]:
        """A field's finite numbers."""
        if field not in self.fields:
            raise self.wrong(field, "is missing")
        value = np.asarray(self.fields[field])
        if value.dtype.kind not in "fiub":
            raise self.wrong(field, f"is of type {value.dtype}, numbers are needed")
        if not np.isfinite(value).all():
            raise self.wrong(field, "has values that are not finite")
        return value

    def integers(self, field: str, count: int) -> tuple[int, ...]:
        """`count` integers, where one number may stand for all."""
        value = self.array(field).reshape(-1)
        if value.size not in (1, count) or not (value == np.floor(value)).all():
            raise self.wrong(field, f"{count} whole numbers are needed, these are {value.tolist()}")
        return tuple(int(x) for x in np.broadcast_to(value, count))

    def text(self, field: str) -> str | None:
        """A field's text, None where it is no text."""
        value = self.fields.get(field)
        return _text(value) if isinstance(value, str | bytes | np.bytes_) else None


@dataclass(frozen=True)
class GraphFile:
    source: str
    nodes: dict[str, Node]
    edges: tuple[tuple[str, str], ...]
    metadata: Mapping[str, Any]
    digest: str = ""  # sha256 of the file


def read_graph(path: Path) -> GraphFile:
    """Raises ForeignModelError for a file that is no NIR graph or only a part of one, OSError where it cannot be read."""
    if path.stat().st_size > MAX_BYTES:
        raise ForeignModelError(f"{path}: more than the limit of {MAX_BYTES} bytes")
    with path.open("rb") as raw:
        digest = hashlib.file_digest(raw, "sha256").hexdigest()
    try:
        with h5py.File(path, "r") as file:
            if "node" not in file or not isinstance(file["node"], h5py.Group):
                raise ForeignModelError(
                    f"{path}: node: an HDF5 file, but there is no NIR graph in it"
                )
            data = _Reader(str(path)).group(file["node"], "node", 0)
    except ForeignModelError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise ForeignModelError(
            f"{path}: not an HDF5 file, or a damaged or truncated one: {error}"
        ) from error
    return replace(graph_of(data, str(path)), digest=digest)


class _Reader:
    """Groups as dictionaries. Follows no link out of the file, and reads no more than `MAX_BYTES` in all."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.left = MAX_BYTES

    def group(self, group: h5py.Group, where: str, depth: int) -> dict[str, Any]:
        if depth > _MAX_DEPTH or len(group) > MAX_NODES:
            raise ForeignModelError(f"{self.source}: {where}: nested too deep, or too many entries")
        found: dict[str, Any] = {}
        for key in group:
            inside = f"{where}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ForeignModelError(f"{self.source}: {inside}: a link, which is not followed")
            item = group[key]
            if isinstance(item, h5py.Group):
                found[key] = self.group(item, inside, depth + 1)
            elif isinstance(item, h5py.Dataset):
                found[key] = self.dataset(item, inside)
        return found

    def dataset(self, item: h5py.Dataset, where: str) -> Any:
        if item.external or item.is_virtual:
            raise ForeignModelError(
                f"{self.source}: {where}: data in another file, which is not read"
            )
        self.left -= (item.size or 0) * item.dtype.itemsize
        if self.left < 0:
            raise ForeignModelError(
                f"{self.source}: {where}: more than the limit of {MAX_BYTES} bytes"
            )
        return item[()]


def graph_of(data: Mapping[str, Any], source: str) -> GraphFile:
    """A graph from `NIRGraph.to_dict()`, or from what `read_graph` read."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    _collect(data, source, "", nodes, edges, 0)
    if len(nodes) > MAX_NODES:
        raise ForeignModelError(
            f"{source}: nodes: {len(nodes)}, more than the limit of {MAX_NODES}"
        )
    for edge in edges:
        for end in edge:
            if end not in nodes:
                raise ForeignModelError(f"{source}: edges: {edge} names {end!r}, which is no node")
    if len(set(edges)) != len(edges):
        twice = next(edge for edge in edges if edges.count(edge) > 1)
        raise ForeignModelError(f"{source}: edges: {twice} is there twice")
    metadata = data.get("metadata")
    return GraphFile(source, nodes, tuple(edges), metadata if isinstance(metadata, Mapping) else {})


def _collect(
    data: Mapping[str, Any],
    source: str,
    prefix: str,
    nodes: dict[str, Node],
    edges: list[tuple[str, str]],
    depth: int,
) -> None:
    """The nodes of a graph and of the graphs in it, the latter as OUTER.INNER."""
    where = f"node {prefix.rstrip('.')!r}" if prefix else "the graph"
    inner = data.get("nodes")
    if not isinstance(inner, Mapping) or "edges" not in data:
        raise ForeignModelError(f"{source}: {where}: nodes or edges are missing: not a NIR graph")
    if depth > _MAX_DEPTH:
        raise ForeignModelError(f"{source}: {where}: graphs nested too deep")
    nested: dict[str, tuple[str, str]] = {}
    for name, fields in inner.items():
        full = f"{prefix}{name}"
        kind = _text(fields.get("type")) if isinstance(fields, Mapping) else None
        if kind is None:
            raise ForeignModelError(f"{source}: node {full!r}: type: is missing")
        if kind == "NIRGraph":
            _collect(fields, source, f"{full}.", nodes, edges, depth + 1)
            nested[name] = _ends(fields, source, full)
        else:
            nodes[full] = Node(source, full, kind, fields)
    for start, end in _edges(data["edges"], source, where):
        leaves = nested.get(start, ("", start))[1]
        enters = nested.get(end, (end, ""))[0]
        edges.append((f"{prefix}{leaves}", f"{prefix}{enters}"))


def _ends(fields: Mapping[str, Any], source: str, name: str) -> tuple[str, str]:
    """Where a nested graph is entered and left, as seen from the graph around it."""
    local = name.rpartition(".")[2]
    found = []
    for kind in ("Input", "Output"):
        ends = [key for key, f in fields["nodes"].items() if _text(f.get("type")) == kind]
        if len(ends) != 1:
            raise ForeignModelError(
                f"{source}: node {name!r} (NIRGraph): {len(ends)} nodes of type {kind}, one is needed"
            )
        found.append(f"{local}.{ends[0]}")
    return found[0], found[1]


def _edges(value: Any, source: str, where: str) -> Sequence[tuple[str, str]]:
    pairs = []
    for pair in value if isinstance(value, list | tuple | np.ndarray) else [None]:
        ends = [_text(end) for end in pair] if isinstance(pair, list | tuple | np.ndarray) else []
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            raise ForeignModelError(f"{source}: {where}: edges: pairs of names are needed")
        pairs.append((ends[0], ends[1]))
    return pairs


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None
