"""The options of each command: one dataclass per command, read by `patchcast.cli`. Imports nothing heavy.

`pretrain`'s options are `patchcast.recipe.Recipe`. A field without a default is required; one with
`place` metadata is positional. The class docstring is the command's description, and its "Args:" are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from patchcast.backbones.capabilities import DEFAULT_READOUT, Readout
from patchcast.ranges import AT_LEAST_1, NOT_NEGATIVE, SEED, Range
from patchcast.recipe import Device

OPTION_RANGES: dict[str, Range] = {
    **dict.fromkeys(("limit", "max_pixels", "per_class", "finetune"), AT_LEAST_1),
    "draws": Range(2),
    "lidar": NOT_NEGATIVE,
    "seed": SEED,
}
"""The ranges of numbers that no command checks itself."""
Format = Literal["timm", "transformers", "onnx", "torch"]


def place(metavar: str) -> dict[str, Any]:
    """Metadata of a positional argument."""
    return {"metavar": metavar}


# ---- probe: options of every protocol, and of each one ---------------------------------------------------------------


@dataclass(kw_only=True)
class ProbeOptions:
    """Measure what a run or a timm model has learned, with labels.

    Args:
        source: a run folder, or a timm model by name.
        data: labeled images. Default: the run's own data.
        image_column: column of the images, where it is not called image or by another usual name.
        label_column: column of the labels, likewise.
        max_pixels: maximum number of pixels of an image; larger ones are skipped. Default: 178,956,970.
        split: the split of the data that is judged on. Default: test, or else validation.
        limit: maximum number of training images. Default: all.
        untrained: probe the network before training, with its initial weights.
        against: further networks, as rows of the table, by the words of pretrain's --start.
        device: where the network runs.
        out: a JSON file for the results. Default: in the run folder; none for a timm model.
    """

    source: str = field(metadata=place("RUN_OR_MODEL"))
    data: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    max_pixels: int | None = None
    split: str | None = None
    limit: int | None = None
    untrained: bool = False
    against: list[str] = field(default_factory=list)
    device: Device = "auto"
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Nearest neighbors and linear classifiers on the pooled features.

    Args:
        per_class: labels per class for the few-label probe.
        draws: random draws of the labeled images in the few-label probe.
        lidar: augmented views of each image for LiDAR. Default: LiDAR is not measured.
        readout: how the units of an image become one feature.
        cache: keep features in the user's cache folder and reuse them.
    """

    per_class: list[int] = field(default_factory=lambda: [5, 10, 20])
    draws: int = 20
    lidar: int = 0
    readout: Readout = DEFAULT_READOUT
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Linear probes of layers.

    Args:
        layers: their numbers, or all.
        cache: keep features in the user's cache folder and reuse them.
    """

    layers: list[str]
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class Attentive:
    """AIM's attentive probe, a learned query that attends to the units.

    Args:
        attentive: on the mean of the last six blocks, or of the best six.
        cache: keep features in the user's cache folder and reuse them.
    """

    attentive: Literal["last", "best"]
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class DenseOptions:
    """Classify each unit from its own feature.

    Args:
        dense: on images with masks or boxes, or on collages of labeled images.
    """

    dense: Literal["masks", "collages"]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train all weights with labels.

    Args:
        finetune: number of epochs.
    """

    finetune: int


PROBES: dict[str, type] = {
    "features": FeatureOptions,
    "layers": Layers,
    "attentive": Attentive,
    "dense": DenseOptions,
    "finetune": Finetune,
}
"""Options of each protocol in `patchcast.evaluation.PROTOCOLS`. Giving `--NAME` chooses the protocol."""


# ---- pretrain: what is not part of a recipe --------------------------------------------------------------------------


@dataclass(kw_only=True)
class PretrainOptions:
    """How `pretrain` treats a recipe.

    Args:
        dry_run: print parameters, memory, work and time of the run, and stop; no run folder is made.
    """

    dry_run: bool = False


