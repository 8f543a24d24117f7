"""Export the encoder as a graph that runs without this library: torch.export and ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.readout import mean_std
from patchcast.files import full_disk, unfinished_folder
from patchcast.modes import evaluating

TOLERANCE = 1e-4
"""Relative to the largest feature value. Another order of summation in float32 differs by about a hundredth of this."""
Forward = Callable[[Tensor], Sequence[Tensor]]
T = TypeVar("T")


class Difference(NamedTuple):
    """The greatest difference between the outputs of a file and of the backbone, and the largest output value."""

    greatest: float
    largest: float

    def __str__(self) -> str:
        return f"{self.greatest:.1e} where the largest value is {self.largest:.2g}"


class Encoder(nn.Module):
    """What is exported: from normalized images to their embeddings (`mean_std`) and the features of units, row by row.

    >>> from patchcast.backbones import wrap
    >>> embedding, units = Encoder(wrap("test_vit", img_size=32))(torch.zeros(2, 3, 32, 32))
    >>> embedding.shape, units.shape
    (torch.Size([2, 128]), torch.Size([2, 4, 64]))
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        units = self.backbone.units(images)
        return mean_std(units), units


@dataclass(frozen=True)
class Graph:
    """What is exported.

    Attributes:
        module: from images to outputs.
        name: of the network, in sentences.
        outputs: their names.
        channels, size: of the images.
        own: the outputs that the file must give.
    """

    module: nn.Module
    name: str
    outputs: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    own: Forward


def graph_of(backbone: Backbone) -> Graph:
    """The graph from images to their embeddings and the features of their units."""
    return Graph(
        Encoder(backbone),
        backbone.name,
        ("embedding", "units"),
        backbone.channels,
        backbone.image_size,
        lambda images: (backbone.pool(images, "mean_std"), backbone.units(images)),
    )


def save_torch(backbone: Backbone, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """Write an exported program for `torch.export.load(file).module()`, for any batch size.

    Args:
        images: batches on which the outputs of the file must equal those of the backbone.
    Raises:
        ValueError: if the backbone cannot be exported, or the outputs differ; no file is written then.
    """
    return write_torch(graph_of(backbone), file, images)


def write_torch(graph: Graph, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """As `save_torch`, of any graph."""
    program, file = _program(graph), Path(file)
    with unfinished_folder(file.parent) as unfinished:
        torch.export.save(program, unfinished / file.name)
        return _checked(file, torch.export.load(unfinished / file.name).module(), graph, images)


def save_onnx(backbone: Backbone, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """Write an ONNX model with the input `images` and the outputs `embedding` and `units`, for any batch size.

    Needs onnx, onnxscript and onnxruntime: `pip install 'patchcast[export]'`.

    Args:
        images: batches on which the outputs of the file, run by onnxruntime, must equal those of the backbone.
    Raises:
        ValueError: if one of these packages is missing, the backbone cannot be exported, or the outputs differ; no file
            is written then.
    """
    return write_onnx(graph_of(backbone), file, images)


def write_onnx(graph: Graph, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """As `save_onnx`, of any graph."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise ValueError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({missing}): pip install 'patchcast[export]'"
        ) from missing
    program, file = _program(graph), Path(file)

    def session_of(program: torch.export.ExportedProgram, file: Path) -> Any:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        _name(made.model.graph, inputs=["images"], outputs=list(graph.outputs))
        made.save(file)
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    with unfinished_folder(file.parent) as folder:
        unfinished = folder / file.name
        with _refusing(graph, "ONNX", "--to torch may"), _quiet():
            # Attention within windows has five dimensions. ONNX has no such attention, but products and a softmax.
            session = _first_of(
                lambda: session_of(program, unfinished), lambda: session_of(program.run_decompositions(), unfinished)
            )

        def run(batch: Tensor) -> list[Tensor]:
            return [torch.from_numpy(output) for output in session.run(None, {"images": batch.numpy()})]

        return _checked(file, run, graph, images)


def _program(graph: Graph) -> torch.export.ExportedProgram:
    example = torch.zeros(2, graph.channels, *graph.size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    with _refusing(graph, "torch.export", "--to timm may"), _quiet(), evaluating(graph.module):
        trace = partial(torch.export.export, graph.module.eval(), (example,), dynamic_shapes=shapes)
        graph.own(example)  # a palette builds its table on first use, which cannot be traced
        # Non-strict tracing is fast, but fixes the batch size in models that compute with it in Python.
        return _first_of(partial(trace, strict=False), partial(trace, strict=True))


def _first_of(*ways: Callable[[], T]) -> T:
    """The result of the first function that does not raise an error; if all do, the error of the last."""
    for way in ways[:-1]:
        with contextlib.suppress(Exception):
            return way()
    return ways[-1]()


def _name(graph: Any, *, inputs: list[str], outputs: list[str]) -> None:
    """Name the inputs, the outputs and their batch dimension; inner values with such a name are renamed."""
    for node in graph:
        for value in node.outputs:
            if value.name in (*inputs, *outputs):
                value.name = f"{value.name}_inside"
    for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        value.name = name
        value.shape = type(value.shape)(["batch", *list(value.shape)[1:]])


def _checked(file: Path, run: Forward, graph: Graph, images: Sequence[Tensor]) -> Difference:
    greatest = largest = 0.0
    with evaluating(graph.module):
        for batch in images:
            for theirs, own in zip(run(batch), graph.own(batch), strict=True):
                greatest = max(greatest, float((theirs - own).abs().max()))
                largest = max(largest, float(own.abs().max()))
    difference = Difference(greatest, largest)
    if not greatest <= TOLERANCE * largest:  # also if it is NaN
        raise ValueError(f"{file.name} does not compute what {graph.name} computes: it differs by {difference}")
    return difference


@contextlib.contextmanager
def _refusing(graph: Graph, exporter: str, instead: str) -> Iterator[None]:
    """Exporters raise long errors of any kind: raise their first line as a ValueError."""
    try:
        yield
    except Exception as problem:
        if full_disk(problem):
            raise
        cause: BaseException = problem
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = str(cause).strip().split("\n")[0][:200]
        raise ValueError(
            f"{graph.name} cannot be exported by {exporter} ({type(cause).__name__}: {first}); {instead} work"
        ) from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' messages to their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
