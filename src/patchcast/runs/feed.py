"""What a run trains on: augmented images of files, streams or the cache, or codes of their colors."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from patchcast.data import Cutter, EvalSet, Journal, StreamSet, TrainSet
from patchcast.data.images import evenly_spaced
from patchcast.data.packed import pack_images
from patchcast.data.sampling import Examples, Sampled
from patchcast.data.streamed import HeadStore
from patchcast.methods import on_codes
from patchcast.pretrainer import Pretrainer
from patchcast.runs.build import augmentation
from patchcast.runs.run import Run
from patchcast.runs.tokenizer import CodeData, encode
from patchcast.runs.watch import EVALUATED
from patchcast.stages import stage
from patchcast.tokenizers.palette import Palette
from patchcast.training.ahead import Move, moved
from patchcast.training.engine import uses_cuda


@dataclass(frozen=True)
class Feed:
    """What is trained, and on what.

    Attributes:
        phases: training sets, each from a step on.
        move: brings a batch to the device.
        held_out: batches for the evaluation loss, if there are any.
        codes: the images as codes, for methods that train on codes of colors.
    """

    pretrainer: Pretrainer
    phases: list[tuple[int, Sampled]]
    move: Move
    held_out: DataLoader[Any] | None
    codes: CodeData | None = None


def feed_of(run: Run, journal: Journal) -> Feed:
    """Open what a run trains on: augmented images, or codes of their colors, encoded once.

    Args:
        journal: where images that cannot be read are written down.
    """
    recipe, images, held_out = run.recipe, run.source.train, run.source.held_out
    images.write_down(journal)
    judged = None
    if held_out is not None:
        held_out.images.write_down(journal)
        judged = held_out.images.subset(np.array(evenly_spaced(len(held_out.images), EVALUATED))).readable()
    if run.method.codes == "colors":
        assert isinstance(run.tokenizer, Palette)
        codes = encode(recipe, run.tokenizer, images, judged)
        return Feed(on_codes(run.pretrainer), [(0, codes.train)], moved, codes.held_out, codes)
    loader = None if judged is None else DataLoader(EvalSet(judged, run.evaluation), batch_size=recipe.batch_size)
    on_gpu = uses_cuda(recipe.device)
    augments: list[tuple[int, Any]] = [(step, augmentation(recipe, size)) for step, size in recipe.phases()]
    augments = [(step, Cutter(augment) if on_gpu else augment) for step, augment in augments]
    if isinstance(images.store, HeadStore):
        rows = images.store.stream
        streams = [(step, StreamSet(rows, images.channels, augment, recipe.seed)) for step, augment in augments]
        for _, stream in streams:
            stream.write_down(journal)
        return Feed(run.pretrainer, [*streams], moved, loader)
    examples: Examples = images
    if recipe.packed is not None:
        with stage("Decoding the training images into the cache"):
            examples = pack_images(images, recipe.packed)
    if recipe.decode == "gpu":
        from patchcast.data.jpeg_batches import JPEGSet  # needs torchvision's decoder

        files = [(step, JPEGSet(images, augment, recipe.seed)) for step, augment in augments]
        return Feed(run.pretrainer, [*files], files[0][1].move, loader)
    train_sets = [(step, TrainSet(examples, augment, recipe.seed)) for step, augment in augments]
    return Feed(run.pretrainer, [*train_sets], moved, loader)


def check_feed(run: Run) -> None:
    """Check `packed` and `decode`.

    Raises:
        ValueError: if the run's images cannot be packed, or a GPU cannot decode them.
    """
    if run.recipe.packed is not None:
        if run.method.codes == "colors":
            raise ValueError(f"{run.recipe.method} trains on codes, which are cached already: leave out --packed")
        if run.source.is_stream:
            raise ValueError("a stream is read in order, so that it cannot be packed: leave out --packed")
    if run.recipe.decode != "gpu":
        return
    reason = ""
    if not uses_cuda(run.recipe.device):
        reason = "needs a GPU of NVIDIA's that torch can use"
    elif run.source.is_stream:
        reason = "is for files, and a stream is decoded by its workers"
    elif run.recipe.packed is not None:
        reason = "is for files, and packed images are decoded already"
    elif run.method.codes == "colors":
        reason = f"is for pixels, and {run.recipe.method} trains on codes"
    elif find_spec("torchvision") is None:
        reason = "needs torchvision"
    if reason:
        raise ValueError(f"decode gpu {reason}: leave it out")