# ---- the other commands ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Compare:
    """Compare runs, models and baselines in one table, with labels.

    Args:
        runs: run folders, folders of patchcast finetune, and other weights by the words of pretrain's --start.
        data: labeled images. Default: each run's own data.
        out: a file.parquet for all results.
        per_class: labels per class for the few-label probe.
        draws: random draws of the labeled images in the few-label probe.
        limit: maximum number of training images. Default: all.
        supervised: train the same network with labels as well, which takes as long as a run.
        against: further networks, as rows of the table, by the words of pretrain's --start.
        readout: how the units of an image become one feature.
        device: where networks run.
        cache: keep features in the user's cache folder and reuse them.
    """

    runs: list[Path] = field(metadata=place("RUN"))
    out: Path
    data: str | None = None
    per_class: list[int] = field(default_factory=lambda: [5, 20])
    draws: int = 20
    limit: int | None = None
    supervised: bool = True
    against: list[str] = field(default_factory=list)
    readout: Readout = DEFAULT_READOUT
    device: Device = "auto"
    cache: bool = True


@dataclass(kw_only=True)
class ReportOptions:
    """Write an HTML page about a run or model, or several side by side.

    Args:
        runs: run folders, folders of patchcast finetune, and tables of patchcast compare.
        data: images to show on the page of one run. Default: the run's own data.
        out: the file. Default: report.html in the folder, or here if there are several.
    """

    runs: list[Path] = field(metadata=place("RUN"))
    data: str | None = None
    out: Path | None = None


@dataclass(kw_only=True)
class Show:
    """Draw what a run predicts for images.

    Args:
        run: the run folder.
        images: image files. Default: held-out images of the run's data, evenly spaced.
        count: number of images of the run's data.
        seed: of what is hidden.
        out: the picture. Default: show.png in the run folder.
    """

    run: Path = field(metadata=place("RUN"))
    images: list[Path] = field(metadata=place("IMAGE"), default_factory=list)
    count: int = 8
    seed: int = 0
    out: Path | None = None


@dataclass(kw_only=True)
class Embed:
    """Write features of images to parquet or safetensors.

    Args:
        model: a run folder, or a timm model by name.
        data: a folder of images, parquet or tar files, hf:NAME, or digits.
        out: a new file.parquet or file.safetensors.
        features: pooled gives one vector per image; tokens and maps one per unit.
        readout: how the units of an image become one vector, with --features pooled.
        split: of the data.
        image_column: column of the images, where it is not called image or by another usual name.
        label_column: column of the labels, likewise.
        max_pixels: maximum number of pixels of an image; larger ones are skipped. Default: 178,956,970.
        tile_size: cut images into tiles of this many pixels per side and run each tile by itself. Default: no tiles.
        max_tiles: maximum number of tiles per image, with --tile_size.
        batch_size: images per batch.
        untrained: use a timm model with random weights, or a run's initial weights.
    """

    model: str = field(metadata=place("RUN_OR_MODEL"))
    data: str
    out: Path
    features: Literal["pooled", "tokens", "maps"] = "pooled"
    readout: Readout = DEFAULT_READOUT
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    max_pixels: int | None = None
    tile_size: int | None = None
    max_tiles: int = 6
    batch_size: int = 16
    untrained: bool = False


