"""`Recipe`: all that a run is, as plain values. Flags, YAML files and a run folder's config.yaml are the same thing.

Light on purpose: nothing here imports torch until a recipe is resolved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "gpu"]
CropMode = Literal["center", "squash"]
SomeRecipe = TypeVar("SomeRecipe", bound="Recipe")


@dataclass
class Recipe:
    """Pretrain a vision transformer on unlabelled images.

    What is left out follows the model, the data and the method, and is written to config.yaml in the run folder.

    Args:
        method: aim, aim_features, beit, ijepa, imagegpt, imagegpt_masked, mae or simmim.
        model: any timm vision transformer, by name; for imagegpt and imagegpt_masked imagegpt_s, imagegpt_m,
            imagegpt_l or imagegpt_xl, or imagegpt with depth, width and heads as model_args.
        data: "digits", a folder of images, parquet or tar files or folders of them (also as shard-{000..009}.tar, or
            by URL), hf:NAME or hf-stream:NAME of a Hugging Face dataset. See docs/data.md.
        out: the run folder.
        method_args: options of the method, such as mask_ratio of mae; see the method's page.
        model_args: arguments of timm's create_model, or of the ImageGPT network.
        pretrained: start from timm's weights instead of random ones.
        image_size: height and width in pixels. Default: the model's; or the data's, where the images are smaller.
        tile_size: pixels per side of a tile. Images are cut into tiles of this size, and the model, built for one of
            them, runs over all tiles together. Default: images are not cut.
        patch_size: pixels per side of a patch. Default: the model's; where images are smaller than the model's, one
            that gives at least 7 patches a side.
        channels: of the images, 1, 3 or 4; or as many as the files have. Default: the data's.
        codes: how many codes beit and imagegpt predict from, of patches or colours found in the data. Default: 512.
        tokenizer: a saved palette or codebook to take them from instead. What is used is kept in the run folder.
        mean: of each channel, white being 1. Default: measured on the data; the model's if it is pretrained.
        std: of each channel, likewise.
        crop_scale: smallest and largest share of the area that random crops keep. Default: the method's.
        crop_mode: how an image that is not cropped at random comes to image_size, in timm's words: "center" resizes it
            until it just covers that size and cuts its center out, "squash" resizes all of it, whatever its shape.
            Default: squash for imagegpt and imagegpt_masked, as transformers' processor can do no other; else center.
        flip: mirror half of the images. Not for digits, letters or anything else that has a handedness.
        epochs: passes over the data; ignored if steps is given.
        steps: optimiser steps.
        batch_size: images a step.
        lr: peak learning rate. Default: the method's for 256 images, in proportion to the batch.
        betas: of AdamW. Default: the method's.
        weight_decay: of matrices. Default: the method's.
        warmup: share of the steps over which the learning rate rises.
        clip: largest norm of the gradient, 0 for none. Default: the method's.
        precision: fp32 or bf16. Default: bf16 on a GPU that has it.
        device: auto, cpu or gpu.
        workers: processes that read and augment images. Default: none on the CPU, where they would take the cores
            that training needs; on a GPU one for each core, up to 8.
        seed: of everything random.
        log_every: steps between two rows of metrics.csv.
        eval_every: steps between two evaluations on the data's test or validation split. Default: ten in the run.
        checkpoint_every: steps between two checkpoints. Default: ten in the run.
        probe_data: a labelled source, perhaps the same as data, whose accuracy by the 20 nearest neighbours and by a
            linear classifier is in metrics.csv at every evaluation. What is learnt does not depend on it.
        pictures: draw what the model predicts for eight images at every evaluation, into the run folder's images/.
        tensorboard: also log to TensorBoard, in the run folder.
        wandb: also log to Weights & Biases, into the project of this name.
        devices: GPUs of each machine, or processes on the CPU, that share each batch.
        nodes: machines that share it; start the command on each with torchrun or SLURM.
        sharded: devices share out the weights and the optimiser's state (FSDP2) instead of each holding all.
        accumulate: pieces in which each device takes its part of a batch, one after the other.
        compile: make kernels for the model with torch.compile, which takes a minute at the start.
        checkpointing: compute the activations of blocks again instead of keeping them: slower, in less memory.
    """

    method: str
    model: str
    data: str
    out: Path
    method_args: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    image_size: tuple[int, int] | None = None
    tile_size: int | None = None
    patch_size: int | None = None
    channels: int | None = None
    codes: int | None = None
    tokenizer: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_scale: tuple[float, float] | None = None
    crop_mode: CropMode | None = None
    flip: bool | None = None
    epochs: float = 100.0
    steps: int | None = None
    batch_size: int = 256
    lr: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    warmup: float = 0.05
    clip: float | None = None
    precision: Precision | None = None
    device: Device = "auto"
    workers: int | None = None
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = None
    checkpoint_every: int | None = None
    probe_data: str | None = None
    pictures: bool = True
    tensorboard: bool = False
    wandb: str | None = None
    devices: int = 1
    nodes: int = 1
    sharded: bool = False
    accumulate: int = 1
    compile: bool = False
    checkpointing: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for YAML."""
        values = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in values.items()}

    def differences(self, other: Recipe) -> str:
        """In what both would not learn the same, in words; empty if they would.

        Where and how fast they run makes no difference.
        """
        indifferent = {"out", "device", "workers", "log_every", "eval_every", "checkpoint_every"}
        indifferent |= {"probe_data", "pictures", "tensorboard", "wandb"}
        indifferent |= {"devices", "nodes", "sharded", "accumulate", "compile", "checkpointing"}
        mine, theirs = self.to_dict(), other.to_dict()
        differing = [name for name in mine if name not in indifferent and mine[name] != theirs[name]]
        return ", ".join(f"{name} is {theirs[name]} there and {mine[name]} here" for name in differing)

    def save(self, file: Path) -> None:
        import yaml

        heading = f"# Run again with: patchcast pretrain --config {file.name} --out ANOTHER_FOLDER\n"
        file.write_text(heading + yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls: type[SomeRecipe], file: Path) -> SomeRecipe:
        """Read a recipe that `save` wrote.

        Raises:
            ValueError: if the file has an option that recipes do not.
        """
        import yaml

        values = yaml.safe_load(file.read_text())
        known = {each.name for each in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{file} has unknown options: {', '.join(unknown)}")
        for name in ("image_size", "mean", "std", "crop_scale", "betas"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        if "epochs" in values:
            values["epochs"] = float(values["epochs"])  # a person writes 5
        for name in ("out", "tokenizer"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return cls(**values)


@dataclass(kw_only=True)
class Resolved(Recipe):
    """A recipe with nothing left open: what config.yaml of a run holds."""

    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_scale: tuple[float, float]
    crop_mode: CropMode = "center"  # of runs that were written before there was another
    flip: bool
    steps: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    precision: Precision
    workers: int
    eval_every: int
    checkpoint_every: int


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value
