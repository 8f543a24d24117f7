"""The encoder as one graph that runs without this library: torch.export's file, and ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.files import full_disk, unfinished_folder
from patchcast.modes import evaluating

TOLERANCE = 1e-4
"""Of the largest value of a feature; float32 in another order of summation differs by about a hundredth of it."""
Forward = Callable[[Tensor], Sequence[Tensor]]
T = TypeVar("T")


class Difference(NamedTuple):
    """Between a file's outputs and the backbone's own: the greatest one, and the largest value that there is."""

    greatest: float
    largest: float

    def __str__(self) -> str:
        return f"{self.greatest:.1e} where the largest value is {self.largest:.2g}"


class Encoder(nn.Module):
    """What is exported: from normalised images to their embeddings, and the features of their units, row by row.

    >>> from patchcast.backbones import wrap
    >>> embedding, units = Encoder(wrap("test_vit", img_size=32))(torch.zeros(2, 3, 32, 32))
    >>> embedding.shape, units.shape
    (torch.Size([2, 64]), torch.Size([2, 4, 64]))
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        units = self.backbone.units(images)
        return units.mean(dim=1), units


def save_torch(backbone: Backbone, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """Write what `torch.export.load(file).module()` makes a module of, for batches of any number of images.

    Args:
        images: batches on which the file, read back, must give what the backbone gives.
    Raises:
        ValueError: if the backbone cannot be exported, or the file gives something else; no file is left then.
    """
    program, file = _program(backbone), Path(file)
    with unfinished_folder(file.parent) as unfinished:
        torch.export.save(program, unfinished / file.name)
        return _checked(file, torch.export.load(unfinished / file.name).module(), backbone, images)


def save_onnx(backbone: Backbone, file: Path, images: Sequence[Float[Tensor, "_ C H W"]]) -> Difference:
    """Write an ONNX model with the input `images` and the outputs `embedding` and `units`, for any number of images.

    Needs onnx, onnxscript and onnxruntime, which `pip install 'patchcast[export]'` brings.

    Args:
        images: batches on which the file, run by onnxruntime, must give what the backbone gives.
    Raises:
        ValueError: if one of these is missing, the backbone cannot be exported, or the file gives something else; no
            file is left then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise ValueError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({missing}): pip install 'patchcast[export]'"
        ) from missing
    program, file = _program(backbone), Path(file)

    def session_of(program: torch.export.ExportedProgram, file: Path) -> Any:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        _name(made.model.graph, inputs=["images"], outputs=["embedding", "units"])
        made.save(file)
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    with unfinished_folder(file.parent) as folder:
        unfinished = folder / file.name
        with _refusing(backbone, "ONNX", "--to torch may"), _quiet():
            # Attention within windows has five dimensions. ONNX has no such attention, but products and a softmax.
            session = _first_of(
                lambda: session_of(program, unfinished), lambda: session_of(program.run_decompositions(), unfinished)
            )

        def run(batch: Tensor) -> list[Tensor]:
            return [torch.from_numpy(output) for output in session.run(None, {"images": batch.numpy()})]

        return _checked(file, run, backbone, images)


def _program(backbone: Backbone) -> torch.export.ExportedProgram:
    example = torch.zeros(2, backbone.channels, *backbone.image_size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    with _refusing(backbone, "torch.export", "--to timm may"), _quiet(), evaluating(backbone):
        trace = partial(torch.export.export, Encoder(backbone).eval(), (example,), dynamic_shapes=shapes)
        backbone.units(example)  # a palette looks up its table when it is first needed, which no graph can hold
        # The first is quick, and takes the size of a batch for a constant where a model computes with it in Python.
        return _first_of(partial(trace, strict=False), partial(trace, strict=True))


def _first_of(*ways: Callable[[], T]) -> T:
    """What the first way gives that does not fail; if all do, the error of the last."""
    for way in ways[:-1]:
        with contextlib.suppress(Exception):
            return way()
    return ways[-1]()


def _name(graph: Any, *, inputs: list[str], outputs: list[str]) -> None:
    """Name what goes in and out, and its batches; a value inside that has such a name gets another."""
    for node in graph:
        for value in node.outputs:
            if value.name in (*inputs, *outputs):
                value.name = f"{value.name}_inside"
    for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        value.name = name
        value.shape = type(value.shape)(["batch", *list(value.shape)[1:]])


def _checked(file: Path, run: Forward, backbone: Backbone, images: Sequence[Tensor]) -> Difference:
    greatest = largest = 0.0
    with evaluating(backbone):
        for batch in images:
            for theirs, own in zip(run(batch), (backbone.pool(batch), backbone.units(batch)), strict=True):
                greatest = max(greatest, float((theirs - own).abs().max()))
                largest = max(largest, float(own.abs().max()))
    difference = Difference(greatest, largest)
    if not greatest <= TOLERANCE * largest:  # also if it is NaN
        raise ValueError(f"{file.name} does not give what {backbone.name} gives: it differs by {difference}")
    return difference


@contextlib.contextmanager
def _refusing(backbone: Backbone, exporter: str, instead: str) -> Iterator[None]:
    """Exporters fail with errors of any kind, pages long: one sentence of them is for the user."""
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
            f"{backbone.name} cannot be exported by {exporter} ({type(cause).__name__}: {first}); {instead} take it"
        ) from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to those who develop them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