@dataclass(kw_only=True)
class FinetuneClassifier:
    """Train a classifier or a segmenter from a run or other weights.

    Args:
        model: a run folder, or other weights by the words of pretrain's --start.
        data: labeled images, by class folders or in a column; for segmentation a folder with images and masks in it.
        out: a folder for the model. The same command resumes one that was stopped.
        task: segmentation gives each pixel a class; masks are PNG with the class of each pixel as its number.
        freeze: train the head only. Default: with fewer than 20 training images per class.
        multi_label: an image has any number of labels: a list in a table, or text such as cat;dog (; alone: none).
        head: linear; attentive (timm's attention pooling, for plain vision transformers); or for segmentation conv,
            convolutions over four layers.
        tiles: for segmentation, cut images into tiles of the network's size and do not resize them; for large images.
        epochs: passes over the training images. Default: 30, or more for 200 steps; a frozen linear head is fitted
            without epochs.
        lr: peak learning rate. Default: 0.001; 0.003 for an attentive head on a frozen backbone.
        batch_size: images per step. Default: 64, or all training images if there are fewer.
        layer_decay: learning rate of each block relative to the next one. Default: 0.65; 1 with --untrained.
        augment: none, light (crops and flips) or strong (TrivialAugment and erasing as well). Default: light; none for
            a frozen backbone.
        flip: mirror half of the augmented images. Default: on, but for digits.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix; 0 for none.
        smoothing: of the labels. Default: 0.1; 0 for a frozen backbone.
        class_weights: balanced gives every class the same weight in the loss.
        limit_per_class: train on at most this many images of each class. Default: all.
        image_size: pixels per side, for a timm model. Default: the model's own; a run knows its size.
        image_column: column of the images, where it is not called image or by another usual name.
        label_column: column of the labels, likewise.
        max_pixels: maximum number of pixels of an image; larger ones are skipped. Default: 178,956,970.
        untrained: start from random weights: what the start has to beat.
        seed: of held-out images, new weights, order and augmentation.
        device: where the model is trained.
        precision: of matrix products in training; weights stay fp32. On a CPU bf16 is faster where the processor has
            instructions for it, and slower elsewhere. Default: bf16 on a GPU, else fp32.
        workers: processes that read images. Default: none on the CPU.
    """

    model: str = field(metadata=place("RUN_OR_MODEL"))
    data: str
    out: Path
    freeze: bool | None = None
    multi_label: bool = False
    task: Literal["classification", "segmentation"] = "classification"
    head: Literal["linear", "attentive", "conv"] = "linear"
    tiles: bool = False
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    layer_decay: float | None = None
    augment: Literal["none", "light", "strong"] | None = None
    flip: bool | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float | None = None
    class_weights: Literal["none", "balanced"] = "none"
    limit_per_class: int | None = None
    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    max_pixels: int | None = None
    untrained: bool = False
    seed: int = 0
    device: Device = "auto"
    precision: Literal["fp32", "bf16"] | None = None
    workers: int | None = None


@dataclass(kw_only=True)
class Predict:
    """Write the classes of images with their probabilities.

    Args:
        model: a folder of patchcast finetune; or a run or a timm model, with --data.
        images: image files, folders, or any source that --data takes.
        out: a new file.parquet or file.csv; with a segmenter, a folder for masks. Default: a table of the first images
            is printed.
        data: labeled images that vote, for a model without a classifier.
        neighbors: number of labeled images that vote, with --data.
        top: number of classes per image.
        split: of the images. Default: all splits.
        batch_size: images per batch.
        device: where the model runs.
    """

    model: str = field(metadata=place("MODEL"))
    images: list[str] = field(metadata=place("IMAGES"))
    out: Path | None = None
    data: str | None = None
    neighbors: int = 20
    top: int = 3
    split: str | None = None
    batch_size: int = 64
    device: Device = "auto"


@dataclass(kw_only=True)
class Search:
    """Show the images of a source that are nearest to one image.

    Args:
        model: a run folder, or a timm model by name.
        image: an image file.
        data: images to search: a folder, parquet or tar files, hf:NAME, or digits.
        count: number of images to show.
        readout: how the units of an image become one feature.
        split: of the data. Default: all splits.
        out: a PNG; a table is written next to it as CSV.
        device: where the model runs.
        cache: keep features in the user's cache folder and reuse them.
    """

    model: str = field(metadata=place("RUN_OR_MODEL"))
    image: Path = field(metadata=place("IMAGE"))
    data: str
    count: int = 11
    readout: Readout = DEFAULT_READOUT
    split: str | None = None
    out: Path = Path("search.png")
    device: Device = "auto"
    cache: bool = True


