"""A run's tokenizer, found in the data and kept in the run's folder; and its images as codes, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchcast.backbones import wrap
from patchcast.data import EpochSampler, Evaluate, Images, TrainSet, loader
from patchcast.data.images import evenly_spaced
from patchcast.evaluation.ngrams import Floors, floors
from patchcast.geometry import Grid
from patchcast.recipe import Resolved
from patchcast.runs.build import augmentation, evaluation, find_method, timm_args
from patchcast.tokenizers.encoded import AsItIs, CodeSet, Mirror, encode_images
from patchcast.tokenizers.files import load_tokenizer
from patchcast.tokenizers.palette import Palette, Source, fit_palette, to_levels
from patchcast.tokenizers.patches import PatchCodebook

TOKENIZER = "tokenizer.safetensors"
COUNTED = 10_000
"""Most training images that codes are counted in, for the floors."""
JUDGED = 1000
"""Most images on which the palette is judged."""


def find_tokenizer(recipe: Resolved, images: Images) -> Palette | PatchCodebook | None:
    """What a run predicts the codes of: the recipe's file, or found by k-means in the data; None if it predicts none.

    A palette is found in the images' pixels at the size at which they become codes, and a codebook in the patches that
    training sees.
    """
    kind = find_method(recipe.method).codes
    if kind is None:
        return None
    if recipe.tokenizer is not None:
        return load_tokenizer(recipe.tokenizer)
    assert recipe.codes is not None
    if kind == "colours":
        return fit_palette(Resized(images, evaluation(recipe)), recipe.codes, seed=recipe.seed)
    with torch.device("meta"):
        stride = wrap(recipe.model, **timm_args(recipe)).stride
    train = TrainSet(images, augmentation(recipe), recipe.seed)
    steps = max(1, len(train) // recipe.batch_size)
    batches = loader(train, EpochSampler(len(train), recipe.batch_size, seed=recipe.seed, steps=steps), workers=0)
    return PatchCodebook.fit(
        (pixels for pixels, _ in batches), stride=stride, vocabulary=recipe.codes, seed=recipe.seed
    )


def keep_tokenizer(tokenizer: Palette | PatchCodebook | None, out: Path) -> None:
    """Write it into a run's folder, unless it lies there already."""
    if tokenizer is not None and not (out / TOKENIZER).exists():
        tokenizer.save(out / TOKENIZER)


def kept_tokenizer(out: Path) -> Palette | PatchCodebook | None:
    """The tokenizer in a run's folder, if there is one."""
    return load_tokenizer(out / TOKENIZER) if (out / TOKENIZER).exists() else None


@dataclass(frozen=True)
class Resized:
    """A source's images at the size at which their pixels become codes."""

    images: Images
    transform: Evaluate

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return to_levels(self.transform(image)), label


@dataclass(frozen=True)
class CodeData:
    """A run's images as codes of a palette.

    Attributes:
        train: those to train on, half of them mirrored if the recipe says so.
        held_out: those to evaluate the loss on, if there are any.
        floors: what counting alone reaches on the held-out ones, or on the training images if there are none.
        psnr: how much of those the palette keeps, in dB; infinite if all.
    """

    train: TrainSet
    held_out: DataLoader[Any] | None
    floors: Floors
    psnr: float

    def __str__(self) -> str:
        kept = "all" if self.psnr == float("inf") else f"{self.psnr:.1f} dB"
        return f"The palette keeps {kept} of the images. What counting codes alone reaches: {self.floors}."


def encode(recipe: Resolved, palette: Palette, images: Images, held_out: Source | None) -> CodeData:
    """Encode a run's images, or find their codes in the user's cache folder."""
    grid = Grid(*recipe.image_size)

    def codes(source: Source) -> CodeSet:
        return encode_images(source, palette, evaluation(recipe), grid, progress=True)

    train = codes(images)
    judged = train if held_out is None else codes(held_out)
    some = evenly_spaced(len(train), COUNTED)
    source = images if held_out is None else held_out
    pixels = [to_levels(evaluation(recipe)(source[i][0])) for i in evenly_spaced(len(source), JUDGED)]
    return CodeData(
        TrainSet(train, Mirror() if recipe.flip else AsItIs(), recipe.seed),
        None if held_out is None else DataLoader(judged, batch_size=recipe.batch_size),  # type: ignore[arg-type]
        floors(train.ids(some), judged.ids(), palette.vocabulary),
        palette.psnr(torch.stack(pixels)),
    )
