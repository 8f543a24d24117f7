"""A run's tokenizer, fitted to the data and saved in the run folder, and its images as codes."""

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
from patchcast.methods import Method
from patchcast.recipe import Resolved
from patchcast.runs.build import augmentation, evaluation
from patchcast.runs.timm_arguments import timm_args
from patchcast.tokenizers.encoded import CodeSet, Mirror, Unchanged, encode_images
from patchcast.tokenizers.loading import load_tokenizer
from patchcast.tokenizers.palette import ImageSource, Palette, fit_palette, to_levels
from patchcast.tokenizers.patches import PatchCodebook

AnyTokenizer = Palette | PatchCodebook
TOKENIZER = "tokenizer.safetensors"
COUNTED = 10_000
"""Maximum number of training images for the counting baselines."""
JUDGED = 1000
"""Maximum number of images for the PSNR of the palette."""


def find_tokenizer(recipe: Resolved, method: Method, images: Images) -> AnyTokenizer | None:
    """A run's tokenizer, from the recipe's file or by k-means; None if the method predicts no codes.

    A palette is fitted to pixels at the size at which images are encoded, a codebook to patches of augmented images.
    """
    kind = method.codes
    if kind is None:
        return None
    if recipe.tokenizer is not None:
        return load_tokenizer(recipe.tokenizer)
    assert recipe.codes is not None
    if kind == "colors":
        return fit_palette(Resized(images, evaluation(recipe)), recipe.codes, seed=recipe.seed)
    with torch.device("meta"):
        stride = wrap(recipe.model, **timm_args(recipe)).stride
    train = TrainSet(images, augmentation(recipe), recipe.seed)
    steps = max(1, len(train) // recipe.batch_size)
    batches = loader(train, EpochSampler(len(train), recipe.batch_size, seed=recipe.seed, steps=steps), workers=0)
    return PatchCodebook.fit(
        (pixels for pixels, _ in batches), stride=stride, vocabulary=recipe.codes, seed=recipe.seed
    )


def save_tokenizer(tokenizer: AnyTokenizer | None, out: Path) -> None:
    """Save the tokenizer in a run folder if there is none."""
    if tokenizer is not None and not (out / TOKENIZER).exists():
        tokenizer.save(out / TOKENIZER)


def saved_tokenizer(out: Path) -> AnyTokenizer | None:
    """The tokenizer in a run folder; None if there is none."""
    return load_tokenizer(out / TOKENIZER) if (out / TOKENIZER).exists() else None


@dataclass(frozen=True)
class Resized:
    """A source's images at the size at which they are encoded."""

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
        train: the training images; half of them are mirrored if the recipe says so.
        held_out: the images for the evaluation loss, if there are any.
        floors: losses of the counting baselines on the held-out images (training images if there are none).
        psnr: of these images after quantization, in dB; infinite if they are unchanged.
    """

    train: TrainSet
    held_out: DataLoader[Any] | None
    floors: Floors
    psnr: float

    def __str__(self) -> str:
        quality = "represents the images exactly" if self.psnr == float("inf") else f"has a PSNR of {self.psnr:.1f} dB"
        return f"The palette {quality}. Losses of the counting baselines: {self.floors}."


def encode(recipe: Resolved, palette: Palette, images: Images, held_out: ImageSource | None) -> CodeData:
    """Encode a run's images, or load their codes from the user's cache folder."""
    grid = Grid(*recipe.image_size)

    def codes(source: ImageSource) -> CodeSet:
        return encode_images(source, palette, evaluation(recipe), grid, progress=True)

    train = codes(images)
    judged = train if held_out is None else codes(held_out)
    counted = evenly_spaced(len(train), COUNTED)
    source = images if held_out is None else held_out
    pixels = [to_levels(evaluation(recipe)(source[place][0])) for place in evenly_spaced(len(source), JUDGED)]
    return CodeData(
        TrainSet(train, Mirror() if recipe.flip else Unchanged(), recipe.seed),
        None if held_out is None else DataLoader(judged, batch_size=recipe.batch_size),  # type: ignore[arg-type]
        floors(train.ids(counted), judged.ids(), palette.vocabulary),
        palette.psnr(torch.stack(pixels)),
    )