@dataclass(kw_only=True)
class Drawing:
    """How a generative model draws.

    Args:
        temperature: divides the logits.
        top_k: draw from this many of the likeliest codes. Default: from all.
        top_p: draw from the likeliest codes with this probability in total. Default: from all.
        seed: of the drawing.
        batch_size: images drawn at once.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    batch_size: int = 64


@dataclass(kw_only=True)
class Sample(Drawing):
    """Draw new images with a run's ImageGPT.

    Args:
        run: the run folder.
        count: number of images.
        out: the PNG; a GIF is written next to it. Default: samples.png in the run folder.
    """

    run: Path = field(metadata=place("RUN"))
    count: int = 64
    out: Path | None = None


@dataclass(kw_only=True)
class Complete(Drawing):
    """Complete images from their first pixels or patches.

    Args:
        run: the run folder.
        images: image files. Default: the first images of the run's data.
        count: number of images of the run's data.
        prefix: number of units that are given, in the run's order. Default: half of the image.
        copies: completions per image, for ImageGPT.
        out: the PNG; a GIF is written next to it. Default: completions.png in the run folder.
    """

    run: Path = field(metadata=place("RUN"))
    images: list[Path] = field(metadata=place("IMAGE"), default_factory=list)
    count: int = 8
    prefix: int | None = None
    copies: int = 4
    out: Path | None = None


@dataclass(kw_only=True)
class Export:
    """Write a run or a trained model for other libraries.

    Args:
        run: the folder of a run or of patchcast finetune, or other weights by the words of pretrain's --start.
        out: a new folder for the weights and their README.md.
        to: the format; transformers takes MAE, ImageGPT and classifiers of plain vision transformers only; segmenters
            are for onnx and torch. Default: timm; transformers for an ImageGPT, torch for a segmenter.
    """

    run: Path = field(metadata=place("RUN_OR_MODEL"))
    out: Path
    to: Format | None = None


@dataclass(kw_only=True)
class Push:
    """Upload a run's encoder to the Hugging Face hub.

    Args:
        run: the run folder.
        repo: the repository. It is created if needed.
        to: the format; transformers takes MAE and ImageGPT only. Default: timm; transformers for an ImageGPT.
        private: create a private repository.
    """

    run: Path = field(metadata=place("RUN"))
    repo: str = field(metadata=place("USER/NAME"))
    to: Format | None = None
    private: bool = False


@dataclass(kw_only=True)
class Check:
    """Test a run or a recipe for leaks of the answer into the input.

    Args:
        source: a run folder, or a recipe in YAML.
        out: the picture. Default: check.png in the run folder, or in the current one for a recipe.
    """

    source: Path = field(metadata=place("RUN_OR_RECIPE"))
    out: Path | None = None


@dataclass(kw_only=True)
class Data:
    """Check a source of images: counts, sizes, labels, unreadable files.

    Args:
        action: check reads the source once and says what is in it.
        source: as --data of pretrain: a folder, parquet or tar files, hf:NAME, digits.
        image_column: column of the images, where it is not called image or by another usual name.
        label_column: column of the labels, likewise.
        max_pixels: maximum number of pixels of an image; larger ones are skipped. Default: 178,956,970.
        split: check only this split; may be repeated. Default: all.
        limit: maximum number of images per split, evenly spaced. Default: all.
        workers: processes. Default: one per core, where there is much to read.
        out: a JSON file for the results.
    """

    action: Literal["check"] = field(metadata=place("ACTION"))
    source: str = field(metadata=place("SOURCE"))
    image_column: str | None = None
    label_column: str | None = None
    max_pixels: int | None = None
    split: list[str] = field(default_factory=list)
    limit: int | None = None
    workers: int | None = None
    out: Path | None = None


@dataclass(kw_only=True)
class Models:
    """List the available models and what can be done with them.

    Args:
        pattern: part of a name, or a pattern with * and ?.
        method: only models that this method can pretrain.
    """

    pattern: str = field(metadata=place("PATTERN"), default="*")
    method: str | None = None


@dataclass(kw_only=True)
class Demo:
    """Pretrain on digits in two minutes, and show what was learned.

    Args:
        out: a new run folder.
        table: print all numbers, and not only a summary.
    """

    out: Path = Path("runs/demo")
    table: bool = False


@dataclass(kw_only=True)
class Doctor:
    """Print versions, devices, defaults and what is not installed."""


@dataclass(kw_only=True)
class Completion:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: for bash, `eval "$(patchcast completion bash)"` in .bashrc; likewise for zsh in .zshrc.
    """

    shell: Literal["bash", "zsh"] = field(metadata=place("SHELL"))
