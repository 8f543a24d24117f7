"""Features in files: parts that a stopped command resumes from, and parquet or safetensors made of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from patchcast.backbones import Grid
from patchcast.data import Images
from patchcast.data.decode import UnreadableImageError
from patchcast.data.tiles import Fitted
from patchcast.extraction.extraction import Extraction, Kind, shaped
from patchcast.files import write_weights


def write_part(
    parts: Path, start: int, end: int, method: Extraction, images: Images, kind: Kind, batch_size: int
) -> None:
    """Features of the images from `start` to `end`, those of one canvas together."""
    device = next(method.backbone.parameters()).device
    fitted: dict[int, Fitted] = {}
    for index in range(start, min(end, len(images))):
        try:
            fitted[index] = method.fit(images.read(int(images.positions[index])))
        except UnreadableImageError:
            continue
    same: dict[Grid, list[int]] = {}
    for index, image in fitted.items():
        same.setdefault(Grid(*image.canvas.shape[-2:]), []).append(index)
    found: dict[str, Tensor] = {}
    for indices in same.values():
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            units = method.compute(torch.stack([fitted[index].canvas for index in batch]).to(device)).float().cpu()
            for index, unit_features in zip(batch, units, strict=True):
                found[f"{index:010d}"] = shaped(unit_features, fitted[index].size, method, kind)
    labels, paths = images.labels, [images.store.path(int(images.positions[index])) for index in fitted]
    rows = {"paths": paths, "labels": None if labels is None else [int(labels[index]) for index in fitted]}
    file = parts / f"{start:010d}.safetensors"
    # Sorted, so that the rows of a part stand in the order of the source.
    write_weights({name: found[name] for name in sorted(found)}, file, {"rows": json.dumps(rows)})


def finished_parts(parts: Path) -> list[Path]:
    """The finished parts in their order; names of unfinished files begin with a dot."""
    return sorted(parts.glob("[0-9]*.safetensors"))


@dataclass(frozen=True)
class FeaturePart:
    """The rows of one part."""

    names: list[str]
    paths: list[str]
    labels: list[int] | None
    file: Any


def _open_parts(files: list[Path]) -> Iterator[FeaturePart]:
    for path in files:
        with safe_open(path, "pt") as file:
            rows = json.loads(file.metadata()["rows"])
            yield FeaturePart(sorted(file.keys()), rows["paths"], rows["labels"], file)


def write_parquet(files: list[Path], out: Path, kind: Kind) -> int:
    """One row per image: path, label if there are any, features, and for tokens and maps their shape."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, writer = 0, None
    for part in _open_parts(files):
        tensors = [part.file.get_tensor(name) for name in part.names]
        columns: dict[str, Any] = {"path": pa.array(part.paths, pa.string())}
        if part.labels is not None:
            columns["label"] = pa.array(part.labels, pa.int64())
        if kind != "pooled":
            columns["shape"] = pa.array([list(tensor.shape) for tensor in tensors], pa.list_(pa.int32()))
        lengths = torch.tensor([0, *(value.numel() for value in tensors)]).cumsum(0)
        values = torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(0)
        columns["features"] = pa.LargeListArray.from_arrays(pa.array(lengths.numpy()), pa.array(values.numpy()))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table)
        count += len(tensors)
    if writer is not None:
        writer.close()
    return count


def write_safetensors(files: list[Path], out: Path, kind: Kind) -> int:
    """Write `features` (M, D) if pooled, else one tensor per image by its path; `labels`; and paths as metadata.

    It is written part by part, because tokens of many images may not fit into memory.
    """
    entries: dict[str, Any] = {}
    paths: list[str] = []
    labels: list[int] = []
    end = 0
    for part in _open_parts(files):
        for name, path in zip(part.names, part.paths, strict=True):
            shape = part.file.get_slice(name).get_shape()
            begin, end = end, end + 4 * torch.Size(shape).numel()
            entries[path] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        paths += part.paths
        labels += part.labels or []
    if not paths:
        return 0
    if kind == "pooled":
        width = next(iter(entries.values()))["shape"][0]
        entries = {"features": {"dtype": "F32", "shape": [len(paths), width], "data_offsets": [0, end]}}
    if labels:
        entries["labels"] = {"dtype": "I64", "shape": [len(labels)], "data_offsets": [end, end + 8 * len(labels)]}
    header = json.dumps({"__metadata__": {"paths": json.dumps(paths), "kind": kind}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight bytes
    with out.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for part in _open_parts(files):
            for name in part.names:
                file.write(part.file.get_tensor(name).numpy().tobytes())
        file.write(torch.tensor(labels, dtype=torch.int64).numpy().tobytes())
    return len(paths)


WRITERS: dict[str, Callable[[list[Path], Path, Kind], int]] = {
    ".parquet": write_parquet,
    ".safetensors": write_safetensors,
}
