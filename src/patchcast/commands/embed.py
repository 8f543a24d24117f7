"""`patchcast embed`: write features of images to parquet or safetensors; resumes after a stop."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from torch import Tensor

from patchcast.backbones import Backbone, Grid
from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.backbones.readout import mean, mean_std
from patchcast.backbones.tile_geometry import assemble, tile_crop, tiles_of
from patchcast.backbones.tiled import Tiled
from patchcast.commands.parts import IMAGES_PER_PART, claim_parts
from patchcast.data import Images, open_images
from patchcast.data.decode import UnreadableImageError
from patchcast.data.names import escape
from patchcast.data.tiles import Fitted, FitTiles
from patchcast.evaluation.features import fingerprint
from patchcast.files import write_weights, write_whole
from patchcast.modes import evaluating
from patchcast.ranges import AT_LEAST_1, check_ranges
from patchcast.runs.network import is_run, open_network

Kind = Literal["pooled", "tokens", "maps"]


@dataclass(frozen=True)
class Extraction:
    """How images become features: a function for each image, and one for batches of images of the same size."""

    backbone: Backbone
    fit: Callable[[Tensor], Fitted]
    compute: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B rows cols D"]]
    description: str
    pool: Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B P"]] = mean


def write_features(
    source: str,
    *,
    data: str,
    out: Path,
    kind: Kind,
    split: str,
    image_column: str | None,
    label_column: str | None,
    max_pixels: int | None,
    tile_size: int | None,
    max_tiles: int,
    batch_size: int,
    untrained: bool,
    readout: Readout = DEFAULT_READOUT,
) -> None:
    """Write the features of every image that can be read.

    Args:
        readout: how units become one feature if `kind` is "pooled"; see `Backbone.pool`.
    Raises:
        ValueError: for anything that the user can fix.
    """
    values = {"batch_size": batch_size, "max_tiles": max_tiles, "tile_size": tile_size}
    check_ranges(values, dict.fromkeys(values, AT_LEAST_1), prefix="--")
    if out.suffix not in WRITERS:
        raise ValueError(f"--out must end in {' or '.join(WRITERS)}; got {out}")
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out, or delete it to write it again")
    method, channels = _method(source, tile_size, max_tiles, untrained, readout, kind)
    reading: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "max_pixels": max_pixels}
    images = open_images(data, split=split, channels=channels, **reading)
    method.backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    parts = out.with_name(out.name + ".parts")
    done = claim_parts(parts, out, _plan(method, images, kind), ".safetensors", "features")
    console = Console()
    console.print(
        f"{len(images):,} images of {escape(data)}: {kind} features of {escape(source)}, {method.description}"
    )
    if done:
        console.print(f"Resuming after {done} parts of {IMAGES_PER_PART} images.")
    starts = range(done * IMAGES_PER_PART, len(images), IMAGES_PER_PART)
    with evaluating(method.backbone):
        for start in track(starts, description="embedding", console=console, disable=not console.is_terminal):
            _write_part(parts, start, method, images, kind, batch_size)
    count = 0

    def write(unfinished: Path) -> None:
        nonlocal count
        count = WRITERS[out.suffix](_parts(parts), unfinished, kind)
        if not count:
            raise ValueError(f"none of the {len(images)} images of {data} can be read")

    write_whole(out, write)
    shutil.rmtree(parts)
    skipped = f"; {len(images) - count} could not be read" if count < len(images) else ""
    console.print(f"Wrote {escape(out)}: {count:,} rows{skipped}.")


# ---- from images to features ----------------------------------------------------------------------------------------


def _method(
    source: str, tile_size: int | None, max_tiles: int, untrained: bool, readout: Readout, kind: Kind
) -> tuple[Extraction, int]:
    if readout != DEFAULT_READOUT and kind != "pooled":
        raise ValueError(f"--readout {readout} gives one feature per image, and --features {kind} one per unit")
    of_units = {"mean": mean, "mean_std": mean_std}
    if tile_size is not None and readout not in of_units:
        raise ValueError(f"--readout {readout} needs whole images; with --tile_size, use one of {', '.join(of_units)}")
    # A run knows its size; a timm model is built for whole images, or for tiles.
    size_given = {} if tile_size is None or is_run(source) else {"img_size": tile_size}
    network = open_network(source, untrained=untrained, **size_given)
    backbone, size, recipe = network.backbone, network.size, network.recipe
    if recipe is not None and tile_size is not None:
        if isinstance(backbone, Tiled):
            raise ValueError(
                f"the run in {source} has tiles of {recipe.tile_size} pixels already; leave --tile_size out"
            )
        if not backbone.takes_any_size and (tile_size, tile_size) != backbone.image_size:
            own = "{}x{}".format(*backbone.image_size)
            raise ValueError(f"this run takes images of {own}, so its tiles must be that; got --tile_size {tile_size}")
    if tile_size is None:
        evaluate = network.evaluate
        grid = backbone.grid(size)
        description = f"at {size[0]}x{size[1]}, {grid} units"
        if isinstance(backbone, Tiled):
            description += f", in tiles of {backbone.tile_size[0]}x{backbone.tile_size[1]} as one sequence"

        def units_of(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B rows cols D"]:
            if kind == "pooled":  # a map of one unit, the pooled feature
                return backbone.pool(images, readout)[:, None, None]
            return backbone.units(images).unflatten(1, grid)

        description += "" if readout == "mean" else f", readout {readout}"
        return Extraction(
            backbone, lambda image: Fitted(evaluate(image), size), units_of, description
        ), backbone.channels
    tile = (tile_size, tile_size)
    description = f"each of up to {max_tiles} tiles of {tile_size}x{tile_size} by itself"
    fit = FitTiles(tile, max_tiles, mean=network.mean, std=network.std)
    description += "" if readout == "mean" else f", readout {readout}"
    compute = partial(units_apart, backbone, tile=tile)
    return Extraction(backbone, fit, compute, description, of_units[readout]), backbone.channels


def units_apart(
    backbone: Backbone, images: Float[Tensor, "B C H W"], tile: tuple[int, int]
) -> Float[Tensor, "B rows cols D"]:
    """The units of an image as a map, with each tile run as a separate image.

    >>> from patchcast.backbones import wrap
    >>> units_apart(wrap("test_vit", img_size=32), torch.zeros(2, 3, 64, 96), (32, 32)).shape
    torch.Size([2, 4, 6, 64])
    """
    tiles = tiles_of(images.shape[-2:], tile)
    units = backbone.units(tile_crop(images, tile).flatten(0, 1)).unflatten(1, backbone.grid(tile))
    maps = units.movedim(-1, 1).unflatten(0, (len(images), tiles.units))
    return assemble(maps, tiles).movedim(1, -1)


def _write_part(parts: Path, start: int, method: Extraction, images: Images, kind: Kind, batch_size: int) -> None:
    """Features of the images from `start` on, those of one canvas together."""
    device = next(method.backbone.parameters()).device
    fitted: dict[int, Fitted] = {}
    for index in range(start, min(start + IMAGES_PER_PART, len(images))):
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
                found[f"{index:010d}"] = _shaped(unit_features, fitted[index].size, method, kind)
    labels, paths = images.labels, [images.store.path(int(images.positions[index])) for index in fitted]
    rows = {"paths": paths, "labels": None if labels is None else [int(labels[index]) for index in fitted]}
    file = parts / f"{start:010d}.safetensors"
    # Sorted, so that the rows of a part stand in the order of the source.
    write_weights({name: found[name] for name in sorted(found)}, file, {"rows": json.dumps(rows)})


def _shaped(
    units: Float[Tensor, "rows cols D"], size: tuple[int, int], method: Extraction, kind: Kind
) -> Float[Tensor, "..."]:
    """The units that contain pixels of the image, in the requested form."""
    stride = method.backbone.stride
    real = units[: -(-size[0] // stride[0]), : -(-size[1] // stride[1])]
    if kind == "pooled":
        return method.pool(real.flatten(0, 1)[None])[0]
    return (real.flatten(0, 1) if kind == "tokens" else real.permute(2, 0, 1)).contiguous()


# ---- parts, and resuming --------------------------------------------------------------------------------------------


def _plan(method: Extraction, images: Images, kind: Kind) -> dict[str, Any]:
    """All that the features depend on, to check that a resumed command computes the same."""
    names = [images.store.path(int(position)) for position in images.positions]
    return {
        "weights": fingerprint(method.backbone),
        "how": method.description,
        "kind": kind,
        "images": fingerprint(names),
        "images_per_part": IMAGES_PER_PART,
    }


def _parts(parts: Path) -> list[Path]:
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
